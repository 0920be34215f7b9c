"""Does a backend of attention give here what it should? Values and gradients on random rows.

Shape letters: R rows, T queries, t those that are compared, S keys, H heads, N key-value heads,
K head width.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.errors import UserError
from llm_jax.models import positions
from llm_jax.models.backends import Request
from llm_jax.models.dot_product import attention

# The largest error of a vector, by its length or the usual one. Rounding alone is a third of these
# (tests/models/test_selftest.py); a wrong key or a missing mask is above 1.
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.01}

_SCORES = 1 << 26  # At most so many scores exist at once in the reference.
_FAR = 100.0  # exp(100) is more than a float32 holds.


def check(request: Request, backend: str) -> str:
  """Compares a backend with "xla" in float32, forward and backward, on the shapes of a request.

  Long rows are computed whole and compared on those queries around the end of the first text for
  which all scores of the reference fit, so no array of T S elements is made. cuDNN is tested on
  all heads and three rows: a packed one, a whole one, and a packed one whose scores are far below
  zero, where a kernel that leaves a tile unmasked overflows (it must be finite). The others, whose
  heads and rows are an axis of a matrix product, are on one group of heads and a packed row.

  Args:
    request: what was asked for.
    backend: what was chosen for it.

  Returns:
    The errors, for people.

  Raises:
    UserError: if the backend fails or gives something else.
  """
  rows, asked = 3, request
  if backend != "cudnn":
    rows = 1
    request = dataclasses.replace(request, heads=request.heads // request.kv_heads, kv_heads=1)
  given = jax.jit(_arrays, static_argnums=(0, 1))(request, rows)
  size = min(request.length, max(16, _SCORES // (rows * request.heads * request.keys)))
  first = min(max(0, _first_text(request.length) - size // 2), request.length - size)
  part = slice(first, first + size)
  step = jax.jit(functools.partial(_run, request, part), static_argnums=(1, 2))
  try:
    found = jax.device_get(step(given, backend, False))
  except Exception as error:
    reason = " ".join(str(error).split())[:200]
    raise UserError(
      f"{backend} attention does not run here: {reason}; {_advice(backend)}"
    ) from error
  expected = jax.device_get(step(given, "xla", True))
  real_Rt = np.asarray(given.segments)[:, part] > 0
  value = _error(found[0], expected[0], real_Rt)
  gradient = float(np.max([_error(a, b) for a, b in zip(found[1], expected[1], strict=True)]))
  most = TOLERANCES[request.dtype]
  if not (value <= most and gradient <= most):
    raise UserError(
      f"{backend} attention is wrong here: its values differ from xla's by {value:.2%} and its "
      f"gradients by {gradient:.2%}, where rounding explains {most:.2%} ({asked}); "
      f"{_advice(backend)}"
    )
  return f"values within {value:.2%}, gradients within {gradient:.2%} of xla's in float32"


def _advice(backend: str) -> str:
  return f'set config.model.attention to "{"xla_chunked" if backend == "cudnn" else "xla"}"'


class _Given(NamedTuple):
  """Random arrays of a request."""

  qkv: tuple[jax.Array, jax.Array, jax.Array]
  weights: jax.Array  # Of the outputs in a sum.
  segments: jax.Array
  key_segments: jax.Array
  slots: tuple[jax.Array, jax.Array]


def _run(request: Request, part: slice, given: _Given, backend: str, exact: bool):
  """Output [R, t, H, K] and the gradients of its weighted sum, all float32."""
  segments, (queries, keys) = given.segments, given.slots
  how = {"scale": request.scale, "cap": request.cap, "causal": request.causal}
  window = request.window
  how["window"] = jnp.int32(max(1, request.length // 4)) if window is None else window
  if exact:  # The compared queries alone.
    segments, queries = segments[:, part], queries[:, part]
    how["start"] = part.start
  if request.packed:
    how["segments"] = segments
    how["key_segments"] = None if request.own and not exact else given.key_segments
  if request.bias:
    of = functools.partial(positions.alibi, "mpt", request.heads, request.width)
    how["bias"] = positions.Bias(queries, keys, None, lambda _, *places: of(*places))

  def weighted(q, k, v):
    if exact:
      q, k, v = q[:, part].astype(jnp.float32), k.astype(jnp.float32), v.astype(jnp.float32)
    out = attention(q, k, v, backend=backend, max_segments=request.max_segments, **how)
    out = (out if exact else out[:, part]).astype(jnp.float32)
    return (out * given.weights[:, part]).sum(), out

  grads, out = jax.grad(weighted, (0, 1, 2), has_aux=True)(*given.qkv)
  query, *others = (x.astype(jnp.float32) for x in grads)
  return out, (query[:, part], *others)


def _arrays(request: Request, rows: int) -> _Given:
  """Queries, keys and values of scores of variance 1; in the third row these are about -100."""
  length, keys, width = request.length, request.keys, request.width
  scale = request.scale if request.scale else width**-0.5
  shapes = [(rows, length, request.heads, width)] * 2
  shapes += [(rows, request.kv_heads, keys, width)] * 2
  seeds = jax.random.split(jax.random.key(0), 4)
  q, weights, k, v = (jax.random.normal(s, x) for s, x in zip(seeds, shapes, strict=True))
  far = (_FAR / scale) ** 0.5
  q = (q / (scale * width**0.5)).at[2:, ..., 0].set(far)
  k = k.at[2:, ..., 0].set(-far)
  count = min(request.max_segments, 2 + min(length, keys) // 4) if request.packed else 0
  segments, key_segments = (_texts(size, count)[:rows] for size in (length, keys))
  slots = (jnp.broadcast_to(jnp.arange(size), (rows, size)) for size in (length, keys))
  return _Given(
    qkv=(q.astype(request.dtype), k.astype(request.dtype), v.astype(request.dtype)),
    weights=weights * (segments > 0)[..., None, None],
    segments=segments,
    key_segments=key_segments,
    slots=tuple(slots),
  )


def _texts(length: int, count: int) -> jax.Array:
  """Segments [3, T]: a long text, `count` - 1 short ones, padding; the second row is one text."""
  row = np.ones(length, np.int32)
  if count:
    first, end = _first_text(length), length - length // 16
    begins = np.random.default_rng(0).permutation(np.arange(first, end))[: count - 1]
    row += np.isin(np.arange(length), begins).cumsum(dtype=np.int32)
    row[end:] = 0
  return jnp.asarray(np.stack([row, np.ones_like(row), row]))


def _first_text(length: int) -> int:
  """About half a row; of a long one half a tile of 128 is left over, as kernels like it least."""
  return length // 256 * 128 - 64 if length >= 512 else (length + 1) // 2


def _error(found: np.ndarray, expected: np.ndarray, real: np.ndarray | None = None) -> float:
  """The largest error of a vector, by its length or the usual one; NaN if any is not finite.

  The third row is not compared: rounding is as large there as its scores are.
  """
  if not np.isfinite(found).all():
    return float("nan")
  found, expected = (x[:2] if real is None else x[:2][real[:2]] for x in (found, expected))
  lengths = np.linalg.norm(expected, axis=-1)
  usual = np.sqrt(np.mean(lengths**2))
  errors = np.linalg.norm(found - expected, axis=-1)
  return float(np.max(errors / np.maximum(np.maximum(lengths, usual), 1e-30), initial=0.0))
