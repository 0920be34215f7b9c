"""Where a token is: rotary angles, ALiBi's slopes, buckets of relative distances.

Shape letters: B batch, T queries, S keys, H heads, K head width, R = K / 2 pairs that turn.
"""

import ast
import math
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.errors import UserError, nearest

_SCALINGS = {"llama3": ("factor", "low", "high", "length"), "linear": ("factor",)}


def rope_table(
  positions: jax.Array, width: int, theta: float, scaling: str = ""
) -> tuple[jax.Array, jax.Array]:
  """Cosines and sines of the rotary angles p * frequency_i, float32 [B, T, 1, R] each.

  Su et al. 2021, arXiv:2104.09864, eq. 15.

  Args:
    positions: [B, T] int32.
    width: of a head, or of the part of it that turns; even.
    theta: base of the frequencies.
    scaling: see `frequencies`.
  """
  angles = positions[..., None, None].astype(jnp.float32) * frequencies(width, theta, scaling)
  return jnp.cos(angles), jnp.sin(angles)


def frequencies(width: int, theta: float, scaling: str = "") -> np.ndarray:
  """theta^(-2i / width) for i < width / 2, float32 [R], stretched for longer texts.

  Args:
    width: even.
    theta: the base.
    scaling: "" | "linear(factor=8)": all divided by it (arXiv:2306.15595) |
      "llama3(factor=8, low=1, high=4, length=8192)": those with fewer than `low` turns in `length`
      tokens divided by it, those with more than `high` left alone, in between a mean of both
      (Llama 3.1's published code; arXiv:2407.21783, sec. 3.4.2 has the base only).
  """
  freqs_R = (theta ** -(np.arange(0, width, 2, dtype=np.float32) / width)).astype(np.float32)
  kind, values = parse_scaling(scaling)
  if kind == "linear":
    return freqs_R / np.float32(values["factor"])
  if kind == "llama3":
    turns_R = values["length"] * freqs_R / (2 * math.pi)
    keep_R = np.clip((turns_R - values["low"]) / (values["high"] - values["low"]), 0, 1)
    return (keep_R * freqs_R + (1 - keep_R) * freqs_R / values["factor"]).astype(np.float32)
  return freqs_R


def parse_scaling(text: str) -> tuple[str, dict[str, float]]:
  """Splits "linear(factor=8)" into its name and numbers; ("", {}) of "".

  Raises:
    UserError: if there is no such kind, or its keywords are others.
  """
  if not text:
    return "", {}
  try:
    call = ast.parse(text, mode="eval").body
    assert isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args
    kind = call.func.id
    values = {str(k.arg): float(ast.literal_eval(k.value)) for k in call.keywords}
  except (SyntaxError, AssertionError, ValueError, TypeError) as error:
    raise UserError(
      f'config.model.rope_scaling="{text}" must be a call such as "linear(factor=8)"'
    ) from error
  if kind not in _SCALINGS:
    raise UserError(f'config.model.rope_scaling="{text}": no "{kind}"{nearest(kind, _SCALINGS)}')
  if set(values) != set(_SCALINGS[kind]):
    raise UserError(
      f'config.model.rope_scaling="{text}": {kind} takes {", ".join(_SCALINGS[kind])}'
    )
  wide = all(1e-6 <= value <= 1e9 for value in values.values())  # What float32 can multiply.
  if not wide or (kind == "llama3" and not values["low"] < values["high"]):
    raise UserError(
      f'config.model.rope_scaling="{text}": numbers must be 1e-6 to 1e9, and low below high'
    )
  return kind, values


def rotate(x_BTHK: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
  """Turns the pairs (x_i, x_{i + R}) by the angles of `rope_table`; what is behind 2 R stays.

  The half-split pairing of the public Llama weights; a permutation of the paper's neighbours.
  """
  width = 2 * cos.shape[-1]
  x, rest = x_BTHK[..., :width].astype(jnp.float32), x_BTHK[..., width:]
  # Both halves at a time: on a CPU it takes half as long as one after the other.
  cos, sin = jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)
  turned = (x * cos + jnp.roll(x, width // 2, axis=-1) * sin).astype(x_BTHK.dtype)
  return jnp.concatenate([turned, rest], axis=-1) if rest.shape[-1] else turned


@flax.struct.dataclass
class Bias:
  """What positions add to the scores, not worked out yet.

  Attributes:
    queries: [B, T] int32, their positions.
    keys: [B, S] int32.
    table: what is learned of it, or None.
    of: (table, queries, keys) -> [B, H, T or 1, S] float32.
  """

  queries: jax.Array
  keys: jax.Array
  table: jax.Array | None
  of: Callable[..., jax.Array] = flax.struct.field(pytree_node=False)

  def array(self) -> jax.Array:
    """[B, H, T or 1, S] float32."""
    return self.of(self.table, self.queries, self.keys)


def relative_bias(table, positions, key_positions, most: int, both_ways: bool = False) -> jax.Array:
  """T5's bias [B, H, T, S] float32 of a table [buckets, H]; `most` and so on as in `buckets`."""
  distance_BTS = key_positions[:, None, :] - positions[:, :, None]
  found = buckets(distance_BTS, table.shape[0], most, both_ways)
  return jnp.moveaxis(jnp.take(table, found, axis=0), -1, 1)


def slopes(heads: int, most: float = 8.0) -> np.ndarray:
  """ALiBi's slopes 2^(-most i / H), float32 [H] (Press et al. 2021, arXiv:2108.12409, sec. 3).

  Where H is no power of two, they are those of the next larger one, every second first.
  """
  size = 1 << (heads - 1).bit_length()
  found = 2.0 ** (-most * np.arange(1, size + 1) / size)
  if size != heads:
    found = np.concatenate([found[1::2], found[::2]])[:heads]
  return found.astype(np.float32)


def alibi(
  kind: str, heads: int, width: int, positions: jax.Array, key_positions: jax.Array
) -> jax.Array:
  """What ALiBi adds to the scores, float32 [B, H, T or 1, S]: slope times distance.

  Args:
    kind: "mpt"; "falcon" has slopes, and slope times position, in bfloat16, and divides them by
      sqrt(K) with the scores, as its published code does.
    heads: H.
    width: K.
    positions: [B, T] int32 of the queries.
    key_positions: [B, S] int32 of the keys.
  """
  slopes_H = jnp.asarray(slopes(heads))[:, None, None]
  if kind == "falcon":
    own = slopes_H.astype(jnp.bfloat16) * key_positions[:, None, None, :].astype(jnp.bfloat16)
    return own.astype(jnp.float32) * width**-0.5
  distance_BTS = key_positions[:, None, :] - positions[:, :, None]
  return slopes_H * distance_BTS[:, None].astype(jnp.float32)


def buckets(distance: jax.Array, count: int, most: int, both_ways: bool = False) -> jax.Array:
  """Bucket of key position minus query position, int32 in [0, count) (T5, arXiv:1910.10683).

  Half of the buckets are single distances, the others grow as logarithms up to `most`.

  Args:
    distance: int32 of any shape.
    count: of buckets.
    most: distance from which on there is one bucket.
    both_ways: half of the buckets are for keys behind the query; else those are bucket 0.
  """
  found = jnp.zeros_like(distance)
  if both_ways:
    count //= 2
    found = jnp.where(distance > 0, count, 0)
    distance = jnp.abs(distance)
  else:
    distance = jnp.maximum(-distance, 0)
  exact = count // 2
  ratio = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact) / math.log(most / exact)
  far = jnp.minimum(exact + (ratio * (count - exact)).astype(jnp.int32), count - 1)
  return found + jnp.where(distance < exact, distance, far)
