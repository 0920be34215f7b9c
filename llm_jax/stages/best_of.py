"""Best of n: what the best of n answers is worth, and how far it is from the model, in numpy."""

from collections.abc import Sequence

import numpy as np


def expected(scores: np.ndarray, values: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
  """Returns the expected value of the best of n among N answers, for each n; unbiased.

  Of N answers sorted by score, the i-th (from 1, the worst first) is the best of n of them, drawn
  without replacement, with probability C(i - 1, n - 1) / C(N, n): the mean over all subsets, and so
  an unbiased estimate of the mean over n new answers, of far less variance than any one subset has.
  Among equal scores each is the best as often as the others.

  Args:
    scores: [..., N] what the best is chosen by.
    values: [..., N] what it is then worth; `scores` themselves, or another measure of the answers.
    sizes: each n, from 1 to N.

  Returns:
    [..., len(sizes)] float64.

  Raises:
    ValueError: if shapes do not match, or an n is not in 1 ... N.
  """
  scores, values = np.asarray(scores, np.float64), np.asarray(values, np.float64)
  if scores.shape != values.shape or not scores.ndim:
    raise ValueError(f"scores {scores.shape} and values {values.shape} must match")
  count = scores.shape[-1]
  weights_NS = np.stack([weights(count, n) for n in sizes], 1)
  flat = zip(scores.reshape(-1, count), values.reshape(-1, count), strict=True)
  sorted_QN = np.array([_sorted(*row) for row in flat])
  return (sorted_QN @ weights_NS).reshape(*scores.shape[:-1], len(sizes))


def weights(count: int, n: int) -> np.ndarray:
  """Returns [count] float64, C(i - 1, n - 1) / C(count, n) for i = 1 ... count; the sum is 1.

  In logarithms of factorials, so that thousands of answers neither overflow nor underflow.

  Raises:
    ValueError: if n is not in 1 ... count.
  """
  if not 1 <= n <= count:
    raise ValueError(f"n={n} must be from 1 to {count}, the number of answers")
  factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])
  whole = factorials[count] - factorials[n] - factorials[count - n]
  found = np.zeros(count)
  below = np.arange(n - 1, count)  # Answers that are worse.
  found[n - 1 :] = np.exp(factorials[below] - factorials[n - 1] - factorials[below - n + 1] - whole)
  return found


def sizes(count: int) -> list[int]:
  """Returns 1, 2, 4, ... up to `count`, which is always the last."""
  powers = [2**k for k in range(count.bit_length()) if 2**k < count]
  return [*powers, count]


def kl_bound(n: int) -> float:
  """Returns log n - (n - 1) / n, in nats: at least KL(best of n || the model).

  It is nearly reached where no two answers have the same score and each is very unlikely, and far
  above the divergence where few answers are likely (Beirami et al. 2024, arXiv:2401.01879).
  """
  return float(np.log(n) - (n - 1) / n)


def _sorted(scores_N: np.ndarray, values_N: np.ndarray) -> np.ndarray:
  """Returns values in the order of their scores, those of one score as their mean."""
  _, group_N, sizes_G = np.unique(scores_N, return_inverse=True, return_counts=True)
  means_G = np.bincount(group_N, values_N) / sizes_G
  return np.repeat(means_G, sizes_G)
