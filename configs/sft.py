"""The pretrained decoder, fine-tuned on questions and their true answers.

python -m experiments.sft --workdir=runs/sft
Result: eval/loss falls; answers end with the turn's end token.
"""

from llm_jax import config


def get_config() -> config.Sft:
  """Returns the default of `experiments.sft`."""
  cfg = config.Sft()
  cfg.steps = 600
  cfg.batch = 16
  cfg.length = 128
  cfg.log_every = 25
  cfg.eval_every = 300
  cfg.checkpoint_every = 300
  cfg.optimizer.name = "muon"
  cfg.optimizer.lr = 2e-3
  cfg.optimizer.warmup = 10
  return cfg
