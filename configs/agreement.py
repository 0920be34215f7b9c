"""How well reward models and judges agree with people, on files of preferences.

python -m experiments.agreement --workdir=runs/agreement --config.data='("pairs.jsonl",)'
python -m experiments.agreement --workdir=runs/judged --config=configs/agreement.py:judge \\
    --config.data='("pairs.jsonl",)'
Result: agreement.json, and verdicts.jsonl with what was said of every pair.
"""

from llm_jax import config
from llm_jax.errors import UserError, nearest

VARIANTS = ("reward", "judge")


def get_config(variant: str = "reward") -> config.Agreement:
  """Returns the default of `experiments.agreement`, or the one that asks a judge."""
  if variant not in VARIANTS:
    raise UserError(f'configs/agreement.py has no variant "{variant}"{nearest(variant, VARIANTS)}')
  cfg = config.Agreement()
  cfg.data = ("runs/quickstart/preferences/validation.jsonl",)
  if variant == "judge":
    cfg.judge.run = "runs/quickstart/sft"
  else:
    cfg.score = "reward_model(run='runs/quickstart/reward')"
  return cfg
