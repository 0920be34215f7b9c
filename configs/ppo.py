"""PPO from the SFT model against the reward model.

python -m experiments.ppo --workdir=runs/ppo
Result: the score of answers rises while the KL to the SFT model stays small.
"""

from llm_jax import config


def get_config() -> config.Ppo:
  """Returns the default of `experiments.ppo`."""
  cfg = config.Ppo()
  cfg.steps = 80
  cfg.batch = 32
  cfg.rollouts = 64
  cfg.kl_init = 0.08
  cfg.log_every = 4
  cfg.optimizer.lr = 3e-4
  cfg.optimizer.warmup = 5
  return cfg
