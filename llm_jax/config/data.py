"""Raw sources to tokens, and tokens to mixtures."""

import dataclasses
from dataclasses import field

from llm_jax.errors import UserError, nearest


@dataclasses.dataclass
class Tokenizer:
  """How a corpus's tokenizer is made: SentencePiece with byte fallback."""

  kind: str = "bpe"  # bpe | unigram
  split_digits: bool = True  # Every digit is a token of its own.
  newlines: int = 2  # Runs of 1 to so many newlines are tokens.
  space_runs: int = 0  # Runs of 2 to so many spaces are always tokens; 0: what is frequent.
  max_bytes: int = 10_000_000  # Of text that it learns from.
  # "books/*=2", "*=1": relative shares of the sample by a document's file, the first that matches.
  weights: tuple[str, ...] = ()  # (): all documents alike.
  template: str = ""  # Of conversations (data/templates.py); "": adopted tokens tell, else ours.
  adopt: str = ""  # A SentencePiece .model or a tokenizer.json to take instead.


@dataclasses.dataclass
class Reader:
  """How the records of a source are read."""

  text: str = "text"  # Column of JSON lines and tables that holds the text.
  id: str = "id"  # Column of an id, unique in the source; it may be missing.
  url: str = "url"  # Column of an address; it may be missing.
  html: bool = False  # Whether the column of the text holds pages of HTML.
  max_bytes: int = 67_108_864  # Of a record, decoded; a larger one cannot be read.
  max_ratio: float = 200.0  # Times that compressed data may expand; beyond, it is a bomb.


@dataclasses.dataclass
class Prepare:
  """Raw sources to a tokenised corpus."""

  seed: int = 0
  source: str = "pydocs"  # pydocs | a .warc[.gz], .jsonl[.gz] or .txt file | a folder of them
  workers: int = 2  # Processes of the local engine.
  engine: str = "local"  # local | beam
  beam_runner: str = ""  # "": in this process. Or Flink, Spark, Dataflow: docs/data.md.
  beam_options: tuple[str, ...] = ()  # Further words of Beam's command line.
  reader: Reader = field(default_factory=Reader)
  max_lost: float = 0.0  # Records that may be unreadable: so many, or a share of all; 0: none.
  max_bytes: int = 12_000_000  # pydocs: stop the crawl after so many bytes of text; 0: take all.
  # Steps in order, each a call (data/pipeline/steps.py); configs/data/ holds published lists.
  recipe: tuple[str, ...] = ("extract", "repair", "whitespace", "same_address", "duplicates")
  vocab_size: int = 4096
  tokenizer: Tokenizer = field(default_factory=Tokenizer)
  validation: float = 0.05  # Fraction of pages held out, by hash of their address.

  def validate(self) -> None:
    """Raises UserError, in one line that names the field, for what cannot be."""
    if not 0 < self.validation < 1:
      raise UserError(f"config.validation must be between 0 and 1, got {self.validation}")
    if self.workers < 1 or self.seed < 0:
      raise UserError(
        "config.workers must be at least 1 and config.seed not negative, got "
        f"{self.workers} and {self.seed}"
      )
    check_lost(self.max_lost)
    if not self.reader.text:
      raise UserError("config.reader.text must name a column, got none")
    if self.reader.max_bytes < 1:
      raise UserError(f"config.reader.max_bytes must be at least 1, got {self.reader.max_bytes}")
    if not self.reader.max_ratio > 0:
      raise UserError(f"config.reader.max_ratio must be above 0, got {self.reader.max_ratio}")


@dataclasses.dataclass
class Pack:
  """A prepared corpus to packed rows, once for all runs: any step, on any number of processes."""

  seed: int = 0
  prepared: str = "runs/quickstart/prepare"
  length: int = 2048  # Tokens per row.
  strategy: str = "best_fit"  # best_fit | concat
  workers: int = 2  # Processes.

  def validate(self) -> None:
    """Raises UserError, in one line that names the field, for what cannot be."""
    if self.length < 2 or self.workers < 1:
      raise UserError(
        "config.length must be at least 2 and config.workers at least 1, got "
        f"{self.length} and {self.workers}"
      )
    if self.strategy not in ("best_fit", "concat"):
      hint = nearest(self.strategy, ("best_fit", "concat"))
      raise UserError(f'config.strategy="{self.strategy}" is unknown{hint}')


@dataclasses.dataclass
class Mixture:
  """Several corpora in proportions of their tokens; without sources config.prepared alone."""

  sources: tuple[str, ...] = ()  # "name=directory", prepared or packed, all of one tokenizer.
  weights: tuple[str, ...] = ()  # "web=3, books=1", then maybe "5000: web=1, books=1"; (): by size.
  preset: str = ""  # gpt3 | llama1 | pile: their weights, for sources of their names.
  max_epochs: float = 4.0  # Over one source.

  def validate(self) -> None:
    """Raises UserError, in one line that names the field, for what cannot be."""
    if (self.weights or self.preset) and not self.sources:
      raise UserError("config.weights and config.preset are of config.sources, and there are none")
    if not self.max_epochs > 0:
      raise UserError(f"config.max_epochs must be above 0, got {self.max_epochs}")


def check_lost(most: float) -> None:
  """Checks a budget of rows, or records, that cannot be read.

  Args:
    most: so many, or below 1 such a share of them all; 0: the first one is an error.

  Raises:
    UserError: if it is neither.
  """
  if not most >= 0 or (most > 1 and most % 1):
    raise UserError(
      f"config.max_lost={most} must be 0 (none), a share below 1, or a count: so many rows may be "
      "unreadable"
    )
