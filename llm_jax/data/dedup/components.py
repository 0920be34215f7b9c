"""Clusters of verified edges, and who of a cluster stays."""

from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np
from scipy.sparse import csgraph, csr_array

_TRIES = 64  # Survivors of its own cluster that a document is compared with.


def labels(edges: np.ndarray, size: int) -> np.ndarray:
  """Returns the smallest node [N] int64 of each node's connected component.

  Args:
    edges: [E, 2] int64 nodes.
    size: N.
  """
  ones = np.ones(len(edges), np.int8)
  graph = csr_array((ones, (edges[:, 0], edges[:, 1])), shape=(size, size))
  count, component = csgraph.connected_components(graph, directed=False)
  least = np.full(count, size, np.int64)
  np.minimum.at(least, component, np.arange(size))
  return least[component]


def survivors(
  edges: np.ndarray,
  scores: np.ndarray,
  threshold: float,
  similarity: Callable[[int, int], float],
  cluster: np.ndarray | None = None,
  settled: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns (removed, kept, score), each [R]: who goes, for whom it goes, how alike they are.

  The members of a cluster are visited in canonical (ascending) order. One goes if it is as similar
  as `threshold` to a member that stays: the first of the cluster, one that it has an edge with, or
  another (64 at most are tried). Else it stays, so that a chain of small changes, or a template
  that many pages share, never takes a cluster away.

  Args:
    edges: [E, 2] verified pairs a < b.
    scores: [E] their similarities.
    threshold: least similarity at which a document goes.
    similarity: exact similarity of a pair (a < b) that is not among `edges`.
    cluster: [N], what `labels` returns; None: it is worked out.
    settled: nodes below it stay, whatever they are like.
  """
  removed: list[tuple[int, int, float]] = []
  if cluster is None:
    cluster = labels(edges, int(edges.max(initial=-1)) + 1)
  for members, near in _clusters(edges, scores, cluster):
    gone: set[int] = set()
    kept: list[int] = []
    for x in members:
      if x < settled:
        kept.append(x)
        continue
      known = near[x]
      rivals = [*kept[:1], *(y for y in known if y not in gone), *kept[1:_TRIES]]
      for y in dict.fromkeys(rivals):
        score = known[y] if y in known else similarity(y, x)
        if score >= threshold:
          removed.append((x, y, score))
          gone.add(x)
          break
      else:
        kept.append(x)
  rows = np.array(removed, np.float64).reshape(-1, 3)
  order = np.argsort(rows[:, 0])
  return rows[order, 0].astype(np.int64), rows[order, 1].astype(np.int64), rows[order, 2]


def _clusters(
  edges: np.ndarray, scores: np.ndarray, cluster: np.ndarray
) -> Iterator[tuple[list[int], dict[int, dict[int, float]]]]:
  """Yields (members, {member: {earlier neighbour: score}}) of each component, one at a time."""
  if not len(edges):
    return
  label = cluster[edges[:, 0]]
  order = np.lexsort((edges[:, 0], edges[:, 1], label))
  ordered = label[order]
  cuts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
  for begin, end in zip(cuts, np.append(cuts[1:], len(order)), strict=True):
    own = order[begin:end]
    near: dict[int, dict[int, float]] = defaultdict(dict)
    for (a, b), score in zip(edges[own].tolist(), scores[own].tolist(), strict=True):
      near[b][a] = score  # Only an earlier member can have been kept before.
    yield np.unique(edges[own]).tolist(), near
