"""FLAN: SFT on many tasks, written as instructions (Wei et al. 2022, arXiv:2109.01652).

python -m experiments.recipe --config=configs/recipes/flan.py --workdir=runs/flan
  --config.base=base-model
python -m experiments.recipe --config=configs/recipes/flan.py:tiny --workdir=runs/flan_tiny
Data: {"inputs", "targets"} rows, as Open-Orca/FLAN on Hugging Face has them, or as github.com/
google-research/FLAN writes them; a file a task, at most 30,000 rows of each.
Result, as the paper reports it of 137B: better zero-shot than GPT-3 175B on 20 of 25 data sets.
Tiny: the loss of SFT falls.
"""

import dataclasses
from dataclasses import field

from configs.recipes import _common
from llm_jax import config


@dataclasses.dataclass
class Flan(config.Recipe):
  """One stage."""

  sft: config.Sft = field(default_factory=config.Sft)


def get_config(variant: str = "") -> Flan:
  """Returns the recipe, or a trial of it for "tiny"."""
  _common.check("flan", variant)
  cfg = Flan(template="")
  # Section 2.4: 30,000 updates of 8,192 tokens, packed, of inputs up to 1,024 and targets up to
  # 256; Adafactor at 3e-5. Rows here are of both together, eight times 1,024 an update. Adafactor
  # scales its rate by each parameter's size, as T5's does.
  cfg.sft = config.Sft(
    init="@base", data=("data/flan.jsonl",), validation=_common.HELD_OUT,
    steps=30_000, batch=8, length=1024,
    optimizer=config.Optimizer(name="adafactor", lr=3e-5, schedule="constant", warmup=0),
  )  # fmt: skip
  if variant == "tiny":
    cfg.sft.data = ("@examples/flan.jsonl",)
    _common.tiny(cfg)
    cfg.sft.optimizer.lr = 1e-2  # Of a parameter's root mean square.
  return cfg
