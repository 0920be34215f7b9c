"""InstructGPT: SFT, a reward model of rankings, PPO beside pretraining (arXiv:2203.02155).

python -m experiments.recipe --config=configs/recipes/instructgpt.py --workdir=runs/instructgpt
  --config.base=base-model
python -m experiments.recipe --config=configs/recipes/instructgpt.py:tiny
  --workdir=runs/instructgpt_tiny
Data: OpenAI's is not public. OpenAssistant's trees have all three kinds: answers, rankings of
several answers to a prompt, and prompts: 2023-04-12_oasst_ready.trees.jsonl.gz of
OpenAssistant/oasst1. PPO's pretraining documents are those of `prepared`.
Result, as the paper reports it: people prefer the answers of 1.3B to those of GPT-3 175B, and those
of 175B in 85 +- 3 % of cases. Tiny: all three stages run.
"""

import dataclasses
from dataclasses import field

from configs import ppo
from configs.recipes import _common
from llm_jax import config

_TREES = "data/2023-04-12_oasst_ready.trees.jsonl.gz"


@dataclasses.dataclass
class InstructGpt(config.Recipe):
  """Three stages."""

  sft: config.Sft = field(default_factory=config.Sft)
  reward: config.Reward = field(default_factory=config.Reward)
  ppo: config.Ppo = field(default_factory=config.Ppo)


def get_config(variant: str = "") -> InstructGpt:
  """Returns the recipe, or a trial of it for "tiny"."""
  _common.check("instructgpt", variant)
  cfg = InstructGpt(template="")
  # Appendix C.1: 16 epochs, 32 a batch, 9.65e-6 (1.3B and 6B; 5.03e-6 and 8 a batch for 175B),
  # cosine to a tenth. Of their data: 16 * 12,725 / 32. Residual dropout of 0.2 is left out.
  cfg.sft = config.Sft(
    init="@base", data=(_TREES,), steps=6363, batch=32, length=2048, packed=False,
    optimizer=_common.adamw(9.65e-6, "cosine", final=0.1, beta2=0.95),
  )  # fmt: skip
  # C.2: one epoch, 64 prompts a batch with all pairs of their 4 to 9 answers, at most 2,304, which
  # are one element of it; 9e-6, cosine to a tenth. Of their data: 33,207 prompts / 64.
  cfg.reward = config.Reward(
    init="@sft", preferences=_TREES, grouped=True, center=0.0, steps=519, batch=2304, length=2048,
    optimizer=_common.adamw(9e-6, "cosine", final=0.1, beta2=0.95),
  )  # fmt: skip
  # C.4, as configs/ppo.py:instructgpt has it: 256,000 answers, KL 0.02, pretraining times 27.8.
  cfg.ppo = ppo.get_config("instructgpt")
  cfg.ppo.init, cfg.ppo.reward, cfg.ppo.data = "@sft", "@reward", (_TREES,)
  cfg.ppo.prompt_length, cfg.ppo.sampling.max_new, cfg.ppo.length = 1024, 1024, 2048
  if variant == "tiny":
    cfg.sft.data = cfg.ppo.data = ()  # The prepared questions.
    cfg.reward.preferences = "@examples/rankings.jsonl"
    _common.tiny(cfg)
  return cfg
