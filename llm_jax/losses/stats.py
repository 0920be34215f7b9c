"""The only place where the vocabulary axis exists: hidden states to per-token statistics.

Over a mesh every device takes its own tokens and its own part of the vocabulary; parts are added up
once, behind the loop over chunks.

Shape letters: B batch, T time, D model width, V vocabulary, N chunks, R time steps of a chunk; in
the functions named `_local`, of one device.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from llm_jax import products, sharding


class TokenStats(NamedTuple):
  """What every loss on tokens is made of, in nats, float32.

  Attributes:
    logps: [B, T], log p(target).
    logsumexp: [B, T], the log of the softmax's denominator (what z-loss penalises).
    entropy: [B, T], the entropy of p(. | context).
  """

  logps: jax.Array
  logsumexp: jax.Array
  entropy: jax.Array


def token_stats(
  hidden: jax.Array,
  head: jax.Array,
  targets: jax.Array,
  *,
  mask: jax.Array | None = None,
  temperature: float = 1.0,
  cap: float = 0.0,
  chunk: int = 512,
) -> TokenStats:
  """Statistics of softmax(hidden @ head / temperature), at most `chunk` tokens at a time.

  No [B, T, V] array ever exists, forward or backward: the backward pass computes each chunk's
  logits again. All three fields are differentiable; one that the caller does not use costs
  nothing under `jax.jit` (its forward code is dead, its backward code is never traced). Products
  run in `hidden`'s dtype (as in every other layer, a float32 head is cast) and accumulate in
  float32; so does the head's gradient over chunks. Over a mesh (logical axes "batch", "length",
  "embed" and "vocab") neither tokens nor the vocabulary move: what is gathered is the head's D,
  once, and what is added up are three numbers a token and the gradients, once.

  With a mask, each row's counted tokens come first and the chunks behind the longest row's last one
  are never computed: where only answers count (SFT, DPO, PPO) most of this work goes.

  Args:
    hidden: [B, T, D] float, the states that predict `targets`.
    head: [D, V] float.
    targets: [B, T] int, in [0, V). Positions without a target hold any valid id.
    mask: [B, T], 0 at the tokens that do not count, whose fields are then 0; None: all count.
    temperature: divides the logits, > 0.
    cap: logits become cap tanh(logit / cap) before that (Gemma 2, arXiv:2408.00118); 0: they stay.
    chunk: tokens whose logits exist at once on a device.

  Returns:
    TokenStats of [B, T] float32 arrays.

  Raises:
    ValueError: if the shapes do not fit, or `temperature` or `chunk` is not positive.
  """
  _check(hidden, head, targets, mask, temperature, chunk)
  setting = _Setting(float(temperature), float(cap), chunk)
  return _stats(hidden, head, targets.astype(jnp.int32), mask, setting)


def most_likely(hidden: jax.Array, head: jax.Array, *, chunk: int = 512) -> jax.Array:
  """Returns the likeliest token [B, T] int32 of softmax(hidden @ head), not differentiable.

  Args:
    hidden: [B, T, D] float.
    head: [D, V] float.
    chunk: tokens whose logits exist at once.
  """
  rows, length = hidden.shape[:2]
  chunks = -(-length // max(1, chunk // rows))
  head = head.astype(hidden.dtype)
  best = jax.lax.map(
    lambda x: jnp.argmax(_logits(x, head, 1.0, 0.0), axis=-1).astype(jnp.int32),
    _split(hidden, chunks),
  )
  return _join(best, length)


def _check(hidden, head, targets, mask, temperature, chunk) -> None:
  if hidden.ndim != 3 or hidden.shape[:2] != targets.shape:
    raise ValueError(f"hidden {hidden.shape} must be targets {targets.shape} + (D,)")
  if head.ndim != 2 or head.shape[0] != hidden.shape[2]:
    raise ValueError(f"hidden {hidden.shape} and head {head.shape} must share D")
  if mask is not None and mask.shape != targets.shape:
    raise ValueError(f"mask {mask.shape} and targets {targets.shape} must match")
  if temperature <= 0 or chunk < 1:
    raise ValueError(f"temperature {temperature} and chunk {chunk} must be positive")


class _Setting(NamedTuple):
  """The numbers of a call that are part of the program."""

  temperature: float
  cap: float
  chunk: int


_TOKENS = ("batch", "length")
_STATES = (*_TOKENS, None)
_HEAD = ("embed", "vocab")


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _stats(hidden_BTD, head_DV, targets_BT, mask_BT, setting) -> TokenStats:
  arrays = (hidden_BTD, head_DV, targets_BT, mask_BT)
  local = functools.partial(_local_stats, setting)
  return sharding.spread(local, arrays, _names(mask_BT), TokenStats(*[_TOKENS] * 3))


def _forward(hidden, head, targets, mask, setting):
  given = [x if x is None else x.value for x in (hidden, head, targets, mask)]
  stats = _stats(*given, setting)
  return stats, (*given, stats.logsumexp, stats.entropy)


def _backward(setting, residuals, cotangents):
  # A field that the loss does not depend on has no cotangent, and adds no work.
  slopes = [None if isinstance(g, SymbolicZero) else g for g in cotangents]
  names = (*_names(residuals[3]), *[_TOKENS] * 2, *(g if g is None else _TOKENS for g in slopes))
  local = functools.partial(_local_grads, setting)
  grads = sharding.spread(local, (*residuals, *slopes), names, [_STATES, _HEAD])
  return *grads, None, None


_stats.defvjp(_forward, _backward, symbolic_zeros=True)


def _names(mask_BT: jax.Array | None) -> tuple:
  return _STATES, _HEAD, _TOKENS, None if mask_BT is None else _TOKENS


def _local_stats(setting, split, hidden_BTD, head_DV, targets_BT, mask_BT) -> TokenStats:
  weight_DV, first = _own_head(head_DV, hidden_BTD.dtype, split)
  order = _Order.of(targets_BT.shape, mask_BT, setting.chunk)
  targets_NBR = order.split(targets_BT - first)

  def body(_, xs):
    hidden_BRD, targets_BR = xs
    logits_BRV = _logits(hidden_BRD, weight_DV, setting.temperature, setting.cap)
    max_BR = jnp.max(logits_BRV, axis=-1)
    shifted_BRV = logits_BRV - max_BR[..., None]
    exp_BRV = jnp.exp(shifted_BRV)
    picked_BR = jnp.sum(jnp.where(_is_target(logits_BRV, targets_BR), shifted_BRV, 0.0), axis=-1)
    return (), (max_BR, jnp.sum(exp_BRV, -1), picked_BR, jnp.sum(exp_BRV * shifted_BRV, axis=-1))

  parts = _each(order.used, body, (), (order.split(hidden_BTD), targets_NBR))[1]
  if split("vocab"):
    own = (targets_NBR >= 0) & (targets_NBR < weight_DV.shape[1])
    parts = _whole_vocabulary(*parts, own, split("vocab"))
  max_NBR, sum_NBR, picked_NBR, product_NBR = parts
  logsum_NBR = jnp.log(sum_NBR)
  entropy_NBR = logsum_NBR - product_NBR / sum_NBR
  stats = TokenStats(picked_NBR - logsum_NBR, max_NBR + logsum_NBR, entropy_NBR)
  stats = jax.tree.map(order.join, stats)
  return stats if mask_BT is None else jax.tree.map(lambda x: jnp.where(mask_BT > 0, x, 0.0), stats)


def _whole_vocabulary(max_NBR, sum_NBR, picked_NBR, product_NBR, own_NBR, axes) -> tuple:
  """The sums over this device's part of the vocabulary as those over all of it."""
  top_NBR = jax.lax.pmax(max_NBR, axes)
  lower_NBR = max_NBR - top_NBR
  scale_NBR = jnp.exp(lower_NBR)
  sums = (
    scale_NBR * sum_NBR,
    jnp.where(own_NBR, picked_NBR + lower_NBR, 0.0),
    scale_NBR * (product_NBR + lower_NBR * sum_NBR),
  )
  return top_NBR, *jax.lax.psum(sums, axes)


def _local_grads(
  setting, split, hidden_BTD, head_DV, targets_BT, mask_BT, logsumexp_BT, entropy_BT, *slopes
) -> list[jax.Array]:
  dtype, temperature, cap = hidden_BTD.dtype, setting.temperature, setting.cap
  weight_DV, first = _own_head(head_DV, dtype, split)
  order = _Order.of(targets_BT.shape, mask_BT, setting.chunk)

  def body(grad_DV, xs):
    hidden_BRD, targets_BR, logsumexp_BR, entropy_BR, (logps_g, logsumexp_g, entropy_g) = xs
    logits_BRV = _logits(hidden_BRD, weight_DV, temperature, cap)
    logp_BRV = logits_BRV - logsumexp_BR[..., None]
    slope_BRV = 0.0  # d loss / d logits = p * slope, plus the target's own term.
    if logps_g is not None:
      slope_BRV -= logps_g[..., None]
    if logsumexp_g is not None:
      slope_BRV += logsumexp_g[..., None]
    if entropy_g is not None:
      slope_BRV -= entropy_g[..., None] * (logp_BRV + entropy_BR[..., None])
    g_BRV = jnp.exp(logp_BRV) * slope_BRV
    if logps_g is not None:
      g_BRV += jnp.where(_is_target(logits_BRV, targets_BR), logps_g[..., None], 0.0)
    if cap:  # The slope of tanh, from its value.
      g_BRV *= 1.0 - jnp.square(logits_BRV * (temperature / cap))
    g_BRV = (g_BRV / temperature).astype(dtype)
    grad_BRD = products.product("brv,dv->brd", g_BRV, weight_DV)
    grad_DV += products.product("brd,brv->dv", hidden_BRD, g_BRV)
    return grad_DV, grad_BRD.astype(dtype)

  zeros_DV = jnp.zeros(weight_DV.shape, jnp.float32)
  slopes = [g if g is None or mask_BT is None else jnp.where(mask_BT > 0, g, 0.0) for g in slopes]
  xs = jax.tree.map(order.split, (hidden_BTD, targets_BT - first, logsumexp_BT, entropy_BT, slopes))
  grad_DV, grad_NBRD = _each(order.used, body, zeros_DV, xs)
  grad_BTD = sharding.add(order.join(grad_NBRD), split("vocab"))
  over = (*split("batch"), *split("length"))
  grad_DV = sharding.add(grad_DV, over, keep=split("embed"), axis=0)
  return [grad_BTD, grad_DV.astype(head_DV.dtype)]


def _own_head(head_DV: jax.Array, dtype: Any, split: Callable) -> tuple[jax.Array, jax.Array | int]:
  """This device's part of the vocabulary, of the whole width, and its first id."""
  weight_DV = sharding.gather(head_DV.astype(dtype), split("embed"), axis=0)
  return weight_DV, sharding.offset(head_DV.shape[1], split("vocab"))


class _Order(NamedTuple):
  """How tokens are cut into chunks: along time, a row's counted ones first.

  Attributes:
    shape: (B, T) of the arrays.
    cut: (B, T) that are cut along T: (1, B T) where one token of every row is more than a chunk.
    chunks: N.
    used: chunks with a counted token.
    order_BT: the place of each token that is computed, in its row; None: they stay.
    back_BT: the inverse.
  """

  shape: tuple[int, int]
  cut: tuple[int, int]
  chunks: int
  used: jax.Array | int
  order_BT: jax.Array | None = None
  back_BT: jax.Array | None = None

  @classmethod
  def of(cls, shape: tuple[int, int], mask_BT: jax.Array | None, chunk: int) -> "_Order":
    cut = (1, shape[0] * shape[1]) if shape[0] > chunk else shape
    chunks = -(-cut[1] // (chunk // cut[0]))
    if mask_BT is None:
      return cls(shape, cut, chunks, chunks)
    counted_BT = mask_BT.reshape(cut) > 0
    order_BT = jnp.argsort(~counted_BT, axis=1, stable=True)
    longest = jnp.max(jnp.sum(counted_BT, axis=1, dtype=jnp.int32), initial=0)
    used = -(-longest // -(-cut[1] // chunks))
    return cls(shape, cut, chunks, used, order_BT, jnp.argsort(order_BT, axis=1))

  def split(self, x_BT: jax.Array) -> jax.Array:
    """[B, T, ...] -> [N, B, R, ...]."""
    x_BT = x_BT.reshape(*self.cut, *x_BT.shape[2:])
    return _split(x_BT if self.order_BT is None else _take(x_BT, self.order_BT), self.chunks)

  def join(self, x_NBR: jax.Array) -> jax.Array:
    """The inverse of `split`."""
    x_BT = _join(x_NBR, self.cut[1])
    x_BT = x_BT if self.back_BT is None else _take(x_BT, self.back_BT)
    return x_BT.reshape(*self.shape, *x_BT.shape[2:])


def _take(x_BT: jax.Array, order_BT: jax.Array) -> jax.Array:
  """x[b, order[b, t], ...]."""
  index = order_BT.reshape(*order_BT.shape, *(1,) * (x_BT.ndim - 2))
  return jnp.take_along_axis(x_BT, index, axis=1)


def _split(x_BT: jax.Array, chunks: int) -> jax.Array:
  """[B, T, ...] -> [N, B, R, ...]: chunk n has the time steps from n R on."""
  short = -x_BT.shape[1] % chunks
  x_BT = jnp.pad(x_BT, [(0, 0), (0, short)] + [(0, 0)] * (x_BT.ndim - 2))
  return jnp.moveaxis(x_BT.reshape(x_BT.shape[0], chunks, -1, *x_BT.shape[2:]), 1, 0)


def _join(x_NBR: jax.Array, length: int) -> jax.Array:
  """[N, B, R, ...] -> [B, T, ...], the inverse of `_split`."""
  x_BNR = jnp.moveaxis(x_NBR, 0, 1)
  return x_BNR.reshape(x_BNR.shape[0], -1, *x_BNR.shape[3:])[:, :length]


def _each(used: jax.Array | int, body: Callable, start: Any, xs: Any) -> Any:
  """`jax.lax.scan` over the first `used` elements of `xs`; the outputs of the others are 0."""
  first = jax.tree.map(lambda x: x[0], xs)
  size = jax.tree.leaves(xs)[0].shape[0]
  shapes = jax.eval_shape(body, start, first)[1]
  outputs = jax.tree.map(lambda s: jnp.zeros((size, *s.shape), s.dtype), shapes)

  def step(i: jax.Array, carry: tuple) -> tuple:
    state, outputs = carry
    state, y = body(state, jax.tree.map(lambda x: x[i], xs))
    return state, jax.tree.map(lambda all_, one: all_.at[i].set(one), outputs, y)

  return jax.lax.fori_loop(0, used, step, (start, outputs))


def _logits(hidden: jax.Array, head: jax.Array, temperature: float, cap: float) -> jax.Array:
  logits = products.product("brd,dv->brv", hidden, head)
  return (cap * jnp.tanh(logits / cap) if cap else logits) / temperature


def _is_target(logits_BRV: jax.Array, targets_BR: jax.Array) -> jax.Array:
  # A comparison fuses into its consumer and needs no gather across a sharded vocabulary.
  ids_BRV = jax.lax.broadcasted_iota(jnp.int32, logits_BRV.shape, 2)
  return ids_BRV == targets_BR[..., None]
