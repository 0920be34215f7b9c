"""GRPO from the SFT model against the reward model, and by name what came after it.

python -m experiments.grpo --workdir=runs/grpo
python -m experiments.grpo --workdir=runs/rloo --config=configs/grpo.py:rloo
Result: objective/scores rises from zero, in standard deviations of the SFT model's answers.
"""

from llm_jax import config
from llm_jax.errors import UserError, nearest

# What each changes of GRPO (arXiv:2402.03300: a loss averaged over answers, k3 to the reference).
VARIANTS = {
  "grpo": {},
  "dr_grpo": {  # arXiv:2503.20783: no deviation, no length in the loss, no KL.
    "advantage": "group_advantage(scale=False)", "aggregate": "constant", "kl_coef": 0.0,
  },
  "dapo": {  # arXiv:2503.14476: clip-higher, all tokens alike, groups that tie are left out, no KL.
    "loss": "ppo_clip(clip=0.2, clip_high=0.28)", "aggregate": "token", "kl_coef": 0.0,
    "drop_ties": True,
  },
  "rloo": {  # arXiv:2402.14740: REINFORCE with the others as baseline, k1 in the reward.
    "advantage": "rloo_advantage()", "loss": "reinforce()", "aggregate": "constant",
    "kl_coef": 0.0, "reward_kl": 0.05, "batch": 128,
  },
  "reinforce_pp": {  # arXiv:2501.03262: the batch as baseline, k1 in the reward.
    "advantage": "batch_advantage()", "aggregate": "token", "kl_coef": 0.0, "reward_kl": 0.05,
  },
  "gspo": {"loss": "gspo(clip=0.0003, clip_high=0.0004)", "kl_coef": 0.0},  # arXiv:2507.18071.
  "cispo": {"loss": "cispo()", "aggregate": "token", "kl_coef": 0.0},  # arXiv:2506.13585.
}  # fmt: skip


def get_config(variant: str = "grpo") -> config.Grpo:
  """Returns the default of `experiments.grpo`, or one of its relatives by name."""
  if variant not in VARIANTS:
    raise UserError(f'configs/grpo.py has no variant "{variant}"{nearest(variant, VARIANTS)}')
  cfg = config.Grpo()
  cfg.steps = 64
  cfg.batch = 64
  cfg.aggregate = "sequence"
  cfg.kl_coef = 0.04
  cfg.log_every = 4
  cfg.missing_end_penalty = 1.0
  cfg.optimizer.lr = 3e-4
  cfg.optimizer.warmup = 5
  for name, value in VARIANTS[variant].items():
    setattr(cfg, name, value)
  return cfg
