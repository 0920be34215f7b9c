"""Tokens to batches: plain, packed, pairs and prompts; numpy arrays of static shape.

An LM batch is {"tokens", "targets", "mask", "positions", "segments"}, each [B, T]: tokens[b, t] is
the input and targets[b, t] the token after it in the same document; mask (float32) is 1 where that
target counts; positions restart at 0 in every segment; segments count from 1, 0 is padding. A pair
batch is {"chosen": LM batch, "rejected": LM batch}.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from llm_jax.data import packing, records
from llm_jax.data.packing import Chunks, TokenSource, write_tokens

__all__ = [
  "Chunks",
  "Fill",
  "TokenSource",
  "examples",
  "fill",
  "lm_batch",
  "pack_documents",
  "pack_examples",
  "pair_batch",
  "prompt_batch",
  "write_tokens",
]

Row = tuple[Sequence[int], Sequence[int]]  # (tokens, mask), as chat.render returns them.
Arrays = dict[str, np.ndarray]


def lm_batch(rows: Sequence[Row], length: int, pad_id: int = 0) -> Arrays:
  """Returns an LM batch of one segment a row, padded on the right.

  Args:
    rows: (tokens, mask) of at most length + 1 tokens; mask[i] = 1 where tokens[i] is learned.
      The first token is never a target, whatever its mask.
    length: T.
    pad_id: fills `tokens` and `targets` where segments are 0.

  Raises:
    ValueError: if a row is too long (cut it with `chat.render`), or its two lists differ in size.
  """
  batch = {
    name: np.full((len(rows), length), fill, dtype)
    for name, fill, dtype in (
      ("tokens", pad_id, np.int32),
      ("targets", pad_id, np.int32),
      ("mask", 0, np.float32),
      ("positions", 0, np.int32),
      ("segments", 0, np.int32),
    )
  }
  for i, row in enumerate(rows):
    item = _shifted(row, length, i)
    n = len(item["tokens"])
    for name, values in item.items():
      batch[name][i, :n] = values
    batch["positions"][i, :n] = np.arange(n)
    batch["segments"][i, :n] = 1
  return batch


def pair_batch(
  pairs: Sequence[Mapping[str, Row]], length: int, pad_id: int = 0
) -> dict[str, Arrays]:
  """Returns a pair batch of `pairs`, each {"chosen": (tokens, mask), "rejected": the same}.

  Raises:
    ValueError: as `lm_batch`.
  """
  return {
    side: lm_batch([pair[side] for pair in pairs], length, pad_id)
    for side in ("chosen", "rejected")
  }


def prompt_batch(
  prompts: Sequence[Sequence[int]], length: int, pad_id: int = 0
) -> tuple[np.ndarray, np.ndarray]:
  """Returns (prompts [B, length] int32 padded on the left, mask [B, length] float32).

  A longer prompt keeps its first token (the start of the conversation) and its newest ones.

  Raises:
    ValueError: for an empty prompt, or a length below 2.
  """
  if length < 2 or not all(len(prompt) for prompt in prompts):
    raise ValueError(f"prompts need a token each and length >= 2, got length={length}")
  tokens = np.full((len(prompts), length), pad_id, np.int32)
  mask = np.zeros((len(prompts), length), np.float32)
  for i, prompt in enumerate(prompts):
    if len(prompt) > length:
      prompt = [prompt[0], *prompt[len(prompt) - length + 1 :]]
    tokens[i, length - len(prompt) :] = prompt
    mask[i, length - len(prompt) :] = 1
  return tokens, mask


def examples(
  items: Sequence[Any],
  collate: Callable[[Sequence[Any]], Any],
  batch: int,
  seed: int = 0,
  shuffle: bool = True,
  epochs: int = -1,
  numbered: bool = False,
) -> Iterator[Any]:
  """Returns a Grain iterator of `collate(items of one batch)`, with get_state and set_state.

  Args:
    items: anything with a length and an index.
    collate: `batch` items to arrays. In a finite stream the last call may get fewer.
    batch: items per call.
    seed: of the orders.
    shuffle: a new order in every epoch, instead of the given one.
    epochs: passes over `items`; -1: endless.
    numbered: whether the arrays, a dict, get "documents" too: which items these are, from 1.

  Raises:
    UserError: if there are no items.
  """
  if numbered:
    items, collate = packing.Numbered(items), functools.partial(_numbered, collate)
  dataset = packing.shuffled(items, seed, epochs, shuffle).to_iter_dataset(packing.READ)
  return iter(dataset.batch(batch, drop_remainder=False, batch_fn=collate))


def _numbered(collate: Callable[[Sequence[Any]], Any], items: Sequence[tuple[int, Any]]) -> Any:
  arrays = collate([item for _, item in items])
  return arrays | {"documents": np.array([number for number, _ in items])}


def pack_examples(
  rows: Sequence[Row],
  length: int,
  batch: int,
  seed: int = 0,
  epochs: int = 1,
  shuffle: bool = True,
  strategy: str = "first_fit",
  numbered: bool = False,
) -> Iterator[Arrays]:
  """Packs conversations, whole, many to a row; else as `pack_documents`.

  Raises:
    ValueError: if a row is too long, or its tokens and mask differ in size.
    UserError: if there are no rows.
  """
  items = [_shifted(row, length, i, numbered) for i, row in enumerate(rows)]
  dataset = packing.shuffled([x for x in items if len(x["tokens"])], seed, epochs, shuffle)
  return packing.pack(dataset, length, batch, seed, strategy)


def pack_documents(
  path: records.Paths,
  length: int,
  batch: int,
  seed: int = 0,
  epochs: int = -1,
  shuffle: bool = True,
  strategy: str = "first_fit",
  numbered: bool = False,
) -> Iterator[Arrays]:
  """Packs the documents of token files into LM batches.

  Longer documents are cut into chunks that share a token, so that every token but a document's
  first is a target exactly once per epoch, and never after a token of another document.

  Args:
    path: what `write_tokens` wrote, one file or more (`records.files`).
    length: T.
    batch: B; the last batch of a finite stream is filled up with empty rows.
    seed: of the order of chunks, new in every epoch.
    epochs: passes over the files; -1: endless.
    shuffle: False keeps the files' order (within the packer's open rows).
    strategy: "first_fit" | "best_fit" | "concat", see `packing.pack`.
    numbered: whether a batch has "documents" too, int32 [B, T]: each token's document, from 1.

  Returns:
    A Grain iterator with get_state and set_state (JSON-able, exact).

  Raises:
    UserError: if a file is missing, damaged or empty.
  """
  chunks = Chunks(TokenSource(path), length, numbered)
  dataset = packing.shuffled(chunks, seed, epochs, shuffle)
  bins = chunks.predictions // (8 * length)  # Else a small corpus has several epochs in them.
  return packing.pack(dataset, length, batch, seed, strategy, shuffle, bins)


class Fill(NamedTuple):
  """How full batches are.

  Attributes:
    positions: B T of all batches.
    real: those that are no padding.
    counted: those whose target is learned.
    rows: B of all batches, empty rows left out.
    segments: documents or conversations, or parts of them, in all rows.
    share: real / positions, 0 without any.
  """

  positions: int
  real: int
  counted: int
  rows: int
  segments: int
  share: float


def fill(stream: Iterable[Arrays]) -> Fill:
  """Counts what LM batches hold; reads `stream` to its end."""
  positions = real = counted = rows = segments = 0
  for batch in stream:
    used = batch["segments"] > 0
    positions += used.size
    real += int(used.sum())
    counted += int((batch["mask"] > 0).sum())
    rows += int(used.any(axis=1).sum())
    segments += int(batch["segments"].max(axis=1).sum())
  return Fill(positions, real, counted, rows, segments, real / positions if positions else 0.0)


def _shifted(row: Row, length: int, index: int, numbered: bool = False) -> Arrays:
  tokens, mask = row
  if len(tokens) != len(mask):
    raise ValueError(f"row {index}: {len(tokens)} tokens and {len(mask)} mask entries must match")
  if len(tokens) > length + 1:
    raise ValueError(
      f"row {index} has {len(tokens)} tokens, but length={length} takes {length + 1}"
    )
  ids = np.asarray(tokens, np.int32)
  item = {"tokens": ids[:-1], "targets": ids[1:], "mask": np.asarray(mask, np.float32)[1:]}
  return item | ({"documents": np.full_like(ids[:-1], index + 1)} if numbered else {})
