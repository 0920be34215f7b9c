"""Scaled dot-product attention as a function, by backends that give the same.

"xla" makes all scores at once, [B, H, T, S]. "xla_chunked" makes those of a block of queries at a
time, again in the backward pass, so that memory grows with T and not with T S; keys that the causal
mask or a window (a number, no array) hides from a whole group of blocks cost nothing. "cudnn" is
flash attention on NVIDIA GPUs, for causal self-attention without cap and bias; its padding comes
out as 0 (flash.py). "auto" takes one of them (`backends.choose`).

Shape letters: B batch, T queries, S keys, H heads, N key-value heads, G = H / N queries per
key-value head, Q = G T, K head width; t and s: those of one block.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llm_jax import products
from llm_jax.models import backends, flash
from llm_jax.models.backends import NO_WINDOW
from llm_jax.models.positions import Bias

_MASKED = -1e30  # Finite, so that a row without any key is a plain average and never NaN.
_GROUPS = 8  # Of queries that are written out, each with the keys that it may see.


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
  bias: jax.Array | Bias | None = None,
  window: jax.Array | int = NO_WINDOW,
  causal: bool = True,
  backend: str = "xla",
  block: int = 128,
  max_segments: int = 64,
  precision: str = "",
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
    key_segments: [B, S] int32; None: `segments`, where T == S. "cudnn" takes None alone.
    start: [] or [B] int32, slot of the first query.
    scale: of the scores; 0: 1 / sqrt(K).
    cap: scores become cap tanh(score / cap) (Gemma 2, arXiv:2408.00118, eq. 1); 0: none.
    bias: [B or 1, H, T or 1, S] float32, added to the scores, or what makes it block by block.
    window: tokens that a query sees, its own included (Beltagy et al. 2020, arXiv:2004.05150).
    causal: False: later keys are seen too.
    backend: one of `backends.BACKENDS`.
    block: queries at a time of "xla_chunked".
    max_segments: of a row, for "cudnn" alone; a row with more comes out as NaN.
    precision: of the products, as in `products.einsum`; "cudnn" has its own.

  Returns:
    [B, T, H, K] of q's dtype.

  Raises:
    ValueError: if the shapes do not fit together, or there is no such backend.
    UserError: if the backend cannot do what is asked.
  """
  own = key_segments is None and isinstance(start, int) and start == 0
  key_segments = segments if key_segments is None else key_segments
  _check(q, k, v, segments, key_segments)
  request = backends.Request.of(
    q, k, backend=backend, packed=segments is not None, max_segments=max_segments, own=own,
    scale=scale, cap=cap, bias=bias is not None, window=window, causal=causal,
  )  # fmt: skip
  given = _Given(q, k, v, segments, key_segments, bias, start, window)
  return _by_backend(request, given, block, precision)


def _by_backend(request, given: "_Given", block: int, precision: str) -> jax.Array:
  """[B, T, H, K]; q is not scaled yet, and still [B, T, H, K]."""
  backend = backends.choose(request)
  scale = request.scale if request.scale else request.width**-0.5
  if backend == "cudnn":
    return flash.attention(
      *given[:4], scale=scale, window=request.window, max_segments=request.max_segments
    )
  # Plain batched matrix products, heads ahead of time: on a CPU other orders are slower backward.
  given = given._replace(q=(given.q * scale).swapaxes(1, 2))
  attend = functools.partial(_attend, cap=request.cap, causal=request.causal, precision=precision)
  if backend == "xla" or request.length <= block:
    mixed_BHTK = attend(given, 0, request.length, 0, request.keys)
  else:
    mixed_BHTK = checkpoint_name(_by_blocks(attend, given, request.causal, block), "attention")
  return mixed_BHTK.swapaxes(1, 2)


class _Given(NamedTuple):
  """What a call is about; q is scaled, [B, H, T, K]."""

  q: jax.Array
  k: jax.Array
  v: jax.Array
  segments: jax.Array | None
  key_segments: jax.Array | None
  bias: jax.Array | Bias | None
  start: jax.Array | int | None
  window: jax.Array | int | None


def _by_blocks(attend, given: _Given, causal: bool, block: int) -> jax.Array:
  """[B, H, T, K], `block` queries at a time, in groups of blocks that see the same keys."""
  length, keys = given.q.shape[2], given.k.shape[2]
  placed = isinstance(given.start, int)
  window = given.window if isinstance(given.window, int) else NO_WINDOW
  group = block * -(-length // (block * _GROUPS))
  parts = []
  for first in range(0, length, group):
    size = min(group, length - first)
    low, high = 0, keys
    if placed and causal:
      high = min(keys, given.start + first + size)
    if placed:
      low = max(0, given.start + first - window + 1)
    parts += _group(_again(attend, given), first, size, low, high, block)
  return jnp.concatenate(parts, axis=2)


def _group(once, first: int, size: int, low: int, high: int, block: int) -> list[jax.Array]:
  """`size` queries, their blocks in a loop: two of them never have their scores at a time."""
  whole = size // block * block
  if whole <= block:
    return [once(first + i, min(block, size - i), low, high) for i in range(0, size, block)]
  starts = jnp.arange(first, first + whole, block)
  blocks = jax.lax.map(lambda i: once(i, block, low, high), starts)
  joined = jnp.moveaxis(blocks, 0, 2)  # [n, B, H, t, K] -> [B, H, n, t, K]
  joined = joined.reshape(*joined.shape[:2], whole, joined.shape[-1])
  rest = [once(first + whole, size - whole, low, high)] if size > whole else []
  return [joined, *rest]


def _again(attend, given: _Given):
  """`attend`, whose scores the backward pass makes again."""
  fixed = {"start": given.start, "window": given.window}  # Numbers stay numbers.

  def call(first, *sizes: int) -> jax.Array:
    once = jax.checkpoint(lambda arrays, i: attend(arrays._replace(**fixed), i, *sizes))
    return once(given._replace(start=None, window=None), first)

  return call


def _attend(
  given: _Given, first, size: int, low: int, high: int, *, cap: float, causal: bool, precision: str
):
  """[B, H, t, K] of `size` queries from `first` on, over the keys from `low` to `high`."""
  take = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=first, slice_size=size)
  q_BHtK = take(given.q, axis=2)
  k, v = given.k[:, :, low:high], given.v[:, :, low:high]
  grouped = (q_BHtK.shape[0], k.shape[1], q_BHtK.shape[1] // k.shape[1], size)
  q_BNQK = q_BHtK.reshape(*grouped[:2], -1, q_BHtK.shape[3])  # G and t side by side in one axis.
  scores = products.einsum("BNQK,BNSK->BNQS", q_BNQK, k, precision)
  scores = (cap * jnp.tanh(scores / cap) if cap else scores).reshape(*grouped, -1)
  bias = given.bias
  if isinstance(bias, Bias):
    bias = bias.replace(queries=take(bias.queries, axis=1), keys=bias.keys[:, low:high]).array()
  elif bias is not None:
    bias = (take(bias, axis=2) if bias.shape[2] > 1 else bias)[..., low:high]
  if bias is not None:
    scores = scores + bias.reshape(-1, *grouped[1:3], *bias.shape[2:])
  slots = jnp.reshape(given.start + first, (-1, 1, 1)) + jnp.arange(size)[:, None]
  allowed = _seen(slots - jnp.arange(low, high), given.window, causal)  # [1 or B, t, s]
  if given.segments is not None:
    own, others = take(given.segments, axis=1), given.key_segments[:, low:high]
    allowed = allowed & (own[:, :, None] == others[:, None, :])
  scores = scores + jnp.where(allowed, 0.0, _MASKED)[:, None, None]
  mixed = _mix(scores.reshape(*q_BNQK.shape[:3], -1), v, precision)
  return mixed.reshape(q_BHtK.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _mix(scores: jax.Array, v: jax.Array, precision: str) -> jax.Array:
  """softmax(scores [B, N, Q, S]) @ v [B, N, S, K], float32 inside: [B, N, Q, K] of v's dtype.

  Keys are mixed by their weights before these are divided by their sum, and it is the undivided
  ones that the backward pass keeps: two passes over the scores less (as in Dao et al. 2022,
  FlashAttention, arXiv:2205.14135, sec. 3.1 and appendix B, there block by block).
  """
  return _mixed(scores, v, precision)[0]


def _mixed(scores: jax.Array, v: jax.Array, precision: str) -> tuple[jax.Array, tuple]:
  powers = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
  total = jnp.sum(powers, axis=-1, keepdims=True)
  dtype = v.dtype
  powers, v = (x.astype(precision or dtype) for x in (powers, v))
  mixed = (products.product("BNQS,BNSK->BNQK", powers, v) / total).astype(dtype)
  mixed = checkpoint_name(mixed, "attention")  # Here, for the backward pass reads it, too.
  return mixed, (powers, total, v, mixed)


def _mixed_grads(precision: str, residuals: tuple, slope: jax.Array) -> tuple[jax.Array, jax.Array]:
  del precision  # The residuals have it.
  powers, total, v, mixed = residuals
  slope = slope.astype(jnp.float32) / total
  along = jnp.sum(slope * mixed, axis=-1, keepdims=True)
  slope = slope.astype(v.dtype)
  by_weight = products.product("BNQK,BNSK->BNQS", slope, v)
  grad_v = products.product("BNQS,BNQK->BNSK", powers, slope)
  return powers * (by_weight - along), grad_v.astype(mixed.dtype)


_mix.defvjp(_mixed, _mixed_grads)


def _seen(behind: jax.Array, window: jax.Array | int, causal: bool) -> jax.Array:
  """Whether a query sees a key that is so many slots behind it."""
  seen = behind >= 0 if causal else jnp.ones_like(behind, bool)
  if isinstance(window, int) and window >= NO_WINDOW:
    return seen
  return seen & (jnp.abs(behind) < window)


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
