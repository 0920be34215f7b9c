"""bfloat16 is for products: state, norms, softmax, angles and the loss are float32."""

import collections
import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from llm_jax import config
from llm_jax.losses import objectives, token
from llm_jax.models.transformer import Transformer
from llm_jax.stages import training
from llm_jax.train import optim
from llm_jax.train.step import make_train_step, state_maker

ROWS, LENGTH = 2, 16
SHAPE = config.Model(vocab_size=64, dim=32, layers=1, heads=2, dtype="bfloat16")
# Of these a bfloat16's eight bits would lose what counts: norms, angles, softmax and its logarithm.
EXACT = ("rsqrt", "cos", "sin", "exp", "log")


def traced(shape, optimizer="adamw"):
  """A step, and the shapes of its state and batch."""
  model = Transformer.from_config(shape)
  tx = optim.make(config.Optimizer(name=optimizer, schedule="constant"), 10)
  loss_fn = objectives.next_token(training.decoder_apply(model, train=True), token.cross_entropy)
  boxed = jax.eval_shape(state_maker(training.initializer(model), tx), jax.random.key(0))
  state = nn.unbox(boxed)
  array = lambda dtype: jax.ShapeDtypeStruct((ROWS, LENGTH), dtype)  # noqa: E731
  batch = {name: array(jnp.int32) for name in ("tokens", "targets", "segments", "positions")}
  return make_train_step(loss_fn, tx, accum=2), state, batch | {"mask": array(jnp.float32)}


def floats(tree):
  return {x.dtype for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)}


def equations(jaxpr):
  for eqn in jaxpr.eqns:
    yield eqn
    for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
      inner = getattr(inner, "jaxpr", inner)
      if hasattr(inner, "eqns"):
        yield from equations(inner)


@pytest.mark.parametrize("name", ["adamw", "muon", "lion", "adafactor", "schedule_free"])
def test_parameters_moments_and_metrics_stay_float32(name):
  step, state, batch = traced(SHAPE, name)
  new, metrics = jax.eval_shape(step, state, batch)
  for tree in (state.params, state.opt_state, new.params, new.opt_state, metrics):
    assert floats(tree) == {jnp.dtype("float32")}
  assert jax.tree.map(lambda x: x.dtype, new) == jax.tree.map(lambda x: x.dtype, state)


@pytest.mark.parametrize("scan", [False, True])
def test_gradients_are_float32_and_added_up_in_it(scan):
  """The sums over microbatches, and what the optimizer gets."""
  step, state, batch = traced(dataclasses.replace(SHAPE, scan=scan, remat="save_dots"))
  sizes = {x.shape for x in jax.tree.leaves(state.params)}
  carried = [
    x.aval.dtype
    for eqn in equations(jax.make_jaxpr(step)(state, batch).jaxpr)
    if eqn.primitive.name == "scan" and eqn.params["length"] == 2  # The microbatches.
    for x, inner in zip(eqn.outvars, _inner(eqn).outvars, strict=True)
    if x.aval.shape == inner.aval.shape and x.aval.shape in sizes  # Others are stacked.
  ]
  assert carried and set(carried) == {jnp.dtype("float32")}


def _inner(eqn):
  return getattr(eqn.params["jaxpr"], "jaxpr", eqn.params["jaxpr"])


@pytest.mark.parametrize("attention", ["xla", "xla_chunked"])
def test_norms_softmax_angles_and_loss_statistics_are_float32(attention):
  shape = dataclasses.replace(SHAPE, attention=attention)
  step, state, batch = traced(shape)
  found = collections.defaultdict(set)
  for eqn in equations(jax.make_jaxpr(step)(state, batch).jaxpr):
    found[eqn.primitive.name] |= {str(x.aval.dtype) for x in eqn.invars}
  assert all(found[name] == {"float32"} for name in EXACT), found
  assert "bfloat16" in found["dot_general"] and "bfloat16" in found["logistic"]


def test_products_add_up_in_float32_where_scores_and_logits_are_made():
  step, state, batch = traced(dataclasses.replace(SHAPE, attention="xla"))
  vocabulary = [
    eqn
    for eqn in equations(jax.make_jaxpr(step)(state, batch).jaxpr)
    if eqn.primitive.name == "dot_general" and eqn.outvars[0].aval.shape[-1:] == (64,)
  ]
  assert vocabulary
  for eqn in vocabulary:
    assert {str(x.aval.dtype) for x in eqn.invars} == {"bfloat16"}
    assert eqn.outvars[0].aval.dtype == jnp.float32
