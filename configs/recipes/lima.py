"""LIMA: SFT on 1,030 chosen conversations and nothing else (Zhou et al. 2023, arXiv:2305.11206).

python -m experiments.recipe --config=configs/recipes/lima.py --workdir=runs/lima
  --config.base=llama-65b
python -m experiments.recipe --config=configs/recipes/lima.py:tiny --workdir=runs/lima_tiny
Data: train.jsonl of GAIR/lima on Hugging Face (a licence must be accepted).
Result, as the paper reports it of 65B: people find its answers as good as GPT-4's, or better, in 43
% of cases. Tiny: the loss of SFT falls.
"""

import dataclasses
from dataclasses import field

from configs.recipes import _common
from llm_jax import config


@dataclasses.dataclass
class Lima(config.Recipe):
  """One stage."""

  sft: config.Sft = field(default_factory=config.Sft)


def get_config(variant: str = "") -> Lima:
  """Returns the recipe, or a trial of it for "tiny"."""
  _common.check("lima", variant)
  # Section 3: every turn is ended by a token of its own, as in our template. Residual dropout, 0 in
  # the first layer to 0.3 in the last (0.2 for small models), is a matter of the model here, and
  # left out: config.Model.dropout is one rate for all layers.
  cfg = Lima(template="")
  # 15 epochs, 32 conversations an update (64 for models below 65B), one a row, 1e-5 to 1e-6 in a
  # line, no warmup. 15 * 1,030 / 32 = 483; the paper chooses among epochs 5 to 10 by hand.
  cfg.sft = config.Sft(
    init="@base", data=("data/lima/train.jsonl",), validation=_common.HELD_OUT,
    steps=483, batch=32, length=2048, packed=False,
    optimizer=_common.adamw(1e-5, "linear", final=0.1, beta2=0.95, weight_decay=0.1),
  )  # fmt: skip
  if variant == "tiny":
    cfg.sft.data = ("@examples/lima.jsonl",)
    _common.tiny(cfg)
  return cfg
