"""What a stage trains on: the files that its config names, or what earlier stages prepared."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from llm_jax import config
from llm_jax.data import posttraining, questions
from llm_jax.data.formats import Conversation
from llm_jax.data.intake import Intake
from llm_jax.data.posttraining import Data, Encoded
from llm_jax.errors import UserError
from llm_jax.stages import runs
from llm_jax.train import processes


class Reads(Protocol):
  """The config of a stage that reads files."""

  max_lost: float


@contextlib.contextmanager
def intake(cfg: Reads, workdir: str | os.PathLike[str]) -> Iterator[Intake]:
  """Gives what takes in the files of a stage, all that it reads at once.

  Then the run's directory has data.json, with the counts of each file, and quarantine.jsonl, with
  the rows that cannot be read, and these are told.

  Args:
    cfg: of the stage.
    workdir: of the run.

  Raises:
    UserError: if more rows cannot be read than `cfg.max_lost` allows, or the directory cannot be
      written; what the block raises, with a line on the rows that cannot be read.
  """
  taken = Intake(workdir, cfg.max_lost)
  try:
    yield taken
  except UserError as error:  # Nothing may be left because of the rows that cannot be read.
    line = taken.told()
    if not line:
      raise
    if processes.primary():
      taken.write_lost()
    raise UserError(f"{error}; {line}") from error
  processes.first(taken.write)
  taken.check()
  if line := taken.told():
    processes.say(line)


def conversations(
  cfg: config.Sft,
  workdir: str | os.PathLike[str],
  asked: Callable[[questions.Question], Any],
  encode: Callable[[Conversation], Encoded | str],
) -> tuple[list[Any], dict[str, list[Any]]]:
  """Returns rows to train on, and rows held out by source.

  Args:
    cfg: of the stage.
    workdir: of the run.
    asked: a question of the prepared corpus -> a row.
    encode: a conversation of a file -> a row, or why there is none.
  """
  if not cfg.data:
    train, held_out = (
      [asked(question) for question in runs.asked(cfg.prepared, split)]
      for split in ("train", "validation")
    )
    return train, {"questions": held_out}
  with intake(cfg, workdir) as taken:
    data = posttraining.load(
      "conversations",
      cfg.data,
      encode,
      validation=cfg.validation,
      held_out=cfg.validation_data,
      seed=cfg.seed,
      intake=taken,
    )
    report(data)
  return data.train, by_source(data)


def report(data: Data) -> None:
  """Says what every file gave, once."""
  for line in data.reports:
    processes.say(line)


def by_source(data: Data) -> dict[str, list[Any]]:
  """Returns the rows that are held out by source, the smallest sources together."""
  groups: dict[str, list[Any]] = {}
  names = posttraining.bounded(data.sources)
  for name, row in zip(names, data.validation, strict=True):
    groups.setdefault(name, []).append(row)
  return dict(sorted(groups.items()))
