"""Token files: the ids of documents on disk, in as many shards as there were writers."""

import json
import os
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from llm_jax.data import records

_FORMAT = "llm_jax-tokens-1"


def write_tokens(
  path: str | os.PathLike[str],
  documents: Iterable[Sequence[int] | np.ndarray],
  vocab_size: int = 65_536,
) -> dict[str, int]:
  """Writes documents as an ArrayRecord file: a record each, and a last one that describes them.

  A record holds little-endian uint16 (uint32 if vocab_size > 65,536). The last record holds
  uint32 lengths of all documents and, in its last line, JSON with format, dtype and counts, so
  that a file needs no companion. The file appears only when it is complete.

  Args:
    path: of the file.
    documents: ids of each document, its first and last marker included.
    vocab_size: ids are below this.

  Returns:
    {"documents", "tokens"}, the counts.

  Raises:
    ValueError: if an id is not in [0, vocab_size).
  """
  dtype = np.dtype("<u2" if vocab_size <= 65_536 else "<u4")
  lengths = []
  with records.new(path) as writer:
    for document in documents:
      ids = np.asarray(document, np.int64)
      if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        raise ValueError(f"document {len(lengths)} has ids outside [0, {vocab_size})")
      writer.write(ids.astype(dtype).tobytes())
      lengths.append(len(ids))
    counts = {"documents": len(lengths), "tokens": sum(lengths)}
    meta = json.dumps({"format": _FORMAT, "dtype": dtype.str, **counts})
    writer.write(np.asarray(lengths, "<u4").tobytes() + b"\n" + meta.encode())
  return counts


class TokenSource:
  """Documents of token files by index, each int32 [n]; open in any number of threads.

  Many files read as one, in the order of their names; so a corpus can be written part by part, by
  any number of processes, each file a part that is either there or not.

  Args:
    path: see `records.files`.

  Attributes:
    lengths: [documents] uint32.
    files: the files, in order.
    dtype: the widest that ids have on disk.

  Raises:
    UserError: if a file is missing, cut short or of another kind.
  """

  def __init__(self, path: records.Paths):
    self.files = records.files(path)
    self._shards = [_Shard(file) for file in self.files]
    self.lengths = np.concatenate([shard.lengths for shard in self._shards])
    self._ends = np.cumsum([len(shard.lengths) for shard in self._shards])
    self.dtype = max((shard.dtype for shard in self._shards), key=lambda d: d.itemsize)

  def __len__(self) -> int:
    return len(self.lengths)

  def __getitem__(self, index: int) -> np.ndarray:
    return self.part(index)

  def part(self, index: int, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Returns the tokens from `start` up to `stop` of document `index`."""
    if not 0 <= index < len(self):
      raise IndexError(f"document {index} of {len(self)}")
    number = int(np.searchsorted(self._ends, index, side="right"))
    shard = self._shards[number]
    record = shard.reader.read([int(index - self._ends[number] + len(shard.lengths))])[0]
    return np.frombuffer(record, shard.dtype)[start:stop].astype(np.int32)

  def __repr__(self) -> str:
    more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
    return f"TokenSource({str(self.files[0])!r}{more})"


class _Shard:
  """One token file."""

  def __init__(self, path: pathlib.Path):
    self.reader, body, meta = records.open_described(path, _FORMAT, "documents")
    self.dtype = np.dtype(meta["dtype"])
    self.lengths = np.frombuffer(body, "<u4")
