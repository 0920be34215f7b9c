"""From logits to a token: truncation by top-k and top-p, and one draw per row.

Shape letters: B batch, V vocabulary.
"""

import jax
import jax.numpy as jnp


def truncate(logits: jax.Array, top_k: int = 0, top_p: jax.Array | float = 1.0) -> jax.Array:
  """Sets the logits of tokens outside the top k, then outside the nucleus, to -inf.

  Top-k keeps the k most likely tokens (Fan et al. 2018, arXiv:1805.04833). The nucleus is the
  smallest set of most likely tokens whose probability is at least `top_p` (Holtzman et al. 2019,
  arXiv:1904.09751, eq. 2); with both, it is taken of the renormalised top-k distribution. Tokens
  that tie with the last one kept are kept. The most likely token always is.

  Args:
    logits: [B, V] float32, at the sampling temperature.
    top_k: number of tokens; 0: no limit.
    top_p: probability in (0, 1]; 1.0, given as a Python number: no limit.

  Returns:
    [B, V] float32.

  Raises:
    ValueError: if `top_k` is negative or a static `top_p` outside (0, 1].
  """
  if top_k < 0:
    raise ValueError(f"top_k must be at least 0, got {top_k}")
  if isinstance(top_p, float | int) and not 0 < top_p <= 1:
    raise ValueError(f"top_p must be in (0, 1], got {top_p}")
  if 0 < top_k < logits.shape[-1]:
    least_B1 = jax.lax.top_k(logits, top_k)[0][:, -1:]
    logits = jnp.where(logits >= least_B1, logits, -jnp.inf)
  if isinstance(top_p, float | int) and top_p == 1:
    return logits
  probs_BV = jax.nn.softmax(logits, axis=-1)
  sorted_BV = jnp.sort(probs_BV, axis=-1, descending=True)
  before_BV = jnp.cumsum(sorted_BV, axis=-1) - sorted_BV  # The mass of all likelier tokens.
  least_B1 = jnp.min(jnp.where(before_BV < top_p, sorted_BV, jnp.inf), axis=-1, keepdims=True)
  return jnp.where(probs_BV >= least_B1, logits, -jnp.inf)


def draw(keys: jax.Array, logits: jax.Array) -> jax.Array:
  """One token per row from softmax(logits), each row by a key of its own.

  Args:
    keys: [B] PRNG keys.
    logits: [B, V] float32; -inf is never drawn.

  Returns:
    [B] int32.
  """
  return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
