"""Backends of attention: the same values and gradients, and memory that does not grow with T S."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import config
from llm_jax.models import positions
from llm_jax.models.dot_product import attention
from llm_jax.models.transformer import Transformer

B, T, H, K = 2, 37, 4, 8
RANDOM = np.random.default_rng(0)
SEGMENTS = jnp.asarray(np.sort(RANDOM.integers(0, 4, (B, T)), axis=1)[:, ::-1].copy())


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def alibi_bias(queries, keys):
  of = lambda _, q, k: positions.alibi("mpt", H, K, q, k)  # noqa: E731
  return positions.Bias(queries, keys, None, of)


def relative(queries, keys):
  of = functools.partial(positions.relative_bias, most=12)
  return positions.Bias(queries, keys, normal(5, 8, H), of)


PLACES = jnp.broadcast_to(jnp.arange(T), (B, T))
CASES = {
  "plain": {},
  "segments": {"segments": SEGMENTS},
  "window": {"window": 6, "segments": SEGMENTS},
  "traced_window": {"window": jnp.int32(6)},
  "cap": {"cap": 2.0, "scale": 0.7},
  "both_ways": {"causal": False, "segments": SEGMENTS},
  "both_ways_window": {"causal": False, "window": 5},
  "alibi": {"bias": alibi_bias(PLACES, PLACES)},
  "relative": {"bias": relative(PLACES, PLACES), "causal": False},
  "array": {"bias": normal(6, 1, H, T, T)},
  "flat": {"bias": normal(6, B, H, 1, T)},
}


def both(fields, kv_heads=2, block=8, keys=T, **more):
  q, k, v = normal(1, B, T, H, K), normal(2, B, kv_heads, keys, K), normal(3, B, kv_heads, keys, K)
  weight = normal(4, B, T, H, K)

  def run(backend):
    def total(q, k, v):
      out = attention(q, k, v, backend=backend, block=block, **fields, **more)
      return (out * weight).sum(), out

    return jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(q, k, v)

  return run("xla"), run("xla_chunked")


LOOPED = ("segments", "traced_window", "alibi", "array")
QUICK = ("segments", "window", "relative")
EVERY = [*((name, True) for name in CASES), *((name, False) for name in LOOPED)]


@pytest.mark.parametrize(
  ("name", "unrolled"),
  [case if case[0] in QUICK else pytest.param(*case, marks=pytest.mark.long) for case in EVERY],
)
def test_chunks_give_the_same_values_and_gradients(name, unrolled, monkeypatch):
  if not unrolled:
    monkeypatch.setattr("llm_jax.models.dot_product._GROUPS", 1)
  (grads, out), (own_grads, own) = both(CASES[name])
  real = np.ones((B, T), bool) if "segments" not in CASES[name] else np.asarray(SEGMENTS > 0)
  np.testing.assert_allclose(np.asarray(own)[real], np.asarray(out)[real], atol=2e-6)
  for one, other in zip(own_grads, grads, strict=True):
    np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.long
@pytest.mark.parametrize("start", [5, jnp.int32(5)])
def test_queries_that_begin_later(start):
  (_, out), (_, own) = both({}, keys=T + 5, start=start)
  np.testing.assert_allclose(own, out, atol=2e-6)


def test_no_such_backend():
  with pytest.raises(ValueError, match='no attention backend "flash"; there are auto, xla'):
    attention(normal(1, B, T, H, K), *[normal(2, B, H, T, K)] * 2, backend="flash")


@pytest.mark.long
@pytest.mark.parametrize(
  ("position", "scan"),
  [("rope", True), pytest.param("alibi", False, marks=pytest.mark.slow), ("relative", True)],
)
def test_a_decoder_with_either_is_the_same(position, scan):
  shape = config.Model(
    vocab_size=31, dim=32, layers=2, heads=4, kv_heads=2, position=position, windows=(150, 0),
    scan=scan,
  )  # fmt: skip
  tokens = jnp.asarray(RANDOM.integers(0, 31, (1, 300)))
  model = Transformer.from_config(shape)
  params = model.init(jax.random.key(0), tokens[:, :4])["params"]
  chunked = Transformer.from_config(config.Model(**(vars(shape) | {"attention": "xla_chunked"})))
  np.testing.assert_allclose(chunked.apply(params, tokens), model.apply(params, tokens), atol=2e-5)


@pytest.mark.long
@pytest.mark.parametrize("position", ["rope", pytest.param("alibi", marks=pytest.mark.slow)])
def test_no_array_of_all_scores_in_the_compiled_step(position):
  length = 8192
  shape = config.Model(
    vocab_size=64, dim=16, layers=2, heads=2, hidden=16, position=position, scan=True, remat="full",
    attention="xla_chunked",
  )  # fmt: skip
  model = Transformer.from_config(shape)
  tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
  params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
  step = jax.jit(jax.grad(lambda p, t: model.apply(p, t).sum()))
  lowered = step.lower(params, tokens).compile()
  shapes = re.findall(r"(?:f32|bf16|pred|s32)\[([\d,]+)\]", lowered.as_text())
  largest = max(int(np.prod([int(n) for n in text.split(",")])) for text in set(shapes))
  assert largest < length * length // 16  # All scores are B H T S = 2 T T.
  assert lowered.memory_analysis().temp_size_in_bytes < 4 * (2 * length * length) // 4
