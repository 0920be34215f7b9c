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
  return unrolled(model), unstack(params, cfg.layers) if cfg.scan else params


def unrolled(model: LanguageModel) -> LanguageModel:
  """The same model without a loop over its layers."""
  return model.clone(cfg=dataclasses.replace(model.cfg, scan=False, remat="none"), parent=None)


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
  room: int,
  start_id: jax.Array,
  chunk: int,
) -> tuple[jax.Array, jax.Array, Any]:
  """Reads left-padded prompts [C, P], and makes room for `room` tokens more.

  A decoder goes on after its prompt, which it reads `chunk` slots at a time: the scores in memory
  are [C, H, chunk, S] whatever P is. An encoder-decoder encodes its prompt at once, and begins with
  `start_id`.

  Returns:
    ([C, D], the state that predicts the first new token; [C] int32, that token's position; the
    cache).
  """
  rows, slots = prompts.shape
  if isinstance(model, EncoderDecoder):
    encoded_CPD = model.apply(params, prompts, segments, method="encode")
    memory = Memory(model.empty_cache(rows, 1 + room), encoded_CPD, segments)
    starts_C1 = jnp.full((rows, 1), start_id, jnp.int32)
    zeros_C1 = jnp.zeros_like(starts_C1)
    hidden_C1D, memory = read(model, params, starts_C1, zeros_C1, zeros_C1 + 1, memory)
    return hidden_C1D[:, -1], jnp.ones(rows, jnp.int32), memory

  def part(start: jax.Array | int, size: int, cache: Cache) -> tuple[jax.Array, Cache]:
    given = (
      jax.lax.dynamic_slice_in_dim(x, start, size, axis=1) for x in (prompts, positions, segments)
    )
    hidden_CtD, cache = read(model, params, *given, cache)
    return hidden_CtD[:, -1], cache

  # The first part is what whole chunks leave over. Padded on the left: prompts end in the last.
  chunks = (slots - 1) // chunk
  first = slots - chunks * chunk
  last = part(0, first, model.empty_cache(rows, slots + room))
  if chunks:
    following = lambda i, last: part(first + i * chunk, chunk, last[1])  # noqa: E731
    last = jax.lax.fori_loop(0, chunks, following, last)
  return last[0], segments.sum(axis=1), last[1]


def grow(cache: Any, room: int) -> Any:
  """The same cache (of unrolled layers) with room for `room` tokens more."""
  if isinstance(cache, Memory):
    return cache._replace(cache=grow(cache.cache, room))
  slots = lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, room), (0, 0)])  # noqa: E731
  flat = lambda x: jnp.pad(x, ((0, 0), (0, room)))  # noqa: E731
  return Cache(
    tuple(map(slots, cache.keys)),
    tuple(map(slots, cache.values)),
    flat(cache.segments),
    flat(cache.positions),
    cache.index,
  )


def read(
  model: LanguageModel,
  params: Params,
  tokens: jax.Array,
  positions: jax.Array,
  segments: jax.Array,
  cache: Any,
  angles: Any = None,
) -> tuple[jax.Array, Any]:
  """Reads tokens [C, T] after those in the cache; returns ([C, T, D], the new cache).

  `angles` are a decoder's `model.angles` of all positions, or None.
  """
  if not isinstance(cache, Memory):
    return model.apply(params, tokens, positions, segments, cache=cache, angles=angles)
  hidden_CTD, own = model.apply(
    params, tokens, cache.encoded, cache.segments, positions, segments, cache.cache,
    method="decode",
  )  # fmt: skip
  return hidden_CTD, cache._replace(cache=own)
