"""What a quality model sees of a text: its words and pairs of words, in hashed buckets.

N texts, W words of all of them, K passages, Z entries of the sparse matrix [K, BUCKETS].
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from llm_jax.data import words

BITS = 18
BUCKETS = 1 << BITS
PASSAGE = 256  # Words of a passage, at most.
KIND = "case-folded words and pairs of words, 1 + log(count), each passage of length 1"

_LOGS = (1 + np.log(np.arange(1, 2 * PASSAGE))).astype(np.float32)  # Of the counts 1, 2, ...


class Features(NamedTuple):
  """A sparse matrix with a row per passage.

  Attributes:
    values: [Z] float32; the squares of a row add up to 1.
    columns: [Z] int32 buckets, ascending in a row.
    rows: [Z] int64 passages, ascending.
    firsts: [N + 1] int64: text n has the passages firsts[n] to firsts[n + 1], at least one.
  """

  values: np.ndarray
  columns: np.ndarray
  rows: np.ndarray
  firsts: np.ndarray


def features(texts: Sequence[str]) -> Features:
  """Returns the features of `texts`, each independent of the others.

  A text is cut into the fewest passages of at most PASSAGE words, equally long: a book must not
  look unlike a page because it is long. Case is ignored, everything else is left as it is.
  """
  found = words.split([text.casefold() for text in texts])
  starts, firsts = _passages(found.bounds)
  sizes = np.diff(starts, append=len(found.hashes))
  passage_W = np.repeat(np.arange(len(starts), dtype=np.uint64), sizes)
  inside = passage_W[1:] == passage_W[:-1]
  buckets = np.concatenate([found.hashes, words.grams(found.hashes, 2)[inside]])
  buckets >>= np.uint64(64 - BITS)
  keys = np.concatenate([passage_W, passage_W[:-1][inside]])
  keys <<= np.uint64(BITS)
  keys |= buckets
  keys.sort()
  at = np.flatnonzero(np.diff(keys, prepend=~keys[:1]))
  values = _LOGS[np.diff(at, append=len(keys)) - 1]
  keys = keys[at]
  rows = (keys >> np.uint64(BITS)).astype(np.int64)
  norms_K = np.sqrt(np.bincount(rows, values * values, len(starts))).astype(np.float32)
  values /= norms_K[rows]
  return Features(values, (keys & np.uint64(BUCKETS - 1)).astype(np.int32), rows, firsts)


def _passages(bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the word at which each passage starts [K] and the `firsts` of texts with these bounds.

  A text without words has one passage, which is empty.
  """
  counts_N = np.diff(bounds)
  parts_N = np.maximum(-(-counts_N // PASSAGE), 1)
  firsts = np.append(0, np.cumsum(parts_N))
  text_K = np.repeat(np.arange(len(parts_N)), parts_N)
  nth_K = np.arange(firsts[-1]) - firsts[:-1][text_K]
  return bounds[:-1][text_K] + nth_K * counts_N[text_K] // parts_N[text_K], firsts
