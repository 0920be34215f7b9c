"""Exact similarity of word 5-gram sets: what decides after LSH has proposed.

A pair (a, b) is in canonical order: if the two are alike, b goes and a stays.
"""

from collections.abc import Callable, Iterator

import numpy as np

from llm_jax.data.dedup.table import Files, Table
from llm_jax.data.pipeline import engines

_TASK = 20_000  # Pairs of a task.


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
  """Returns |a & b| / |a | b| of two sorted arrays without repeats; 1 if both are empty.

  Exact but for collisions of 64-bit hashes (below 1e-9 for two texts of 100,000 words).
  """
  if len(a) == len(b) == 0:
    return 1.0
  common = _common(a, b)
  return common / (len(a) + len(b) - common)


def containment(a: np.ndarray, b: np.ndarray) -> float:
  """Returns |a & b| / |b|, the part of `b` that is in `a` too; 1 if `b` is empty."""
  return _common(a, b) / len(b) if len(b) else 1.0


MEASURES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
  "jaccard": jaccard,
  "containment": containment,
}


def possible(
  pairs: np.ndarray, sizes: np.ndarray, threshold: float, measure: str = "jaccard"
) -> np.ndarray:
  """Drops the pairs [P, 2] whose set sizes [N] alone rule out similarity >= threshold."""
  first, second = sizes[pairs].T
  enough = first >= threshold * second
  return pairs[enough & (second >= threshold * first) if measure == "jaccard" else enough]


def tasks(
  pairs: np.ndarray, table: Table, directory: str, measure: str = "jaccard"
) -> list[engines.Task]:
  """Cuts `pairs` [P, 2] of rows of `table` into tasks for `similarities`."""
  outs = engines.names(directory, -(-len(pairs) // _TASK))
  paths = [f"{shard}.grams" for shard in table.shards]
  parts = (pairs[i * _TASK : (i + 1) * _TASK] for i in range(len(outs)))
  return [
    engines.Task(out, (paths, table.places(part[:, 0]), table.places(part[:, 1]), measure))
    for out, part in zip(outs, parts, strict=True)
  ]


def similarities(
  out: str, paths: list[str], first: np.ndarray, second: np.ndarray, measure: str = "jaccard"
) -> engines.Result:
  """A task: writes the similarities [P] float64 of P pairs to `out`.npy.

  Args:
    out: where to.
    paths: the files of 5-grams.
    first: [P, 3] int64, the places of the pairs' one side, as `Table.places` gives them.
    second: [P, 3] int64, of the other.
    measure: one of MEASURES.
  """
  with Files(paths) as files:
    sets = _sets(files, first.tolist(), second.tolist())
    scores = [MEASURES[measure](*pair) for pair in sets]
  np.save(f"{out}.npy", np.array(scores, np.float64))
  return {"pairs": len(scores)}


def read(files: Files, place: list[int]) -> np.ndarray:
  """Returns the 5-grams at a place: sorted uint64."""
  shard, first, count = place
  return np.frombuffer(files.read(shard, 8 * first, 8 * count), "<u8")


def _common(a: np.ndarray, b: np.ndarray) -> int:
  both = np.sort(np.concatenate([a, b]), kind="stable")  # Two runs: a merge.
  return int(np.count_nonzero(both[1:] == both[:-1]))


def _sets(files: Files, first: list, second: list) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  at, held = None, np.zeros(0, np.uint64)
  for a, b in zip(first, second, strict=True):
    if a != at:  # Pairs are sorted: the next one often has the same first side.
      at, held = a, read(files, a)
    yield held, read(files, b)
