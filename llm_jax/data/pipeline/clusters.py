"""What a search for duplicates found, small enough for a report."""

import heapq
import json
import pathlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

LARGEST = 5  # Clusters that are shown.
_MEMBERS = 4  # Of each.


def describe(
  records: Mapping[str, pathlib.Path], drops: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
  """Returns {"step", "clusters", "documents", "sizes", "largest"} of each step with clusters.

  Args:
    records: the folder of each step on the corpus (`recipe.Made`).
    drops: all dropped documents.

  Returns:
    `sizes` has {"members": least of a power of two, "clusters"}; `largest` the largest clusters,
    each {"cluster", "members", "dropped": a few rows {"id", "kept", "score", "reason", "sample"}}.
  """
  found = [
    _counted(step, folder / "clusters.jsonl")
    for step, folder in records.items()
    if (folder / "clusters.jsonl").exists()
  ]
  wanted = {
    (own["step"], member): cluster
    for own in found
    for cluster in own["largest"]
    for member in cluster.pop("ids")
  }
  for drop in drops:
    cluster = wanted.get((drop["step"], drop["id"]))
    if cluster is not None and len(cluster["dropped"]) < _MEMBERS:
      cluster["dropped"].append(
        {name: drop[name] for name in ("id", "kept", "score", "reason", "sample")}
      )
  return found


def _counted(step: str, path: pathlib.Path) -> dict[str, Any]:
  sizes: Counter[int] = Counter()
  documents = 0
  largest: list[tuple[int, str, list[str]]] = []
  with open(path, encoding="utf-8") as lines:
    for line in lines:
      row = json.loads(line)
      count = len(row["members"])
      sizes[1 << count.bit_length() - 1] += 1
      documents += count
      largest = heapq.nsmallest(LARGEST, [*largest, (-count, str(row["cluster"]), row["members"])])
  return {
    "step": step,
    "clusters": sum(sizes.values()),
    "documents": documents,
    "sizes": [{"members": size, "clusters": sizes[size]} for size in sorted(sizes)],
    "largest": [
      {"cluster": name, "members": -count, "ids": members, "dropped": []}
      for count, name, members in largest
    ],
  }
