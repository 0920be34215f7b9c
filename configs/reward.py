"""A reward model on the preference pairs.

python -m experiments.reward --workdir=runs/reward
Result: eval accuracy well above one half; with --config.shuffle_labels one half.
"""

from llm_jax import config


def get_config() -> config.Reward:
  """Returns the default of `experiments.reward`."""
  cfg = config.Reward()
  cfg.steps = 200
  cfg.batch = 16
  cfg.length = 128
  cfg.optimizer.lr = 3e-4
  return cfg
