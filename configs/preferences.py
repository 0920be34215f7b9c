"""Preference pairs: true answers against spoilt ones, and the SFT model's best and worst.

python -m experiments.preferences --workdir=runs/preferences
Result: train.jsonl validation.jsonl counts.json.
"""

from llm_jax import config


def get_config() -> config.Preferences:
  """Returns the default of `experiments.preferences`."""
  cfg = config.Preferences()
  cfg.questions = 2000
  cfg.validation_questions = 400
  cfg.samples = 8
  cfg.easy = 0.35
  return cfg
