"""What measures models, and everything in order."""

import dataclasses
from dataclasses import field

from llm_jax.config.data import Prepare
from llm_jax.config.online import Ppo
from llm_jax.config.training import Dpo, Pretrain, Reward, Sampling, Sft
from llm_jax.errors import UserError


@dataclasses.dataclass
class Preferences:
  """How preference pairs are built from questions with a gold answer."""

  seed: int = 0
  prepared: str = "runs/quickstart/prepare"
  init: str = "runs/quickstart/sft"  # The model whose samples are ranked.
  questions: int = 1500  # Training questions that get pairs.
  validation_questions: int = 400
  samples: int = 8  # Answers per question, of which two make a pair.
  easy: float = 0.35  # Training questions that get a cut-off and a repetitive pair, as a fraction.
  others: int = 2  # Pairs of a training question with other objects' answers.
  sampling: Sampling = field(default_factory=Sampling)


@dataclasses.dataclass
class Evaluate:
  """Measures the policies of a finished pipeline on held-out questions, or a model on tasks."""

  seed: int = 0
  run: str = "runs/quickstart"
  tasks: tuple[str, ...] = ()  # Of lm-eval, such as ("arc_easy", "piqa"), for `model` alone.
  task_folder: str = ""  # With tasks of one's own in YAML; "": those of lm-eval.
  model: str = "runs/quickstart/sft"  # A run, or a folder of Hugging Face.
  prepared: str = "runs/quickstart/prepare"  # Has the tokenizer of `model`.
  limit: int = 0  # Examples of each task; 0: all.
  bos: bool = True  # Whether their texts begin with the first token of a document.
  questions: int = 256
  samples: int = 4  # Answers per question.
  sampling: Sampling = field(default_factory=Sampling)


@dataclasses.dataclass
class Pipeline:
  """Everything, in order."""

  seed: int = 0
  prepare: Prepare = field(default_factory=Prepare)
  pretrain: Pretrain = field(default_factory=Pretrain)
  sft: Sft = field(default_factory=Sft)
  preferences: Preferences = field(default_factory=Preferences)
  reward: Reward = field(default_factory=Reward)
  dpo: Dpo = field(default_factory=Dpo)
  ppo: Ppo = field(default_factory=Ppo)
  evaluate: Evaluate = field(default_factory=Evaluate)

  def validate(self) -> None:
    """Raises UserError for what its stages cannot do together."""
    if self.pretrain.model.encoder_layers:
      raise UserError(
        "config.pretrain.model.encoder_layers must be 0: reward model, DPO and PPO take decoders"
      )
