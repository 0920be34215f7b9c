"""Attention as a function: a plain reference, grouped heads, masks, rows without keys."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.models.attention import Attention, Context
from llm_jax.models.dot_product import attention as plain_attention

B, T, H, K = 2, 7, 4, 8
attention = jax.jit(plain_attention)


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def reference(q, k, v, allowed):
  """One head and one query at a time, in float64."""
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  out = np.zeros_like(q)
  group = q.shape[2] // k.shape[1]
  for b, t, h in np.ndindex(*q.shape[:3]):
    keys = np.flatnonzero(allowed[b, t])
    scores = k[b, h // group, keys] @ q[b, t, h] / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max())
    out[b, t, h] = weights / weights.sum() @ v[b, h // group, keys]
  return out


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_it_is_softmax_attention_over_allowed_keys(kv_heads):
  q, k, v = normal(0, B, T, H, K), normal(1, B, kv_heads, T, K), normal(2, B, kv_heads, T, K)
  segments = jnp.array([[1, 1, 1, 2, 2, 0, 0], [0, 1, 1, 1, 1, 1, 1]])
  allowed = np.tril(np.ones((T, T), bool)) & (segments[:, :, None] == segments[:, None, :])
  got = attention(q, k, v, segments=segments)
  np.testing.assert_allclose(got, reference(q, k, v, np.asarray(allowed)), atol=1e-5)


def test_start_places_the_queries_among_the_keys():
  q, k, v = normal(0, B, T, H, K), normal(1, B, H, T, K), normal(2, B, H, T, K)
  whole = attention(q, k, v)
  np.testing.assert_allclose(attention(q[:, 4:], k, v, start=4), whole[:, 4:], atol=1e-6)


def test_grouped_heads_are_repeated_heads():
  q, k, v = normal(0, B, T, H, K), normal(1, B, 2, T, K), normal(2, B, 2, T, K)
  repeated = attention(q, jnp.repeat(k, 2, axis=1), jnp.repeat(v, 2, axis=1))
  np.testing.assert_allclose(attention(q, k, v), repeated, atol=1e-6)


def test_a_query_without_any_key_is_finite_with_finite_gradients():
  q, k, v = normal(0, B, T, H, K), normal(1, B, H, T, K), normal(2, B, H, T, K)
  ones = jnp.ones((B, T), jnp.int32)

  def total(q, k, v):
    return jnp.square(attention(q, k, v, segments=ones, key_segments=2 * ones)).sum()

  value, grads = jax.jit(jax.value_and_grad(total, (0, 1, 2)))(q, k, v)
  assert np.isfinite(value)
  assert all(np.isfinite(g).all() for g in grads)


def test_bfloat16_softmax_is_computed_in_float32():
  q, k, v = normal(0, B, T, H, K), 4 * normal(1, B, H, T, K), normal(2, B, H, T, K)
  half = [x.astype(jnp.bfloat16) for x in (q, k, v)]
  got = attention(*half)
  exact = attention(*[x.astype(jnp.float32) for x in half])
  assert got.dtype == jnp.bfloat16
  np.testing.assert_allclose(got.astype(jnp.float32), exact, atol=0.05)


def test_shapes_must_fit():
  q = jnp.zeros((B, T, H, K))
  with pytest.raises(ValueError, match=r"q \(2, 7, 4, 8\) .* k \(2, 3, 7, 8\)"):
    attention(q, jnp.zeros((B, 3, T, K)), jnp.zeros((B, 3, T, K)))
  with pytest.raises(ValueError, match=r"segments \(2, 6\)"):
    k = jnp.zeros((B, H, T, K))
    attention(q, k, k, segments=jnp.ones((B, 6), jnp.int32))


@pytest.mark.long
@pytest.mark.parametrize("scale", [0.0, 1.0, 0.05])
def test_scores_start_with_variance_one_whatever_their_scale(scale):
  layer = Attention(heads=4, kv_heads=4, head_dim=16, qk_norm=False, scale=scale)
  x = jax.random.normal(jax.random.key(0), (1, 8, 64))
  context = Context(None, None, None, None, None, 0)
  params = nn.unbox(layer.init(jax.random.key(1), x, context)["params"])
  q, k = ((x[0] @ params[name]["kernel"]).reshape(8, 4, 16) for name in "qk")
  scores = jnp.einsum("THK,SHK->HTS", q, k) * (scale if scale else 16**-0.5)
  assert 0.6 < scores.std() < 1.5
