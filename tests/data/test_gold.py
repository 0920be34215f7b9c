"""The gold score: bounds, order, symmetry, and a control that no question wins by itself."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_jax.data import gold

TRUTH = "Return the number of rows in the table."
TEXT = st.text("abcdefg .", max_size=40)


def test_the_truth_scores_one_in_every_part():
  best = gold.score(TRUTH, TRUTH)
  assert (best.relevance, best.form, best.total) == (1, 1, 1)


@pytest.mark.parametrize(
  ("worse", "part"),
  [
    (gold.score("Return the number of rows in", TRUTH), "sentence"),
    (gold.score("Return the rows the rows the rows the rows.", TRUTH), "fresh"),
    (gold.score("Return it now.", TRUTH), "length"),
    (gold.score(TRUTH, TRUTH, ended=False), "ends"),
    (gold.score("Delete a file from a disk, and all its kin.", TRUTH), "relevance"),
  ],
)
def test_each_fault_costs_its_own_part(worse, part):
  assert getattr(worse, part) < 1
  assert worse.total < 1


def test_relevance_of_words_that_share_no_letter_is_zero():
  assert gold.relevance("aaa", "bbb") == 0
  assert gold.relevance("", "bbb") == 0


def test_relevance_by_hand():
  # "abc" and "abd": 2/3 of the letters, 1/2 of the pairs, no triple.
  assert gold.relevance("a bc", "ABD") == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)


@given(TEXT, TEXT)
def test_relevance_is_symmetric_and_bounded(a, b):
  assert 0 <= gold.relevance(a, b) <= 1
  assert gold.relevance(a, b) == pytest.approx(gold.relevance(b, a))


@given(st.lists(TEXT, min_size=2, max_size=30).filter(lambda x: len(set(x)) > 1), st.integers(0, 9))
def test_the_shuffled_control_never_keeps_an_answer(truths, seed):
  assert all(a != b for a, b in zip(truths, gold.shuffled(truths, seed), strict=True))


def test_one_answer_has_no_control():
  with pytest.raises(ValueError, match="at least 2 answers"):
    gold.shuffled(["a", "a"])


def test_what_scores_leave_in_memory_is_bounded():
  """Online stages score millions of answers that come once."""
  tracemalloc.start()
  try:
    for n in range(1200):
      gold.relevance(f"{n} returns the number of rows in the table that it was given.", TRUTH)
    left, _ = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert left < 10 * 2**20
