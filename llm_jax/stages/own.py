"""What a stage trains on: the files that its config names, or what earlier stages prepared."""

from collections.abc import Callable
from typing import Any

from llm_jax import config
from llm_jax.data import posttraining, questions
from llm_jax.data.formats import Conversation
from llm_jax.data.posttraining import Data, Encoded
from llm_jax.stages import runs
from llm_jax.train import processes


def conversations(
  cfg: config.Sft,
  asked: Callable[[questions.Question], Any],
  encode: Callable[[Conversation], Encoded | str],
) -> tuple[list[Any], dict[str, list[Any]]]:
  """Returns rows to train on, and rows held out by source.

  Args:
    cfg: of the stage.
    asked: a question of the prepared corpus -> a row.
    encode: a conversation of a file -> a row, or why there is none.
  """
  if not cfg.data:
    train, held_out = (
      [asked(question) for question in runs.asked(cfg.prepared, split)]
      for split in ("train", "validation")
    )
    return train, {"questions": held_out}
  data = posttraining.load(
    "conversations",
    cfg.data,
    encode,
    validation=cfg.validation,
    held_out=cfg.validation_data,
    seed=cfg.seed,
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
