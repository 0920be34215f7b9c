"""The stages that train, and what they have in common."""

import dataclasses
import math
from dataclasses import field

from llm_jax.config.data import Mixture, check_lost
from llm_jax.config.model import Lora, Model
from llm_jax.errors import UserError, nearest


@dataclasses.dataclass
class Optimizer:
  """An optimizer and its schedule, in steps."""

  name: str = "adamw"  # adamw | muon | lion | adafactor | schedule_free
  lr: float = 1e-3
  adam_lr: float = 0.0  # Muon only: the AdamW part's rate (embeddings, norms, heads); 0: lr.
  matmul_precision: str = ""  # "bfloat16": Muon's products round what they multiply to it.
  schedule: str = "wsd"  # constant | linear | cosine | wsd | inverse_sqrt
  warmup: int = 20
  decay: float = 0.3  # wsd: the last fraction of the steps that decays.
  final: float = 0.0  # The last rate as a fraction of `lr`.
  beta1: float = 0.9
  beta2: float = 0.95
  eps: float = 1e-8
  weight_decay: float = 0.0  # On matrices only.
  clip: float = 1.0  # Global gradient norm; 0: none.
  skip_sigma: float = 0.0  # Skips updates whose loss or norm is an outlier: 6.0 is usual; 0: none.
  skip_limit: int = 0  # So many in a row may be skipped as not finite; at 0 the first ends the run.

  def validate(self) -> None:
    """Raises UserError, in one line that names the field, for what cannot be."""
    known = {
      "name": ("adamw", "muon", "lion", "adafactor", "schedule_free"),
      "matmul_precision": ("", "bfloat16"),
      "schedule": ("constant", "linear", "cosine", "wsd", "inverse_sqrt"),
    }
    for name, values in known.items():
      value = getattr(self, name)
      if value not in values:
        raise UserError(f'config.{name}="{value}" is unknown{nearest(value, values)}')
    for name in ("clip", "skip_sigma", "skip_limit"):
      if not getattr(self, name) >= 0:
        raise UserError(f"config.{name} must not be negative (0: none), got {getattr(self, name)}")
    if self.name == "schedule_free":
      if self.schedule != "constant":
        raise UserError(
          "config.name=schedule_free averages instead of decaying the rate: set "
          f"config.schedule=constant, not {self.schedule}"
        )
      if not 0 < self.beta1 <= 1:
        raise UserError(
          "config.beta1 of config.name=schedule_free is the average's part of the point where "
          f"gradients are taken: it must be in (0, 1], got {self.beta1}"
        )


@dataclasses.dataclass
class Mesh:
  """Where arrays live: a named mesh under jit, or plain replication under pmap."""

  kind: str = "mesh"  # mesh | pmap
  data: int = -1  # -1: all devices that the other axes leave.
  fsdp: int = 1  # Parameters, gradients and moments are split over it, and rows.
  sequence: int = 1  # Rows are cut along time over it: for long ones (context parallelism).
  tensor: int = 1  # Heads, MLPs and the vocabulary are split over it.
  zero: bool = False  # The optimizer's state is split over `data` too; parameters are not.


@dataclasses.dataclass
class Stage:
  """What every training stage has."""

  seed: int = 0
  prepared: str = "runs/quickstart/prepare"  # A directory that `experiments.prepare` wrote.
  loss: str = ""
  steps: int = 100
  batch: int = 16  # Rows per update, over all devices and microbatches.
  accum: int = 1  # Microbatches per update.
  length: int = 128  # Tokens per row.
  log_every: int = 10
  eval_every: int = 100
  checkpoint_every: int = 200
  keep: int = 2  # Checkpoints kept.
  keep_every: int = 0  # Checkpoints of steps that it divides are kept too; 0: none.
  hang_after: float = 1800.0  # Seconds without a finished step that end the run; 0: never.
  optimizer: Optimizer = field(default_factory=Optimizer)
  mesh: Mesh = field(default_factory=Mesh)

  def validate(self) -> None:
    """Checks across fields, before anything is compiled.

    Raises:
      UserError: one line that names the fields and the remedy.
    """
    for name in ("steps", "batch", "accum", "length", "log_every", "checkpoint_every", "keep"):
      if getattr(self, name) < 1:
        raise UserError(f"config.{name} must be at least 1, got {getattr(self, name)}")
    for name in ("seed", "keep_every", "hang_after"):
      if not getattr(self, name) >= 0:
        raise UserError(f"config.{name} must not be negative, got {getattr(self, name)}")
    if self.batch % self.accum:
      raise UserError(f"config.batch={self.batch} must be a multiple of config.accum={self.accum}")


@dataclasses.dataclass
class Sampling:
  """How answers are drawn."""

  temperature: float = 0.8  # Also divides the logits of every log-prob: one distribution.
  top_k: int = 0  # 0: no limit.
  top_p: float = 1.0
  max_new: int = 40
  rows: int = 0  # Answers drawn at a time; where one ends, the next begins. 0: all of a call.

  def validate(self) -> None:
    """Raises UserError, in one line that names the field, for what cannot be."""
    least = min(self.temperature, self.top_k, self.rows, self.max_new - 1)
    if least < 0 or not 0 < self.top_p <= 1:
      raise UserError(
        "config.temperature, top_k and rows must not be negative, config.top_p in (0, 1] and "
        f"config.max_new at least 1, got {dataclasses.asdict(self)}"
      )


@dataclasses.dataclass
class Corruption:
  """Spans that are taken out of an encoder-decoder's inputs (arXiv:1910.10683, sec. 3.1.4)."""

  density: float = 0.15  # Fraction of the tokens.
  mean_span: float = 3.0  # Tokens per span.

  def validate(self) -> None:
    """Raises UserError, in one line that names the field, for what cannot be."""
    if not 0 < self.density <= 0.9 or not self.mean_span >= 1:
      raise UserError(
        "config.density must be above 0 and at most 0.9, and config.mean_span at least 1, got "
        f"{self.density} and {self.mean_span}"
      )


@dataclasses.dataclass
class Pretrain(Stage):
  """Next-token prediction on packed documents, or of an encoder-decoder span corruption.

  The tokenizer and the held-out documents are those of `prepared`; `length` is that of a row, or of
  an encoder's inputs.
  """

  loss: str = "cross_entropy()"
  packing: str = "first_fit"  # first_fit | best_fit | concat: how documents fill rows.
  mixture: Mixture = field(default_factory=Mixture)
  corruption: Corruption = field(default_factory=Corruption)
  model: Model = field(default_factory=Model)

  def validate(self) -> None:
    """Checks what every stage checks, and how rows are packed.

    Raises:
      UserError: one line that names the field.
    """
    super().validate()
    known = ("first_fit", "best_fit", "concat")
    if self.packing not in known:
      raise UserError(f'config.packing="{self.packing}" is unknown{nearest(self.packing, known)}')


@dataclasses.dataclass
class Sft(Stage):
  """Next-token prediction on the answers of conversations."""

  loss: str = "cross_entropy()"
  init: str = "runs/quickstart/pretrain"  # A run, or a folder of Hugging Face, to start from.
  data: tuple[str, ...] = ()  # Files, or file=weight; (): the questions of `prepared`.
  validation: float = 0.02  # Fraction of prompts of `data` that is held out; 0: none.
  validation_data: tuple[str, ...] = ()  # Files that are held out, in the place of a fraction.
  max_lost: float = 0.0  # Rows that may be unreadable: so many, or a share of all; 0: none.
  packed: bool = True  # False: a row is one conversation, as in recipes that count them in a batch.
  neftune: float = 0.0  # Alpha of the noise on embeddings (arXiv:2310.05914): 5 is usual; 0: none.
  input_length: int = 0  # Tokens that an encoder reads; 0: `length`, which is that of the answers.
  lora: Lora = field(default_factory=Lora)

  def validate(self) -> None:
    """Checks what every stage checks, the encoder's length and the files.

    Raises:
      UserError: one line that names the field.
    """
    super().validate()
    if self.input_length < 0:
      raise UserError(f"config.input_length must not be negative, got {self.input_length}")
    if not 0 <= self.neftune < math.inf:
      raise UserError(
        f"config.neftune must not be negative (0: no noise, 5 is usual), got {self.neftune}"
      )
    _check_fraction(self.validation)
    check_lost(self.max_lost)
    if self.validation_data and not self.data:
      raise UserError(
        "config.validation_data is held out of config.data, which is empty: set both, or none"
      )


@dataclasses.dataclass
class Reward(Stage):
  """A scalar head trained on preference pairs."""

  loss: str = "logistic()"
  init: str = "runs/quickstart/sft"
  kinds: str = ""  # Comma-separated kinds, or sources, of pairs to train on; "": all.
  # A directory of experiments.preferences, or with files; or comma-separated files, file=weight.
  preferences: str = "runs/quickstart/preferences"
  validation: float = 0.02  # Fraction of prompts of files that is held out; 0: none.
  max_lost: float = 0.0  # Rows that may be unreadable: so many, or a share of all; 0: none.
  shuffle_labels: bool = False  # Negative control: the label of every pair is a coin flip.
  center: float = 0.01  # Weight of (chosen + rejected)^2, which fixes the free offset.
  margin: float = 0.0  # Times the margin of the data, which goes to the loss; 0: none.
  soft_labels: bool = True  # Labels are as sure as the data says (arXiv:2212.08073).
  grouped: bool = True  # A K-way prompt is in one batch and counts once (arXiv:2203.02155).

  def validate(self) -> None:
    """Checks what every stage checks, and what is done with the pairs.

    Raises:
      UserError: one line that names the field.
    """
    super().validate()
    _check_fraction(self.validation)
    check_lost(self.max_lost)
    if not 0 <= self.margin < math.inf:
      raise UserError(
        f"config.margin must not be negative (0: none, 1: as the data has it), got {self.margin}"
      )


@dataclasses.dataclass
class Dpo(Stage):
  """Direct preference optimisation and its relatives."""

  loss: str = "logistic(beta=0.1)"
  init: str = "runs/quickstart/sft"
  # A directory of experiments.preferences, or with files; or comma-separated files, file=weight.
  preferences: str = "runs/quickstart/preferences"
  labels: str = ""  # Files of answers that are wanted or not, in the place of pairs: kto().
  validation: float = 0.02  # Fraction of prompts of files that is held out; 0: none.
  max_lost: float = 0.0  # Rows that may be unreadable: so many, or a share of all; 0: none.
  kinds: str = ""  # Comma-separated kinds, or sources, of pairs to train on; "": all.
  average: bool = False  # Mean instead of summed log-probs over an answer's tokens.
  soft_labels: bool = True  # Labels are as sure as the data says (arXiv:2212.08073).
  reference: str = ""  # A run, or a folder of Hugging Face, that stays frozen; "": `init`.
  sync_every: int = 0  # Updates after which the reference follows (arXiv:2404.09656); 0: never.
  sync_alpha: float = 0.6  # Part of the policy in a reference that follows it.
  lora: Lora = field(default_factory=Lora)

  def validate(self) -> None:
    """Checks what every stage checks, what is held out, and whether a reference can follow.

    Raises:
      UserError: one line that names the field.
    """
    super().validate()
    _check_fraction(self.validation)
    check_lost(self.max_lost)
    if self.sync_every < 0 or not 0 < self.sync_alpha <= 1:
      raise UserError(
        "config.sync_every must not be negative (0: never) and config.sync_alpha in (0, 1], got "
        f"{self.sync_every} and {self.sync_alpha}"
      )
    if not self.sync_every:
      return
    others = {
      "config.reference": bool(self.reference),
      "config.labels": bool(self.labels),
      "config.lora.rank": bool(self.lora.rank),
      "config.optimizer.name=schedule_free": self.optimizer.name == "schedule_free",
    }
    for name in filter(others.get, others):
      raise UserError(
        f"config.sync_every={self.sync_every} makes the reference follow all parameters from "
        f"config.init on: leave {name}, or set config.sync_every to 0"
      )


def _check_fraction(validation: float) -> None:
  if not 0 <= validation < 1:
    raise UserError(
      f"config.validation={validation} must be at least 0 and below 1: it is the fraction of "
      "prompts that is held out"
    )
