"""Mixtures: shares of tokens, epoch caps, and streams that follow the plan."""

import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_jax.data import mixture, packing
from llm_jax.errors import UserError


def test_without_caps_shares_are_weights():
  shares = mixture.plan({"web": 1000, "books": 500}, {"web": 3, "books": 1}, 800)
  assert shares["web"] == mixture.Share(0.75, 0.75, 600, 0.6, False)
  assert shares["books"] == mixture.Share(0.25, 0.25, 200, 0.4, False)


def test_a_cap_passes_tokens_on_by_weight():
  sizes = {"a": 100, "b": 10_000, "c": 10_000}
  shares = mixture.plan(sizes, {"a": 2, "b": 1, "c": 1}, 1000, max_epochs=2)
  assert shares["a"].tokens == 200
  assert shares["a"].epochs == 2
  assert shares["a"].capped
  assert shares["b"].tokens == shares["c"].tokens == 400


def test_a_cap_may_cap_the_next():
  sizes = {"a": 10, "b": 100, "c": 10_000}
  shares = mixture.plan(sizes, {"a": 8, "b": 1, "c": 1}, 1000, max_epochs={"a": 1, "b": 2, "c": 1})
  assert [shares[name].tokens for name in "abc"] == [10, 200, 790]
  assert [shares[name].capped for name in "abc"] == [True, True, False]


sources = st.dictionaries(
  st.sampled_from("abcdef"),
  st.tuples(st.integers(1, 1000), st.floats(0.01, 100)),
  min_size=1,
)


@given(sources, st.floats(0.01, 1.0), st.floats(0.1, 10.0))
def test_plans_add_up_and_respect_caps(rows, fraction, cap):
  sizes = {name: size for name, (size, _) in rows.items()}
  weights = {name: weight for name, (_, weight) in rows.items()}
  tokens = fraction * cap * sum(sizes.values()) * (1 - 1e-9)
  shares = mixture.plan(sizes, weights, tokens, cap)
  np.testing.assert_allclose(sum(s.tokens for s in shares.values()), tokens)
  np.testing.assert_allclose(sum(s.share for s in shares.values()), 1.0)
  for name, share in shares.items():
    assert share.epochs <= cap * (1 + 1e-6)
    np.testing.assert_allclose(share.epochs * sizes[name], share.tokens)
  # Whoever is not capped keeps the proportions that were asked for, and never gets less.
  free = [s for s in shares.values() if not s.capped]
  for s in free:
    np.testing.assert_allclose(s.share / s.weight, free[0].share / free[0].weight)
    assert s.share >= s.weight * (1 - 1e-6)


@pytest.mark.parametrize(
  ("sizes", "weights", "tokens", "message"),
  [
    ({"a": 10}, {"b": 1}, 5, "every source needs a weight"),
    ({}, {}, 5, "every source needs a weight"),
    ({"a": 10}, {"a": 0}, 5, "above 0"),
    ({"a": 0}, {"a": 1}, 5, "'a' is empty"),
    ({"a": 10}, {"a": 1}, 0, "tokens to divide"),
    ({"a": 10}, {"a": 1}, 100, "raise max_epochs"),
  ],
)
def test_bad_plans_are_named(sizes, weights, tokens, message):
  with pytest.raises(UserError, match=message):
    mixture.plan(sizes, weights, tokens)


@pytest.fixture
def chunks(tmp_path):
  """Source "long" has documents of 60 tokens, "short" of 6; ids tell them apart."""
  out = {}
  for name, size, count, first in (("long", 60, 100, 10), ("short", 6, 3000, 100)):
    documents = [np.full(size, first) for _ in range(count)]
    packing.write_tokens(tmp_path / name, documents)
    out[name] = packing.Chunks(packing.TokenSource(tmp_path / name), 64)
  return out


def test_mixed_stream_has_the_planned_tokens(chunks):
  sizes = {name: source.predictions for name, source in chunks.items()}
  assert sizes == {"long": 5900, "short": 15_000}
  shares = mixture.plan(sizes, {"long": 1, "short": 3}, 20_000)
  stream = packing.pack(mixture.mixed(chunks, shares, seed=1), 64, 8)
  seen = collections.Counter()
  while sum(seen.values()) < 20_000:
    batch = next(stream)
    seen.update(batch["targets"][batch["mask"] > 0].tolist())
  total = sum(seen.values())
  np.testing.assert_allclose(seen[10] / total, 0.25, atol=0.02)
  np.testing.assert_allclose(seen[100] / total, 0.75, atol=0.02)


def test_mixed_stream_resumes(chunks):
  sizes = {name: source.predictions for name, source in chunks.items()}
  shares = mixture.plan(sizes, {"long": 1, "short": 1}, 10_000)
  streams = [packing.pack(mixture.mixed(chunks, shares), 64, 8) for _ in range(2)]
  for _ in range(5):
    next(streams[0])
  streams[1].set_state(streams[0].get_state())
  for _ in range(10):
    left, right = next(streams[0]), next(streams[1])
    for name in left:
      np.testing.assert_array_equal(left[name], right[name])


def test_names_must_match(chunks):
  shares = mixture.plan({"other": 10}, {"other": 1}, 5)
  with pytest.raises(ValueError, match="must match"):
    mixture.mixed(chunks, shares)


def test_table_shows_effective_epochs():
  shares = mixture.plan({"web": 1000, "wiki": 10}, {"web": 1, "wiki": 1}, 400, 3)
  lines = mixture.table(shares).splitlines()
  assert len(lines) == 3
  assert "3.00  (capped)" in lines[2]
  assert len({len(line.split("  (")[0]) for line in lines}) == 1
