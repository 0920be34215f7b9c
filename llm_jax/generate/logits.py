"""From hidden states to a token: logits, truncation by top-k and top-p, and one draw per row.

Shape letters: B batch, D model width, V vocabulary.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from llm_jax import products

_BLOCK = 64  # Tokens per block of the two-level inverse of the distribution function.


def next_logits(hidden: jax.Array, head: jax.Array, *, tied: bool, cap: float) -> jax.Array:
  """The next token's logits, [B, V] float32, of hidden states [B, D] and a head [D, V].

  Args:
    hidden: [B, D].
    head: [D, V], a model's `head`.
    tied: whether that is an embedding, turned round.
    cap: `config.Model.logit_cap`; 0: none.
  """
  if tied:  # The table as it lies in memory: turning it round costs two tokens' time.
    logits_BV = products.product("BD,VD->BV", hidden, head.T)
  else:
    logits_BV = products.product("BD,DV->BV", hidden, head)
  return cap * jnp.tanh(logits_BV / cap) if cap else logits_BV


def logp_of(logits: jax.Array, token: jax.Array) -> jax.Array:
  """The log-probability [B] in nats of a token [B] under softmax(logits [B, V])."""
  picked_B = jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0]
  return picked_B - jax.nn.logsumexp(logits, axis=-1)


def truncate(
  logits: jax.Array, top_k: jax.Array | int = 0, top_p: jax.Array | float = 1.0
) -> jax.Array:
  """Sets the logits of tokens outside the top k, then outside the nucleus, to -inf.

  Top-k keeps the k most likely tokens (Fan et al. 2018, arXiv:1805.04833). The nucleus is the
  smallest set of most likely tokens whose probability is at least `top_p` (Holtzman et al. 2019,
  arXiv:1904.09751, eq. 2); with both, it is taken of the renormalised top-k distribution. Tokens
  that tie with the last one kept are kept. The most likely token always is.

  Args:
    logits: [B, V] float32, at the sampling temperature.
    top_k: number of tokens; 0: no limit. Or [B], where V is no limit.
    top_p: probability in (0, 1]; 1.0, given as a Python number: no limit. Or [B].

  Returns:
    [B, V] float32.

  Raises:
    ValueError: if a static `top_k` is negative or a static `top_p` outside (0, 1].
  """
  static = isinstance(top_p, float | int)
  each = isinstance(top_k, jax.Array)
  if not each and top_k < 0:
    raise ValueError(f"top_k must be at least 0, got {top_k}")
  if static and not 0 < top_p <= 1:
    raise ValueError(f"top_p must be in (0, 1], got {top_p}")
  if each or 0 < top_k < logits.shape[-1]:
    logits = _keep_fewest(logits, lambda kept_BV: jnp.sum(kept_BV, axis=-1) >= top_k)
  if static and top_p == 1:
    return logits
  weights_BV = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
  needed_B = top_p * jnp.sum(weights_BV, axis=-1)
  return _keep_fewest(
    logits, lambda kept_BV: jnp.sum(jnp.where(kept_BV, weights_BV, 0), axis=-1) >= needed_B
  )


def uniforms(keys: jax.Array, count: int) -> jax.Array:
  """Uniform numbers in [0, 1) of each row: number n of row b is of `fold_in(keys[b], n)`.

  Args:
    keys: [B] PRNG keys (typed, or raw [B, 2] uint32).
    count: N, numbers a row.

  Returns:
    [B, N] float32.
  """
  one = lambda key, n: jax.random.uniform(jax.random.fold_in(key, n))  # noqa: E731
  return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(keys, jnp.arange(count))


def likeliest(logits: jax.Array) -> jax.Array:
  """The likeliest token [B] int32 of logits [B, V]; of equal ones the first.

  First over blocks of tokens, then within the block: on a CPU a seventh of the time of `argmax`.
  """
  rows, vocabulary = logits.shape
  padding = ((0, 0), (0, -vocabulary % _BLOCK))
  blocks = jnp.pad(logits, padding, constant_values=-jnp.inf).reshape(rows, -1, _BLOCK)
  block_B = jnp.argmax(blocks.max(axis=-1), axis=-1)
  inner = jnp.take_along_axis(blocks, block_B[:, None, None], axis=1)[:, 0]
  return (block_B * _BLOCK + jnp.argmax(inner, axis=-1)).astype(jnp.int32)


def draw(uniform: jax.Array, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
  """One token per row from softmax(logits), and its log-probability.

  Args:
    uniform: [B] float32 in [0, 1).
    logits: [B, V] float32; -inf is never drawn.

  Returns:
    [B] int32, and [B] float32 in nats.
  """
  token_B, total_B = draw_and_total(uniform, logits)
  return token_B, jnp.take_along_axis(logits, token_B[:, None], axis=1)[:, 0] - total_B


def draw_and_total(uniform: jax.Array, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
  """One token per row from softmax(logits), and the logarithm of all weights' sum.

  Inverts the distribution function at one uniform number per row, first over blocks of tokens,
  then within the block: a tenth of the time of one Gumbel number per token. The uniform has 23
  bits, so probabilities far below 1e-7 are not resolved.

  Args:
    uniform: [B] float32 in [0, 1).
    logits: [B, V] float32; -inf is never drawn.

  Returns:
    [B] int32, and [B] float32.
  """
  rows, vocabulary = logits.shape
  most_B1 = jnp.max(logits, axis=-1, keepdims=True)
  weights_BV = jnp.exp(logits - most_B1)
  weights_BV = jnp.pad(weights_BV, ((0, 0), (0, -vocabulary % _BLOCK)))
  weights = weights_BV.reshape(rows, -1, _BLOCK)
  block_mass = weights.sum(axis=-1)
  mass_B = block_mass.sum(axis=-1)
  block_B, offset_B = _invert(block_mass, uniform * mass_B)
  inner = jnp.take_along_axis(weights, block_B[:, None, None], axis=1)[:, 0]
  token_B, _ = _invert(inner, offset_B)
  token_B = (block_B * _BLOCK + token_B).astype(jnp.int32)
  return token_B, jnp.log(mass_B) + most_B1[:, 0]


def _invert(weights: jax.Array, target_B: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The first entry of positive weight whose cumulative sum exceeds the target, and the rest."""
  sums = jnp.cumsum(weights, axis=-1)
  candidates = (weights > 0) & (sums > target_B[:, None])
  # Rounding may leave the target at or above the last sum: then the heaviest entry stands in.
  heaviest = weights >= jnp.max(weights, axis=-1, keepdims=True)
  found = jnp.any(candidates, axis=-1, keepdims=True)
  index_B = jnp.argmax(jnp.where(found, candidates, heaviest), axis=-1)
  before_B = jnp.take_along_axis(sums - weights, index_B[:, None], axis=-1)[:, 0]
  return index_B, target_B - before_B


def _keep_fewest(logits: jax.Array, enough: Callable[[jax.Array], jax.Array]) -> jax.Array:
  """Keeps the fewest largest logits that are `enough`, and the ties of the last; -inf elsewhere.

  `enough` maps kept [B, V] to [B] and is monotone. Bisects the threshold over the bit patterns of
  float32, ordered like the numbers: 32 passes are exact, and far cheaper on a CPU than a sort.
  """
  bits_BV = jax.lax.bitcast_convert_type(logits.astype(jnp.float32), jnp.int32)
  order_BV = jnp.where(bits_BV < 0, bits_BV ^ 0x7FFFFFFF, bits_BV)

  def halve(_, bounds):
    low_B, high_B = bounds  # All from low on are enough; all from high on are not.
    middle_B = (low_B >> 1) + (high_B >> 1) + (low_B & high_B & 1)
    good_B = enough(order_BV >= middle_B[:, None])
    return jnp.where(good_B, middle_B, low_B), jnp.where(good_B, high_B, middle_B)

  bounds = (jnp.min(order_BV, axis=-1), jnp.max(order_BV, axis=-1) + 1)
  low_B, _ = jax.lax.fori_loop(0, 32, halve, bounds)
  return jnp.where(order_BV >= low_B[:, None], logits, -jnp.inf)
