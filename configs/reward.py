"""A reward model on the preference pairs.

python -m experiments.reward --workdir=runs/reward
Result: eval accuracy well above one half; with --config.shuffle_labels one half.
"""

from llm_jax import config


def get_config() -> config.Reward:
  """Returns the default of `experiments.reward`."""
  cfg = config.Reward()
  cfg.steps = 140
  cfg.batch = 32
  cfg.length = 72
  cfg.eval_every = 140
  cfg.optimizer.name = "muon"
  cfg.optimizer.matmul_precision = "bfloat16"
  cfg.optimizer.lr = 1e-3
  cfg.optimizer.adam_lr = 5e-4
  cfg.optimizer.warmup = 10
  return cfg
