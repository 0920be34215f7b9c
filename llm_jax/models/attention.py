"""Attention over segments: causal or not, windowed, biased, with grouped heads and a cache.

Shape letters: B batch, T queries, S keys, D model width, H heads, N key-value heads,
G = H / N queries per key-value head, Q = G T, M = B T, K head width.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax.models.layers import Norm, dense
from llm_jax.models.positions import rotate

NO_WINDOW = 1 << 30  # Wider than any text.

_MASKED = -1e30  # Finite, so that a row without any key is a plain average and never NaN.


class Cache(NamedTuple):
  """Keys and values of the tokens seen so far, in slots 0 .. index - 1.

  Attributes:
    keys: one [B, N, S, K] array per layer (a tuple), or [L, B, N, S, K] of a scanned model.
    values: like `keys`.
    segments: [B, S] int32, the segment of each slot; 0 is padding.
    positions: [B, S] int32, the position of each slot in its segment.
    index: [] int32, the slot that is written next. It is the same for all rows, so prompts of
      unequal length are padded on the left.
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
    bias: [B or 1, H, T or 1, S] float32 to add to the scores, or None.
    segments: [B, T] int32 of the queries, or None: one segment.
    key_segments: [B, S] int32 of the keys, or None.
    start: slot of the first query among the keys; 0 without a cache.
  """

  rope: tuple[jax.Array, jax.Array] | None
  local_rope: tuple[jax.Array, jax.Array] | None
  bias: jax.Array | None
  segments: jax.Array | None
  key_segments: jax.Array | None
  start: jax.Array | int


def attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  *,
  segments: jax.Array | None = None,
  key_segments: jax.Array | None = None,
  start: jax.Array | int = 0,
  scale: float = 0.0,
  cap: float = 0.0,
  bias: jax.Array | None = None,
  window: jax.Array | int = NO_WINDOW,
  causal: bool = True,
) -> jax.Array:
  """Scaled dot-product attention, causal and within segments; softmax in float32.

  Query t sits in slot `start + t` and sees the keys of slots up to its own with its own segment.
  Padding is segment 0: it sees padding only, and nothing else sees it, so no row of a
  self-attention is ever empty. Vaswani et al. 2017, arXiv:1706.03762, eq. 1; grouped heads:
  Ainslie et al. 2023, arXiv:2305.13245. Key-value heads are not repeated in memory.

  Args:
    q: [B, T, H, K].
    k: [B, N, S, K], N divides H; query head h reads key-value head h // (H / N).
    v: [B, N, S, K].
    segments: [B, T] int32, or None: all tokens are one segment.
    key_segments: [B, S] int32; None: `segments`, where T == S.
    start: [] int32, slot of the first query.
    scale: of the scores; 0: 1 / sqrt(K).
    cap: scores become cap tanh(score / cap) (Gemma 2, arXiv:2408.00118, eq. 1); 0: none.
    bias: [B or 1, H, T or 1, S] float32, added to the scores.
    window: tokens that a query sees, its own included (Beltagy et al. 2020, arXiv:2004.05150).
    causal: False: later keys are seen too.

  Returns:
    [B, T, H, K] of q's dtype.

  Raises:
    ValueError: if the shapes do not fit together.
  """
  batch, length, heads, width = q.shape
  key_segments = segments if key_segments is None else key_segments
  _check(q, k, v, segments, key_segments)
  grouped = (batch, k.shape[1], heads // k.shape[1], length)
  # Plain batched matrix products, heads ahead of time: on a CPU other orders are slower backward.
  q_BHTK = (q * (scale if scale else width**-0.5)).swapaxes(1, 2)
  q_BNQK = q_BHTK.reshape(batch, k.shape[1], -1, width)  # G and T side by side in one axis.
  scores = jnp.einsum("BNQK,BNSK->BNQS", q_BNQK, k, preferred_element_type=jnp.float32)
  scores = (cap * jnp.tanh(scores / cap) if cap else scores).reshape(*grouped, -1)
  if bias is not None:
    scores = scores + bias.reshape(-1, *grouped[1:3], *bias.shape[2:])
  behind_TS = jnp.arange(length)[:, None] + start - jnp.arange(k.shape[2])[None, :]
  allowed = _seen(behind_TS, window, causal)[None]
  if segments is not None:
    allowed = allowed & (segments[:, :, None] == key_segments[:, None, :])
  scores = scores + jnp.where(allowed, 0.0, _MASKED)[:, None, None]
  weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
  weights_BNQS = weights.reshape(*q_BNQK.shape[:3], -1)
  mixed = jnp.einsum("BNQS,BNSK->BNQK", weights_BNQS, v)
  return mixed.reshape(q_BHTK.shape).swapaxes(1, 2)


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
    causal: whether later keys are out of sight.
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
  causal: bool = True

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
    batch, length, width = x_BTD.shape
    layer = functools.partial(dense, dtype=self.dtype)
    x_MD = x_BTD.reshape(-1, width)  # One row axis: the backward matmul needs no transposition.
    source_MD = x_MD if memory is None else memory.reshape(-1, width)

    def project(name: str, heads: int, axis: str, x_MD: jax.Array) -> jax.Array:
      # Scores start with variance 1 whatever their scale is, as in T5.
      fixed = name == "q" and self.scale
      scale = self.head_dim**-0.5 / self.scale if fixed else 1.0
      bias = self.bias or self.qkv_bias
      own = layer(heads * self.head_dim, ("embed", axis), bias=bias, scale=scale, name=name)
      y = own(x_MD)
      y = jnp.clip(y, -self.qkv_clip, self.qkv_clip) if self.qkv_clip else y
      return y.reshape(batch, -1, heads, self.head_dim)

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
      at = (0, 0, context.start, 0)
      k_BNSK = jax.lax.dynamic_update_slice(kv[0], k_BNSK.astype(kv[0].dtype), at)
      v_BNSK = jax.lax.dynamic_update_slice(kv[1], v_BNSK.astype(kv[1].dtype), at)
      kv = (k_BNSK, v_BNSK)
    mixed_BTHK = attention(
      q_BTHK,
      k_BNSK,
      v_BNSK,
      segments=context.segments,
      key_segments=context.key_segments,
      start=context.start,
      scale=self.scale,
      cap=self.cap,
      bias=context.bias,
      window=window,
      causal=self.causal,
    )
    out = layer(width, ("heads", "embed"), bias=self.bias, scale=self.out_scale, name="o")
    return out(mixed_BTHK.reshape(batch * length, -1)).reshape(x_BTD.shape), kv


def _seen(behind_TS: jax.Array, window: jax.Array | int, causal: bool) -> jax.Array:
  """Whether a query sees a key that is so many slots behind it."""
  seen = behind_TS >= 0 if causal else jnp.ones_like(behind_TS, bool)
  if isinstance(window, int) and window >= NO_WINDOW:
    return seen
  return seen & (jnp.abs(behind_TS) < window)


def _check(q, k, v, segments, key_segments) -> None:
  batch, length, heads, width = q.shape
  if k.shape != v.shape or k.shape[0] != batch or k.shape[3] != width or heads % k.shape[1]:
    raise ValueError(f"q {q.shape} [B,T,H,K] does not fit k {k.shape} and v {v.shape} [B,N,S,K]")
  if segments is not None and (segments.shape, key_segments.shape) != (
    (batch, length),
    (batch, k.shape[2]),
  ):
    raise ValueError(
      f"segments {segments.shape} and key_segments {key_segments.shape} do not fit"
      f" q {q.shape} [B,T,H,K] and k {k.shape} [B,N,S,K]"
    )


def _rope(context: Context, window: jax.Array | int) -> tuple[jax.Array, jax.Array]:
  """The angles of a layer with this window; where layers are scanned it is not known yet."""
  if context.local_rope is None:
    return context.rope
  if isinstance(window, int):
    return context.local_rope if window < NO_WINDOW else context.rope
  pairs = zip(context.local_rope, context.rope, strict=True)
  return tuple(jnp.where(window < NO_WINDOW, near, far) for near, far in pairs)
