"""Connected components of a graph that no memory holds: alternating stars over files of edges.

Kiveris et al. 2014 ("Connected Components in MapReduce and Beyond"). Both operations keep what is
connected, and never make more edges than they got:

    small star   a node's smaller neighbours, and the node, link to the smallest of them
    large star   a node's larger neighbours link to the smallest of its neighbours and itself

A round is both. When a round moves nothing, every component is a star about its smallest node, the
label of them all. O(log^2 n) rounds are proven; a chain of 10,000 nodes takes 12 to 15.

Hash-to-Min (Rastogi et al. 2012) takes as many rounds, but gathers all of a component at its
smallest node: the largest cluster must fit in one reducer, and what is sent can be a multiple of
the edges. Here each edge is looked at by itself, beside the smallest neighbour of one of its nodes.
So memory is for the distinct nodes of a partition and one block of edges, however large a component
or the degree of a node is, and a round writes three pairs for an edge at most.

`components` drives; `scatter`, `small_star`, `large_star` and `label` are what it maps, each a pure
function from files to one file, under any `map`: in this process, a pool, many machines with a disk
in common. A file is written under another name and renamed when complete; a task whose file is
there is not run again.

An edge is a pair (high, low) of int64 nodes, high > low. E edges of a block, N nodes.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from llm_jax.data import words
from llm_jax.errors import UserError

_ROWS = 1 << 20  # Edges that are looked at together.
_HIGH = np.uint64(0xFFFFFFFF00000000)


class Task(NamedTuple):
  """What one call reads and writes.

  Attributes:
    sources: files of edges to read: .npy for `scatter`, else those that an earlier task wrote.
    out: file to write.
    number: of the partition; for `scatter`, of the block of its source.
    partitions: that nodes are hashed to.
    nodes: for `label`, the files that `scatter` wrote.
  """

  sources: tuple[str, ...]
  out: str
  number: int
  partitions: int
  nodes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Result:
  """The components of a graph.

  Attributes:
    files: one .npy [N, 2] int64 a partition: (node, smallest node of its component) by node. Every
      node of an edge is in one of them, that of a self-loop too.
    nodes: how many there are.
    components: how many there are.
    rounds: {"edges", "moved"} of each: pairs left, and nodes and edges that it changed; the last
      one moved none.
  """

  files: list[Path]
  nodes: int
  components: int
  rounds: list[dict[str, int]]

  def labels(self) -> np.ndarray:
    """Returns all (node, label) [N, 2] int64 by node, for graphs whose nodes fit in memory."""
    rows = np.concatenate([np.zeros((0, 2), np.int64), *map(np.load, self.files)])
    return rows[np.argsort(rows[:, 0])]


def components(
  edge_files: Sequence[str | os.PathLike[str]],
  work_dir: str | os.PathLike[str],
  partitions: int = 16,
  most_rounds: int = 50,
  run: Callable[[Callable[[Task], None], Iterable[Task]], Iterable] = map,
) -> Result:
  """Finds the connected components of a graph; goes on where an earlier call stopped.

  The labels do not depend on `partitions`, `run` or the order of the edges.

  Args:
    edge_files: .npy files [E, 2] int64, edges in any order and direction; they may repeat, and be
      self-loops.
    work_dir: folder for this graph alone; at the end it holds the labels, on the way up to 120
      bytes an edge.
    partitions: of the nodes. A task needs about 100 bytes for each node of its partition, and 150
      MB for a block of edges.
    most_rounds: after so many without an end, it is an error.
    run: maps a function of this module over tasks, in any order, and has finished when it was
      iterated over: the `map` of a pool of concurrent.futures, for one.

  Raises:
    ValueError: if `partitions` or `most_rounds` is below 1.
    UserError: if the rounds did not converge; if a file cannot be read or is no such array; if
      `work_dir` belongs to other edges or partitions.
  """
  if partitions < 1 or most_rounds < 1:
    raise ValueError(f"at least 1 of each, got partitions={partitions}, most_rounds={most_rounds}")
  folder, blocks = Path(work_dir), _blocks_of(edge_files)
  folder.mkdir(parents=True, exist_ok=True)
  _claim(folder, edge_files, partitions)
  done = folder / "result.json"
  files = _names(folder / "labels", partitions, "npy")
  if not done.exists():
    scattered = _names(folder / "edges", len(blocks))
    tasks = zip(scattered, blocks, strict=True)
    _all(run, scatter, [Task((s,), str(out), n, partitions) for out, (s, n) in tasks])
    last, history = _rounds(folder, scattered, partitions, most_rounds, run)
    sources, nodes = tuple(map(str, last)), tuple(map(str, scattered))
    _all(run, label, [Task(sources, str(f), p, partitions, nodes) for p, f in enumerate(files)])
    counts = [_counted(file) for file in files]
    total, roots = (sum(c[i] for c in counts) for i in (0, 1))
    _write_json(done, {"nodes": total, "components": roots, "rounds": history})
  for file in (*folder.glob("edges-*"), *folder.glob("round-*")):
    file.unlink()
  return Result(files, **json.loads(done.read_text()))


def scatter(task: Task) -> None:
  """Reads a block of a source; writes its edges by their larger node, and its nodes."""
  rows = _edges(task.sources[0])[task.number * _ROWS : (task.number + 1) * _ROWS]
  high, low = rows.max(axis=1), rows.min(axis=1)
  with _writer(task) as sink:
    sink.add("down", high[high > low], low[high > low])
    sink.add("nodes", rows.ravel(), rows.ravel())


def small_star(task: Task) -> None:
  """Of the nodes of a partition: links all smaller neighbours, and the node, to the smallest."""
  nodes, least, most = _extremes(_blocks(task.sources, "down", task.number))
  with _writer(task, moved=int((least != most).sum())) as sink:
    for a in range(0, len(nodes), _ROWS):
      sink.add_both(nodes[a : a + _ROWS], least[a : a + _ROWS])
    for block in _blocks(task.sources, "down", task.number):
      low = block[:, 1]
      smallest = least[np.searchsorted(nodes, block[:, 0])]
      other = low != smallest
      sink.add_both(low[other], smallest[other])


def large_star(task: Task) -> None:
  """Of the nodes of a partition: links all larger neighbours to the smallest, or to the node."""
  nodes, least, _ = _extremes(_blocks(task.sources, "down", task.number))
  with _writer(task) as sink:
    for block in _blocks(task.sources, "up", task.number):
      low = block[:, 1]
      at = np.searchsorted(nodes, low)
      found = at < len(nodes)
      found[found] = nodes[at[found]] == low[found]
      smallest = low.copy()
      smallest[found] = least[at[found]]
      sink.add("down", block[:, 0], smallest)
      sink.moved += int(found.sum())


def label(task: Task) -> None:
  """Of the nodes of a partition: writes each with the centre of its star, or with itself."""
  own = _blocks(task.nodes, "nodes", task.number)
  linked = _blocks(task.sources, "down", task.number)
  nodes, least, _ = _extremes(itertools.chain(own, linked))
  with _fresh(task.out) as path, open(path, "wb") as sink:
    np.save(sink, np.stack([nodes, least], axis=1))


def _rounds(
  folder: Path, scattered: list[Path], partitions: int, most_rounds: int, run: Callable
) -> tuple[list[Path], list[dict[str, int]]]:
  """Returns the files of the last round, and what each moved."""
  sources, history = scattered, []
  for number in range(1, most_rounds + 1):
    name = folder / f"round-{number:04}"
    small, large = (_names(Path(f"{name}-{kind}"), partitions) for kind in ("small", "large"))
    mark = Path(f"{name}.json")
    if not mark.exists():
      for step, given, made in ((small_star, sources, small), (large_star, small, large)):
        paths = tuple(map(str, given))
        _all(run, step, [Task(paths, str(out), p, partitions) for p, out in enumerate(made)])
      counts = [_listed(file) for file in (*small, *large)]
      moved = sum(c["moved"] for c in counts)
      _write_json(mark, {"edges": sum(c["edges"] for c in counts[partitions:]), "moved": moved})
    history.append(json.loads(mark.read_text()))
    for file in (*small, *(sources if number > 1 else ())):
      file.unlink(missing_ok=True)  # Of this round its end is left, of those before the marks.
      Path(_pairs_of(file)).unlink(missing_ok=True)
    sources = large
    if not history[-1]["moved"]:
      return sources, history
  raise UserError(
    f"no connected components after {most_rounds} rounds: the last one still moved "
    f"{history[-1]['moved']}, with {history[-1]['edges']} edges left; call again with a larger "
    f"most_rounds, {folder} keeps what is done"
  )


@contextlib.contextmanager
def _writer(task: Task, moved: int = 0) -> Iterator["_Writer"]:
  """Gives a writer of `out`, the list of the pieces, and of the pairs beside it."""
  with _fresh(task.out) as listed:
    with _fresh(_pairs_of(task.out)) as path, open(path, "wb") as file:
      sink = _Writer(file, task.partitions, moved)
      yield sink
    row = {"edges": sink.edges, "moved": sink.moved, "pieces": sink.pieces}
    Path(listed).write_text(json.dumps(row))


class _Writer:
  """Writes pairs of nodes, in pieces by the partition of one of the two."""

  def __init__(self, file: BinaryIO, partitions: int, moved: int):
    self.edges, self.moved = 0, moved
    self.pieces: list[tuple[str, int, int, int]] = []  # Kind, partition, first pair, pairs.
    self._file = file
    self._rows = 0
    limits = [-(-(p << 32) // partitions) << 32 for p in range(1, partitions)]
    self._limits = np.array(limits, np.uint64)

  def add(self, kind: str, high: np.ndarray, low: np.ndarray, by_low: bool = False) -> None:
    """Writes pairs [E], most of those that repeat once, by the partition of `high` or `low`."""
    owner, other = (low, high) if by_low else (high, low)
    # One sort brings the pairs of a partition together, and equal ones side by side.
    key = _hash(owner) & _HIGH | _hash(other) >> np.uint64(32)
    order = np.argsort(key)
    pairs, key = np.stack([high, low], axis=1)[order], key[order]
    new = np.ones(len(pairs), bool)
    new[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    pairs, key = pairs[new], key[new]
    pairs.tofile(self._file)
    ends = [0, *np.searchsorted(key, self._limits).tolist(), len(pairs)]
    for part, (a, b) in enumerate(itertools.pairwise(ends)):
      if b > a:
        self.pieces.append((kind, part, self._rows + a, b - a))
    self._rows += len(pairs)
    self.edges += len(pairs) if kind == "down" else 0

  def add_both(self, high: np.ndarray, low: np.ndarray) -> None:
    """Writes pairs [E] once by the partition of either node."""
    self.add("down", high, low)
    self.add("up", high, low, by_low=True)


def _extremes(blocks: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns the distinct `high` [N] of pairs, sorted, and the least and the most `low` of each."""
  nodes = least = most = np.zeros(0, np.int64)
  for block in blocks:
    high = np.concatenate([nodes, block[:, 0]])
    order = np.argsort(high)
    high = high[order]
    starts = np.flatnonzero(np.concatenate([[True], high[1:] != high[:-1]]))
    nodes = high[starts]
    least, most = (
      pick.reduceat(np.concatenate([old, block[:, 1]])[order], starts)
      for pick, old in ((np.minimum, least), (np.maximum, most))
    )
  return nodes, least, most


def _blocks(sources: Iterable[str], kind: str, partition: int) -> Iterator[np.ndarray]:
  """Yields the pairs [E, 2] of a partition, some pieces of all sources together, none empty."""
  waiting, size = [], 0
  for source in sources:
    for of, part, first, count in _listed(source)["pieces"]:
      if (of, part) != (kind, partition):
        continue
      waiting.append(_piece(source, first, count))
      size += count
      if size >= _ROWS:
        yield np.concatenate(waiting)
        waiting, size = [], 0
  if waiting:
    yield np.concatenate(waiting)


def _piece(source: str, first: int, count: int) -> np.ndarray:
  path = _pairs_of(source)
  try:
    pairs = np.fromfile(path, np.int64, 2 * count, offset=16 * first)
    if len(pairs) < 2 * count:
      raise ValueError("it is too short")
  except (OSError, ValueError) as error:
    raise UserError(f"cannot read {path} ({error}): remove its folder and run again") from error
  return pairs.reshape(count, 2)


def _listed(path: str | Path) -> dict[str, Any]:
  try:
    return json.loads(Path(path).read_text())
  except (OSError, ValueError) as error:
    raise UserError(f"cannot read {path} ({error}): remove its folder and run again") from error


def _pairs_of(path: str | Path) -> str:
  return f"{os.fspath(path).removesuffix('.json')}.pairs"


@contextlib.contextmanager
def _fresh(path: str | Path) -> Iterator[str]:
  """Gives a name to write to, which becomes `path` when all went well."""
  name = f"{path}.{uuid.uuid4().hex}.part"
  try:
    yield name
    os.replace(name, path)
  except BaseException:
    Path(name).unlink(missing_ok=True)
    raise


def _hash(nodes: np.ndarray) -> np.ndarray:
  return words.mix(np.ascontiguousarray(nodes).view(np.uint64))


def _names(stem: Path, count: int, kind: str = "json") -> list[Path]:
  return [Path(f"{stem}-{i:05}.{kind}") for i in range(count)]


def _all(run: Callable, step: Callable[[Task], None], tasks: Iterable[Task]) -> None:
  """Runs the tasks whose file is missing."""
  for _ in run(step, [task for task in tasks if not os.path.exists(task.out)]):
    pass


def _edges(path: str | os.PathLike[str]) -> np.ndarray:
  """Returns a mapped file of edges."""
  try:
    rows = np.load(path, mmap_mode="r").view(np.ndarray)
    if rows.dtype != np.int64 or rows.ndim != 2 or rows.shape[1] != 2:
      raise ValueError(f"{rows.dtype} {rows.shape} where int64 (E, 2) must be")
  except (OSError, ValueError, EOFError) as error:
    raise UserError(f"cannot read edges of {path} ({error}): check the file") from error
  return rows


def _blocks_of(edge_files: Iterable[str | os.PathLike[str]]) -> list[tuple[str, int]]:
  """Returns (file, number of the block) of all blocks of edges."""
  return [
    (os.fspath(file), number)
    for file in edge_files
    for number in range(-(-len(_edges(file)) // _ROWS))
  ]


def _claim(folder: Path, edge_files: Iterable[str | os.PathLike[str]], partitions: int) -> None:
  """Notes in `folder` whose rounds it holds, or checks that they are the same."""
  states = [(os.path.abspath(file), os.stat(file)) for file in edge_files]
  files = [[name, s.st_size, s.st_mtime_ns] for name, s in states]
  plan = {"edges": files, "partitions": partitions, "rows": _ROWS}
  path = folder / "plan.json"
  if not path.exists() and any(file.suffix != ".part" for file in folder.iterdir()):
    raise UserError(f"{folder} holds files of something else: name an empty folder")
  if path.exists() and json.loads(path.read_text()) != plan:
    raise UserError(
      f"{folder} holds rounds of other edges or partitions: name another folder, or remove it"
    )
  _write_json(path, plan)
  for file in folder.glob("*.part"):  # What a killed task left.
    file.unlink()


def _counted(path: Path) -> tuple[int, int]:
  rows = np.load(path)
  return len(rows), int((rows[:, 0] == rows[:, 1]).sum())


def _write_json(path: Path, value: Any) -> None:
  with _fresh(path) as name:
    Path(name).write_text(json.dumps(value) + "\n")
