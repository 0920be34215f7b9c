"""Pairs of documents worth comparing: those that share a band, a bounded number per bucket."""

from collections.abc import Iterable

import numpy as np

NEIGHBOURS = 8  # A document meets so many followers in its bucket, besides the first one.


def pairs(bands: Iterable[np.ndarray], size: int, settled: int = 0) -> np.ndarray:
  """Returns the candidate pairs [P, 2] int64, each (a, b) with a < b, sorted, without repeats.

  In a bucket of m documents that share a band's key, each one is paired with the first (a star)
  and with its NEIGHBOURS followers, so there are at most 9 m pairs instead of m^2 / 2, and all of
  them if m <= 10. What a large bucket leaves out, other bands or the cluster's survivor catch.

  Args:
    bands: the keys [N] uint64 of each band, rows in canonical order: it decides who meets whom in
      large buckets. Taken one at a time.
    size: N.
    settled: so many of the first rows are not compared with each other.
  """
  codes = np.zeros(0, np.int64)
  for keys in bands:
    found = _of_band(keys, size)
    codes = np.union1d(codes, found[found % max(size, 1) >= settled])
  a, b = np.divmod(codes, max(size, 1))
  return np.stack([a, b], axis=1)


def _of_band(keys: np.ndarray, size: int) -> np.ndarray:
  """Returns a * size + b of the pairs of one band; some may repeat."""
  if not len(keys):
    return np.zeros(0, np.int64)
  order = np.argsort(keys, kind="stable")
  ranked = keys[order]
  # Most documents are alone in their bucket; the others' runs are all that is looked at.
  same = ranked[1:] == ranked[:-1]
  shared = np.append(same, False) | np.insert(same, 0, False)
  order, ranked = order[shared], ranked[shared]
  if not len(order):
    return np.zeros(0, np.int64)
  starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))
  first = np.repeat(order[starts], np.diff(np.append(starts, len(order))))
  codes = [(first * size + order)[first != order]]
  for step in range(1, min(NEIGHBOURS, len(order) - 1) + 1):
    same = ranked[step:] == ranked[:-step]
    codes.append(order[:-step][same] * size + order[step:][same])
  return np.concatenate(codes)
