"""Tokens to sequences: a row holds one sequence, or several that its segment ids tell apart.

Shape letters: B batch, T time, S segment id.
"""

import jax
import jax.numpy as jnp

from llm_jax.losses.inputs import check_shapes


def sequence_weights(mask: jax.Array, segments: jax.Array | None = None) -> jax.Array:
  """Weights under which a sum over tokens is a sum over sequences of each one's token mean.

  Args:
    mask: [B, T], 1 on the tokens that count.
    segments: [B, T] int in [0, T], the sequence of its row that a token is in; None: one a row.

  Returns:
    [B, T] float32: mask / (tokens of the sequence). They sum to the number of sequences that
    have a token, so that packed and unpacked batches agree.
  """
  mask_BT = mask.astype(jnp.float32)
  return mask_BT / jnp.maximum(_sequence_sum(mask_BT, segments), 1.0)


def sequence_mean(x: jax.Array, mask: jax.Array, segments: jax.Array | None = None) -> jax.Array:
  """The mean of `x` over the masked tokens of its sequence, at each token: [B, T] float32.

  Raises:
    ValueError: if the shapes of `x` and `mask` differ.
  """
  check_shapes(x=x, mask=mask)
  weights_BT = sequence_weights(mask, segments)
  return _sequence_sum(jnp.where(weights_BT > 0, x * weights_BT, 0.0), segments)


def _sequence_sum(x_BT: jax.Array, segments: jax.Array | None) -> jax.Array:
  if segments is None:
    return jnp.broadcast_to(jnp.sum(x_BT, axis=-1, keepdims=True), x_BT.shape)

  def of_row(x_T, ids_T):
    return jax.ops.segment_sum(x_T, ids_T, num_segments=x_T.shape[0] + 1)[ids_T]

  return jax.vmap(of_row)(x_BT, segments)
