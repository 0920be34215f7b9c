"""Noise on embeddings while fine-tuning.

Shape letters: B batch, T time, D model width.
"""

import jax
import jax.numpy as jnp


def neftune(key: jax.Array, segments: jax.Array, width: int, alpha: float) -> jax.Array:
  """Returns uniform noise of +-alpha / sqrt(L D), [B, T, D] float32; 0 on padding.

  Jain et al. 2023, NEFTune, arXiv:2310.05914, algorithm 1. L is the length of the sequence that a
  token is in: of its own segment, however many share its row.

  Args:
    key: of the draw.
    segments: [B, T] int32 in [0, T], 0 is padding.
    width: D.
    alpha: scale; the paper uses 5 to 15.
  """

  def lengths(ids_T):
    ones_T = jnp.ones_like(ids_T, jnp.float32)
    return jax.ops.segment_sum(ones_T, ids_T, num_segments=ids_T.shape[0] + 1)[ids_T]

  bound_BT = alpha * jax.lax.rsqrt(jax.vmap(lengths)(segments) * width)
  noise_BTD = jax.random.uniform(key, (*segments.shape, width), jnp.float32, -1.0, 1.0)
  return noise_BTD * jnp.where(segments > 0, bound_BT, 0.0)[..., None]
