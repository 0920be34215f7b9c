"""NEFTune: the scale and support of the noise, whose length counts, where it does not act."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import config
from llm_jax.models import lora, noise
from llm_jax.models.transformer import Transformer
from llm_jax.stages import training

KEY = jax.random.key(0)
SHAPE = config.Model(vocab_size=23, dim=16, layers=2, heads=2)
SEGMENTS = np.array([[1] * 4 + [2] * 9 + [0] * 3, [1] * 16], np.int32)


def batch(segments=SEGMENTS):
  tokens = np.random.default_rng(0).integers(0, 23, segments.shape).astype(np.int32)
  starts = np.array([[np.argmax(row == i) for i in row] for row in segments])
  positions = np.arange(segments.shape[1]) - starts
  return {"tokens": tokens, "positions": positions.astype(np.int32), "segments": segments}


def parameters(model):
  return nn.unbox(jax.jit(training.initializer(model))(KEY))


def test_noise_is_uniform_within_alpha_over_the_root_of_its_segments_size():
  width, alpha = 400, 5.0
  got = np.asarray(noise.neftune(KEY, jnp.array(SEGMENTS), width, alpha))
  for row, segment, length in ((0, 1, 4), (0, 2, 9), (1, 1, 16)):
    own = got[row][SEGMENTS[row] == segment]
    bound = alpha / np.sqrt(length * width)
    assert np.abs(own).max() <= bound and np.abs(own).max() > 0.99 * bound
    np.testing.assert_allclose(own.std(), bound / np.sqrt(3), rtol=0.05)
    np.testing.assert_allclose(own.mean(), 0, atol=4 * bound / np.sqrt(3 * own.size))
    # The expected norm of a sequence's noise is alpha / sqrt(3), whatever its size.
    np.testing.assert_allclose(np.linalg.norm(own), alpha / np.sqrt(3), rtol=0.05)
  assert np.all(got[SEGMENTS == 0] == 0)


def test_padding_and_other_segments_do_not_change_a_segments_noise():
  alone = SEGMENTS.copy()
  alone[0, 4:] = 0
  longer = SEGMENTS.copy()
  longer[0, 13:] = 2
  got = [noise.neftune(KEY, jnp.array(x), 8, 5.0)[0, :4] for x in (SEGMENTS, alone, longer)]
  np.testing.assert_array_equal(got[0], got[1])
  np.testing.assert_array_equal(got[0], got[2])


@pytest.mark.parametrize("scan", [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.parametrize("position", ["rope", pytest.param("learned", marks=pytest.mark.long)])
def test_noise_acts_on_training_alone_and_zero_is_the_model(scan, position):
  model = Transformer.from_config(dataclasses.replace(SHAPE, scan=scan, position=position))
  params = parameters(model)

  def hidden(rng=KEY, **how):
    return jax.jit(training.decoder_apply(model, **how))(params, batch(), rng).hidden

  plain = hidden()
  np.testing.assert_array_equal(hidden(train=True), plain)
  np.testing.assert_array_equal(hidden(train=True, neftune=0.0), plain)
  np.testing.assert_array_equal(hidden(neftune=5.0), plain)  # Evaluation.
  noisy = hidden(train=True, neftune=5.0)
  real = SEGMENTS > 0
  assert np.all(np.abs(noisy - plain).max(-1)[real] > 1e-4)
  np.testing.assert_array_equal(noisy, hidden(train=True, neftune=5.0))
  assert np.abs(hidden(jax.random.key(1), train=True, neftune=5.0) - noisy).max() > 1e-4


def test_noise_is_that_on_the_embedding():
  """With one token a row and no attention to others, the noise is a shift of the embedding."""
  model = Transformer.from_config(dataclasses.replace(SHAPE, layers=1))
  params = jax.device_get(parameters(model))
  one = {"tokens": np.array([[3]]), "positions": np.zeros((1, 1), np.int32),
         "segments": np.ones((1, 1), np.int32)}  # fmt: skip
  noisy = jax.jit(training.decoder_apply(model, train=True, neftune=2.0))(params, one, KEY).hidden
  table = np.array(params["embedding"])
  drawn = model.bind({"params": params}, rngs={"noise": jax.random.fold_in(KEY, 1)})
  table[3] += np.asarray(noise.neftune(drawn.make_rng("noise"), one["segments"], 16, 2.0))[0, 0]
  shifted = jax.jit(training.decoder_apply(model))({**params, "embedding": table}, one, KEY).hidden
  np.testing.assert_allclose(noisy, shifted, rtol=1e-5, atol=1e-6)


def test_an_adapter_learns_under_noise():
  model = Transformer.from_config(SHAPE)
  params = lora.attach(parameters(model), config.Lora(rank=2), KEY)
  apply = training.decoder_apply(model, train=True, neftune=5.0)
  lm = batch()

  def loss(own):
    return jnp.square(apply({**params, lora.KEY: own}, lm, KEY).hidden).sum()

  grads = jax.jit(jax.grad(loss))(params[lora.KEY])
  assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(grads)) > 0
