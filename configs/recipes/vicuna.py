"""Vicuna: SFT on conversations that users shared, of many turns (Chiang et al., 2023; FastChat).

python -m experiments.recipe --config=configs/recipes/vicuna.py --workdir=runs/vicuna
  --config.base=llama-7b
python -m experiments.recipe --config=configs/recipes/vicuna.py:tiny --workdir=runs/vicuna_tiny
Data: the authors' 70,000 conversations are not public; others have published ShareGPT's as
ShareGPT_V3_unfiltered_cleaned_split.json (anon8231489123/ShareGPT_Vicuna_unfiltered).
Result, as its authors report it: by GPT-4's judgement more than 90 % of ChatGPT's quality. Tiny:
the loss of SFT falls.
"""

import dataclasses
from dataclasses import field

from configs.recipes import _common
from llm_jax import config


@dataclasses.dataclass
class Vicuna(config.Recipe):
  """One stage."""

  sft: config.Sft = field(default_factory=config.Sft)


def get_config(variant: str = "") -> Vicuna:
  """Returns the recipe, or a trial of it for "tiny"."""
  _common.check("vicuna", variant)
  cfg = Vicuna(template="vicuna")
  # FastChat's train_mem command: 3 epochs, 128 conversations an update, one a row, all answers
  # learned, cosine with 3 % warmup. Of the authors' data: 70,000 / 128 = 546 updates an epoch.
  cfg.sft = config.Sft(
    init="@base", data=("data/ShareGPT_V3_unfiltered_cleaned_split.json",),
    validation=_common.HELD_OUT, steps=3 * 546, batch=128, length=2048, packed=False,
    optimizer=_common.adamw(2e-5, "cosine", warmup=50),
  )  # fmt: skip
  if variant == "tiny":
    cfg.sft.data = ("@examples/sharegpt.json",)
    _common.tiny(cfg)
  return cfg
