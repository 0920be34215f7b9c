"""Losses on per-token statistics: cross-entropy, log-probs, entropy, KL estimators.

Shape letters: B batch, T time.
"""

import jax
import jax.numpy as jnp

from llm_jax.losses.inputs import check_shapes
from llm_jax.losses.stats import TokenStats, token_stats

__all__ = ["TokenStats", "cross_entropy", "entropy", "kl", "token_logps", "token_stats"]


def cross_entropy(stats: TokenStats, z_loss: float = 0.0) -> jax.Array:
  """Negative log-likelihood of the targets, with PaLM's z-loss.

    loss = -log p(target) + z_loss * logsumexp^2

  z-loss keeps the softmax's denominator near 1 (Chowdhery et al. 2022, PaLM, arXiv:2204.02311,
  section 5, with z_loss=1e-4).

  Args:
    stats: TokenStats of [B, T] arrays.
    z_loss: weight of the squared log-denominator, >= 0.

  Returns:
    [B, T] float32 in nats per token, not reduced.

  Raises:
    ValueError: if `z_loss` is negative.
  """
  if z_loss < 0:
    raise ValueError(f"z_loss must be at least 0, got {z_loss}")
  if not z_loss:
    return -stats.logps
  return -stats.logps + z_loss * jnp.square(stats.logsumexp)


def token_logps(stats: TokenStats) -> jax.Array:
  """Returns log p(target), [B, T] float32 in nats. As a loss it is *unlearning*: it falls."""
  return stats.logps


def entropy(stats: TokenStats) -> jax.Array:
  """Returns the entropy of each position's distribution, [B, T] float32 in nats.

  As a term of a sum, "cross_entropy - 0.01*entropy" is the confidence penalty (Pereyra et al.
  2017, arXiv:1701.06548, eq. 3).
  """
  return stats.entropy


def kl(
  logps: jax.Array,
  ref_logps: jax.Array,
  estimator: str = "k1",
  input_clamp: float | None = None,
  output_clamp: float | None = None,
) -> jax.Array:
  """Single-sample estimate of KL(policy || reference) at each token drawn from the policy.

    d = logps - ref_logps
    k1 = d     k2 = d^2 / 2     k3 = exp(-d) - 1 + d     abs = |d|

  k1 and k3 are unbiased, k3 has lower variance and is never negative (Schulman 2020, "Approximating
  KL divergence"). In a reward k1 is the principled choice; as a loss k2 has the gradient of the
  reverse KL on policy, k3's is a biased approximation and k1's is zero in expectation
  (arXiv:2510.01555).

  Args:
    logps: [B, T] (any shape) float, log-probs of the sampled tokens in nats.
    ref_logps: the reference's, of the same shape.
    estimator: "k1", "k2", "k3" or "abs".
    input_clamp: bounds d to [-c, c] first; k3 overflows without it where d < -88. None: no bound.
    output_clamp: bounds the estimate to [-c, c] last (verl, NeMo-RL: 10). None: no bound.

  Returns:
    float32 nats per token, of the same shape.

  Raises:
    ValueError: if the shapes differ or there is no such estimator.
  """
  check_shapes(logps=logps, ref_logps=ref_logps)
  d = logps.astype(jnp.float32) - ref_logps.astype(jnp.float32)
  if input_clamp is not None:
    d = jnp.clip(d, -input_clamp, input_clamp)
  if estimator == "k1":
    value = d
  elif estimator == "k2":
    value = 0.5 * jnp.square(d)
  elif estimator == "k3":
    value = jnp.expm1(-d) + d
  elif estimator == "abs":
    value = jnp.abs(d)
  else:
    raise ValueError(f'estimator must be "k1", "k2", "k3" or "abs", got {estimator!r}')
  return value if output_clamp is None else jnp.clip(value, -output_clamp, output_clamp)
