"""Duplicates of a corpus: from the columns of its shards to who stays, on any engine."""

import dataclasses
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from llm_jax.data.dedup import candidates, components, rounds, signatures, verify
from llm_jax.data.dedup.table import Files, Source, Table, sign
from llm_jax.data.pipeline import engines

_TASK = 256  # Texts in memory that make a shard.
# Verified pairs from which clusters are joined in rounds on disk; memory takes 30 bytes for each.
_IN_MEMORY = 30_000_000


@dataclasses.dataclass(frozen=True)
class Decision:
  """What was found in a table of N rows; those of a reference all stay.

  Attributes:
    kept: [N] int64, the row that stays in a row's place; its own if it stays.
    scores: [N] float64, exact similarity to that row; 1 if it stays.
    exact: [N] bool, whether a row goes as an exact duplicate, not as a near one.
    edges: [E, 2] int64, verified pairs; a row with exact copies stands for them all.
    edge_scores: [E] float64.
    clusters: [N] int64, the first row, in canonical order, of the cluster that a row is in: what
      edges and copies join.
    counts: how many documents, candidates, edges, clusters there were.
    own: how many of the first rows are no reference.
  """

  kept: np.ndarray
  scores: np.ndarray
  exact: np.ndarray
  edges: np.ndarray
  edge_scores: np.ndarray
  clusters: np.ndarray
  counts: dict[str, int]
  own: int


@dataclasses.dataclass(frozen=True)
class Result:
  """What was found in N texts.

  Attributes:
    kept: indices of the documents that stay, ascending.
    removed: {"id", "kept", "score", "rule"} of each that goes, by id; `kept` stays, `score` is
      the exact Jaccard similarity to it, `rule` is "exact" or "near".
    edges: {"a", "b", "score"} of each verified pair of ids, by id; a document with exact copies
      stands for them all.
    counts: how many documents, candidates, edges, clusters there were.
  """

  kept: list[int]
  removed: list[dict[str, Any]]
  edges: list[dict[str, Any]]
  counts: dict[str, int]


def near_duplicates(
  texts: Sequence[str], ids: Sequence[str], threshold: float = 0.7, workers: int = 1
) -> tuple[list[int], list[dict[str, Any]]]:
  """Returns (indices that stay, removals {"id", "kept", "score", "rule"}), as in `Result`.

  Raises:
    ValueError: if `texts` and `ids` differ in size, ids repeat, or `threshold` is not in (0, 1].
  """
  result = find(texts, ids, threshold, workers)
  return result.kept, result.removed


def find(
  texts: Sequence[str], ids: Sequence[str], threshold: float = 0.7, workers: int = 1
) -> Result:
  """Finds exact and near duplicates among `texts`, which `ids` name.

  Raises:
    ValueError: if `texts` and `ids` differ in size, ids repeat, or `threshold` is not in (0, 1].
  """
  if len(texts) != len(ids):
    raise ValueError(f"{len(texts)} texts and {len(ids)} ids must match")
  if len(set(ids)) != len(ids):
    raise ValueError(f"{len(ids)} ids, of which only {len(set(ids))} differ")
  if not 0 < threshold <= 1:
    raise ValueError(f"threshold must be in (0, 1], got {threshold}")
  cuts = range(0, len(texts), _TASK)
  sources: list[Source] = [(texts[i : i + _TASK], ids[i : i + _TASK]) for i in cuts]
  with tempfile.TemporaryDirectory() as work, engines.Local(workers) as engine:
    decision = decide(columns(sources, work, engine), work, engine, threshold)
  gone = np.flatnonzero(decision.kept != np.arange(len(ids)))
  removed = [
    {
      "id": ids[i],
      "kept": ids[decision.kept[i]],
      "score": float(decision.scores[i]),
      "rule": "exact" if decision.exact[i] else "near",
    }
    for i in gone.tolist()
  ]
  edges = [
    {"a": ids[a], "b": ids[b], "score": score}
    for (a, b), score in zip(decision.edges.tolist(), decision.edge_scores.tolist(), strict=True)
  ]
  stays = np.flatnonzero(decision.kept == np.arange(len(ids))).tolist()
  return Result(
    stays,
    sorted(removed, key=lambda row: row["id"]),
    sorted(edges, key=lambda row: (row["a"], row["b"])),
    decision.counts,
  )


def columns(
  sources: Sequence[Source], work: str, engine: engines.Engine, name: str = "sign"
) -> Table:
  """Writes the columns of every shard to `work`/`name`, and opens them."""
  outs = engines.names(pathlib.Path(work) / name, len(sources))
  tasks = [engines.Task(out, (source,)) for out, source in zip(outs, sources, strict=True)]
  engines.results(engine, sign, tasks)
  return Table(outs)


def decide(
  table: Table,
  work: str,
  engine: engines.Engine,
  threshold: float,
  measure: str = "jaccard",
  reference: int = 0,
  in_memory: int = _IN_MEMORY,
) -> Decision:
  """Decides which rows of `table` stay; the same whatever their order and the engine.

  Of two duplicates the longer text stays, then the one of the smaller id.

  Args:
    table: of all documents.
    work: folder for what is needed on the way.
    engine: runs the comparisons.
    threshold: similarity from which one of two goes.
    measure: one of `verify.MEASURES`; of "containment" it is the part of the one that goes.
    reference: so many of the last rows are of another corpus: they stay, come before all others,
      and are not compared with each other.
    in_memory: from so many verified pairs on clusters are joined in rounds (rounds.py).
  """
  # From here on a document is its canonical rank, so that the input's order cannot matter.
  own = np.arange(len(table)) < len(table) - reference
  order = np.lexsort((*table.keys.T[::-1], -table.lengths, own))
  copy_of = _copies(table.digests[order])
  first = np.flatnonzero((copy_of == np.arange(len(order))) & (table.sizes[order] > 0))
  bands = (table.band(b)[order[first]] for b in range(signatures.BANDS))
  settled = int(np.searchsorted(first, reference))
  pairs = first[candidates.pairs(bands, len(first), settled)]
  likely = verify.possible(pairs, table.sizes[order], threshold, measure)
  scores = _similarities(order[likely], table, work, engine, measure)
  edges, scores = likely[scores >= threshold], scores[scores >= threshold]
  if len(edges) < in_memory:
    cluster = components.labels(edges, len(order))
  else:
    cluster = _labels_in_rounds(edges, len(order), work, engine)
  with Files([f"{shard}.grams" for shard in table.shards]) as files:
    similarity = _similarity(table, order, files, measure)
    near = components.survivors(edges, scores, threshold, similarity, cluster, reference)
  return _decision(order, copy_of, pairs, edges, scores, near, cluster, reference)


def _copies(digests: np.ndarray) -> np.ndarray:
  """Returns the first row [N] of those with the same digest [N, 2]."""
  size = len(digests)
  order = np.lexsort((np.arange(size), digests[:, 1], digests[:, 0]))
  ranked = digests[order]
  new = np.append(True, (ranked[1:] != ranked[:-1]).any(axis=1))[:size]
  out = np.empty(size, np.int64)
  out[order] = order[np.maximum.accumulate(np.where(new, np.arange(size), 0))]
  return out


def _similarities(
  pairs: np.ndarray, table: Table, work: str, engine: engines.Engine, measure: str
) -> np.ndarray:
  tasks = verify.tasks(pairs, table, str(pathlib.Path(work) / "verify"), measure)
  engines.results(engine, verify.similarities, tasks)
  return np.concatenate([np.zeros(0), *(np.load(f"{task.out}.npy") for task in tasks)])


def _similarity(
  table: Table, order: np.ndarray, files: Files, measure: str
) -> Callable[[int, int], float]:
  def similarity(a: int, b: int) -> float:
    first, second = table.places(order[[a, b]]).tolist()
    return verify.MEASURES[measure](verify.read(files, first), verify.read(files, second))

  return similarity


def _labels_in_rounds(
  edges: np.ndarray, size: int, work: str, engine: engines.Engine
) -> np.ndarray:
  """As `components.labels`, by tasks on disk that each hold a part of the nodes."""
  folder = pathlib.Path(work) / "rounds"
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir()
  np.save(folder / "edges.npy", edges)

  def run(step: Callable[[rounds.Task], None], tasks: Iterable[rounds.Task]) -> list[Any]:
    own = [engines.Task(f"{task.out}.done", (step, task)) for task in tasks]
    return engines.results(engine, _round, own)

  found = rounds.components([folder / "edges.npy"], folder / "stars", run=run)
  node, label = found.labels().T
  labels = np.arange(size)
  labels[node] = label
  shutil.rmtree(folder)
  return labels


def _round(out: str, step: Callable[[rounds.Task], None], task: rounds.Task) -> engines.Result:
  """A task: a step of a round; its files are where `task` says."""
  step(task)
  return {"of": task.out}


def _decision(order, copy_of, pairs, edges, edge_scores, near, cluster, reference: int) -> Decision:
  size = len(order)
  kept, scores = copy_of.copy(), np.ones(size)
  removed, survivor, score = near
  kept[removed], scores[removed] = survivor, score
  # A copy has its original's 5-grams, hence its similarity, and goes where that one goes.
  kept, scores = kept[copy_of], scores[copy_of]
  exact = (copy_of != np.arange(size)) & (kept == copy_of)
  # References come first in canonical order.
  kept[:reference], scores[:reference], exact[:reference] = np.arange(reference), 1, False
  cluster = cluster[copy_of]
  sizes = np.unique(cluster[np.unique(edges)], return_counts=True)[1]
  back = np.empty(size, np.int64)
  back[order] = np.arange(size)
  counts = {
    "documents": size - reference,
    "candidates": len(pairs),
    "edges": len(edges),
    "clusters": len(sizes),
    "largest_cluster": int(sizes.max(initial=0)),
  }
  return Decision(
    order[kept][back],
    scores[back],
    exact[back],
    order[edges],
    edge_scores,
    order[cluster][back],
    counts,
    size - reference,
  )
