"""The best of n: the estimator against every subset, and against new draws."""

import itertools
import math

import numpy as np
import pytest

from llm_jax.stages import best_of

RNG = np.random.default_rng(0)


def by_subsets(scores, values, n):
  """The mean over all subsets of n, and over all orders in which equal scores may be broken."""
  found = []
  for subset in itertools.combinations(range(len(scores)), n):
    top = max(scores[i] for i in subset)
    found.append(np.mean([values[i] for i in subset if scores[i] == top]))
  return np.mean(found)


@pytest.mark.parametrize("scores", [RNG.normal(size=9), np.array([1, 0, 1, 2, 2, 0, 1, 2, 3.0])])
def test_it_is_the_mean_over_all_subsets(scores):
  values = RNG.normal(size=9)
  sizes = range(1, 10)
  want = [by_subsets(scores, values, n) for n in sizes]
  np.testing.assert_allclose(best_of.expected(scores, values, sizes), want, atol=1e-12)
  want = [by_subsets(scores, scores, n) for n in sizes]
  np.testing.assert_allclose(best_of.expected(scores, scores, sizes), want, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_it_is_unbiased(n):
  # Scores are uniform, so the best of n is n / (n + 1) on the mean; of few draws, each time.
  scores = np.random.default_rng(n).random((6_000, 16))
  found = best_of.expected(scores, scores, [n])
  assert abs(found.mean() - n / (n + 1)) < 4 * found.std() / math.sqrt(len(found))


def test_it_has_less_variance_than_one_subset_of_each_size():
  scores = RNG.random((2_000, 16))
  assert best_of.expected(scores, scores, [4]).std() < 0.7 * scores[:, :4].max(1).std()


@pytest.mark.parametrize("count", [1, 7, 1000, 20_000])
def test_weights_are_probabilities_whatever_the_number_of_answers(count):
  for n in {1, min(2, count), max(count // 2, 1), count}:
    weights = best_of.weights(count, n)
    assert np.isfinite(weights).all() and (weights >= 0).all()
    assert weights.sum() == pytest.approx(1.0, abs=1e-8)
    assert weights[-1] == pytest.approx(n / count, rel=1e-8)  # The best is in so many subsets.
    assert not weights[: n - 1].any()


def test_the_ends_are_the_mean_and_the_best():
  scores, values = RNG.normal(size=(2, 3, 50))
  found = best_of.expected(scores, values, [1, 50])
  np.testing.assert_allclose(found[:, 0], values.mean(1))
  np.testing.assert_allclose(found[:, 1], values[np.arange(3), scores.argmax(1)])


def test_a_measure_that_has_nothing_to_do_with_the_score_does_not_rise():
  values = RNG.normal(size=(1, 4000))
  found = best_of.expected(np.zeros((1, 4000)), values, [1, 64])
  np.testing.assert_allclose(found[:, 0], found[:, 1])


def test_the_bound_is_reached_where_answers_are_many_and_none_ties():
  # The best of n of M equally likely answers: the i-th has ((i / M)^n - ((i - 1) / M)^n).
  count, n = 4096, 8
  best = np.diff((np.arange(count + 1) / count) ** n)
  divergence = np.sum(best * np.log(best * count))
  assert divergence <= best_of.kl_bound(n)
  assert divergence == pytest.approx(best_of.kl_bound(n), rel=1e-2)
  best = np.diff((np.arange(3) / 2) ** n)  # Of two answers it is far below.
  assert np.sum(best * np.log(best * 2)) < 0.6 * best_of.kl_bound(n)


@pytest.mark.parametrize(
  ("count", "want"), [(1, [1]), (2, [1, 2]), (8, [1, 2, 4, 8]), (10, [1, 2, 4, 8, 10])]
)
def test_sizes_double(count, want):
  assert best_of.sizes(count) == want


def test_what_cannot_be_is_refused():
  with pytest.raises(ValueError, match="from 1 to 3"):
    best_of.weights(3, 4)
  with pytest.raises(ValueError, match="must match"):
    best_of.expected(np.zeros((2, 3)), np.zeros((2, 4)), [1])
