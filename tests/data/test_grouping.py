"""Groups stay together, every row comes once in an epoch, resuming changes nothing."""

import collections

import hypothesis
import hypothesis.strategies as st
import pytest

from llm_jax.data.grouping import Grouped

SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=30)


def grouped(sizes, batch=8, seed=0, rows=None):
  groups = [f"g{i}" if size > 1 else "" for i, size in enumerate(sizes) for _ in range(size)]
  rows = rows or [(i, k) for i, size in enumerate(sizes) for k in range(size)]
  return Grouped(rows, groups, lambda part, weights: (part, weights), batch, seed)


def epoch(stream, rows):
  batches = []
  while sum(len(part) for part, _ in batches) < rows:
    batches.append(next(stream))
  return batches


@hypothesis.given(SIZES, st.integers(0, 2))
def test_groups_are_whole_and_count_once(sizes, seed):
  batches = epoch(grouped(sizes, seed=seed), sum(sizes))
  seen = collections.Counter(row for part, _ in batches for row in part)
  assert set(seen.values()) == {1} and len(seen) == sum(sizes)
  for part, weights in batches:
    assert len(part) <= 8
    for group, count in collections.Counter(g for g, _ in part).items():
      assert count == sizes[group] or sizes[group] > 8
      total = sum(w for (g, _), w in zip(part, weights, strict=True) if g == group)
      assert total == pytest.approx(1)


@hypothesis.given(SIZES)
def test_batches_are_well_filled(sizes):
  batches = epoch(grouped(sizes), sum(sizes))
  half_empty = sum(len(part) <= 4 for part, _ in batches)
  assert half_empty <= 1  # First fit never opens a batch while another is half empty.


def test_epochs_differ_and_the_seed_decides():
  first, second = grouped([1] * 40), grouped([1] * 40)
  assert [next(first) for _ in range(10)] == [next(second) for _ in range(10)]
  assert next(grouped([1] * 40, seed=1)) != next(grouped([1] * 40))
  stream = grouped([1] * 40)
  assert epoch(stream, 40) != epoch(stream, 40)


def test_it_goes_on_where_it_was():
  stream = grouped([3, 2, 5, 1, 1, 9, 4])
  for _ in range(7):
    next(stream)
  state = stream.get_state()
  want = [next(stream) for _ in range(9)]
  other = grouped([3, 2, 5, 1, 1, 9, 4])
  other.set_state(state)
  assert [next(other) for _ in range(9)] == want


def test_a_row_that_counts_twice_makes_its_group_count_twice():
  a, b = ("a",), ("b",)
  stream = Grouped([a, a, b, b], ["g"] * 4, lambda part, weights: (part, weights), 8)
  part, weights = next(stream)
  assert sorted(part) == [a, a, b, b] and sum(weights) == pytest.approx(2)


def test_large_groups_are_told():
  assert grouped([9, 8, 20]).split == 2
