"""Placements: where each array lies, and what does not fit."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from llm_jax import config
from llm_jax.errors import UserError
from llm_jax.train import optim, parallel
from llm_jax.train.step import make_train_step, state_maker
from tests.train import toys

CUBE = config.Mesh(data=2, fsdp=2, tensor=2)


def new_state(place, tx, model=None):
  return place.init(state_maker(toys.make_params(model or toys.Toy()), tx), jax.random.key(0))


def spec(x):
  return tuple(x.sharding.spec) + (None,) * (x.ndim - len(x.sharding.spec))


def test_logical_names_decide_where_parameters_and_moments_lie():
  state = new_state(parallel.make(CUBE), optax.adam(1e-3))
  for tree in (state.params, state.opt_state[0].mu, state.opt_state[0].nu):
    assert spec(tree["embedding"]["embedding"]) == ("tensor", "fsdp")
    assert spec(tree["up"]["kernel"]) == ("fsdp", "tensor")
    # Both names want the tensor axis: an axis is used once, by the first rule.
    assert spec(tree["head"]["kernel"]) == ("tensor", None)
  assert state.step.sharding.is_fully_replicated and state.rng.sharding.is_fully_replicated


def test_muon_moments_lie_like_their_parameters():
  tx = optim.make(config.Optimizer(name="muon"), 10)
  state = new_state(parallel.make(CUBE), tx)
  shardings = {x.sharding for x in jax.tree.leaves(state.opt_state) if x.shape == (8, 16)}
  assert shardings == {state.params["up"]["kernel"].sharding}


def test_the_step_keeps_the_shardings():
  place, tx = parallel.make(CUBE), optax.adam(1e-3)
  state = new_state(place, tx)
  before = jax.tree.map(lambda x: x.sharding, state)
  step = place.compile(make_train_step(toys.loss_of(toys.Toy()), tx))
  state, _ = step(state, place.batch(toys.make_batch()))
  assert jax.tree.map(lambda x: x.sharding, state) == before


@pytest.mark.long
def test_zero_splits_the_moments_over_data_and_changes_no_update():
  tx, batch = optax.adam(1e-2), toys.make_batch()
  states = []
  for zero in (False, True):
    place = parallel.make(config.Mesh(data=4, fsdp=2, zero=zero))
    step = place.compile(make_train_step(toys.loss_of(toys.Toy()), tx))
    states.append(step(new_state(place, tx), place.batch(batch))[0])
  plain, split = states
  assert split.params["up"]["kernel"].sharding == plain.params["up"]["kernel"].sharding
  moments = [state.opt_state[0].nu["up"]["kernel"] for state in states]
  sizes = [x.addressable_shards[0].data.size for x in moments]
  assert sizes[0] == 4 * sizes[1]
  for a, b in zip(jax.tree.leaves(plain.params), jax.tree.leaves(split.params), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_boxed_optimizer_states_are_unboxed_too():
  place, tx = parallel.make(CUBE), optim.make(config.Optimizer(name="muon"), 10)

  def make_state(rng):
    state = state_maker(toys.make_params(toys.Toy()), tx)(rng)
    return state.replace(opt_state=tx.init(state.params))

  expected = jax.tree.map(lambda x: x.sharding, new_state(place, tx))
  assert jax.tree.map(lambda x: x.sharding, place.init(make_state, jax.random.key(0))) == expected


def test_initial_values_do_not_depend_on_the_placement():
  tx = optax.sgd(0.1)
  kinds = (config.Mesh(data=1), CUBE, config.Mesh(kind="pmap"))
  trees = [p.fetch(new_state(p, tx).params) for p in map(parallel.make, kinds)]
  for tree in trees[1:]:
    jax.tree.map(np.testing.assert_array_equal, tree, trees[0])


def test_rows_are_split_over_data_and_fsdp():
  place = parallel.make(CUBE)
  batch = place.batch({"pair": {"tokens": np.arange(8).reshape(8, 1)}})
  assert batch["pair"]["tokens"].sharding.spec == P(("data", "fsdp"))
  assert {s.data.shape for s in batch["pair"]["tokens"].addressable_shards} == {(2, 1)}


def test_activations_are_constrained_under_the_mesh_only():
  def doubled(x):
    return nn.with_logical_constraint(2 * x, (None, "mlp"))

  x = jnp.ones((4, 8))
  out = parallel.make(CUBE).compile(doubled, donate=False)(x)
  assert out.sharding.spec == P(None, "tensor")
  np.testing.assert_array_equal(doubled(x), out)
  np.testing.assert_array_equal(
    parallel.Pmap().compile(doubled, donate=False)(np.ones((8, 4, 8))), 2
  )


@pytest.mark.parametrize("kind", ["mesh", "pmap"])
def test_replicate_undoes_unreplicate(kind):
  place = parallel.make(config.Mesh(kind=kind))
  state = new_state(place, optax.sgd(0.1))
  one = place.unreplicate(state)
  assert one.params["up"]["kernel"].shape == (8, 16) and one.step.shape == ()
  again = place.replicate(one)
  assert jax.tree.map(jnp.shape, again) == jax.tree.map(jnp.shape, state)
  assert jax.random.key_data(place.fetch(again).rng).shape == (2,)


@pytest.mark.parametrize(
  ("mesh", "match"),
  [
    (config.Mesh(data=16), "wants 16 devices .*there are 8"),
    (config.Mesh(data=-1, tensor=3), "8 devices cannot be divided"),
    (config.Mesh(data=-1, fsdp=-1), "at most one of them -1"),
    (config.Mesh(data=0), "must be positive"),
    (config.Mesh(kind="ring"), '"mesh" or "pmap", got "ring"'),
    (config.Mesh(kind="pmap", tensor=2), "pmap replicates over all 8 devices"),
  ],
)
def test_a_mesh_that_does_not_fit_says_why(mesh, match):
  with pytest.raises(UserError, match=match):
    parallel.make(mesh)


def test_a_dimension_that_cannot_be_divided_is_named():
  place = parallel.make(config.Mesh(data=1, fsdp=8))
  with pytest.raises(UserError, match='embed.*"embed" of 12 cannot be divided by .*fsdp=8'):
    new_state(place, optax.sgd(0.1), toys.Toy(width=12))


@pytest.mark.parametrize("kind", ["mesh", "pmap"])
def test_rows_that_cannot_be_divided_are_the_users_error(kind):
  with pytest.raises(UserError, match="12 rows cannot be divided by 8"):
    parallel.make(config.Mesh(kind=kind)).batch({"x": np.zeros((12, 2))})
