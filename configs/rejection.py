"""Rejection sampling: SFT on the best of eight of the SFT model's own answers.

python -m experiments.rejection --workdir=runs/rejection
Result: round-0/selected.jsonl, round-0/best_of.json; a policy whose answers score higher.
"""

from llm_jax import config


def get_config() -> config.Rejection:
  """Returns the default of `experiments.rejection`."""
  cfg = config.Rejection()
  cfg.measure = "gold"
  cfg.questions = 1024
  cfg.steps = 120
  cfg.batch = 16
  cfg.length = 128
  cfg.optimizer.lr = 3e-4
  cfg.optimizer.warmup = 10
  return cfg
