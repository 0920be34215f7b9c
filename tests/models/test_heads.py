"""Scalar heads: where the score sits, and trees that move between models."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import config
from llm_jax.models import heads
from llm_jax.models.transformer import Transformer

TINY = config.Model(vocab_size=31, dim=64, layers=1, heads=4)
IDS = jax.random.randint(jax.random.key(1), (3, 6), 0, 31)
DECODER = Transformer.from_config(TINY)
PARAMS = nn.unbox(jax.jit(DECODER.init)(jax.random.key(0), IDS)["params"])


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, *args):
  return model.apply({"params": params}, *args)


def test_last_token_skips_padding_on_either_side():
  values = jnp.arange(12.0).reshape(3, 4) + 1
  segments = jnp.array([[0, 1, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0]])
  np.testing.assert_array_equal(heads.last_token(values, segments), [3.0, 8.0, 0.0])
  with pytest.raises(ValueError, match=r"values \(3, 4\) and segments \(3, 3\)"):
    heads.last_token(values, segments[:, :3])


def test_a_score_ignores_padding():
  scorer = heads.Scorer.from_config(TINY)
  params = heads.scorer_from_decoder(PARAMS, jax.random.key(5))
  short = apply(scorer, params, IDS[:, :4])
  segments = jnp.array([[1, 1, 1, 1, 0, 0]] * 3)
  np.testing.assert_allclose(apply(scorer, params, IDS, None, segments), short, atol=1e-5)
  assert short.shape == (3,) and short.dtype == jnp.float32


@pytest.mark.long
def test_a_critic_starts_at_zero_and_a_scorer_at_unit_scale():
  critic = heads.Critic.from_config(TINY)
  params = nn.unbox(jax.jit(critic.init)(jax.random.key(0), IDS)["params"])
  assert not apply(critic, params, IDS).any()
  boxed = jax.jit(heads.Scorer.from_config(TINY).init)(jax.random.key(0), IDS)["params"]
  kernels = [nn.unbox(boxed), heads.scorer_from_decoder(PARAMS, jax.random.key(5))]
  for tree in kernels:
    np.testing.assert_allclose(np.std(tree["head"]["kernel"]), 65**-0.5, rtol=0.3)
    assert tree["head"]["bias"] == 0
  assert boxed["head"]["kernel"].names == ("embed",)


def test_trees_move_from_decoder_to_scorer_to_critic():
  scorer, critic = heads.Scorer.from_config(TINY), heads.Critic.from_config(TINY)
  reward = heads.scorer_from_decoder(PARAMS, jax.random.key(5))
  value = heads.critic_from_scorer(reward)
  for module, tree in (
    (scorer, reward),
    (critic, value),
    (critic, heads.critic_from_decoder(PARAMS)),
  ):
    inited = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), IDS)["params"])
    assert jax.tree.map(jnp.shape, inited) == jax.tree.map(jnp.shape, tree)
  values_BT = apply(critic, value, IDS)
  np.testing.assert_allclose(values_BT[:, -1], apply(scorer, reward, IDS), atol=1e-6)
  hidden_BTD = apply(DECODER, reward["decoder"], IDS)
  expected_BT = hidden_BTD @ reward["head"]["kernel"] + reward["head"]["bias"]
  np.testing.assert_allclose(values_BT, expected_BT, atol=1e-5)


def test_a_critic_is_a_copy_that_survives_donation():
  reward = heads.scorer_from_decoder(PARAMS, jax.random.key(5))
  value = heads.critic_from_scorer(reward)
  jax.tree.map(lambda x: x.delete(), value)
  assert np.isfinite(reward["decoder"]["embedding"]).all()
