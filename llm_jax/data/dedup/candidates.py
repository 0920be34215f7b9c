"""Pairs of documents worth comparing: those that share a band, a bounded number per bucket."""

import numpy as np

NEIGHBOURS = 8  # A document meets so many followers in its bucket, besides the first one.


def pairs(bands: np.ndarray) -> np.ndarray:
  """Returns the candidate pairs [P, 2] int64, each (a, b) with a < b, sorted, without repeats.

  In a bucket of m documents that share a band's key, each one is paired with the first (a star)
  and with its NEIGHBOURS followers, so there are at most 9 m pairs instead of m^2 / 2, and all of
  them if m <= 10. What a large bucket leaves out, other bands or the cluster's survivor catch.

  Args:
    bands: [N, bands] uint64, rows in canonical order: it decides who meets whom in large buckets.
  """
  size = len(bands)
  codes = [np.zeros(0, np.int64)]
  for keys in bands.T:
    order = np.argsort(keys, kind="stable")
    ranked = keys[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]]) if size else order
    first = np.repeat(order[starts], np.diff(np.r_[starts, size]))
    codes.append((first * size + order)[first != order])
    for step in range(1, min(NEIGHBOURS, size - 1) + 1):
      same = ranked[step:] == ranked[:-step]
      codes.append(order[:-step][same] * size + order[step:][same])
  a, b = np.divmod(np.unique(np.concatenate(codes)), max(size, 1))
  return np.stack([a, b], axis=1)
