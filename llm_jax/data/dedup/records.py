"""What deduplication leaves on record: who went for whom, verified pairs, clusters."""

import itertools
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from llm_jax.data.dedup.search import Decision
from llm_jax.data.dedup.table import Table

FILES = ("removed.jsonl", "edges.jsonl", "clusters.jsonl")


def write(
  out: pathlib.Path, table: Table, decision: Decision, reference: str = ""
) -> dict[str, Any]:
  """Writes removed.jsonl, edges.jsonl and clusters.jsonl to `out`.

  removed.jsonl has {"id", "kept", "score", "rule"} of each document that goes, by id; edges.jsonl
  {"a", "b", "score"} of each verified pair; clusters.jsonl {"cluster", "members"} of all that edges
  and copies join, the canonical first member first. A document that goes for one of another corpus
  has its name as "in".

  Args:
    out: the folder.
    table: of the documents.
    decision: on them.
    reference: name of the other corpus.

  Returns:
    {"kept": documents that stay, "removed": {"exact", "near"}}.
  """
  rows = np.arange(len(decision.kept))
  place = np.empty_like(rows)
  place[np.lexsort(table.keys.T[::-1])] = rows  # As ids sort.
  gone = np.flatnonzero(decision.kept != rows)
  gone = gone[np.argsort(place[gone])]
  ids, kept = table.ids(gone), table.ids(decision.kept[gone])
  exact, scores = decision.exact[gone], decision.scores[gone].tolist()
  rules = np.where(exact, "exact", "near").tolist()
  others = (decision.kept[gone] >= decision.own).tolist()
  _lines(
    out / "removed.jsonl",
    (
      {"id": a, "kept": b, "score": score, "rule": rule} | ({"in": reference} if other else {})
      for a, b, score, rule, other in zip(ids, kept, scores, rules, others, strict=True)
    ),
  )
  edges, scores = decision.edges, decision.edge_scores
  order = np.lexsort((place[edges[:, 1]], place[edges[:, 0]]))
  pairs = zip(table.ids(edges[order, 0]), table.ids(edges[order, 1]), strict=True)
  _lines(
    out / "edges.jsonl",
    (
      {"a": a, "b": b, "score": score}
      for (a, b), score in zip(pairs, scores[order].tolist(), strict=True)
    ),
  )
  _lines(out / "clusters.jsonl", _clusters(table, decision, place, reference))
  removed = {"exact": int(exact.sum()), "near": int((~exact).sum())}
  return {"kept": decision.own - len(gone), "removed": removed}


def _clusters(
  table: Table, decision: Decision, place: np.ndarray, reference: str
) -> Iterator[dict[str, Any]]:
  """Yields {"cluster", "members"}: ids of documents that edges and copies join, first one first.

  A member of another corpus is "id in name": ids of both may be equal.
  """
  labels = decision.clusters
  sizes, own = (np.bincount(x, minlength=len(labels)) for x in (labels, labels[: decision.own]))
  shared = np.flatnonzero((sizes[labels] > 1) & (own[labels] > 0))
  first = labels[shared]
  order = shared[np.lexsort((place[shared], shared != first, place[first]))]
  cuts = np.flatnonzero(np.append(True, labels[order][1:] != labels[order][:-1]))[: len(order)]
  pairs = zip(table.ids(order), (order < decision.own).tolist(), strict=True)
  ids = (name if own else f"{name} in {reference}" for name, own in pairs)
  for begin, end in zip(cuts.tolist(), [*cuts[1:].tolist(), len(order)], strict=False):
    members = list(itertools.islice(ids, end - begin))
    yield {"cluster": members[0], "members": members}


def _lines(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
  with open(path, "w", encoding="utf-8", errors="surrogatepass", newline="\n") as sink:
    sink.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
