"""DPO from the SFT model; --config.loss='ipo(beta=0.2)' and the like swap the loss.

python -m experiments.dpo --workdir=runs/dpo
Result: the margin of held-out pairs grows from zero.
"""

from llm_jax import config


def get_config() -> config.Dpo:
  """Returns the default of `experiments.dpo`."""
  cfg = config.Dpo()
  cfg.steps = 150
  cfg.batch = 16
  cfg.length = 128
  cfg.optimizer.lr = 1e-4
  return cfg
