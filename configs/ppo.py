"""PPO from the SFT model against the reward model, and by name what others published.

python -m experiments.ppo --workdir=runs/ppo
python -m experiments.ppo --workdir=runs/ppo_lora --config=configs/ppo.py:lora
Result: the score rises by half a standard deviation at a KL to the SFT model of 2 to 3 nats. A
smaller kl_init buys more score at more KL, and from about 5 nats on the gold score falls.

instructgpt, llama2 and nplus have the published batch, rates and conventions for billions of
parameters: `--config.steps`, `--config.rollouts` and `--config.batch` make them smaller.
"""

from llm_jax import config
from llm_jax.errors import UserError, nearest

VARIANTS = ("", "lora", "instructgpt", "llama2", "nplus")


def get_config(variant: str = "") -> config.Ppo:
  """Returns the default of `experiments.ppo`, or one of its variants by name."""
  if variant not in VARIANTS:
    raise UserError(f'configs/ppo.py has no variant "{variant}"{nearest(variant, VARIANTS[1:])}')
  if variant in ("instructgpt", "llama2", "nplus"):
    return published(variant)
  cfg = config.Ppo()
  cfg.steps = 64
  cfg.batch = 64
  cfg.rollouts = 128
  cfg.kl_init = 0.12
  cfg.log_every = 4
  cfg.optimizer.lr = 3e-4
  cfg.optimizer.warmup = 5
  if variant == "lora":  # Adapters learn at some three times the rate.
    cfg.lora.rank = 8
    cfg.optimizer.lr = 1e-3
  return cfg


def published(name: str) -> config.Ppo:
  """Returns the PPO of a paper."""
  cfg = config.Ppo(rollouts=512, critic_head="reward", max_approxkl=0.0, log_every=1)
  cfg.sampling.temperature = 1.0
  if name == "instructgpt":  # Ouyang et al. 2022, arXiv:2203.02155, appendix C.4: 256k answers.
    cfg.batch, cfg.steps = 64, 4000
    cfg.kl_init, cfg.missing_end_penalty = 0.02, 0.0
    cfg.ptx_coef, cfg.ptx_batch = 27.8, 512  # Eight documents to an answer.
    cfg.optimizer = config.Optimizer(lr=9e-6, schedule="constant", warmup=80)
  elif name == "llama2":  # Touvron et al. 2023, arXiv:2307.09288, section 3.2.3.
    cfg.batch, cfg.steps = 64, 3200
    cfg.kl_init, cfg.missing_end_penalty = 0.01, 0.0  # 0.005 for the two large ones.
    cfg.whiten_scores = True
    cfg.optimizer = config.Optimizer(
      lr=1e-6, schedule="constant", warmup=0, eps=1e-5, weight_decay=0.1
    )
  else:  # Huang et al. 2024, arXiv:2403.17031: TL;DR, a million answers, four passes over each.
    cfg.batch, cfg.steps, cfg.epochs = 512, 7812, 4
    cfg.sampling.temperature, cfg.sampling.max_new = 0.7, 53
    cfg.kl_init = 0.05
    cfg.missing_end, cfg.missing_end_penalty = "replace", 1.0
    cfg.optimizer = config.Optimizer(
      lr=3e-6, schedule="cosine", warmup=0, beta2=0.999, eps=1e-5, clip=0.0
    )
  return cfg
