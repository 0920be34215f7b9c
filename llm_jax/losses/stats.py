"""The only place where the vocabulary axis exists: hidden states to per-token statistics.

Shape letters: B batch, T time, D model width, V vocabulary, N chunks, R time steps of a chunk.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero


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
  float32; so does the head's gradient over chunks. Rows keep their place: chunks are taken along
  time, so that a batch sharded over devices does not move.

  With a mask, each row's counted tokens come first and the chunks behind the longest row's last one
  are never computed: where only answers count (SFT, DPO, PPO) most of this work goes.

  Args:
    hidden: [B, T, D] float, the states that predict `targets`.
    head: [D, V] float.
    targets: [B, T] int, in [0, V). Positions without a target hold any valid id.
    mask: [B, T], 0 at the tokens that do not count, whose fields are then 0; None: all count.
    temperature: divides the logits, > 0.
    cap: logits become cap tanh(logit / cap) before that (Gemma 2, arXiv:2408.00118); 0: they stay.
    chunk: tokens whose logits exist at once, over all devices of a mesh: raise it with them.

  Returns:
    TokenStats of [B, T] float32 arrays.

  Raises:
    ValueError: if the shapes do not fit, or `temperature` or `chunk` is not positive.
  """
  _check(hidden, head, targets, mask, temperature, chunk)
  shape = targets.shape
  if shape[0] > chunk:  # Not even one token of each row fits: cut the flat sequence.
    hidden, targets, mask = (
      None if x is None else x.reshape(1, -1, *x.shape[2:]) for x in (hidden, targets, mask)
    )
  length = targets.shape[1]
  chunks = -(-length // (chunk // targets.shape[0]))
  targets, used, order_BT = targets.astype(jnp.int32), jnp.int32(chunks), None
  if mask is not None:
    order_BT = jnp.argsort(mask <= 0, axis=1, stable=True)
    hidden, targets = _take(hidden, order_BT), _take(targets, order_BT)
    longest = jnp.max(jnp.sum(mask > 0, axis=1, dtype=jnp.int32), initial=0)
    used = -(-longest // -(-length // chunks))
  split = (_split(hidden, chunks), head, _split(targets, chunks), used)
  fields = [_join(x, length) for x in _stats(*split, float(temperature), float(cap))]
  if mask is not None:
    back_BT = jnp.argsort(order_BT, axis=1)
    fields = [jnp.where(mask > 0, _take(x, back_BT), 0.0) for x in fields]
  return TokenStats(*(x.reshape(shape) for x in fields))


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
  """[N, B, R] -> [B, T], the inverse of `_split`."""
  x_BNR = jnp.moveaxis(x_NBR, 0, 1)
  return x_BNR.reshape(x_BNR.shape[0], -1)[:, :length]


def _each(used: jax.Array, body: Callable, start: Any, xs: Any) -> Any:
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
  logits = jnp.einsum("brd,dv->brv", hidden, head, preferred_element_type=jnp.float32)
  return (cap * jnp.tanh(logits / cap) if cap else logits) / temperature


def _is_target(logits_BRV: jax.Array, targets_BR: jax.Array) -> jax.Array:
  # A comparison fuses into its consumer and needs no gather across a sharded vocabulary.
  ids_BRV = jax.lax.broadcasted_iota(jnp.int32, logits_BRV.shape, 2)
  return ids_BRV == targets_BR[..., None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _stats(hidden_NBRD, head_DV, targets_NBR, used, temperature, cap):
  head_DV = head_DV.astype(hidden_NBRD.dtype)

  def body(_, xs):
    hidden_BRD, targets_BR = xs
    logits_BRV = _logits(hidden_BRD, head_DV, temperature, cap)
    max_BR = jnp.max(logits_BRV, axis=-1)
    shifted_BRV = logits_BRV - max_BR[..., None]
    exp_BRV = jnp.exp(shifted_BRV)
    sum_BR = jnp.sum(exp_BRV, axis=-1)
    logsum_BR = jnp.log(sum_BR)
    picked_BR = jnp.sum(jnp.where(_is_target(logits_BRV, targets_BR), shifted_BRV, 0.0), axis=-1)
    entropy_BR = logsum_BR - jnp.sum(exp_BRV * shifted_BRV, axis=-1) / sum_BR
    return (), TokenStats(picked_BR - logsum_BR, max_BR + logsum_BR, entropy_BR)

  return _each(used, body, (), (hidden_NBRD, targets_NBR))[1]


def _forward(hidden, head, targets, used, temperature, cap):
  hidden, head, targets, used = hidden.value, head.value, targets.value, used.value
  stats = _stats(hidden, head, targets, used, temperature, cap)
  return stats, (hidden, head, targets, used, stats.logsumexp, stats.entropy)


def _backward(temperature, cap, residuals, cotangents):
  hidden_NBRD, head_DV, targets_NBR, used, logsumexp_NBR, entropy_NBR = residuals
  dtype = hidden_NBRD.dtype
  weight = head_DV.astype(dtype)
  # A field that the loss does not depend on has no cotangent, and adds no work below.
  slopes = TokenStats(*(None if isinstance(g, SymbolicZero) else g for g in cotangents))

  def body(grad_DV, xs):
    hidden_BRD, targets_BR, logsumexp_BR, entropy_BR, (logps_g, logsumexp_g, entropy_g) = xs
    logits_BRV = _logits(hidden_BRD, weight, temperature, cap)
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
    f32 = {"preferred_element_type": jnp.float32}
    grad_BRD = jnp.einsum("brv,dv->brd", g_BRV, weight, **f32)
    grad_DV += jnp.einsum("brd,brv->dv", hidden_BRD, g_BRV, **f32)
    return grad_DV, grad_BRD.astype(dtype)

  xs = (hidden_NBRD, targets_NBR, logsumexp_NBR, entropy_NBR, slopes)
  zeros_DV = jnp.zeros(head_DV.shape, jnp.float32)
  grad_DV, grad_NBRD = _each(used, body, zeros_DV, xs)
  return grad_NBRD, grad_DV.astype(head_DV.dtype), None, None


_stats.defvjp(_forward, _backward, symbolic_zeros=True)
