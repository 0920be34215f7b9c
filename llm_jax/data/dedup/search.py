"""Duplicates among texts in memory: from signatures to who stays, on one core or several."""

import contextlib
import dataclasses
import functools
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from llm_jax.data.dedup import candidates, components, signatures, verify

_TASK = 256  # Texts per task of a worker.


@dataclasses.dataclass(frozen=True)
class Result:
  """What was found in N documents.

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
  texts: Sequence[str], ids: Sequence[str], threshold: float = 0.8, workers: int = 1
) -> tuple[list[int], list[dict[str, Any]]]:
  """Returns (indices that stay, removals {"id", "kept", "score", "rule"}), as in `Result`.

  Raises:
    ValueError: if `texts` and `ids` differ in size, ids repeat, or `threshold` is not in (0, 1].
  """
  result = find(texts, ids, threshold, workers)
  return result.kept, result.removed


def find(
  texts: Sequence[str], ids: Sequence[str], threshold: float = 0.8, workers: int = 1
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
  # From here on a document is its canonical rank, so that the input's order cannot matter.
  order = sorted(range(len(texts)), key=lambda i: (-len(texts[i]), ids[i]))
  with _mapper(workers if len(texts) > _TASK else 1) as run:
    signed = _signatures([texts[i] for i in order], run)
    _, first, copy_of = np.unique(signed.digests, axis=0, return_index=True, return_inverse=True)
    copy_of = first[copy_of.reshape(-1)]  # The first of all copies, in canonical order.
    first = np.sort(first)
    pairs = first[candidates.pairs(signed.bands[first])]
    likely = verify.possible(pairs, signed.sizes, threshold)
    scores = _similarities(likely, [texts[i] for i in order], run)
  edges = {
    (a, b): score
    for (a, b), score in zip(likely.tolist(), scores, strict=True)
    if score >= threshold
  }
  near = components.survivors(edges, threshold, _similarity([texts[i] for i in order]))
  return _result(ids, order, copy_of.tolist(), pairs, edges, near)


def _result(ids, order, copy_of, pairs, edges, near) -> Result:
  kept, removed = [], []
  for x, original in enumerate(copy_of):
    if original in near:  # A copy has its original's 5-grams, hence its similarity.
      survivor, score = near[original]
      rule = "near"
    elif original != x:
      survivor, score, rule = original, 1.0, "exact"
    else:
      kept.append(order[x])
      continue
    removed.append(
      {"id": ids[order[x]], "kept": ids[order[survivor]], "score": score, "rule": rule}
    )
  named = [
    {"a": ids[order[a]], "b": ids[order[b]], "score": score} for (a, b), score in edges.items()
  ]
  sizes = [len(members) for members in components.clusters(edges)]
  counts = {
    "documents": len(ids),
    "candidates": len(pairs),
    "edges": len(edges),
    "clusters": len(sizes),
    "largest_cluster": max(sizes, default=0),
  }
  return Result(
    sorted(kept),
    sorted(removed, key=lambda row: row["id"]),
    sorted(named, key=lambda row: (row["a"], row["b"])),
    counts,
  )


def _signatures(texts: Sequence[str], run: Callable) -> signatures.Signatures:
  parts = run(
    signatures.signatures, (texts[i : i + _TASK] for i in range(0, max(len(texts), 1), _TASK))
  )
  return signatures.Signatures(*map(np.concatenate, zip(*parts, strict=True)))


def _similarities(pairs: np.ndarray, texts: Sequence[str], run: Callable) -> list[float]:
  return [x for part in run(verify.similarities, verify.chunks(pairs, texts)) for x in part]


def _similarity(texts: Sequence[str]) -> Callable[[int, int], float]:
  grams = functools.lru_cache(256)(lambda i: signatures.shingles(texts[i]))
  return lambda a, b: verify.jaccard(grams(a), grams(b))


@contextlib.contextmanager
def _mapper(workers: int) -> Iterator[Callable[[Callable, Iterable], Iterable]]:
  """Gives a `map` that keeps order, over fresh processes if there is more than one worker."""
  if workers <= 1:
    yield map
    return
  # Spawn, not fork: a caller may hold threads (a reader's, a device's) that a fork would break.
  with multiprocessing.get_context("spawn").Pool(workers) as pool:
    yield pool.imap
