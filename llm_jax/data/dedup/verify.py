"""Exact Jaccard similarity of word 5-gram sets: what decides after LSH has proposed."""

from collections.abc import Iterator, Sequence

import numpy as np

from llm_jax.data.dedup.signatures import shingles

_CHUNK_PAIRS = 4096
_CHUNK_CHARS = 4_000_000  # Texts that one chunk needs, so that its 5-grams fit in about 100 MB.


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
  """Returns |a & b| / |a | b| of two sorted arrays without repeats; 1 if both are empty.

  Exact but for collisions of 64-bit hashes (below 1e-9 for two texts of 100,000 words).
  """
  if len(a) == len(b) == 0:
    return 1.0
  common = len(np.intersect1d(a, b, assume_unique=True))
  return common / (len(a) + len(b) - common)


def possible(pairs: np.ndarray, sizes: np.ndarray, threshold: float) -> np.ndarray:
  """Drops the pairs [P, 2] whose set sizes [N] alone rule out similarity >= threshold."""
  small, large = np.sort(sizes[pairs], axis=1).T
  return pairs[small >= threshold * large]


def chunks(
  pairs: np.ndarray, texts: Sequence[str]
) -> Iterator[tuple[list[str], list[tuple[int, int]]]]:
  """Cuts sorted `pairs` [P, 2] into jobs for `similarities`: (texts, pairs of indices in them)."""
  local: dict[int, int] = {}
  job: list[tuple[int, int]] = []
  chars = 0
  for a, b in pairs.tolist():
    for i in (a, b):
      if i not in local:
        local[i] = len(local)
        chars += len(texts[i])
    job.append((local[a], local[b]))
    if len(job) == _CHUNK_PAIRS or chars >= _CHUNK_CHARS:
      yield [texts[i] for i in local], job
      local, job, chars = {}, [], 0
  if job:
    yield [texts[i] for i in local], job


def similarities(job: tuple[list[str], list[tuple[int, int]]]) -> list[float]:
  """Returns the Jaccard similarity of each pair of a job that `chunks` made."""
  texts, pairs = job
  sets = [shingles(text) for text in texts]
  return [jaccard(sets[a], sets[b]) for a, b in pairs]
