"""A scaling law of tiny models on the prepared corpus: 24 runs or fewer.

python -m experiments.scaling_law --workdir=runs/scaling_law
Result: scaling_law.json and scaling_law.svg; the law predicts the losses of held-out runs.
"""

from configs import pretrain
from llm_jax import config


def get_config() -> config.ScalingLaw:
  """Returns the default of `experiments.scaling_law`."""
  cfg = config.ScalingLaw()
  cfg.pretrain = pretrain.get_config()
  cfg.pretrain.log_every = 10
  return cfg
