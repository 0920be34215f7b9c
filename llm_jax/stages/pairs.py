"""Preference pairs as token batches: what the reward model and DPO train on."""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from llm_jax.data import batches, chat, preferences
from llm_jax.data.preferences import Answer, Pair
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.errors import UserError, nearest
from llm_jax.types import Batch

Tokens = tuple[list[int], list[int]]  # Tokens and mask of one conversation.
SIDES = ("chosen", "rejected")


def load(directory: str, split: str, kinds: str = "") -> list[Pair]:
  """Reads the pairs of one split, only those of `kinds` (comma-separated) if it is not "".

  Raises:
    UserError: if there are none.
  """
  path = pathlib.Path(directory) / f"{split}.jsonl"
  if not path.exists():
    raise UserError(
      f"{path} is missing: run `python -m experiments.preferences --workdir={directory}`, "
      "or set --config.preferences"
    )
  pairs = preferences.read(path)
  wanted = {kind.strip() for kind in kinds.split(",") if kind.strip()}
  there = {pair.kind for pair in pairs}
  for kind in sorted(wanted - there):
    raise UserError(f"no pairs of kind {kind!r} in {path}{nearest(kind, there)}")
  pairs = [pair for pair in pairs if not wanted or pair.kind in wanted]
  if not pairs:
    raise UserError(f"{path} holds no preference pairs")
  return pairs


def encode(tokenizer: Tokenizer, pairs: Sequence[Pair], length: int) -> list[dict[str, Tokens]]:
  """Each pair as {"chosen": (tokens, mask), "rejected": (tokens, mask)}."""
  return [
    {side: conversation(tokenizer, pair.prompt, getattr(pair, side), length) for side in SIDES}
    for pair in pairs
  ]


def conversation(tokenizer: Tokenizer, prompt: str, answer: Answer, length: int) -> Tokens:
  """(tokens, mask) of a question and an answer; an answer that never ended has no turn end."""
  tokens, mask = chat.render(
    tokenizer,
    [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer.text}],
    length + 1,
  )
  return (tokens, mask) if answer.ended else (tokens[:-1], mask[:-1])


def collate(rows: Sequence[Mapping[str, Any]], length: int) -> Batch:
  """One pair batch of encoded pairs; a pair's numbers (`ref_chosen`, ...) become [B] arrays."""
  extras = {
    key: np.array([row[key] for row in rows], np.float32) for key in rows[0].keys() - {*SIDES}
  }
  return batches.pair_batch(rows, length) | extras


def in_order(encoded: Sequence[Mapping[str, Any]], length: int, rows: int) -> Iterator[Batch]:
  """Pair batches in order; the last is filled up with empty pairs, which weigh nothing."""
  empty = {key: ([], []) if key in SIDES else 0.0 for key in encoded[0]}
  for start in range(0, len(encoded), rows):
    part = list(encoded[start : start + rows])
    yield collate(part + [empty] * (rows - len(part)), length)
