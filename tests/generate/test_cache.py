"""The cache of the sampler: chunks of a prompt, growth, memory linear in the prompt."""

import dataclasses
import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import config
from llm_jax.generate import cache as caches
from llm_jax.generate import sampler
from llm_jax.models.encoder_decoder import EncoderDecoder
from llm_jax.models.transformer import Transformer

TINY = config.Model(vocab_size=19, dim=16, layers=2, heads=4, kv_heads=2, max_length=32)
LENGTHS = [11, 2, 7]  # Of prompts in 11 slots: with chunks of 4, one begins in the last.
RANDOM = np.random.default_rng(0)
PROMPTS = RANDOM.integers(1, 19, (3, 11)).astype(np.int32)
MASK = (np.arange(11) >= 11 - np.array(LENGTHS)[:, None]).astype(np.int32)
PLACES = caches.prompt_places(jnp.asarray(MASK))


def make(**fields):
  cfg = dataclasses.replace(TINY, **fields)
  model = (EncoderDecoder if cfg.encoder_layers else Transformer).from_config(cfg)
  first = (jnp.zeros((1, 2), jnp.int32),) * (2 if cfg.encoder_layers else 1)
  boxed = jax.eval_shape(model.init, jax.random.key(0), *first)
  random = np.random.default_rng(1)
  draw = lambda x: jnp.asarray(0.3 * random.standard_normal(x.shape), jnp.float32)  # noqa: E731
  return model, jax.tree.map(draw, nn.unbox(boxed)["params"])


def prefilled(model, params, chunk, room=2):
  @jax.jit
  def run(prompts, positions, segments):
    return caches.prefill(model, params, prompts, positions, segments, room, 0, chunk)

  return run(PROMPTS, *PLACES)


@pytest.mark.long
@pytest.mark.parametrize(
  "fields",
  [
    {"windows": (3, 0), "rope_local_theta": 100.0},
    {"position": "learned", "attention": "xla_chunked"},
    {"position": "alibi"},
    {"position": "relative", "relative_buckets": 8, "relative_distance": 6},
  ],
  ids=["windows", "learned", "alibi", "relative"],
)
def test_a_prompt_in_chunks_is_the_prompt_at_once(fields):
  model, params = make(**fields)
  at_once = prefilled(model, params, 11)
  for chunk in (4, 5):  # 3 + 4 + 4 and 1 + 5 + 5 slots.
    in_chunks = prefilled(model, params, chunk)
    assert int(in_chunks[2].index) == 11
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-5), in_chunks, at_once)


@pytest.mark.long
def test_what_is_in_the_padding_does_not_matter_in_chunks():
  model, params = make()
  first = prefilled(model, params, 4)[0]
  changed = np.where(MASK, PROMPTS, 18 - PROMPTS)
  second = caches.prefill(model, params, changed, *PLACES, 2, 0, 4)[0]
  np.testing.assert_allclose(first, second, atol=2e-5)


@pytest.mark.long
@pytest.mark.parametrize("encoder_layers", [0, 1])
def test_a_cache_that_grows_reads_on_as_one_that_had_the_room(encoder_layers):
  model, params = make(position="relative", encoder_layers=encoder_layers)
  hidden, first, small = prefilled(model, params, 11, room=1)
  large = prefilled(model, params, 11, room=5)[2]
  small = caches.grow(small, 4)
  assert jax.tree.map(jnp.shape, small) == jax.tree.map(jnp.shape, large)
  for step in range(5):
    token = jnp.full((3, 1), 3 + step, jnp.int32)
    given = token, (first + step)[:, None], jnp.ones_like(token)
    hidden, small = caches.read(model, params, *given, small)
    expected, large = caches.read(model, params, *given, large)
    np.testing.assert_allclose(hidden, expected, atol=1e-5)


def largest(chunk, slots=4096):
  """Elements of the largest array in the program that reads a prompt of so many slots."""
  model, _ = make(layers=1)
  params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
  places = [jax.ShapeDtypeStruct((1, slots), jnp.int32)] * 3

  def run(params, prompts, positions, segments):
    return caches.prefill(model, params, prompts, positions, segments, 8, 0, chunk)

  text = jax.jit(run).lower(nn.unbox(params), *places).compile().as_text()
  shapes = re.findall(r"(?:f32|bf16|pred|s32)\[([\d,]+)\]", text)
  return max(math.prod(map(int, shape.split(","))) for shape in shapes)


def test_the_scores_of_a_long_prompt_are_never_all_there():
  heads, slots = TINY.heads, 4096
  assert largest(chunk=512) <= heads * 512 * (slots + 8)
  assert largest(chunk=slots) >= heads * slots * slots


def test_a_chunk_shrinks_as_prompts_are_more():
  assert [sampler._chunk(rows) for rows in (1, 4, 16, 64, 512)] == [512, 512, 128, 32, 32]
