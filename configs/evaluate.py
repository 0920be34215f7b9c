"""All policies of a pipeline on held-out questions.

python -m experiments.evaluate --workdir=runs/evaluate
Result: one row a policy: relevance and its control, form, gold score, reward, KL, win rates.
"""

from llm_jax import config


def get_config() -> config.Evaluate:
  """Returns the default of `experiments.evaluate`."""
  cfg = config.Evaluate()
  cfg.questions = 256
  cfg.samples = 4
  return cfg
