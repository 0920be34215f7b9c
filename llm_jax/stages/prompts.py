"""What online stages ask: prompts with the answers that the data has to them."""

import collections
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from llm_jax import config
from llm_jax.data import chat, formats
from llm_jax.data.formats import Messages, schema
from llm_jax.data.intake import Intake
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.errors import UserError
from llm_jax.stages import own, runs
from llm_jax.train import processes


class Asked(NamedTuple):
  """One prompt.

  Attributes:
    messages: what was said so far; the model speaks next.
    truth: what the data has the assistant say. No model sees it; scores may.
  """

  messages: Messages
  truth: str


def both(
  cfg: config.Online | config.Rejection | config.OnlineDpo, workdir: str
) -> tuple[list[Asked], list[Asked]]:
  """Returns the prompts that a stage learns from, and those that it is measured on, if any.

  Args:
    cfg: of the stage.
    workdir: of the run; the rows of files that cannot be read are put on record there.

  Raises:
    UserError: as `load`, or if too many rows cannot be read.
  """
  with own.intake(cfg, workdir) as taken:
    asked = load(cfg.data, cfg.prepared, intake=taken)
    judged = load(cfg.eval_data, cfg.prepared, intake=taken) if cfg.eval_data else []
  return asked, judged[: cfg.eval_questions]


def load(
  files: Sequence[str], prepared: str, split: str = "train", intake: Intake | None = None
) -> list[Asked]:
  """Reads prompts: of files of conversations, each but for its last message, or the prepared ones.

  Args:
    files: of any format that has conversations (data/formats); (): the questions of `prepared`.
    prepared: a prepared corpus.
    split: of its questions.
    intake: as in `posttraining.load`.

  Raises:
    UserError: if a file cannot be read, or there are no questions.
  """
  if not files:
    found = runs.asked(prepared, split)
    return [Asked([{"role": "user", "content": q.prompt}], q.answer) for q in found]
  asked = []
  for path in files:
    table = formats.read(path, "conversations", lost=intake.lose if intake else formats.refuse)
    rows = [Asked(c.messages[:-1], c.messages[-1]["content"]) for c in table.items]
    drops = collections.Counter(table.drops)
    drops.update(schema.NO_PROMPT.name for row in rows if not row.messages)
    rows = [row for row in rows if row.messages]
    asked += rows
    if intake:
      facts = {"format": table.format, "kind": "prompts", "kept": len(rows)}
      intake.add(path, table.rows, **facts, dropped=dict(drops), lost=table.lost)
    if processes.primary():
      dropped = "".join(f", {n} dropped: {why}" for why, n in drops.items())
      dropped += "".join(f", {n} cannot be read: {why}" for why, n in table.lost.items())
      name = os.fspath(pathlib.Path(path).name)
      print(f"{name}: {table.format}, {table.rows} rows, {len(rows)} prompts{dropped}", flush=True)
  if not asked:
    raise UserError(f"{', '.join(files)} holds no prompts: name files of conversations")
  return asked


def tokens(tokenizer: Tokenizer, asked: Sequence[Asked], length: int) -> list[list[int]]:
  """The tokens of each prompt, at most `length`; a longer one loses its oldest."""
  return [chat.prompt(tokenizer, row.messages, length) for row in asked]
