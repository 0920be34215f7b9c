"""What stands for the documents of a corpus while duplicates are looked for: columns on disk.

A shard's documents become files of fixed-width columns and one of 5-gram hashes; of all shards
only a few numbers per document are in memory at once (N documents, about 100 bytes each), never
their texts.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from llm_jax.data import jsonl
from llm_jax.data.dedup import signatures
from llm_jax.data.pipeline.engines import Result

Id = str | int
Source = jsonl.Range | tuple[Sequence[str], Sequence[str]]  # Or (texts, ids) in memory.
Named = tuple[Id, str]  # A document's id and text.

# Words from which a text is compared by its hash alone: its 5-grams would fill a worker's memory,
# and one that long has a part in common with everything (a dump, a log).
LONGEST = 2_000_000

_BLOCK = 1_000_000  # Characters that are worked on at once.
_ID_WORDS = 4  # An id's first 32 bytes decide its place; longer ones go on by hash.


def sign(out: str, source: Source) -> Result:
  """A task: writes the columns of one shard beside `out`, as `write_columns`."""
  return {"documents": write_columns(out, _documents(source))}


def write_columns(out: str, documents: Iterable[Named]) -> int:
  """Writes the columns of documents beside `out`; returns how many there are.

  Files: .digests.npy [n, 2] uint64, .sizes.npy [n] int64 (5-grams, 0 for a text of more than
  LONGEST words), .lengths.npy [n] int64 (characters), .keys.npy [n, 5] uint64 (the order of ids),
  .bands.npy [24, n] uint64, .grams (uint64, one text's after the other's), .ids (JSON, a line
  each) and .ends.npy [n] int64 (bytes, where each of them ends).

  Raises:
    UserError: for the first bad row (file, line, reason).
  """
  columns: dict[str, list[np.ndarray]] = {name: [blank] for name, blank in _BLANKS.items()}
  with (
    open(f"{out}.grams", "wb") as grams,
    open(f"{out}.ids", "wb") as ids,
  ):
    for names, texts in _blocks(documents):
      plain = [signatures.normalise(text) for text in texts]
      sets = signatures.shingle_sets(plain, LONGEST)
      signed = signatures.of_sets(plain, sets)
      named = [json.dumps(name).encode() + b"\n" for name in names]
      block = {
        "digests": signed.digests,
        "sizes": signed.sizes,
        "lengths": np.fromiter(map(len, texts), np.int64, len(texts)),
        "keys": np.array([_key(str(name)) for name in names], np.uint64),
        "ends": np.cumsum([ids.tell(), *map(len, named)])[1:],
        "bands": signed.bands,
      }
      for name, part in block.items():
        columns[name].append(part)
      grams.writelines(memoryview(np.ascontiguousarray(own, "<u8")) for own in sets)
      ids.writelines(named)
  for name, parts in columns.items():
    whole = np.concatenate(parts)
    np.save(f"{out}.{name}.npy", np.ascontiguousarray(whole.T) if name == "bands" else whole)
  return len(whole)


class Table:
  """The columns of all shards, rows in the order of the shards.

  Attributes:
    digests: [N, 2] uint64.
    sizes: [N] int64.
    lengths: [N] int64.
    keys: [N, 5] uint64: rows sort as ids do.
    starts: [shards + 1] int64, each shard's first row.
  """

  def __init__(self, shards: Sequence[str]):
    """Opens what `sign` wrote; `shards` are its `out` names."""
    self.shards = list(shards)
    self.digests, self.sizes = self._load("digests"), self._load("sizes")
    self.lengths, self.keys = self._load("lengths"), self._load("keys")
    self._ends = self._load("ends")
    counts = [len(np.load(f"{s}.sizes.npy", mmap_mode="r")) for s in self.shards]
    self.starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    self._offsets = np.cumsum(self.sizes) - self.sizes

  def __len__(self) -> int:
    return len(self.sizes)

  def band(self, number: int) -> np.ndarray:
    """The keys [N] uint64 of one band, read from disk."""
    parts = [np.load(f"{s}.bands.npy", mmap_mode="r")[number] for s in self.shards]
    return np.concatenate([np.zeros(0, np.uint64), *parts])

  def places(self, rows: np.ndarray) -> np.ndarray:
    """Where the 5-grams of `rows` [n] are: [n, 3] int64 of shard, first one, how many."""
    shards = self._shard_of(rows)
    first = self._offsets[rows] - self._offsets[self.starts[shards]]
    return np.stack([shards, first, self.sizes[rows]], axis=1)

  def ids(self, rows: np.ndarray) -> Iterator[Id]:
    """Yields the ids of `rows` [n], in this order."""
    with Files([f"{shard}.ids" for shard in self.shards]) as files:
      shards = self._shard_of(rows)
      for row, shard in zip(rows.tolist(), shards.tolist(), strict=True):
        begin = int(self._ends[row - 1]) if row > self.starts[shard] else 0
        yield json.loads(files.read(shard, begin, int(self._ends[row]) - begin))

  def twice(self) -> tuple[Id, int, int] | None:
    """An id that two rows have, and the rows; None if there is none."""
    order = np.lexsort(self.keys.T[::-1])
    same = np.flatnonzero((self.keys[order[1:]] == self.keys[order[:-1]]).all(axis=1))
    for i in same.tolist():
      first, second = sorted((int(order[i]), int(order[i + 1])))
      a, b = self.ids(np.array([first, second]))
      if str(a) == str(b):
        return a, first, second
    return None

  def _shard_of(self, rows: np.ndarray) -> np.ndarray:
    return np.searchsorted(self.starts, rows, side="right") - 1

  def _load(self, name: str) -> np.ndarray:
    return np.concatenate([_BLANKS[name], *(np.load(f"{s}.{name}.npy") for s in self.shards)])


class Files:
  """Reads pieces of many files, of which the last few stay open."""

  _MOST = 128

  def __init__(self, paths: Sequence[str]):
    self._paths = paths
    self._open: dict[int, int] = {}

  def __enter__(self) -> "Files":
    return self

  def __exit__(self, *_: object) -> None:
    while self._open:
      os.close(self._open.popitem()[1])

  def read(self, file: int, first: int, count: int) -> bytes:
    """Returns `count` bytes of file number `file` from byte `first` on."""
    number = self._open.get(file)
    if number is None:
      if len(self._open) == self._MOST:
        os.close(self._open.pop(next(iter(self._open))))
      number = self._open[file] = os.open(self._paths[file], os.O_RDONLY)
    return os.pread(number, count, first)


_BLANKS = {
  "digests": np.zeros((0, 2), np.uint64),
  "sizes": np.zeros(0, np.int64),
  "lengths": np.zeros(0, np.int64),
  "keys": np.zeros((0, _ID_WORDS + 1), np.uint64),
  "ends": np.zeros(0, np.int64),
  "bands": np.zeros((0, signatures.BANDS), np.uint64),
}


def _blocks(documents: Iterable[Named]) -> Iterator[tuple[list[Id], list[str]]]:
  """Yields (ids, texts) of about _BLOCK characters."""
  names: list[Id] = []
  texts: list[str] = []
  size = 0
  for name, text in documents:
    names.append(name)
    texts.append(text)
    size += len(text)
    if size >= _BLOCK:
      yield names, texts
      names, texts, size = [], [], 0
  if names:
    yield names, texts


def _documents(source: Source) -> Iterator[Named]:
  if not isinstance(source, jsonl.Range):
    yield from zip(source[1], source[0], strict=True)
    return
  for at, row in jsonl.rows(source):
    name, text = row.get("id"), row.get("text")
    if not isinstance(name, str | int) or isinstance(name, bool):
      raise jsonl.bad_row(source, at, '"id" must be a string or an integer')
    if not isinstance(text, str):
      raise jsonl.bad_row(source, at, '"text" must be a string')
    yield name, text


def _key(name: str) -> list[int]:
  """Numbers that sort as names do, by the bytes of their UTF-8."""
  raw = name.encode("utf-8", "surrogatepass")
  head = raw[: 8 * _ID_WORDS].ljust(8 * _ID_WORDS, b"\0")
  words = [int.from_bytes(head[i : i + 8], "big") for i in range(0, len(head), 8)]
  return [*words, int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "big")]
