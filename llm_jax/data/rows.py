"""Rows that are packed once, on disk: any step's batch is a function of the seed and the step.

Packing as it goes (llm_jax/data/packing.py) has a few hundred open rows, and a state. Here all
documents are packed at once, by their lengths alone, which fills rows better; training then reads
rows at random. What a process reads at a step follows from the step, the seed, the number of
processes and its own: a run may stop on one number of processes and go on with another.

Letters: B rows, T tokens a row, S segments of a row, N items, R rows in all.
"""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from llm_jax.data import packing, records, words
from llm_jax.data.mixture import Schedule
from llm_jax.errors import UserError

FORMAT = "llm_jax-rows-1"

_ROUNDS = 4  # Of the Feistel network; four make a good permutation (Luby and Rackoff, 1988).
_MIX = np.uint64(0x9E3779B97F4A7C15)  # Odd, as SplitMix64 has it.
Piece = tuple[int, int, int]  # An item, and its predictions from `start` up to `stop`.


def write_rows(
  path: str | os.PathLike[str],
  source: packing.TokenSource,
  length: int,
  strategy: str = "best_fit",
  seed: int = 0,
) -> dict[str, Any]:
  """Packs documents into rows and writes them as an ArrayRecord file, a record a row.

  Every token but a document's first is a target exactly once. A record holds uint32 S, S uint32
  numbers of predictions, and for each segment its tokens and the last one's target, in the dtype of
  the token files. The last record is JSON. The file appears only when it is complete. Many files
  read as one (`records.files`), so that many processes may each pack a part.

  Args:
    path: of the file.
    source: the documents. Longer ones are cut, as `packing.Chunks` does.
    length: T.
    strategy: "best_fit": pieces stay whole, the largest first, each into the fullest row that has
      room (arXiv:2404.10830); "concat": pieces are cut at the ends of rows, nothing is padded.
    seed: of the order in which pieces of one size are taken, or in which all are for "concat".

  Returns:
    {"rows", "length", "predictions", "documents", "fill", ...}, as the last record has it.

  Raises:
    UserError: for an unknown strategy, or no document with something to predict.
  """
  chunks = packing.Chunks(source, length)
  sizes = chunks.sizes()
  if not len(sizes):
    raise UserError(f"{source!r} is empty: there is nothing to pack")
  order = np.argsort(_keys(len(sizes), seed), kind="stable")
  if strategy == "best_fit":
    rows = _best_fit(sizes, order, length)
  elif strategy == "concat":
    rows = _concat(sizes, order, length)
  else:
    raise UserError(f'unknown strategy "{strategy}" of packed rows; there are: best_fit, concat')
  count = 0
  with records.new(path) as writer:
    for row in rows:
      writer.write(_record(chunks, row, source.dtype))
      count += 1
    meta = {
      "format": FORMAT, "dtype": source.dtype.str, "rows": count, "length": length,
      "strategy": strategy, "seed": seed, "documents": len(source),
      "predictions": chunks.predictions, "fill": chunks.predictions / (count * length),
    }  # fmt: skip
    writer.write(b"\n" + json.dumps(meta).encode())
  return meta


class RowSource:
  """Packed rows by index, each a row [T] of an LM batch (llm_jax/data/batches.py).

  Args:
    path: what `write_rows` wrote, one file or more, as in `records.files`.

  Attributes:
    length: T.
    predictions: targets in all rows.

  Raises:
    UserError: if a file is missing, cut short or of another kind, or lengths differ.
  """

  def __init__(self, path: records.Paths):
    self.files = records.files(path)
    self._readers, self._dtypes, counts, lengths, self.predictions = [], [], [], set(), 0
    for file in self.files:
      reader, _, meta = records.open_described(file, FORMAT, "rows")
      self._readers.append(reader)
      self._dtypes.append(np.dtype(meta["dtype"]))
      counts.append(meta["rows"])
      lengths.add(meta["length"])
      self.predictions += meta["predictions"]
    if len(lengths) != 1:
      raise UserError(f"{path} has rows of several lengths, {sorted(lengths)}: pack them alike")
    self.length: int = lengths.pop()
    self._ends = np.cumsum(counts)

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    if not 0 <= index < len(self):
      raise IndexError(f"row {index} of {len(self)}")
    number = int(np.searchsorted(self._ends, index, side="right"))
    place = int(index) - (int(self._ends[number - 1]) if number else 0)
    return _row(self._readers[number].read([place])[0], self._dtypes[number], self.length)

  def __repr__(self) -> str:
    return f"RowSource({str(self.files[0])!r}, {len(self)} rows)"


class RowStream(Iterator[dict[str, np.ndarray]]):
  """Endless LM batches [B / processes, T] of packed rows; `at(step)` is a pure function.

  Every source is read in an order of its own in each of its epochs. Laid one after the other, what
  the processes read at a step is the same batch for any number of them.

  Args:
    sources: rows, or rows by name for a mixture.
    batch: B, rows of all processes.
    seed: of the orders.
    schedule: which source each row is from (llm_jax/data/mixture.py); None for a single source.
    process: this one's number.
    processes: how many there are; divides `batch`.
    numbered: whether a batch has "documents", the number of each row in its source, from 1, and
      "sources", their names.

  Raises:
    UserError: if lengths or names differ, a source is empty, or processes do not divide the batch.
  """

  def __init__(
    self,
    sources: RowSource | Mapping[str, RowSource],
    batch: int,
    seed: int = 0,
    schedule: Schedule | None = None,
    process: int = 0,
    processes: int = 1,
    numbered: bool = False,
  ):
    named = sources if isinstance(sources, Mapping) else {"": sources}
    schedule = schedule or Schedule([(0, dict.fromkeys(named, 1.0))], batch, seed)
    if set(schedule.names) != set(named) or schedule.batch != batch:
      raise UserError(
        f"the schedule is of sources {sorted(schedule.names)} and {schedule.batch} rows a step, "
        f"the stream of {sorted(named)} and {batch}"
      )
    if len({source.length for source in named.values()}) > 1:
      raise UserError(f"sources have rows of several lengths: {dict(named)}")
    if batch % processes or not 0 <= process < processes:
      raise UserError(f"process {process} of {processes} cannot share a batch of {batch} rows")
    self._sources = [named[name] for name in schedule.names]
    self._schedule, self._seed, self._step, self._numbered = schedule, seed, 0, numbered
    share = batch // processes
    self._mine = slice(process * share, (process + 1) * share)

  def rows_at(self, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (source, row of it), int64 [B] each, of the whole batch of a step."""
    kinds_B = self._schedule.sources(step)
    before = self._schedule.counts(step)
    rows_B = np.empty(len(kinds_B), np.int64)
    for k, source in enumerate(self._sources):
      at = np.flatnonzero(kinds_B == k)
      epochs, places = np.divmod(before[k] + np.arange(len(at)), len(source))
      for epoch in np.unique(epochs):
        now = epochs == epoch
        rows_B[at[now]] = shuffled(places[now], len(source), self._seed, k, int(epoch))
    return kinds_B, rows_B

  def at(self, step: int) -> dict[str, np.ndarray]:
    """Returns this process' part of the batch of a step, arrays [B / processes, T]."""
    kinds_B, rows_B = (x[self._mine] for x in self.rows_at(step))
    rows = [self._sources[k][int(r)] for k, r in zip(kinds_B, rows_B, strict=True)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    if self._numbered:
      batch |= {"documents": rows_B + 1, "sources": np.array(self._schedule.names)[kinds_B]}
    return batch

  def __next__(self) -> dict[str, np.ndarray]:
    batch = self.at(self._step)
    self._step += 1
    return batch

  def get_state(self) -> dict[str, Any]:
    """Returns where the stream is, and of what; JSON-able, the same in every process."""
    return {"step": self._step, "of": self._identity()}

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Goes to a step, of a stream that any number of processes read.

    Raises:
      UserError: if the state is of other rows, another batch, seed or schedule.
    """
    if state["of"] != self._identity():
      raise UserError(
        "the mixture or one of its corpora is another than when the run began: use another workdir "
        f"({state['of']} then, {self._identity()} now)"
      )
    self._step = int(state["step"])

  def _identity(self) -> dict[str, Any]:
    named = zip(self._schedule.names, self._sources, strict=True)
    rows = {name: [len(source), source.predictions] for name, source in named}
    return {"rows": rows, "seed": self._seed, "schedule": self._schedule.identity()}


def shuffled(places: np.ndarray, size: int, *key: int) -> np.ndarray:
  """Returns where `places` go in a shuffle of range(size) that is never made as a whole.

  A Feistel network permutes the numbers of so many bits; what lands beyond `size` is permuted on
  until it does not (Black and Rogaway, 2002).

  Args:
    places: any int64 array below `size`.
    size: of the shuffle.
    *key: integers; another key is another shuffle.
  """
  bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
  mask = (np.uint64(1) << bits) - np.uint64(1)
  salts = [_hashed(*key, i) for i in range(_ROUNDS)]
  out = places.astype(np.uint64)
  todo = np.arange(out.size)
  while todo.size:
    left, right = out[todo] >> bits, out[todo] & mask
    for salt in salts:
      left, right = right, left ^ (words.mix(right ^ salt) & mask)
    out[todo] = left << bits | right
    todo = todo[out[todo] >= np.uint64(size)]
  return out.astype(np.int64)


def best_fill(sizes: np.ndarray, length: int) -> float:
  """Returns how full rows of `length` are that items of `sizes` [N] are packed into, best fit."""
  count = sum(1 for _ in _best_fit(sizes, np.arange(len(sizes)), length))
  return float(sizes.sum()) / (count * length)


def _hashed(*key: int) -> np.uint64:
  state = np.zeros(1, np.uint64)
  for part in key:
    state = words.mix((state ^ np.uint64(part % 2**64)) + _MIX)
  return state[0]


def _best_fit(sizes_N: np.ndarray, order_N: np.ndarray, length: int) -> Iterator[list[Piece]]:
  """Yields rows of whole items, the largest items first."""
  items = order_N[np.argsort(-sizes_N[order_N], kind="stable")].tolist()
  sizes = sizes_N.tolist()
  rows: list[list[Piece]] = []
  by_room: list[list[int]] = [[] for _ in range(length + 1)]
  rooms = 0  # Bit r is set if a row has room for r.
  for item in items:
    size = sizes[item]
    above = rooms >> size
    if above:
      room = size + (above & -above).bit_length() - 1
      row = by_room[room].pop()
      if not by_room[room]:
        rooms ^= 1 << room
    else:
      room, row = length, len(rows)
      rows.append([])
    rows[row].append((item, 0, size))
    if room > size:
      by_room[room - size].append(row)
      rooms |= 1 << (room - size)
  yield from rows


def _concat(sizes_N: np.ndarray, order_N: np.ndarray, length: int) -> Iterator[list[Piece]]:
  """Yields full rows; an item goes on in the next row."""
  row: list[Piece] = []
  room = length
  for item in order_N.tolist():
    start, size = 0, int(sizes_N[item])
    while start < size:
      stop = min(size, start + room)
      row.append((item, start, stop))
      room -= stop - start
      start = stop
      if not room:
        yield row
        row, room = [], length
  if row:
    yield row


def _record(chunks: packing.Chunks, row: list[Piece], dtype: np.dtype) -> bytes:
  parts = [chunks.ids(item)[start : stop + 1] for item, start, stop in row]
  head = np.array([len(row), *(stop - start for _, start, stop in row)], "<u4")
  return head.tobytes() + np.concatenate(parts).astype(dtype).tobytes()


def _row(record: bytes, dtype: np.dtype, length: int) -> dict[str, np.ndarray]:
  count = int.from_bytes(record[:4], "little")
  sizes_S = np.frombuffer(record, "<u4", count, 4).astype(np.int64)
  ids = np.frombuffer(record, dtype, offset=4 * (count + 1))
  total = int(sizes_S.sum())
  segments = np.repeat(np.arange(count), sizes_S)
  places = np.arange(total)
  # A segment's ids are one more than its predictions: the last is a target only.
  tokens = places + segments
  starts_S = np.cumsum(sizes_S) - sizes_S
  out = {
    "tokens": np.zeros(length, np.int32), "targets": np.zeros(length, np.int32),
    "mask": np.zeros(length, np.float32), "positions": np.zeros(length, np.int32),
    "segments": np.zeros(length, np.int32),
  }  # fmt: skip
  out["tokens"][:total] = ids[tokens]
  out["targets"][:total] = ids[tokens + 1]
  out["mask"][:total] = 1
  out["positions"][:total] = places - starts_S[segments]
  out["segments"][:total] = segments + 1
  return out


def _keys(size: int, seed: int) -> np.ndarray:
  """[size] uint64 that look random, the same with every release of NumPy."""
  return words.mix(np.arange(size, dtype=np.uint64) * _MIX ^ _hashed(seed))
