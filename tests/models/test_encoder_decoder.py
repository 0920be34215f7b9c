"""The encoder-decoder: sight, padding, packing, cache."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import config
from llm_jax.errors import UserError
from llm_jax.models import interop
from llm_jax.models.encoder_decoder import EncoderDecoder
from llm_jax.models.transformer import Transformer

TINY = config.Model(
  vocab_size=31, dim=16, layers=2, encoder_layers=3, heads=4, head_dim=8, hidden=24,
  position="relative", relative_buckets=8, relative_distance=6, attention_scale=1.0, qk_norm=False,
  activation="gelu_tanh", norm_eps=1e-6, tied=False,
)  # fmt: skip
INPUTS = jax.random.randint(jax.random.key(1), (2, 9), 0, 31)
TOKENS = jax.random.randint(jax.random.key(2), (2, 7), 0, 31)


def made(**fields):
  model = EncoderDecoder.from_config(dataclasses.replace(TINY, **fields))
  boxed = jax.eval_shape(model.init, jax.random.key(0), INPUTS, TOKENS)
  random = np.random.default_rng(0)
  draw = lambda x: jnp.asarray(0.3 * random.standard_normal(x.shape), jnp.float32)  # noqa: E731
  return model, jax.tree.map(draw, nn.unbox(boxed)["params"])


def run(model, params, *args, **kwargs):
  return model.apply(params, *args, **kwargs)


@pytest.mark.long
def test_a_target_sees_all_inputs_and_no_later_target():
  model, params = made()

  def state(embedding, t):
    inputs, tokens = jnp.arange(9)[None], jnp.arange(9, 16)[None]
    return run(model, {**params, "embedding": embedding}, inputs, tokens)[0, t].sum()

  for t in (0, 3):
    size = np.abs(jax.grad(state)(params["embedding"], t)).max(axis=1)
    assert (size[:9] > 0).all()
    assert (size[9 : 9 + t + 1] > 0).all() and (size[9 + t + 1 : 16] == 0).all()


@pytest.mark.long
def test_padding_changes_nothing():
  model, params = made()
  whole = run(model, params, INPUTS, TOKENS)
  inputs = jnp.pad(INPUTS, ((0, 0), (0, 4)), constant_values=7)
  tokens = jnp.pad(TOKENS, ((0, 0), (0, 2)), constant_values=5)
  ones = jnp.ones_like
  given = jnp.pad(ones(INPUTS), ((0, 0), (0, 4))), None, jnp.pad(ones(TOKENS), ((0, 0), (0, 2)))
  np.testing.assert_allclose(run(model, params, inputs, tokens, *given)[:, :7], whole, atol=2e-5)


@pytest.mark.long
def test_packed_pairs_are_separate_pairs():
  model, params = made()
  alone = [run(model, params, INPUTS[i : i + 1], TOKENS[i : i + 1]) for i in range(2)]
  packed = run(
    model, params, INPUTS.reshape(1, -1), TOKENS.reshape(1, -1),
    jnp.repeat(jnp.array([1, 2]), 9)[None], jnp.tile(jnp.arange(7), 2)[None],
    jnp.repeat(jnp.array([1, 2]), 7)[None],
  )  # fmt: skip
  np.testing.assert_allclose(packed, jnp.concatenate(alone, axis=1), atol=2e-5)


@pytest.mark.long
def test_cached_steps_are_the_whole_pass():
  model, params = made()
  whole = run(model, params, INPUTS, TOKENS)
  memory = run(model, params, INPUTS, method="encode")
  cache, parts = model.empty_cache(2, 7), []
  for t in range(7):
    part, cache = run(model, params, TOKENS[:, t : t + 1], memory, cache=cache, method="decode")
    parts.append(part)
  np.testing.assert_allclose(jnp.concatenate(parts, axis=1), whole, atol=2e-5)


def test_folders_hold_what_was_saved(tmp_path):
  model, params = made()
  interop.save(tmp_path / "hf", model, params)
  again, loaded = interop.load(tmp_path / "hf")
  jax.tree.map(np.testing.assert_array_equal, loaded, params)
  assert again == EncoderDecoder(dataclasses.replace(model.cfg, max_length=again.cfg.max_length))
  with pytest.raises(UserError, match="this is an encoder-decoder"):
    Transformer.from_config(again.cfg)
  with pytest.raises(UserError, match="are of decoders alone"):
    interop.load(tmp_path / "hf", scan=True)
  with pytest.raises(UserError, match="encoder_layers of at least 1"):
    EncoderDecoder.from_config(dataclasses.replace(TINY, encoder_layers=0))
