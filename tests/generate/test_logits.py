"""Truncation and drawing: what may be drawn, and how often."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.generate import logits as logits_lib

LOGITS = 2 * jax.random.normal(jax.random.key(0), (5, 150))
uniforms = logits_lib.uniforms
draw = jax.jit(logits_lib.draw)
truncate = logits_lib.truncate


def kept(logits):
  return np.isfinite(np.asarray(logits))


@pytest.mark.parametrize("top_k", [1, 2, 50, 149])
def test_top_k_keeps_the_k_largest(top_k):
  got = truncate(LOGITS, top_k)
  ranks = np.argsort(np.argsort(-np.asarray(LOGITS), axis=1), axis=1)
  np.testing.assert_array_equal(kept(got), ranks < top_k)
  np.testing.assert_array_equal(np.asarray(got)[kept(got)], np.asarray(LOGITS)[kept(got)])


def test_no_limit_changes_nothing():
  for got in (truncate(LOGITS), truncate(LOGITS, 150), truncate(LOGITS, 999, 1.0)):
    np.testing.assert_array_equal(got, LOGITS)


@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("top_k", [0, 20])
def test_the_nucleus_is_the_smallest_set_of_the_mass(top_p, top_k):
  first = truncate(LOGITS, top_k)
  got = kept(truncate(LOGITS, top_k, jnp.float32(top_p)))
  probs = np.asarray(jax.nn.softmax(first, axis=-1), np.float64)
  for row_kept, row in zip(got, probs, strict=True):
    assert row[row_kept].min() >= row[~row_kept].max()
    assert row[row_kept].sum() >= top_p - 1e-6
    assert row[row_kept].sum() - row[row_kept].min() < top_p


def test_ties_are_kept_and_one_always_is():
  flat = jnp.zeros((1, 8))
  assert kept(truncate(flat, 3)).all()
  spike = jnp.array([[-5.0, 9.0, -jnp.inf, -5.0]])
  np.testing.assert_array_equal(kept(truncate(spike, 1, 1e-6)), [[False, True, False, False]])


def test_settings_out_of_range_are_errors():
  with pytest.raises(ValueError, match="top_k"):
    truncate(LOGITS, -1)
  with pytest.raises(ValueError, match="top_p"):
    truncate(LOGITS, 0, 0.0)


@pytest.mark.parametrize("vocabulary", [7, 64, 150])
def test_draws_follow_the_distribution(vocabulary):
  logits = LOGITS[0, :vocabulary].at[3].set(-jnp.inf)
  count = 40_000
  keys = jax.random.split(jax.random.key(2), count)
  tokens, logps = draw(uniforms(keys, 1)[:, 0], jnp.broadcast_to(logits, (count, vocabulary)))
  tokens = np.asarray(tokens)
  seen = np.bincount(tokens, minlength=vocabulary)
  expected = count * np.asarray(jax.nn.softmax(logits))
  assert seen[3] == 0 and len(seen) == vocabulary
  chi2 = np.sum((seen - expected)[expected > 0] ** 2 / expected[expected > 0])
  assert chi2 < vocabulary + 5 * np.sqrt(2 * vocabulary)  # Mean and deviation of a chi-square.
  np.testing.assert_allclose(logps, jax.nn.log_softmax(logits)[tokens], atol=1e-5)


def test_a_single_allowed_token_is_always_drawn():
  keys = jax.random.split(jax.random.key(2), 300)
  only = jnp.full((300, 300), -jnp.inf).at[jnp.arange(300), jnp.arange(300)].set(-40.0)
  tokens, logps = draw(uniforms(keys, 1)[:, 0], only)
  np.testing.assert_array_equal(tokens, np.arange(300))
  np.testing.assert_allclose(logps, 0, atol=1e-6)


@pytest.mark.parametrize("raw", [False, True])
def test_number_n_of_a_row_is_of_its_own_key_folded_with_n(raw):
  keys = jax.random.split(jax.random.key(4), 3)
  got = uniforms(jax.random.key_data(keys) if raw else keys, 5)
  for b in range(3):
    for n in range(5):
      assert got[b, n] == jax.random.uniform(jax.random.fold_in(keys[b], n))


@pytest.mark.parametrize("vocabulary", [1, 63, 64, 65, 150])
def test_the_likeliest_token_is_the_first_of_the_largest(vocabulary):
  logits = jnp.round(LOGITS[:, :vocabulary])  # Many are equal.
  np.testing.assert_array_equal(logits_lib.likeliest(logits), jnp.argmax(logits, axis=-1))
  np.testing.assert_array_equal(logits_lib.likeliest(logits * 0 - jnp.inf), np.zeros(5))
