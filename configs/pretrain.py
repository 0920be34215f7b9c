"""A decoder of about 1.5 million parameters, pretrained on the prepared corpus.

python -m experiments.pretrain --workdir=runs/pretrain
Result: eval/bits_per_byte far below the unigram model's.
"""

from llm_jax import config


def get_config() -> config.Pretrain:
  """Returns the default of `experiments.pretrain`."""
  cfg = config.Pretrain()
  cfg.steps = 640
  cfg.batch = 16
  cfg.length = 128
  cfg.log_every = 25
  cfg.eval_every = 320
  cfg.checkpoint_every = 320
  cfg.model.matmul_precision = "bfloat16"  # The stages after it have this model.
  cfg.optimizer.name = "muon"
  cfg.optimizer.matmul_precision = "bfloat16"
  cfg.optimizer.lr = 4e-3
  cfg.optimizer.adam_lr = 0.04  # Of embeddings and norms; at 4e-3 it takes 800 steps.
  return cfg
