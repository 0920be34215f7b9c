"""The decoder: causality, packing, padding, cache, scan, counts, names, errors."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm_jax import config
from llm_jax.errors import UserError
from llm_jax.models.transformer import Transformer, count_parameters, stack, unstack
from llm_jax.scaling import flops

TINY = config.Model(vocab_size=31, dim=16, layers=2, heads=4, max_length=16)
SHAPES = {
  "llama": {"kv_heads": 2, "qk_norm": False, "tied": False},
  "gpt2": {
    "norm": "layernorm",
    "norm_bias": True,
    "position": "learned",
    "mlp": "plain",
    "bias": True,
  },
  "qwen": {"kv_heads": 1, "head_dim": 8, "hidden": 24},
  "neox": {
    "norm": "layernorm",
    "norm_bias": True,
    "bias": True,
    "mlp": "plain",
    "activation": "gelu",
    "parallel": "two",
    "rope_fraction": 0.5,
    "qk_norm": False,
    "tied": False,
  },
  "falcon": {"norm": "layernorm", "norm_bias": True, "parallel": "one", "mlp": "plain"},
  "mpt": {"norm": "layernorm", "position": "alibi", "mlp": "plain", "qkv_clip": 4.0, "heads": 2},
  "falcon_rw": {"position": "alibi", "alibi": "falcon", "bias": True, "mlp": "plain"},
  "gemma": {
    "norm_offset": True,
    "post_norm": True,
    "windows": (3, 0),
    "attention_cap": 3.0,
    "rope_local_theta": 100.0,
    "attention_scale": 0.3,
    "embedding_scale": 4.0,
  },
  "relative": {"position": "relative", "relative_buckets": 8, "relative_distance": 6},
  "banded": {"windows": (0, 2), "position": "none"},
}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def make(**fields):
  """A model, and parameters large enough that every part of it matters."""
  model = Transformer.from_config(dataclasses.replace(TINY, **fields))
  boxed = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
  random = np.random.default_rng(0)

  def draw(path, x):
    center = 1.0 if path[-1].key == "scale" else 0.0
    return jnp.asarray(center + 0.3 * random.standard_normal(x.shape), jnp.float32)

  return model, jax.tree_util.tree_map_with_path(draw, nn.unbox(boxed)["params"])


def tokens(rows=2, length=8, seed=3):
  return jax.random.randint(jax.random.key(seed), (rows, length), 0, TINY.vocab_size)


@functools.partial(jax.jit, static_argnums=0)
def hidden(model, params, *args, **kwargs):
  return model.apply({"params": params}, *args, **kwargs)


@every_shape
def test_a_state_depends_on_no_later_token(shape):
  model, params = make(**shape)

  def state(embedding_rows, t):
    # One embedding row per slot, so that a gradient by row is a gradient by token.
    return hidden(model, {**params, "embedding": embedding_rows}, jnp.arange(8)[None])[0, t].sum()

  grad = jax.jit(jax.grad(state))
  for t in (0, 3, 7):
    grad_VD = grad(params["embedding"], t)
    size_T = np.abs(np.asarray(grad_VD[:8])).max(axis=1)
    assert (size_T[: t + 1] > 0).all()
    assert (size_T[t + 1 :] == 0).all()


@pytest.mark.long
@every_shape
def test_packed_rows_are_separate_rows(shape):
  model, params = make(**shape)
  a, b = tokens(1, 5, 1), tokens(1, 3, 2)
  packed = hidden(
    model,
    params,
    jnp.concatenate([a, b], axis=1),
    jnp.array([[0, 1, 2, 3, 4, 0, 1, 2]]),
    jnp.array([[1, 1, 1, 1, 1, 2, 2, 2]]),
  )
  alone = jnp.concatenate([hidden(model, params, a), hidden(model, params, b)], axis=1)
  np.testing.assert_allclose(packed, alone, atol=2e-5)


def test_without_segments_packed_rows_would_mix():
  model, params = make()
  a, b = tokens(1, 5, 1), tokens(1, 3, 2)
  mixed = hidden(model, params, jnp.concatenate([a, b], axis=1))
  assert np.abs(mixed[:, 5:] - hidden(model, params, b)).max() > 1e-2


@pytest.mark.long
@every_shape
def test_garbage_in_padding_changes_nothing(shape):
  model, params = make(**shape)
  segments = jnp.array([[0, 0, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1]])
  positions = jnp.maximum(jnp.cumsum(segments, axis=1) - 1, 0)
  clean, real = tokens(), np.asarray(segments) > 0
  dirty = jnp.where(segments > 0, clean, 30 - clean)
  first = hidden(model, params, clean, positions, segments)
  second = hidden(model, params, dirty, positions * (segments > 0), segments)
  np.testing.assert_array_equal(np.asarray(first)[real], np.asarray(second)[real])


def test_rows_that_are_all_padding_are_finite_with_finite_gradients():
  model, params = make()
  segments = jnp.zeros((2, 8), jnp.int32).at[1, :3].set(1)

  def total(p):
    return jnp.square(hidden(model, p, tokens(), None, segments)).sum()

  value, grads = jax.jit(jax.value_and_grad(total))(params)
  assert np.isfinite(value)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


@pytest.mark.long
@pytest.mark.parametrize("shape", [*SHAPES.values(), {"scan": True}], ids=[*SHAPES, "scan"])
def test_cached_decoding_is_the_full_forward(shape):
  model, params = make(**shape)
  ids = tokens()
  whole = hidden(model, params, ids)
  first, cache = hidden(model, params, ids[:, :5], cache=model.empty_cache(2, 9))
  parts = [first]
  for t in range(5, 8):
    part, cache = hidden(model, params, ids[:, t : t + 1], cache=cache)
    parts.append(part)
  assert int(cache.index) == 8
  np.testing.assert_allclose(jnp.concatenate(parts, axis=1), whole, atol=2e-5)


@pytest.mark.long
@every_shape
def test_scanned_layers_are_unrolled_layers(shape):
  model, params = make(**shape)
  scanned, _ = make(**shape, scan=True)
  stacked = stack(params, 2)
  np.testing.assert_allclose(
    hidden(scanned, stacked, tokens()), hidden(model, params, tokens()), atol=2e-5
  )
  jax.tree.map(np.testing.assert_array_equal, unstack(stacked, 2), params)
  inited = nn.unbox(jax.eval_shape(scanned.init, jax.random.key(0), tokens())["params"])
  assert jax.tree.map(jnp.shape, inited) == jax.tree.map(jnp.shape, stacked)


@pytest.mark.long
@every_shape
def test_logits_are_hidden_times_head(shape):
  model, params = make(**shape)
  logits = model.apply({"params": params}, tokens(), method="logits")
  assert logits.shape == (2, 8, 31) and logits.dtype == jnp.float32
  head_DV = model.head(params)
  assert head_DV.shape == (16, 31) and head_DV.dtype == jnp.float32
  np.testing.assert_allclose(hidden(model, params, tokens()) @ head_DV, logits, atol=1e-4)


def test_parameters_are_counted_in_closed_form():
  for fields in ({}, *SHAPES.values()):
    model, params = make(**fields)
    cfg = model.cfg
    d, k, f = 16, cfg.head_dim, cfg.hidden
    wide, narrow = cfg.heads * k, cfg.kv_heads * k
    block = 2 * d * wide + 2 * d * narrow + (3 if cfg.mlp == "gated" else 2) * d * f
    norm = d * (2 if cfg.norm_bias else 1)
    block += norm * {"": 2, "two": 2, "one": 1}[cfg.parallel] + (2 * norm if cfg.post_norm else 0)
    block += (wide + 2 * narrow + d + f + d) if cfg.bias else 0
    block += 2 * k if cfg.qk_norm else 0
    ends = 31 * d * (1 if cfg.tied else 2) + norm
    ends += {"learned": 16 * d, "relative": 8 * cfg.heads}.get(cfg.position, 0)
    assert count_parameters(params) == 2 * block + ends
    assert flops.parameters(dataclasses.replace(TINY, **fields)) == 2 * block + ends


@pytest.mark.parametrize("scan", [False, True])
@every_shape
def test_every_parameter_names_its_axes(shape, scan):
  model = Transformer.from_config(dataclasses.replace(TINY, **shape, scan=scan))
  boxed = jax.eval_shape(model.init, jax.random.key(0), tokens())["params"]
  leaves = jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
  for leaf in leaves:
    assert isinstance(leaf, nn.LogicallyPartitioned)
    assert len(leaf.names) == leaf.value.ndim and None not in leaf.names
    assert leaf.value.dtype == jnp.float32


def test_dropout_acts_only_where_a_key_is_given():
  model, params = make(dropout=0.5)
  quiet = hidden(model, params, tokens())
  one, same, other = (
    hidden(model, params, tokens(), rngs={"dropout": jax.random.key(k)}) for k in (1, 1, 2)
  )
  np.testing.assert_array_equal(quiet, hidden(make()[0], params, tokens()))
  np.testing.assert_array_equal(one, same)
  assert np.abs(one - other).max() > 0.1 and np.abs(one - quiet).max() > 0.1


def test_bfloat16_computes_in_bfloat16_with_float32_parameters():
  model, params = make(dtype="bfloat16")
  out = hidden(model, params, tokens())
  assert out.dtype == jnp.bfloat16
  assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(params))
  exact = hidden(make()[0], params, tokens())
  np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.15)


def test_rounded_factors_give_nearly_the_same_states_and_gradients():
  inputs, size = tokens(4, 16), {"dim": 32, "hidden": 64}
  (exact, params), (rounded, _) = make(**size), make(matmul_precision="bfloat16", **size)
  assert hidden(rounded, params, inputs).dtype == jnp.bfloat16  # As the head's product takes it.

  def loss(model):
    def of(params):
      logits = model.apply({"params": params}, inputs, method="logits")
      return optax.softmax_cross_entropy_with_integer_labels(logits, inputs).mean()

    return of

  (value, grads), (close, rough) = (jax.value_and_grad(loss(m))(params) for m in (exact, rounded))
  assert 0 < abs(close - value) < 1e-3 * value
  assert {x.dtype for x in jax.tree.leaves(rough)} == {jnp.dtype("float32")}
  off = jax.tree.map(jnp.subtract, rough, grads)
  assert 0 < optax.tree.norm(off) < 0.03 * optax.tree.norm(grads)


def test_rotary_states_depend_on_relative_positions_only():
  model, params = make()
  places = jnp.broadcast_to(jnp.arange(8), (2, 8))
  here, there = hidden(model, params, tokens(), places), hidden(model, params, tokens(), places + 9)
  np.testing.assert_allclose(here, there, atol=2e-4)
  stretched = hidden(model, params, tokens(), 3 * places)
  assert np.abs(here - stretched).max() > 1e-2


def test_learned_positions_overflow_is_an_error():
  model, params = make(position="learned")
  with pytest.raises(ValueError, match=r"17 tokens per row exceed .* \(16, 16\)"):
    hidden(model, params, tokens(1, 17))
  with pytest.raises(ValueError, match="20 tokens per row"):
    hidden(model, params, tokens(1, 4), cache=model.empty_cache(1, 20))


def test_shapes_must_match():
  model, params = make()
  with pytest.raises(ValueError, match=r"segments \(2, 7\) and tokens \(2, 8\)"):
    hidden(model, params, tokens(), None, jnp.ones((2, 7), jnp.int32))
  with pytest.raises(ValueError, match=r"cache of \(2, 4\) slots cannot hold tokens \(2, 8\)"):
    hidden(model, params, tokens(), cache=model.empty_cache(2, 4))


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"norm": "rmsnrm"}, 'did you mean "rmsnorm"'),
    ({"heads": 3}, "multiple of config.model.heads=3"),
    ({"kv_heads": 3}, "multiple of config.model.kv_heads=3"),
    ({"vocab_size": 0}, "vocab_size must be at least 1"),
    ({"heads": 16}, "must be even"),
    ({"dropout": 1.0}, "dropout must be in"),
    ({"matmul_precision": "bf16"}, 'did you mean "bfloat16"'),
    ({"matmul_precision": "bfloat16", "dtype": "bfloat16"}, "is of float32 models"),
  ],
)
def test_a_bad_config_is_one_clear_line(fields, message):
  with pytest.raises(UserError, match=message) as error:
    Transformer.from_config(dataclasses.replace(TINY, **fields))
  assert "\n" not in str(error.value)
