"""What online stages ask: prompts with the answers that the data has to them."""

import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from llm_jax.data import chat, formats
from llm_jax.data.formats import Messages
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.errors import UserError
from llm_jax.stages import runs
from llm_jax.train import processes


class Asked(NamedTuple):
  """One prompt.

  Attributes:
    messages: what was said so far; the model speaks next.
    truth: what the data has the assistant say. No model sees it; scores may.
  """

  messages: Messages
  truth: str


def load(files: Sequence[str], prepared: str, split: str = "train") -> list[Asked]:
  """Reads prompts: of files of conversations, each but for its last message, or the prepared ones.

  Args:
    files: of any format that has conversations (data/formats); (): the questions of `prepared`.
    prepared: a prepared corpus.
    split: of its questions.

  Raises:
    UserError: if a file cannot be read, or there are no questions.
  """
  if not files:
    found = runs.asked(prepared, split)
    return [Asked([{"role": "user", "content": q.prompt}], q.answer) for q in found]
  asked = []
  for path in files:
    table = formats.read(path, "conversations")
    rows = [Asked(c.messages[:-1], c.messages[-1]["content"]) for c in table.items]
    asked += [row for row in rows if row.messages]
    if processes.primary():
      dropped = "".join(f", {n} dropped: {why}" for why, n in table.drops.items())
      name = os.fspath(pathlib.Path(path).name)
      print(f"{name}: {table.format}, {table.rows} rows, {len(rows)} prompts{dropped}", flush=True)
  if not asked:
    raise UserError(f"{', '.join(files)} holds no prompts: name files of conversations")
  return asked


def tokens(tokenizer: Tokenizer, asked: Sequence[Asked], length: int) -> list[list[int]]:
  """The tokens of each prompt, at most `length`; a longer one loses its oldest."""
  return [chat.prompt(tokenizer, row.messages, length) for row in asked]
