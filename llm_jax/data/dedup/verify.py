"""Exact Jaccard similarity of word 5-gram sets: what decides after LSH has proposed."""

from collections.abc import Iterator

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
  both = np.sort(np.concatenate([a, b]), kind="stable")  # Two runs: a merge.
  common = int(np.count_nonzero(both[1:] == both[:-1]))
  return common / (len(a) + len(b) - common)


def possible(pairs: np.ndarray, sizes: np.ndarray, threshold: float) -> np.ndarray:
  """Drops the pairs [P, 2] whose set sizes [N] alone rule out similarity >= threshold."""
  small, large = np.sort(sizes[pairs], axis=1).T
  return pairs[small >= threshold * large]


def tasks(pairs: np.ndarray, table: Table, directory: str) -> list[engines.Task]:
  """Cuts `pairs` [P, 2] of rows of `table` into tasks for `similarities`."""
  outs = engines.names(directory, -(-len(pairs) // _TASK))
  paths = [f"{shard}.grams" for shard in table.shards]
  parts = (pairs[i * _TASK : (i + 1) * _TASK] for i in range(len(outs)))
  return [
    engines.Task(out, (paths, table.places(part[:, 0]), table.places(part[:, 1])))
    for out, part in zip(outs, parts, strict=True)
  ]


def similarities(
  out: str, paths: list[str], first: np.ndarray, second: np.ndarray
) -> engines.Result:
  """A task: writes the Jaccard similarities [P] float64 of P pairs to `out`.npy.

  Args:
    out: where to.
    paths: the files of 5-grams.
    first: [P, 3] int64, the places of the pairs' one side, as `Table.places` gives them.
    second: [P, 3] int64, of the other.
  """
  with Files(paths) as files:
    scores = [jaccard(*pair) for pair in _sets(files, first.tolist(), second.tolist())]
  np.save(f"{out}.npy", np.array(scores, np.float64))
  return {"pairs": len(scores)}


def read(files: Files, place: list[int]) -> np.ndarray:
  """Returns the 5-grams at a place: sorted uint64."""
  shard, first, count = place
  return np.frombuffer(files.read(shard, 8 * first, 8 * count), "<u8")


def _sets(files: Files, first: list, second: list) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  at, held = None, np.zeros(0, np.uint64)
  for a, b in zip(first, second, strict=True):
    if a != at:  # Pairs are sorted: the next one often has the same first side.
      at, held = a, read(files, a)
    yield held, read(files, b)
