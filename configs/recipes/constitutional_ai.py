"""Constitutional AI: revised answers, then a judge's preferences (Bai et al., arXiv:2212.08073).

python -m experiments.recipe --config=configs/recipes/constitutional_ai.py --workdir=runs/cai
  --config.base=base-model
python -m experiments.recipe --config=configs/recipes/constitutional_ai.py:tiny
  --workdir=runs/cai_tiny
Data: helpful-base/train.jsonl.gz and harmless-base/train.jsonl.gz of Anthropic/hh-rlhf on Hugging
Face: the first to be helpful, of the second only prompts.
Result, as the paper reports it of 52B: people find it more harmless than RLHF's models at the same
helpfulness (figure 2). Tiny: all six stages run; the pairs have labels between one half and one.
"""

import dataclasses
from dataclasses import field

from configs.recipes import _common
from llm_jax import config

_HELPFUL = "data/hh-rlhf/helpful-base/train.jsonl.gz"
_HARMLESS = "data/hh-rlhf/harmless-base/train.jsonl.gz"


@dataclasses.dataclass
class ConstitutionalAi(config.Recipe):
  """Six stages: a helpful model, its revisions and SFT on them; pairs, a reward model, PPO."""

  helpful: config.Sft = field(default_factory=config.Sft)
  revise: config.Rlaif = field(default_factory=lambda: config.Rlaif(part="revise"))
  sft: config.Sft = field(default_factory=config.Sft)
  prefer: config.Rlaif = field(
    default_factory=lambda: config.Rlaif(judge=config.Judge(run="@base", chat=False))
  )
  reward: config.Reward = field(default_factory=config.Reward)
  ppo: config.Ppo = field(default_factory=config.Ppo)


def get_config(variant: str = "") -> ConstitutionalAi:
  """Returns the recipe, or a trial of it for "tiny"."""
  _common.check("constitutional_ai", variant)
  cfg = ConstitutionalAi(template="")
  # The paper begins with a helpful model of RLHF; SFT on helpful answers stands in its place: an
  # epoch of 43,835, 128 an update.
  cfg.helpful = config.Sft(
    init="@base", data=(_HELPFUL,), validation=_common.HELD_OUT, steps=343, batch=128, length=1024,
    packed=False, optimizer=_common.adamw(2e-5, "cosine", warmup=10),
  )  # fmt: skip
  # Section 3.1: four critiques and revisions of an answer, at temperature 1.
  cfg.revise = config.Rlaif(
    part="revise", init="@helpful", data=(_HARMLESS,), revisions=4, length=2048,
    sampling=config.Sampling(temperature=1.0, max_new=256),
  )  # fmt: skip
  # Section 3.2: the pretrained model, one epoch, 1,024 sequences an update, a constant rate of half
  # that of pretraining: half of Llama's 3e-4 here. Of these files, 42,537 + 43,835 rows / 1,024.
  cfg.sft = config.Sft(
    init="@base", data=("@revise/revised.jsonl", _HELPFUL), validation=_common.HELD_OUT,
    steps=84, batch=1024, length=1024, packed=False,
    optimizer=_common.adamw(1.5e-4, "constant"),
  )  # fmt: skip
  # Section 4.1: two answers at temperature 1; the judge is the pretrained model, whose two letters'
  # normalised probabilities are the label. (With a chain of thought they are clamped to 0.4.)
  cfg.prefer = config.Rlaif(
    part="prefer", init="@sft", data=(_HARMLESS,), length=1024,
    sampling=config.Sampling(temperature=1.0, max_new=256),
    judge=config.Judge(run="@base", chat=False, length=2048),
  )  # fmt: skip
  # Sections 4.1 and 4.2 name no rates. The reward model's is Llama 2's; of PPO, the KL's 0.001 is
  # that of Bai et al. (arXiv:2204.05862, section 4.1), and the rest is InstructGPT's.
  cfg.reward = config.Reward(
    init="@sft", preferences="@prefer", center=0.0, validation=_common.HELD_OUT,
    steps=83, batch=512, length=1024, optimizer=_common.adamw(1e-5, "cosine", warmup=5, final=0.1),
  )  # fmt: skip
  cfg.ppo = config.Ppo(
    init="@sft", reward="@reward", data=(_HARMLESS, _HELPFUL), kl_init=0.001, rollouts=512,
    steps=4000, batch=64, critic_head="reward", missing_end_penalty=0.0, max_approxkl=0.0,
    prompt_length=1024, sampling=config.Sampling(temperature=1.0, max_new=256),
    optimizer=_common.adamw(9e-6, "constant", warmup=80, beta2=0.95),
  )  # fmt: skip
  if variant == "tiny":
    cfg.helpful.data = cfg.revise.data = cfg.prefer.data = cfg.ppo.data = ()
    cfg.sft.data = ("@revise/revised.jsonl", "@examples/hh.jsonl")
    _common.tiny(cfg)
    cfg.revise.revisions = 2
  return cfg
