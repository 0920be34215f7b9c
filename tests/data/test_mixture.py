"""Mixtures: shares of tokens, epoch caps, and streams that follow the plan."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
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


def test_table_shows_effective_epochs():
  shares = mixture.plan({"web": 1000, "wiki": 10}, {"web": 1, "wiki": 1}, 400, 3)
  lines = mixture.table(shares).splitlines()
  assert len(lines) == 3
  assert "3.00  (capped)" in lines[2]
  assert len({len(line.split("  (")[0]) for line in lines}) == 1


@pytest.mark.parametrize("name", ["gpt3", "llama1", "pile"])
def test_presets_add_up(name):
  made = mixture.preset(name)
  assert made.weights.keys() == made.epochs.keys() == made.sizes.keys()
  off = 101 if name == "gpt3" else 100  # As printed.
  np.testing.assert_allclose(sum(made.weights.values()), off, atol=0.011)
  mixture.Schedule([(0, made.weights)], 8)


def test_epochs_of_the_pile_give_its_weights():
  """Weight = size x epochs / 1254.20 GiB, the effective size that the paper prints."""
  made = mixture.preset("pile")
  effective = {name: made.sizes[name] * made.epochs[name] for name in made.sizes}
  np.testing.assert_allclose(sum(effective.values()), 1254.20, atol=0.5)
  for name, size in effective.items():
    np.testing.assert_allclose(made.weights[name], 100 * size / 1254.20, atol=0.011)


def test_epochs_of_llama_give_one_rate_of_tokens_per_byte():
  """Weight x 1.4T / (epochs x bytes): about a token per four bytes in every source."""
  made = mixture.preset("llama1")
  for name, weight in made.weights.items():
    tokens = weight / 100 * made.tokens / made.epochs[name]
    assert 0.2 < tokens / (made.sizes[name] * 1e9) < 0.4


def test_plan_of_gpt3_gives_its_epochs():
  made = mixture.preset("gpt3")
  sizes = {name: int(size) for name, size in made.sizes.items()}
  shares = mixture.plan(sizes, made.weights, made.tokens)
  for name in ("common_crawl", "books1", "books2"):
    np.testing.assert_allclose(shares[name].epochs, made.epochs[name], rtol=0.06)
  assert shares["webtext2"].epochs > 3.4 > made.epochs["webtext2"]  # The paper's own figures.


def test_unknown_presets_are_named():
  with pytest.raises(UserError, match='did you mean "llama1"'):
    mixture.preset("llama")


weights_ = st.lists(st.floats(0.001, 100), min_size=1, max_size=6)


@given(weights=weights_, batch=st.integers(1, 300), seed=st.integers(-3, 3))
@settings(max_examples=40, deadline=None)
def test_every_stretch_of_rows_has_its_shares(weights, batch, seed):
  schedule = mixture.Schedule([(0, dict(zip("abcdef", weights, strict=False)))], batch, seed)
  shares = np.array(weights) / sum(weights)
  read = np.concatenate([schedule.sources(step) for step in range(30)])
  for start, stop in ((0, len(read)), (7, 8 + batch), (len(read) // 2, len(read))):
    counts = np.bincount(read[start:stop], minlength=len(weights))
    slack = 2 + 2e-4 * (stop - start) + 2 * (stop // 10_000 - start // 10_000)
    assert (np.abs(counts - shares * (stop - start)) <= slack).all()


@given(batch=st.integers(1, 700), seed=st.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_counts_are_those_of_the_rows_before(batch, seed):
  phases = [(0, {"a": 3, "b": 1}), (9, {"c": 1, "b": 2}), (30, {"a": 0.0003, "c": 5})]
  schedule = mixture.Schedule(phases, batch, seed)
  assert schedule.names == ("a", "b", "c")
  counts = np.zeros(3, np.int64)
  for step in range(45):
    np.testing.assert_array_equal(schedule.counts(step), counts)
    counts += np.bincount(schedule.sources(step), minlength=3)
  # A pure function: asked in any order, it says the same.
  np.testing.assert_array_equal(
    schedule.sources(3), mixture.Schedule(phases, batch, seed).sources(3)
  )


def test_a_curriculum_changes_its_weights_at_its_steps():
  phases = [(0, {"web": 9, "code": 1}), (100, {"web": 1, "code": 1}), (150, {"code": 1})]
  schedule = mixture.Schedule(phases, 64)
  share = [np.mean(schedule.sources(step) == 1) for step in range(200)]
  np.testing.assert_allclose(np.mean(share[:100]), 0.1, atol=0.002)
  np.testing.assert_allclose(np.mean(share[100:150]), 0.5, atol=0.002)
  assert share[149] < 0.6
  assert share[150:] == [1.0] * 50
  assert max(abs(np.array(share[:100]) - 0.1)) <= 2 / 64  # At every single step.
  other = mixture.Schedule(phases, 64, seed=1)
  assert any((other.sources(s) != schedule.sources(s)).any() for s in range(5))


def test_a_schedule_reports_epochs_and_keeps_caps():
  schedule = mixture.Schedule([(0, {"web": 3, "wiki": 1}), (50, {"web": 1})], 10)
  shares = schedule.plan({"web": 100_000, "wiki": 5_000}, 100, length=100)
  assert shares["wiki"].epochs == 125 * 100 / 5_000 == 2.5
  assert shares["web"].tokens == 87_500
  np.testing.assert_allclose(shares["wiki"].weight, 0.125)
  assert shares["wiki"].share == 0.125
  assert "2.50" in mixture.table(shares)
  assert schedule.plan({"web": 10**6, "wiki": 10**6}, 20, 100)["wiki"].share == 0.25
  with pytest.raises(UserError, match="'wiki' is read 2.50 times in 100 steps"):
    schedule.plan({"web": 100_000, "wiki": 5_000}, 100, 100, max_epochs={"web": 9, "wiki": 2})
  with pytest.raises(UserError, match="schedule is of sources"):
    schedule.plan({"web": 100_000}, 100, 100)


@pytest.mark.parametrize(
  ("phases", "message"),
  [
    ([], "start at step 0"),
    ([(5, {"a": 1})], "start at step 0"),
    ([(0, {"a": 1}), (7, {"a": 1}), (7, {"a": 2})], "rise"),
    ([(0, {"a": 1}), (7, {"a": -1, "b": 2})], "from step 7"),
    ([(0, {"a": 0.0})], "one above"),
    ([(0, {"a": float("nan")})], "must be >= 0"),
  ],
)
def test_bad_schedules_are_named(phases, message):
  with pytest.raises(UserError, match=message):
    mixture.Schedule(phases, 8)


def test_a_scheduled_stream_of_numbered_chunks_names_the_source_of_each_row(chunks):
  numbered = {name: source.numbered() for name, source in chunks.items()}
  batch = next(
    mixture.scheduled(numbered, mixture.Schedule([(0, {"long": 1, "short": 1})], 8), 64, seed=2)
  )
  token = {"long": 10, "short": 100}
  for source, documents, targets, mask in zip(
    batch["sources"], batch["documents"], batch["targets"], batch["mask"], strict=True
  ):
    assert set(targets[mask > 0]) == {token[source]} and (documents[mask > 0] > 0).all()


def test_scheduled_stream_takes_rows_and_resumes(chunks):
  phases = [(0, {"long": 1, "short": 1}), (6, {"short": 1})]
  streams = [mixture.scheduled(chunks, mixture.Schedule(phases, 8), 64, seed=2) for _ in range(2)]
  read = [next(streams[0]) for _ in range(12)]
  for step, batch in enumerate(read):
    assert batch["tokens"].shape == (8, 64)
    # A row is of one source, whose tokens are all alike here.
    kinds = [set(row[mask > 0]) for row, mask in zip(batch["targets"], batch["mask"], strict=True)]
    assert kinds.count({10}) == (4 if step < 6 else 0)
    assert kinds.count({100}) == (4 if step < 6 else 8)
  again = mixture.scheduled(chunks, mixture.Schedule(phases, 8), 64, seed=2)
  for _ in range(4):
    next(again)
  state = json.loads(json.dumps(again.get_state()))
  streams[1].set_state(state)
  for expected in read[4:]:
    got = next(streams[1])
    for name in expected:
      np.testing.assert_array_equal(got[name], expected[name])
  with pytest.raises(UserError, match="another than when the run began"):
    mixture.scheduled(chunks, mixture.Schedule(phases, 8, seed=1), 64).set_state(state)
  with pytest.raises(UserError, match="must match"):
    mixture.scheduled({"long": chunks["long"]}, mixture.Schedule(phases, 8), 64)
