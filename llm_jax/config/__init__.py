"""One typed tree of mutable dataclasses: every number of an experiment has its place here.

Only the standard library is imported, so that `--help` answers at once. A path of "" means "none".
"""

from llm_jax.config.aligning import Agreement, Judge, OnlineDpo, Rejection, Rlaif
from llm_jax.config.data import Mixture, Pack, Prepare, Reader, Tokenizer
from llm_jax.config.model import Lora, Model
from llm_jax.config.online import Grpo, Online, Ppo
from llm_jax.config.pipeline import Evaluate, Pipeline, Preferences
from llm_jax.config.recipe import Recipe
from llm_jax.config.scaling import ScalingLaw
from llm_jax.config.training import (
  Corruption,
  Dpo,
  Mesh,
  Optimizer,
  Pretrain,
  Reward,
  Sampling,
  Sft,
  Stage,
)

# Fields, and groups of them, that do not change what is trained: a run may go on with others.
HOW = (
  "workers", "engine", "beam_runner", "beam_options", "mesh", "hang_after", "keep_every",
  "max_lost",
)  # fmt: skip

__all__ = [
  "Agreement",
  "Corruption",
  "Dpo",
  "Evaluate",
  "Grpo",
  "HOW",
  "Judge",
  "Lora",
  "Mesh",
  "Mixture",
  "Model",
  "Online",
  "OnlineDpo",
  "Optimizer",
  "Pack",
  "Pipeline",
  "Ppo",
  "Preferences",
  "Prepare",
  "Pretrain",
  "Reader",
  "Recipe",
  "Rejection",
  "Reward",
  "Rlaif",
  "Sampling",
  "ScalingLaw",
  "Sft",
  "Stage",
  "Tokenizer",
]
