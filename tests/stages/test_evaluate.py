"""The judge's own arithmetic: win rates, calibration, and a null that is one half."""

import numpy as np
import pytest

from llm_jax.stages import evaluate


def test_a_policy_against_itself_wins_one_half():
  scores = np.random.default_rng(0).random((50, 2))
  assert evaluate.win_rate(scores, scores)["rate"] == 0.5


def test_win_rates_of_two_policies_add_up_to_one():
  rng = np.random.default_rng(1)
  a, b = rng.integers(0, 3, (2, 40, 2))
  forth, back = evaluate.win_rate(a, b), evaluate.win_rate(b, a)
  assert forth["rate"] + back["rate"] == pytest.approx(1)
  assert forth["n"] == 80


def test_the_standard_error_is_over_questions():
  """Answering every question 100 times with one outcome tells no more than once."""
  wins = np.array([[1.0], [0.0], [1.0], [0.0]])
  few = evaluate.win_rate(wins, np.full((4, 1), 0.5))
  many = evaluate.win_rate(np.repeat(wins, 100, 1), np.full((4, 100), 0.5))
  assert few["se"] == pytest.approx(many["se"])


def test_calibration_of_honest_margins_is_the_diagonal():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=20_000) * 2
  margins = np.where(rng.random(20_000) < 1 / (1 + np.exp(-logits)), logits, -logits)
  rows = evaluate.calibration(margins)
  assert sum(row["n"] for row in rows) == 40_000
  for row in rows:
    assert abs(row["predicted"] - row["observed"]) < 0.03


def test_a_histogram_counts_every_value_in_bins_of_one_width():
  values = {"a": np.array([0.0, 1.0, 4.0]), "b": np.array([-1.0, 3.5])}
  found = evaluate.histogram(bins=5, **values)
  assert found == {"edges": [-1, 0, 1, 2, 3, 4], "a": [0, 1, 1, 0, 1], "b": [1, 0, 0, 0, 1]}
