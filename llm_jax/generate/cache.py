"""What decoding makes of a model: unrolled layers, a cache, the places of a padded prompt.

Shape letters: C prompts, P prompt slots, T tokens, D model width.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llm_jax.models.attention import Cache
from llm_jax.models.encoder_decoder import EncoderDecoder
from llm_jax.models.language_model import LanguageModel
from llm_jax.models.transformer import unstack
from llm_jax.types import Params


class Memory(NamedTuple):
  """The cache of an encoder-decoder: its decoder's, and what the encoder gave.

  Attributes:
    cache: of the decoder.
    encoded: [C, P, D].
    segments: [C, P] int32, 0 on padding.
  """

  cache: Cache
  encoded: jax.Array
  segments: jax.Array


def decoding_model(model: LanguageModel, params: Params) -> tuple[LanguageModel, Params]:
  """The same function with unrolled layers: a scan would copy its whole cache at every token."""
  cfg = model.cfg
  plain = model.clone(cfg=dataclasses.replace(cfg, scan=False, remat="none"), parent=None)
  return plain, unstack(params, cfg.layers) if cfg.scan else params


def prompt_places(prompt_mask: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Positions (0 at the first real token) and segments of left-padded prompts, [B, P] int32."""
  segments_BP = (prompt_mask > 0).astype(jnp.int32)
  return jnp.maximum(jnp.cumsum(segments_BP, axis=1) - 1, 0), segments_BP


def prefill(
  model: LanguageModel,
  params: Params,
  prompts: jax.Array,
  positions: jax.Array,
  segments: jax.Array,
  max_new: int,
  start_id: jax.Array,
) -> tuple[jax.Array, jax.Array, Any]:
  """Reads left-padded prompts [C, P], and makes room for `max_new` tokens.

  A decoder goes on after its prompt; an encoder-decoder encodes it, and begins with `start_id`.

  Returns:
    ([C, D], the state that predicts the first new token; [C] int32, that token's position; the
    cache).
  """
  rows, slots = prompts.shape
  if isinstance(model, EncoderDecoder):
    encoded_CPD = model.apply(params, prompts, segments, method="encode")
    memory = Memory(model.empty_cache(rows, 1 + max_new), encoded_CPD, segments)
    starts_C1 = jnp.full((rows, 1), start_id, jnp.int32)
    zeros_C1 = jnp.zeros_like(starts_C1)
    hidden_C1D, memory = read(model, params, starts_C1, zeros_C1, zeros_C1 + 1, memory)
    return hidden_C1D[:, -1], jnp.ones(rows, jnp.int32), memory
  cache = model.empty_cache(rows, slots + max_new)
  hidden_CPD, cache = model.apply(params, prompts, positions, segments, cache=cache)
  # Padded on the left: every prompt ends in the last slot.
  return hidden_CPD[:, -1], segments.sum(axis=1), cache


def read(
  model: LanguageModel,
  params: Params,
  tokens: jax.Array,
  positions: jax.Array,
  segments: jax.Array,
  cache: Any,
) -> tuple[jax.Array, Any]:
  """Reads tokens [C, T] after those in the cache; returns ([C, T, D], the new cache)."""
  if not isinstance(cache, Memory):
    return model.apply(params, tokens, positions, segments, cache=cache)
  hidden_CTD, own = model.apply(
    params, tokens, cache.encoded, cache.segments, positions, segments, cache.cache,
    method="decode",
  )  # fmt: skip
  return hidden_CTD, cache._replace(cache=own)
