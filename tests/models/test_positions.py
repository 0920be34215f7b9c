"""Rotary angles and their stretching, ALiBi, relative buckets, windows and caps: closed forms."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import config
from llm_jax.errors import UserError
from llm_jax.losses.stats import token_stats
from llm_jax.models import positions
from llm_jax.models.dot_product import attention
from llm_jax.models.transformer import Transformer, logits_of


def test_frequencies_fall_from_one_to_almost_one_over_theta():
  freqs_R = positions.frequencies(8, 10_000.0)
  np.testing.assert_allclose(freqs_R, [1, 0.1, 0.01, 0.001], rtol=1e-6)
  np.testing.assert_allclose(positions.frequencies(8, 1e4, "linear(factor=4)"), freqs_R / 4)


def test_llama3_keeps_fast_turns_and_divides_slow_ones():
  text = "llama3(factor=8, low=1, high=4, length=8192)"
  plain, scaled = (positions.frequencies(128, 5e5, s) for s in ("", text))
  turns = 8192 * plain / (2 * math.pi)
  np.testing.assert_array_equal(scaled[turns > 4], plain[turns > 4])
  np.testing.assert_allclose(scaled[turns < 1], plain[turns < 1] / 8, rtol=1e-6)
  between = (turns > 1) & (turns < 4)
  assert ((scaled < plain) & (scaled > plain / 8))[between].all() and between.any()


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("linaer(factor=2)", 'did you mean "linear"'),
    ("linear(scale=2)", "linear takes factor"),
    ("linear", "must be a call"),
    ("linear(factor=open)", "must be a call"),
  ],
)
def test_bad_scalings_are_named(text, message):
  cfg = config.Model(vocab_size=9, dim=8, heads=2, rope_scaling=text)
  with pytest.raises(UserError, match=message):
    Transformer.from_config(cfg)


def test_only_a_fraction_of_a_head_turns():
  x = jnp.arange(16.0).reshape(1, 2, 1, 8)
  cos, sin = positions.rope_table(jnp.array([[0, 3]]), 4, 10.0)
  y = positions.rotate(x, cos, sin)
  np.testing.assert_array_equal(y[..., 4:], x[..., 4:])
  np.testing.assert_array_equal(y[:, 0], x[:, 0])
  np.testing.assert_allclose(jnp.square(y).sum(-1), jnp.square(x).sum(-1), rtol=1e-6)
  turn = np.cos(3.0) * x[0, 1, 0, 0] - np.sin(3.0) * x[0, 1, 0, 2]
  np.testing.assert_allclose(y[0, 1, 0, 0], turn, rtol=1e-5)


def test_slopes_are_a_geometric_series_and_published_for_other_counts():
  np.testing.assert_allclose(positions.slopes(8), 2.0 ** -np.arange(1, 9))
  np.testing.assert_allclose(positions.slopes(3), [2**-4.0, 2**-8.0, 2**-2.0])


def test_buckets_are_exact_then_logarithmic():
  found = positions.buckets(-jnp.arange(200), 32, 128)
  np.testing.assert_array_equal(found[:16], np.arange(16))
  assert (np.diff(found) >= 0).all() and int(found[127]) <= 31 and int(found[128]) == 31
  assert (positions.buckets(jnp.arange(5), 32, 128) == 0).all()
  both = positions.buckets(jnp.array([-3, 0, 3]), 32, 128, both_ways=True)
  np.testing.assert_array_equal(both, [3, 0, 19])


@pytest.mark.long
@pytest.mark.parametrize("window", [1, 3, 100])
def test_a_window_is_so_many_tokens_and_the_own_one(window):
  q, k, v = (jax.random.normal(jax.random.key(i), (1, 9, 2, 4)) for i in range(3))
  k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
  got = attention(q, k, v, window=window)
  for t in range(9):
    first = max(0, t - window + 1)
    own = attention(q[:, t : t + 1], k[:, :, first : t + 1], v[:, :, first : t + 1], start=t)
    np.testing.assert_allclose(got[:, t : t + 1], own, atol=1e-5)


def test_scores_are_capped_scaled_and_biased():
  q, k, v = (jax.random.normal(jax.random.key(i), (1, 5, 2, 4)) for i in range(3))
  k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
  bias = jax.random.normal(jax.random.key(9), (1, 2, 5, 5))
  got = attention(q, k, v, scale=0.7, cap=1.5, bias=bias, causal=False)
  scores = jnp.einsum("bthk,bhsk->bhts", q, k) * 0.7
  weights = jax.nn.softmax(1.5 * jnp.tanh(scores / 1.5) + bias)
  np.testing.assert_allclose(got, jnp.einsum("bhts,bhsk->bthk", weights, v), atol=1e-5)


@pytest.mark.long
def test_capped_logits_have_the_statistics_and_gradients_of_the_whole_softmax():
  cfg = config.Model(vocab_size=13, dim=8, heads=2, logit_cap=2.0)
  hidden, head = (
    3 * jax.random.normal(jax.random.key(i), s) for i, s in ((0, (2, 6, 8)), (1, (8, 13)))
  )
  targets = jax.random.randint(jax.random.key(2), (2, 6), 0, 13)

  def direct(hidden, head):
    logp = jax.nn.log_softmax(logits_of(cfg, hidden, head) / 0.7)
    picked = jnp.take_along_axis(logp, targets[..., None], -1)[..., 0]
    return jnp.sum(picked * jnp.arange(6)) - jnp.sum(jnp.exp(logp) * logp)

  def chunked(hidden, head):
    stats = token_stats(hidden, head, targets, temperature=0.7, cap=2.0, chunk=4)
    return jnp.sum(stats.logps * jnp.arange(6)) + jnp.sum(stats.entropy)

  np.testing.assert_allclose(direct(hidden, head), chunked(hidden, head), rtol=1e-5)
  for a, b in zip(*(jax.grad(f, (0, 1))(hidden, head) for f in (direct, chunked)), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_a_pattern_of_windows_repeats_over_the_layers():
  cfg = config.Model(vocab_size=9, dim=8, heads=2, layers=5, windows=(4, 0))
  far = Transformer.from_config(dataclasses.replace(cfg, windows=())).windows()[0]
  assert Transformer.from_config(cfg).windows() == [4, far, 4, far, 4]
