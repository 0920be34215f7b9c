"""AI feedback by principles: soft preferences of a judge, or answers that the model has revised.

python -m experiments.rlaif --workdir=runs/rlaif
python -m experiments.rlaif --workdir=runs/revised --config=configs/rlaif.py:revise
Result: train.jsonl for experiments.reward and experiments.dpo, or revised.jsonl for
experiments.sft; counts.json says how often the order of two answers changed the verdict.
"""

from llm_jax import config
from llm_jax.errors import UserError, nearest

VARIANTS = ("prefer", "revise")


def get_config(variant: str = "prefer") -> config.Rlaif:
  """Returns the default of `experiments.rlaif`, or its other part by name."""
  if variant not in VARIANTS:
    raise UserError(f'configs/rlaif.py has no variant "{variant}"{nearest(variant, VARIANTS)}')
  cfg = config.Rlaif(part=variant)
  cfg.judge.run = "runs/quickstart/sft"  # As good a judge as it is: name a larger model here.
  cfg.questions = 1024
  cfg.sampling.temperature = 1.0
  return cfg
