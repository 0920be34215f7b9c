"""The step: one device = mesh = pmap = any accumulation; donation; the price of weights."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm_jax import config
from llm_jax.errors import UserError
from llm_jax.train import parallel
from llm_jax.train.step import make_eval_step, make_train_step, state_maker
from llm_jax.types import Mean
from tests.train import toys

ONE = config.Mesh(data=1)
PLACES = {
  "8x1x1": config.Mesh(data=8),
  "1x8x1": config.Mesh(data=1, fsdp=8),
  "2x2x2": config.Mesh(data=2, fsdp=2, tensor=2),
  "4x1x2": config.Mesh(data=4, tensor=2),
  "pmap": config.Mesh(kind="pmap"),
}
QUICK = ("2x2x2", "pmap")
LOSSES = {"masked": toys.loss_of(toys.Toy()), "two_terms": toys.two_terms(toys.Toy())}
# Plain descent with a clip: Adam would amplify rounding where a gradient is almost zero.
TX = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.5, momentum=0.9))


@pytest.fixture(scope="module", params=LOSSES)
def reference(request):
  loss_fn = LOSSES[request.param]
  return loss_fn, toys.train(parallel.make(ONE), loss_fn, TX)


def assert_same(a, b):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


@pytest.mark.parametrize(
  "place",
  [p if p in QUICK else pytest.param(p, marks=pytest.mark.long) for p in PLACES],
)
def test_every_placement_with_any_accumulation_is_one_device(reference, place):
  loss_fn, expected = reference
  accum = 4 if loss_fn is LOSSES["two_terms"] else 1
  assert_same(toys.train(parallel.make(PLACES[place]), loss_fn, TX, accum=accum), expected)


@pytest.mark.parametrize("accum", [2, 32])
def test_accumulation_is_one_batch(reference, accum):
  loss_fn, expected = reference
  assert_same(toys.train(parallel.make(ONE), loss_fn, TX, accum=accum), expected)


@pytest.mark.long
def test_the_gradient_is_that_of_the_sum_of_the_terms_averages():
  loss_fn, batch = LOSSES["two_terms"], toys.make_batch()
  make_state = state_maker(toys.make_params(toys.Toy()), optax.sgd(1.0))
  place = parallel.make(ONE)
  state = place.init(make_state, jax.random.key(0))
  before = place.fetch(state.params)
  expected = jax.grad(lambda p: loss_fn(p, batch, None)[0].value)(before)
  step = place.compile(make_train_step(loss_fn, optax.sgd(1.0), accum=4))
  after = place.fetch(step(state, batch)[0].params)
  moved = jax.tree.map(lambda a, b: a - b, before, after)
  assert_same(moved, jax.device_get(expected))


def test_a_mean_of_microbatch_means_would_differ():
  # Negative control: the masks are unequal enough that the usual shortcut is wrong.
  loss_fn, batch = LOSSES["masked"], toys.make_batch()
  place = parallel.make(ONE)
  params = place.init(state_maker(toys.make_params(toys.Toy()), TX), jax.random.key(0)).params
  whole = float(loss_fn(params, batch, None)[0].value)
  parts = [jax.tree.map(lambda x, i=i: x[i::4], batch) for i in range(4)]
  shortcut = np.mean([float(loss_fn(params, b, None)[0].value) for b in parts])
  assert abs(whole - shortcut) > 1e-2


@pytest.mark.long
@pytest.mark.parametrize("place", ["2x2x2", "pmap"])
def test_frozen_parameters_stay_and_the_others_move_as_on_one_device(place):
  loss_fn, batch = LOSSES["two_terms"], toys.make_batch()

  def run(place):
    make_state = state_maker(toys.make_params(toys.Toy()), TX, lambda path: path[0] == "up")
    state = place.init(make_state, jax.random.key(0))
    assert set(state.params) == {"up"} and set(state.frozen) == {"embedding", "head"}
    before = place.fetch(state.frozen)
    step = place.compile(make_train_step(loss_fn, TX, accum=2, axis_name=place.axis_name))
    for _ in range(3):
      state, _ = step(state, place.batch(batch))
    jax.tree.map(np.testing.assert_array_equal, place.fetch(state.frozen), before)
    return place.fetch(state.whole)

  assert_same(run(parallel.make(PLACES[place])), run(parallel.make(ONE)))


def test_a_batch_without_weight_moves_nothing():
  batch = toys.make_batch() | {"mask": np.zeros((toys.ROWS, toys.LENGTH), np.float32)}
  place = parallel.make(ONE)
  state = place.init(state_maker(toys.make_params(toys.Toy()), optax.sgd(1.0)), jax.random.key(0))
  before = place.fetch(state.params)
  state, metrics = place.compile(make_train_step(LOSSES["masked"], optax.sgd(1.0)))(state, batch)
  assert_same(place.fetch(state.params), before)
  assert float(metrics["loss"].value) == 0


def dots(compiled):
  return len(re.findall(r" (?:dot|convolution|custom-call)\(", compiled.as_text()))


def test_the_pass_for_the_weights_costs_nothing():
  loss_fn, tx, accum = LOSSES["masked"], optax.sgd(1.0), 4
  place = parallel.make(ONE)
  state = place.init(state_maker(toys.make_params(toys.Toy()), tx), jax.random.key(0))
  batch = toys.make_batch()

  def naive(params, batch):  # Sums gradients, with no pass for the weights.
    micro = jax.tree.map(lambda x: x.reshape(-1, accum, *x.shape[1:]).swapaxes(0, 1), batch)

    def body(total, b):
      grads = jax.grad(lambda p: loss_fn(p, b, None)[0].total)(params)
      return jax.tree.map(jnp.add, total, grads), None

    return jax.lax.scan(body, jax.tree.map(jnp.zeros_like, params), micro)[0]

  ours = place.compile(make_train_step(loss_fn, tx, accum=accum)).lower(state, batch).compile()
  theirs = jax.jit(naive).lower(state.params, batch).compile()
  assert dots(ours) == dots(theirs) > 0
  forward = jax.jit(lambda p, b: loss_fn(p, b, None)[0].total).lower(state.params, batch).compile()
  # The flops of a scan's body are counted once; the forward of one microbatch is a quarter.
  excess = ours.cost_analysis()["flops"] - theirs.cost_analysis()["flops"]
  assert excess < 0.3 * forward.cost_analysis()["flops"] / accum + 20 * 500


@pytest.mark.parametrize("kind", ["mesh", "pmap"])
def test_the_old_state_is_really_given_up(kind):
  place = parallel.make(config.Mesh(kind=kind))
  tx = optax.adam(0.1)
  state = place.init(state_maker(toys.make_params(toys.Toy()), tx), jax.random.key(0))
  step = place.compile(make_train_step(LOSSES["masked"], tx, axis_name=place.axis_name))
  new, _ = step(state, place.batch(toys.make_batch()))
  assert all(x.is_deleted() for x in jax.tree.leaves((state.params, state.opt_state)))
  assert not any(x.is_deleted() for x in jax.tree.leaves(new))


def test_each_microbatch_device_and_step_has_its_own_dropout():
  def seen(params, batch, rng):
    draw = jax.random.uniform(rng)
    # A weighted mean of draws and of their squares: their variance tells whether they differ.
    one = jnp.float32(1)
    loss = Mean(0.0 * params["w"].sum(), one)
    return loss, {"draw": Mean(draw, one), "square": Mean(draw**2, one)}

  def variance(place, accum):
    make_state = state_maker(lambda key: {"w": jnp.zeros(1)}, optax.sgd(1.0))
    state = place.init(make_state, jax.random.key(0))
    step = place.compile(
      make_train_step(seen, optax.sgd(1.0), accum=accum, axis_name=place.axis_name)
    )
    values = []
    for _ in range(2):
      state, metrics = step(state, place.batch({"x": np.zeros(32)}))
      values.append(
        {k: float(v.value[0] if v.value.ndim else v.value) for k, v in metrics.items()}
        if place.axis_name is None
        else {k: float(v.total[0] / v.weight[0]) for k, v in metrics.items()}
      )
    assert values[0]["draw"] != values[1]["draw"]
    return values[0]["square"] - values[0]["draw"] ** 2

  assert variance(parallel.make(ONE), 1) == pytest.approx(0, abs=1e-6)
  assert variance(parallel.make(ONE), 4) > 1e-3
  assert variance(parallel.make(config.Mesh(kind="pmap")), 1) > 1e-3


@pytest.mark.long
@pytest.mark.parametrize("place", PLACES)
def test_evaluation_adds_up_over_devices_and_batches(place):
  loss_fn, place = LOSSES["two_terms"], parallel.make(PLACES[place])
  state = place.init(state_maker(toys.make_params(toys.Toy()), TX), jax.random.key(0))
  eval_step = place.compile(make_eval_step(loss_fn, place.axis_name), donate=False)
  batch = toys.make_batch()
  halves = [jax.tree.map(lambda x: x[:16], batch), jax.tree.map(lambda x: x[16:], batch)]
  parts = [place.fetch(eval_step(state.params, place.batch(b))) for b in halves]
  total = jax.tree.map(np.add, *parts)
  whole = place.fetch(eval_step(state.params, place.batch(batch)))
  assert_same(total, whole)
  assert_same(total["loss"].value, loss_fn(place.fetch(state.params), batch, None)[0].value)


def test_loaded_parameters_replace_new_ones_and_must_fit():
  params = toys.make_params(toys.Toy())
  place = parallel.make(config.Mesh(data=2, fsdp=2, tensor=2))
  make_state = state_maker(params, TX)
  loaded = {"up": {"kernel": np.full((8, 16), 3.0, np.float32)}}
  state = place.init(make_state, jax.random.key(0), loaded)
  new = place.init(make_state, jax.random.key(0))
  np.testing.assert_array_equal(place.fetch(state.params["up"]["kernel"]), 3.0)
  assert state.params["up"]["kernel"].sharding == new.params["up"]["kernel"].sharding
  assert_same(place.fetch(state.params["head"]), place.fetch(new.params["head"]))
  with pytest.raises(UserError, match=r"up/kernel: the model has \(8, 16\).*\(8, 8\)"):
    place.init(make_state, jax.random.key(0), {"up": {"kernel": np.zeros((8, 8), np.float32)}})
  with pytest.raises(UserError, match="head/bias: .* the checkpoint has none"):
    loaded = {"head": {"kernel": np.zeros((16, 16), np.float32)}}
    place.init(make_state, jax.random.key(0), loaded)


def test_rows_that_cannot_be_split_are_the_users_error():
  with pytest.raises(UserError, match="accum=5"):
    toys.train(parallel.make(ONE), LOSSES["masked"], TX, accum=5)
