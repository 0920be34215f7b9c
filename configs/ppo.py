"""PPO from the SFT model against the reward model.

python -m experiments.ppo --workdir=runs/ppo
Result: the score rises by half a standard deviation at a KL to the SFT model of 2 to 3 nats. A
smaller kl_init buys more score at more KL, and from about 5 nats on the gold score falls.
"""

from llm_jax import config


def get_config() -> config.Ppo:
  """Returns the default of `experiments.ppo`."""
  cfg = config.Ppo()
  cfg.steps = 64
  cfg.batch = 64
  cfg.rollouts = 128
  cfg.kl_init = 0.11
  cfg.log_every = 4
  cfg.optimizer.lr = 3e-4
  cfg.optimizer.warmup = 5
  return cfg
