"""The attention layer: projections, rotary positions, a cache; its heart is dot_product.py.

Shape letters: B batch, T queries, S keys, D model width, H heads, N key-value heads,
G = H / N queries per key-value head, Q = G T, M = B T, K head width.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llm_jax import sharding
from llm_jax.models import context_parallel
from llm_jax.models.dot_product import NO_WINDOW
from llm_jax.models.layers import Norm, dense, rows_of, stream_of, within
from llm_jax.models.positions import Bias, rotate


class Cache(NamedTuple):
  """Keys and values of the tokens seen so far, in slots 0 .. index - 1.

  Attributes:
    keys: one [B, N, S, K] array per layer (a tuple), or [L, B, N, S, K] of a scanned model.
    values: like `keys`.
    segments: [B, S] int32, the segment of each slot; 0 is padding.
    positions: [B, S] int32, the position of each slot in its segment.
    index: [] int32, the slot that is written next. It is the same for all rows, so prompts of
      unequal length are padded on the left. Or [B], where each row is at a slot of its own.
  """

  keys: Any
  values: Any
  segments: jax.Array
  positions: jax.Array
  index: jax.Array


class Context(NamedTuple):
  """What all layers share about the tokens of one call.

  Attributes:
    rope: cosines and sines of `positions.rope_table`, or None.
    local_rope: those of layers with a window, where they differ, or None.
    bias: [B or 1, H, T or 1, S] float32 to add to the scores, or what makes it, or None.
    segments: [B, T] int32 of the queries, or None: one segment.
    key_segments: [B, S] int32 of the keys; None: those of the queries.
    start: slot of the first query among the keys, [] or [B]; None: 0, known as such whatever traces
      the layer.
  """

  rope: tuple[jax.Array, jax.Array] | None
  local_rope: tuple[jax.Array, jax.Array] | None
  bias: jax.Array | Bias | None
  segments: jax.Array | None
  key_segments: jax.Array | None
  start: jax.Array | int | None


class Attention(nn.Module):
  """Multi-head self-attention: projections, rotary positions, cache.

  Attributes:
    heads: H.
    kv_heads: N.
    head_dim: K.
    bias: whether the projections have biases.
    qkv_bias: whether those to queries, keys and values have.
    qk_norm: RMSNorm of each query and key head (Dehghani et al. 2023, arXiv:2302.05442, sec. 2),
      with one scale [K] for all heads.
    norm_eps: of these norms, as in `Norm`.
    norm_offset: of these norms, as in `Norm`.
    qkv_clip: queries, keys and values stay within [-clip, clip]; 0: as they are.
    scale: of the scores; 0: 1 / sqrt(K).
    cap: of the scores; 0: none.
    out_scale: factor on the initial standard deviation of the output projection.
    dtype: compute dtype.
    precision: of matrix products, as in `products.einsum`; where there is a cache the scores and
      what they mix are not rounded.
    causal: whether later keys are out of sight.
    backend: see `dot_product.attention`; where there is a cache, "xla".
    max_segments: see `dot_product.attention`.
  """

  heads: int
  kv_heads: int
  head_dim: int
  bias: bool = False
  qkv_bias: bool = False
  qk_norm: bool = True
  norm_eps: float = 0.0
  norm_offset: bool = False
  qkv_clip: float = 0.0
  scale: float = 0.0
  cap: float = 0.0
  out_scale: float = 1.0
  dtype: str = "float32"
  precision: str = ""
  causal: bool = True
  backend: str = "xla"
  max_segments: int = 64

  @nn.compact
  def __call__(self, x_BTD, context: Context, kv=None, window=NO_WINDOW, memory=None):
    """Attends.

    Args:
      x_BTD: [B, T, D].
      context: what all layers share.
      kv: this layer's (keys, values) of a cache, or None.
      window: tokens that a query sees.
      memory: [B, S, D] that keys and values are of, an encoder's output; None: `x_BTD`.

    Returns:
      [B, T, D], and the updated pair.
    """
    batch, _, width = x_BTD.shape
    start = 0 if context.start is None else context.start
    layer = functools.partial(dense, dtype=self.dtype, precision=self.precision)
    x_MD = rows_of(x_BTD)
    source_MD = x_MD if memory is None else rows_of(memory)

    def project(name: str, heads: int, axis: str, x_MD: jax.Array) -> jax.Array:
      # Scores start with variance 1 whatever their scale is, as in T5.
      fixed = name == "q" and self.scale
      scale = self.head_dim**-0.5 / self.scale if fixed else 1.0
      bias = self.bias or self.qkv_bias
      own = layer(heads * self.head_dim, ("embed", axis), bias=bias, scale=scale, name=name)
      y_BTHK = own(x_MD).reshape(batch, -1, heads, self.head_dim)
      y_BTHK = checkpoint_name(sharding.constrain(y_BTHK, ("batch", "length", axis, None)), name)
      return jnp.clip(y_BTHK, -self.qkv_clip, self.qkv_clip) if self.qkv_clip else y_BTHK

    q_BTHK = project("q", self.heads, "heads", x_MD)
    k_BTNK = project("k", self.kv_heads, "kv", source_MD)
    v_BTNK = project("v", self.kv_heads, "kv", source_MD)
    if self.qk_norm:
      norm = functools.partial(Norm, axis="head_dim", eps=self.norm_eps, offset=self.norm_offset)
      q_BTHK, k_BTNK = norm(name="q_norm")(q_BTHK), norm(name="k_norm")(k_BTNK)
    if context.rope is not None:
      rope = _rope(context, window)
      q_BTHK, k_BTNK = rotate(q_BTHK, *rope), rotate(k_BTNK, *rope)
    k_BNSK, v_BNSK = k_BTNK.swapaxes(1, 2), v_BTNK.swapaxes(1, 2)
    if kv is not None:
      k_BNSK, v_BNSK = kv = _cached(kv, (k_BNSK, v_BNSK), start)
    mixed_BTHK = context_parallel.attend(
      q_BTHK,
      k_BNSK,
      v_BNSK,
      segments=context.segments,
      key_segments=context.key_segments,
      start=start,
      scale=self.scale,
      cap=self.cap,
      bias=context.bias,
      window=window,
      causal=self.causal,
      backend=self.backend if kv is None else "xla",
      max_segments=self.max_segments,
      precision=self.precision if kv is None else "",
    )
    out = layer(width, ("heads", "embed"), bias=self.bias, scale=self.out_scale, name="o")
    mixed = within(mixed_BTHK.reshape(*x_MD.shape[:-1], -1), "heads")
    return checkpoint_name(stream_of(out(mixed), x_BTD.shape), "o"), kv


def _cached(kv: tuple, new: tuple, start: jax.Array | int) -> tuple[jax.Array, jax.Array]:
  """A layer's cache [B, N, S, K] with new keys and values from slot `start` on."""
  return put(kv[0], new[0], start, 2), put(kv[1], new[1], start, 2)


def put(old: jax.Array, new: jax.Array, start: jax.Array | int, axis: int = 1) -> jax.Array:
  """`old`, with `new` from place `start` of this axis on.

  Where `start` is [B], each row has a place of its own, and what falls off the end is lost.
  """
  new = new.astype(old.dtype)
  if jnp.ndim(start) == 0:
    return jax.lax.dynamic_update_slice_in_dim(old, new, start, axis)
  rows_B1 = jnp.arange(len(old))[:, None]
  places_BT = start[:, None] + jnp.arange(new.shape[axis])
  index = (rows_B1, *[slice(None)] * (axis - 1), places_BT)
  return old.at[index].set(jnp.moveaxis(new, axis, 1), mode="drop")


def _rope(context: Context, window: jax.Array | int) -> tuple[jax.Array, jax.Array]:
  """The angles of a layer with this window; where layers are scanned it is not known yet."""
  if context.local_rope is None:
    return context.rope
  if isinstance(window, int):
    return context.local_rope if window < NO_WINDOW else context.rope
  pairs = zip(context.local_rope, context.rope, strict=True)
  return tuple(jnp.where(window < NO_WINDOW, near, far) for near, far in pairs)
