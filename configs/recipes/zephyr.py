"""Zephyr: SFT on UltraChat, then DPO on UltraFeedback (Tunstall et al. 2023, arXiv:2310.16944).

python -m experiments.recipe --config=configs/recipes/zephyr.py --workdir=runs/zephyr
  --config.base=mistral-7b
python -m experiments.recipe --config=configs/recipes/zephyr.py:tiny --workdir=runs/zephyr_tiny
Data: HuggingFaceH4/ultrachat_200k and HuggingFaceH4/ultrafeedback_binarized on Hugging Face.
Result, as the paper reports it of 7B: MT-Bench 7.34, AlpacaEval 90.6 %. Tiny: the loss of SFT
falls, and DPO's margin of held-out pairs is above zero.
"""

import dataclasses
from dataclasses import field

from configs.recipes import _common
from llm_jax import config


@dataclasses.dataclass
class Zephyr(config.Recipe):
  """Two stages."""

  sft: config.Sft = field(default_factory=config.Sft)
  dpo: config.Dpo = field(default_factory=config.Dpo)


def get_config(variant: str = "") -> Zephyr:
  """Returns the recipe, or a trial of it for "tiny"."""
  _common.check("zephyr", variant)
  cfg = Zephyr(template="zephyr")
  # The alignment handbook's recipes/zephyr-7b-beta, config_full.yaml of sft and dpo: one epoch
  # each, cosine with 10 % warmup. (The paper's text has beta 0.1 and three epochs of DPO.) SFT
  # packs rows, 8 devices times 16: their model card counts 1,090 updates for 207,865 conversations.
  cfg.sft = config.Sft(
    init="@base", steps=1090, batch=128, length=2048,
    data=tuple(f"data/ultrachat_200k/train_sft-0000{i}-of-00003.parquet" for i in range(3)),
    validation_data=("data/ultrachat_200k/test_sft-00000-of-00001.parquet",),
    optimizer=_common.adamw(2e-5, "cosine", warmup=109),
  )  # fmt: skip
  # 8 devices times 8, accumulated twice; 61,135 / 128 = 478.
  cfg.dpo = config.Dpo(
    init="@sft", loss="logistic(beta=0.01)", validation=_common.HELD_OUT,
    preferences="data/ultrafeedback_binarized/train_prefs-00000-of-00001.parquet",
    steps=478, batch=128, length=1024,
    optimizer=_common.adamw(5e-7, "cosine", warmup=48),
  )  # fmt: skip
  if variant == "tiny":
    cfg.sft.data, cfg.sft.validation_data = ("@examples/messages.jsonl",), ()
    cfg.dpo.preferences = "@examples/ultrafeedback.jsonl"
    _common.tiny(cfg)
  return cfg
