"""Skipped updates: they change nothing, end no run, poison no row; too many in a row end it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm_jax import config
from llm_jax.train import feeds, loop, metrics, optim, parallel
from llm_jax.train.checkpoint import latest_step
from llm_jax.train.guard import Guard
from llm_jax.train.step import make_train_step, state_maker
from llm_jax.types import masked_mean

ROWS, NAN, HUGE = 16, float("nan"), 100.0
PLACES = {"1": config.Mesh(data=1), "8": config.Mesh(data=8), "pmap": config.Mesh(kind="pmap")}


def loss_fn(params, batch, rng):
  """Least squares; a batch's factor makes it bad."""
  del rng
  error_B = batch["factor"] * (batch["x"] @ params["w"] - 1.0) ** 2
  return masked_mean(error_B, batch["mask"]), {"error": masked_mean(error_B, batch["mask"])}


def batch(n, factor=1.0):
  rng = np.random.default_rng(n)
  return {
    "x": rng.normal(size=(ROWS, 3)).astype(np.float32),
    "mask": (rng.random(ROWS) < 0.7).astype(np.float32),
    "factor": np.full(ROWS, factor, np.float32),
  }


@functools.cache
def build(tx, mesh="1", accum=1):
  """Returns (place, make a new state, compiled step)."""
  place = parallel.make(PLACES[mesh])
  make_state = state_maker(lambda key: {"w": jnp.zeros(3)}, tx)
  step = make_train_step(loss_fn, tx, accum=accum, axis_name=place.axis_name)
  return place, lambda: place.init(make_state, jax.random.key(0)), place.compile(step)


def train(tx, batches, mesh="1", accum=1):
  """Returns the final state and the metrics of every step, as numpy."""
  place, new_state, step = build(tx, mesh, accum)
  state, rows = new_state(), []
  for one in batches:
    state, means = step(state, place.batch(one))
    rows.append(jax.device_get(place.fetch(means)))
  return place.fetch(state.replace(rng=None)), rows


def skipped(rows):
  return [n for n, row in enumerate(rows) if row["skipped"].total]


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


FINITE = Guard(optax.adam(0.1), limit=2)
SIGMA = Guard(optax.adam(0.01), sigma=6.0, window=16)


@pytest.mark.parametrize("factor", [NAN, np.inf, 1e30])  # The last only in the gradient's square.
def test_an_update_that_is_not_finite_is_as_if_it_had_not_been(factor):
  bad, rows = train(FINITE, [batch(0), batch(1), batch(9, factor)])
  good, _ = train(FINITE, [batch(0), batch(1)])
  assert_equal(bad.params, good.params)
  assert_equal(bad.opt_state.inner, good.opt_state.inner)
  assert (bad.step, good.step) == (3, 2)  # The data and the keys move on.
  assert skipped(rows) == [2] and rows[2]["loss"] == rows[2]["error"] == (0, 0)
  assert_equal(
    train(FINITE, [batch(0), batch(1), batch(9, factor), batch(2)])[0].params,
    train(FINITE, [batch(0), batch(1), batch(2)])[0].params,
  )


def test_only_sigma_skips_outliers_each_of_them_and_not_before_half_the_history():
  usual = [batch(n) for n in range(8)]
  outliers = [batch(20, HUGE), batch(21, HUGE), batch(22)]
  state, rows = train(SIGMA, [*usual, *outliers])
  assert skipped(rows) == [8, 9]
  assert_equal(state.params, train(SIGMA, [*usual, batch(22)])[0].params)
  assert skipped(train(SIGMA, [*usual[:7], batch(20, HUGE)])[1]) == []
  assert skipped(train(SIGMA, [*usual, batch(20, 0.0)])[1]) == []  # Below the mean.
  assert skipped(train(FINITE, [*usual, *outliers])[1]) == []


def test_slow_growth_is_no_outlier():
  tx = Guard(optax.sgd(0.0), sigma=6.0)
  growing = [batch(0, 1.02**n) for n in range(200)]
  assert skipped(train(tx, growing)[1]) == []
  jump = [*growing[:150], batch(0, 1.02**250)]  # Negative control.
  assert skipped(train(tx, jump)[1]) == [150]


def test_the_history_is_a_ring_of_accepted_values():
  state, rows = train(SIGMA, [batch(n, NAN if n == 3 else 1.0) for n in range(17)])
  accepted = [row["loss"].total / row["loss"].weight for n, row in enumerate(rows) if n != 3]
  np.testing.assert_allclose(state.opt_state.losses, accepted, rtol=1e-6)
  state, rows = train(SIGMA, [batch(n) for n in range(18)])
  np.testing.assert_allclose(state.opt_state.norms[1], rows[17]["grad_norm"].total, rtol=1e-6)


@pytest.mark.parametrize("mesh", ["8", "pmap"])
def test_every_placement_skips_the_same(mesh):
  factors = [1.0] * 10 + [NAN, HUGE, 1.0]
  batches = [batch(n, factor) for n, factor in enumerate(factors)]
  batches[10]["factor"][1:] = 1.0  # One row, on one device and in one microbatch.
  tx = Guard(optax.sgd(0.01), sigma=6.0, limit=1, window=16)
  one, rows = train(tx, batches)
  other, same = train(tx, batches, mesh, accum=2)
  assert skipped(rows) == skipped(same) == [10, 11]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), one, other)


def fit(tx, workdir, factors, **kwargs):
  place, new_state, step = build(tx)
  feed = feeds.IteratorFeed([batch(n, factor) for n, factor in enumerate(factors, 1)])
  options = {"log_every": 1, "name": "toy", "steps": len(factors)} | kwargs
  state = loop.fit(step, new_state(), feed, place=place, workdir=workdir, **options)
  return place.fetch(state.replace(rng=None))


def test_rows_average_what_was_accepted(tmp_path):
  fit(FINITE, tmp_path / "all", [1.0, NAN, 1.0, NAN, NAN], log_every=3)
  fit(FINITE, tmp_path / "each", [1.0, NAN, 1.0, NAN, NAN])
  (row,), each = metrics.read(tmp_path / "all"), metrics.read(tmp_path / "each")
  assert row["skipped"] == pytest.approx(1 / 3)
  assert row["grad_norm"] == pytest.approx((each[0]["grad_norm"] + each[2]["grad_norm"]) / 2)
  # A row of skipped updates alone has no loss: 0 would be a lie.
  assert [r.get("loss", "none") for r in each].count("none") == 3 and each[1]["skipped"] == 1


def test_a_resumed_run_has_the_history_and_what_is_averaged(tmp_path):
  cfg = config.Optimizer(
    name="schedule_free", schedule="constant", warmup=3, weight_decay=0.1, skip_sigma=6.0
  )
  tx = Guard(optim.make(cfg, 10).tx, sigma=6.0, window=12)
  factors = [1.0] * 6 + [HUGE, 1.0]
  whole = fit(tx, tmp_path / "whole", factors)
  fit(tx, tmp_path / "parts", factors, steps=6)
  assert_equal(fit(tx, tmp_path / "parts", factors), whole)
  assert [r["skipped"] for r in metrics.read(tmp_path / "parts")] == [0.0] * 6 + [1.0, 0.0]
  # Negative control: without its history the outlier would be taken.
  assert skipped(train(tx, [batch(7, HUGE)])[1]) == []


def test_too_many_in_a_row_end_the_run(tmp_path):
  fit(FINITE, tmp_path / "two", [1.0, NAN, NAN, 1.0, NAN, NAN, 1.0])
  with pytest.raises(loop.TrainingDiverged, match="toy diverged at step 4: loss=nan, gr.*one more"):
    fit(FINITE, tmp_path / "three", [1.0, NAN, NAN, NAN, 1.0], checkpoint_every=2)
  assert latest_step(tmp_path / "three" / "checkpoints") == 2
  # Outliers without end are another level, and at limit 0 nothing may be non-finite.
  tx = Guard(optax.sgd(0.01), sigma=6.0, window=8)
  fit(tx, tmp_path / "apart", [1.0] * 7 + [HUGE] * 6 + [1.0] + [HUGE] * 6)
  with pytest.raises(loop.TrainingDiverged, match="at step 15: loss=[0-9.]+, .*skip_sigma"):
    fit(tx, tmp_path / "level", [1.0] * 7 + [HUGE] * 9)
  with pytest.raises(loop.TrainingDiverged, match="at step 3: loss=nan"):
    fit(tx, tmp_path / "strict", [1.0, 1.0, NAN])


def test_a_guard_is_there_only_if_asked_for():
  plain = optim.make(config.Optimizer(), 10)
  assert not isinstance(plain, Guard)  # The compiled step is the one without it.
  assert "skipped" not in train(plain, [batch(0)])[1][0]
  asked = optim.make(config.Optimizer(skip_limit=3), 10)
  assert (asked.sigma, asked.limit, asked.window) == (0.0, 3, 128)
