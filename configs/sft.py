"""The pretrained decoder, fine-tuned on questions and their true answers.

python -m experiments.sft --workdir=runs/sft
Result: eval/loss falls; answers end with the turn's end token.
"""

from llm_jax import config


def get_config() -> config.Sft:
  """Returns the default of `experiments.sft`."""
  cfg = config.Sft()
  cfg.steps = 300
  cfg.batch = 16
  cfg.length = 128
  cfg.optimizer.lr = 1e-3
  return cfg
