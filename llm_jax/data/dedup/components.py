"""Clusters of verified edges, and who of a cluster stays."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

_TRIES = 64  # Survivors of its own cluster that a document is compared with.

Edges = Mapping[tuple[int, int], float]  # (a, b) with a < b, to their similarity.


def clusters(edges: Iterable[tuple[int, int]]) -> list[list[int]]:
  """Returns the connected components with an edge, members and components in ascending order."""
  parent: dict[int, int] = {}

  def root(x: int) -> int:
    while parent.setdefault(x, x) != x:
      parent[x] = x = parent[parent[x]]
    return x

  for a, b in edges:
    low, high = sorted((root(a), root(b)))
    parent[high] = low
  members = defaultdict(list)
  for x in sorted(parent):
    members[root(x)].append(x)
  return list(members.values())


def survivors(
  edges: Edges, threshold: float, similarity: Callable[[int, int], float]
) -> dict[int, tuple[int, float]]:
  """Returns {removed: (kept, similarity)}; every removal is verified against the one that stays.

  The members of a cluster are visited in canonical (ascending) order. One goes if it is as similar
  as `threshold` to a member that stays: the first of the cluster, one that it has an edge with, or
  another (64 at most are tried). Else it stays, so that a chain of small changes, or a template
  that many pages share, never takes a cluster away.

  Args:
    edges: verified pairs.
    threshold: least similarity at which a document goes.
    similarity: exact similarity of a pair (a < b) that is not among `edges`.
  """
  near = defaultdict(list)
  for a, b in sorted(edges):
    near[b].append(a)  # Only an earlier member can have been kept before.
  removed: dict[int, tuple[int, float]] = {}
  for members in clusters(edges):
    kept: list[int] = []
    for x in members:
      rivals = [*kept[:1], *(y for y in near[x] if y not in removed), *kept[1:_TRIES]]
      for y in dict.fromkeys(rivals):
        score = edges.get((y, x))
        score = similarity(y, x) if score is None else score
        if score >= threshold:
          removed[x] = (y, score)
          break
      else:
        kept.append(x)
  return removed
