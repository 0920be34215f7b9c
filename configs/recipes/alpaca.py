"""Stanford Alpaca: SFT on 52,002 instructions that text-davinci-003 answered (Taori et al., 2023).

python -m experiments.recipe --config=configs/recipes/alpaca.py --workdir=runs/alpaca
  --config.base=llama-7b
python -m experiments.recipe --config=configs/recipes/alpaca.py:tiny --workdir=runs/alpaca_tiny
Data: alpaca_data.json of github.com/tatsu-lab/stanford_alpaca.
Result, as its authors report it: answers on a par with text-davinci-003's in a blind comparison on
the Self-Instruct test set, 90 wins to 89. Tiny: the loss of SFT falls.
"""

import dataclasses
from dataclasses import field

from configs.recipes import _common
from llm_jax import config


@dataclasses.dataclass
class Alpaca(config.Recipe):
  """One stage."""

  sft: config.Sft = field(default_factory=config.Sft)


def get_config(variant: str = "") -> Alpaca:
  """Returns the recipe, or a trial of it for "tiny"."""
  _common.check("alpaca", variant)
  cfg = Alpaca(template="alpaca")
  # The README's command: 3 epochs, 128 conversations an update, one a row, cosine with 3 % warmup;
  # lr 1e-5 and 5 epochs for 13B. The trainer rounds down: 52,002 / 128 = 406 updates an epoch.
  cfg.sft = config.Sft(
    init="@base", data=("data/alpaca_data.json",), validation=_common.HELD_OUT,
    steps=3 * 406, batch=128, length=512, packed=False,
    optimizer=_common.adamw(2e-5, "cosine", warmup=37),
  )  # fmt: skip
  if variant == "tiny":
    cfg.sft.data = ("@examples/alpaca.json",)
    _common.tiny(cfg)
  return cfg
