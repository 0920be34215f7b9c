"""Packed rows: documents of token files to dense [B, T] batches, through Grain.

Letters: B rows, T tokens a row.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import grain
import grain.experimental
import numpy as np

from llm_jax.data.token_files import TokenSource, write_tokens
from llm_jax.errors import UserError

__all__ = [
  "READ",
  "Chunks",
  "RandomAccess",
  "Stream",
  "TokenSource",
  "pack",
  "shuffled",
  "write_tokens",
]

# Documents are read in this thread: a row costs less than handing it to another one does.
READ = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
_BINS = 256  # Rows that are open at once: more waste less, and cost memory and first-batch time.


class RandomAccess(Protocol):
  """What Grain takes as a source."""

  def __len__(self) -> int:
    """Returns the number of items."""
    ...

  def __getitem__(self, index: int) -> Any:
    """Returns item `index`."""
    ...


class Chunks:
  """Documents cut to rows of at most `length` predictions, each {"tokens", "targets"} int32 [n].

  Neighbouring chunks share one token, which is the last target of one and the first input of the
  other: every token of a document but the first is a target exactly once.

  Args:
    source: documents; `lengths` tells their sizes without reading them.
    length: predictions in a chunk at most.
    numbered: whether an item has "documents" too: the number of its document, from 1, n times.
  """

  def __init__(self, source: TokenSource, length: int, numbered: bool = False):
    self._source, self._length, self._numbered = source, length, numbered
    # A document of one token or none has nothing to predict.
    self._predictions = np.maximum(source.lengths.astype(np.int64) - 1, 0)
    self._ends = np.cumsum(-(-self._predictions // length))
    self.predictions = int(self._predictions.sum())

  def __len__(self) -> int:
    return int(self._ends[-1]) if len(self._ends) else 0

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    ids = self.ids(index)
    item = {"tokens": ids[:-1], "targets": ids[1:]}
    if self._numbered:
      document = int(np.searchsorted(self._ends, index, side="right"))
      item["documents"] = np.full_like(ids[:-1], document + 1)
    return item

  def numbered(self) -> "Chunks":
    """Returns the same chunks, whose items have "documents"."""
    return Chunks(self._source, self._length, numbered=True)

  def ids(self, index: int) -> np.ndarray:
    """Returns the inputs and the last target of chunk `index`, int32 [n + 1]."""
    document = int(np.searchsorted(self._ends, index, side="right"))
    first = int(self._ends[document - 1]) if document else 0
    start = (index - first) * self._length
    return self._source.part(document, start, start + self._length + 1)

  def sizes(self) -> np.ndarray:
    """Returns the predictions in each chunk, int64 [chunks], without reading any."""
    sizes = np.full(len(self), self._length, np.int64)
    some = self._predictions > 0
    sizes[self._ends[some] - 1] = (self._predictions[some] - 1) % self._length + 1
    return sizes

  def __repr__(self) -> str:
    return f"Chunks({self._source!r}, {self._length})"


class Numbered:
  """Items of a source, each with its number from 1."""

  def __init__(self, source: RandomAccess | Sequence[Any]):
    self._source = source

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> tuple[int, Any]:
    return index + 1, self._source[index]

  def __repr__(self) -> str:
    return repr(self._source)


def shuffled(
  source: RandomAccess | Sequence[Any], seed: int, epochs: int, shuffle: bool = True
) -> grain.MapDataset:
  """Returns `source` as a Grain MapDataset in an order of its own in every epoch; -1: endless."""
  if not len(source):
    raise UserError(f"{source!r} is empty: there is nothing to train on")
  dataset = grain.MapDataset.source(source).seed(seed)
  dataset = dataset.shuffle() if shuffle else dataset
  return dataset.repeat(None if epochs < 0 else epochs)


def pack(
  dataset: grain.MapDataset,
  length: int,
  batch: int,
  seed: int = 0,
  strategy: str = "first_fit",
  shuffle: bool = True,
  bins: int = _BINS,
) -> "Stream":
  """Packs items into rows and rows into LM batches (llm_jax/data/batches.py).

  Args:
    dataset: items {"tokens", "targets"[, "mask"][, "documents"]}, each [n] with n <= length; a
      missing mask is 1.
    length: T.
    batch: B. A finite dataset's last batch is filled up with empty rows (segments 0, mask 0).
    seed: of the order in which rows that were packed together come out, if `shuffle`.
    strategy: "first_fit" leaves items whole and pads; "best_fit" too, into the fullest row that
      has room (arXiv:2404.10830); "concat" cuts items at the ends of rows and pads nothing.
    shuffle: False gives packed rows out in the order in which they were opened.
    bins: rows that are open at once, up to 256; at least `batch` and one.

  Returns:
    An iterator; `set_state(get_state())` goes on with exactly the same batches.

  Raises:
    ValueError: for an unknown strategy; on the first item longer than `length`.
  """
  rows = dataset.map(_with_mask).to_iter_dataset(READ)
  lengths = dict.fromkeys(_with_mask(dataset[0]), length)
  if strategy == "concat":
    rows = grain.experimental.ConcatThenSplitIterDataset(rows, length_struct=lengths)
  elif strategy in ("first_fit", "best_fit"):
    packer = (
      grain.experimental.FirstFitPackIterDataset
      if strategy == "first_fit"
      else grain.experimental.BestFitPackIterDataset
    )
    bins = max(min(bins, _BINS), batch, 1)
    rows = packer(
      rows, length_struct=lengths, num_packing_bins=bins, seed=seed, shuffle_bins=shuffle
    )
  else:
    raise ValueError(f"unknown strategy {strategy!r}; there are: best_fit, concat, first_fit")
  rows = rows.batch(batch, drop_remainder=False, batch_fn=lambda x: _stack(x, batch))
  return Stream(iter(rows))


class Stream(Iterator[dict[str, np.ndarray]]):
  """A Grain iterator whose state survives JSON."""

  def __init__(self, iterator: grain.DatasetIterator):
    self._iterator = iterator

  def __next__(self) -> dict[str, np.ndarray]:
    return next(self._iterator)

  def get_state(self) -> dict[str, Any]:
    """Returns where the stream is; JSON-able."""
    return self._iterator.get_state()

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Goes to where `get_state` was called on a stream that was made with the same arguments."""
    self._iterator.set_state(_with_tuples(state))


def _with_tuples(state: Any) -> Any:
  """Undoes JSON's lists in the state of ConcatThenSplit, which compares slices with tuples."""
  if not isinstance(state, Mapping):
    return state
  return {
    key: {k: tuple(v) for k, v in value.items()}
    if key == "remainder_slices"
    else _with_tuples(value)
    for key, value in state.items()
  }


def _with_mask(item: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  mask = item.get("mask")
  if mask is None:
    mask = np.ones(len(item["tokens"]), np.float32)
  return {**item, "mask": mask}


def _stack(rows: Sequence[Mapping[str, np.ndarray]], batch: int) -> dict[str, np.ndarray]:
  names = {
    "tokens": "tokens",
    "targets": "targets",
    "mask": "mask",
    "positions": "tokens_positions",
    "segments": "tokens_segment_ids",
  } | ({"documents": "documents"} if "documents" in rows[0] else {})
  out = {}
  for name, key in names.items():
    dtype = np.float32 if name == "mask" else np.int32
    out[name] = np.zeros((batch, len(rows[0]["tokens"])), dtype)
    out[name][: len(rows)] = np.stack([row[key] for row in rows])
  return out
