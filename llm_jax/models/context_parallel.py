"""Attention where rows are cut along time over a mesh: queries stay, keys and values are gathered.

Shape letters: B batch, T queries, S keys, H heads, N key-value heads, K head width.
"""

import functools
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from llm_jax import sharding
from llm_jax.models.dot_product import attention


def attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  *,
  segments: jax.Array | None,
  key_segments: jax.Array | None,
  start: jax.Array | int,
  bias: Any,
  **how: Any,
) -> jax.Array:
  """`dot_product.attention`, each device with its own queries if the axis "length" is split.

  Every backend then works on [B, T / ways, H, K] queries and all keys, which are gathered once a
  layer: with grouped heads they are the smaller part (Llama 3, arXiv:2407.21783, section 3.3.2).
  Nothing is balanced: the device of the last queries has the most keys to see.

  Args:
    q: [B, T, H, K].
    k: [B, N, S, K].
    v: [B, N, S, K].
    segments: [B, T] int32, or None.
    key_segments: [B, S] int32, or None.
    start: slot of the first query among the keys.
    bias: what is added to the scores. With one the compiler divides the work as it sees fit.
    **how: the other arguments of `attention`.
  """
  attended = functools.partial(attention, bias=bias, **how)
  over = sharding.axes("length")
  if not over or bias is not None or q.shape[1] % sharding.ways("length"):
    return attended(q, k, v, segments=segments, key_segments=key_segments, start=start)

  def local(q, k, v, segments, key_segments):
    first = start + sharding.offset(q.shape[1], over)
    # Every device has a gradient of its own for the keys that it was given: they are added up.
    k, v = jax.lax.pcast((k, v), over, to="varying")
    return attended(q, k, v, segments=segments, key_segments=key_segments, start=first)

  split = lambda name, size: None if size % sharding.ways(name) else sharding.axes(name)  # noqa: E731
  batch, kv = split("batch", q.shape[0]), split("kv", k.shape[1])
  # Grouped heads are split together or not at all.
  queries, keys = P(batch, over, kv, None), P(batch, kv, None, None)
  specs = (queries, keys, keys, P(batch, over), P(batch, None))
  spread = jax.shard_map(local, in_specs=specs, out_specs=queries)
  return spread(q, k, v, segments, segments if key_segments is None else key_segments)
