"""A decoder over any mesh is the decoder on one device: losses, gradients, what moves."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm_jax import config
from llm_jax.losses import objectives, token
from llm_jax.models import context_parallel
from llm_jax.models.transformer import Transformer
from llm_jax.stages import training
from llm_jax.train import parallel
from llm_jax.train.step import make_train_step, state_maker

ROWS, LENGTH, VOCAB = 4, 32, 72
SHAPE = config.Model(vocab_size=VOCAB, dim=32, layers=1, heads=4, kv_heads=2)
MESHES = {
  "sequence": config.Mesh(data=1, fsdp=2, sequence=4),
  "all": config.Mesh(data=1, fsdp=2, sequence=2, tensor=2),
}


def make_batch():
  rng = np.random.default_rng(0)
  segments = np.repeat([[1, 1, 2, 3], [1, 2, 2, 2], [1, 1, 1, 0], [1, 1, 1, 1]], 8, axis=1)
  return {
    "tokens": rng.integers(0, VOCAB, (ROWS, LENGTH)).astype(np.int32),
    "targets": rng.integers(0, VOCAB, (ROWS, LENGTH)).astype(np.int32),
    "segments": segments.astype(np.int32),
    "positions": np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1)),
    "mask": ((segments > 0) * rng.integers(0, 2, (ROWS, LENGTH))).astype(np.float32),
  }


def mixed(stats):
  """A loss of every statistic of a token."""
  return token.cross_entropy(stats, z_loss=0.01) - 0.1 * token.entropy(stats)


def compiled(mesh, shape):
  """The placement, a new state, a batch, and the step of plain gradient descent."""
  model, place, tx = Transformer.from_config(shape), parallel.make(mesh), optax.sgd(1.0)
  loss_fn = objectives.next_token(training.decoder_apply(model), mixed)
  state = place.init(state_maker(training.initializer(model), tx), jax.random.key(0))
  return place, state, place.batch(make_batch()), place.compile(make_train_step(loss_fn, tx))


def update(mesh, shape):
  """Parameters after one update, and the loss before it."""
  place, state, batch, step = compiled(mesh, shape)
  state, metrics = step(state, batch)
  return place.fetch(state.params), float(place.fetch(metrics["loss"]).value)


@functools.cache
def alone(tied):
  return update(config.Mesh(data=1), dataclasses.replace(SHAPE, tied=tied))


@pytest.mark.long
@pytest.mark.parametrize(
  ("mesh", "tied"),
  [("sequence", True), ("all", False), pytest.param("all", True, marks=pytest.mark.slow)],
)
def test_one_update_is_that_of_one_device(mesh, tied):
  params, loss = alone(tied)
  got, got_loss = update(MESHES[mesh], dataclasses.replace(SHAPE, tied=tied))
  np.testing.assert_allclose(got_loss, loss, rtol=1e-5)
  for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(params), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5)


@pytest.mark.long
def test_no_device_has_the_whole_vocabulary_or_the_whole_stream():
  _, state, batch, step = compiled(MESHES["all"], dataclasses.replace(SHAPE, tied=False))
  text = step.lower(state, batch).compile().as_text()
  dims = {tuple(map(int, d.split(","))) for d in re.findall(r"\w\d+\[([\d,]+)\]", text)}
  assert any(VOCAB // 2 in d for d in dims) and not any(VOCAB in d for d in dims)
  saved = (ROWS // 2, LENGTH // 4, SHAPE.dim)
  assert saved in dims and (ROWS, LENGTH, SHAPE.dim) not in dims


@pytest.mark.long
@pytest.mark.parametrize("backend", ["xla", "xla_chunked"])
def test_queries_cut_along_time_see_what_they_saw(backend):
  keys = jax.random.split(jax.random.key(0), 3)
  q = jax.random.normal(keys[0], (2, LENGTH, 4, 8))
  k, v = (jax.random.normal(key, (2, 2, LENGTH, 8)) for key in keys[1:])
  segments = jnp.asarray(make_batch()["segments"][:2])
  how = {"backend": backend, "block": 4, "window": 12}

  def value(q, k, v):
    given = {"segments": segments, "key_segments": segments, "start": 0, "bias": None}
    mixed = context_parallel.attend(q, k, v, **given, **how)
    return jnp.sum(mixed * jnp.cos(jnp.arange(mixed.size).reshape(mixed.shape)))

  grad = jax.value_and_grad(value, argnums=(0, 1, 2))
  place = parallel.make(config.Mesh(data=1, fsdp=2, sequence=2, tensor=2))
  over = place.compile(grad, donate=False)
  text = over.lower(q, k, v).compile().as_text()
  assert f"f32[1,{LENGTH // 2},2,8]" in text  # A device's rows, queries and heads.
  for ours, theirs in zip(
    jax.tree.leaves(over(q, k, v)), jax.tree.leaves(jax.jit(grad)(q, k, v)), strict=True
  ):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
