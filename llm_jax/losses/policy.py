"""Policy-gradient losses per token. Advantages, old log-probs and old values are data.

Unless its docstring says otherwise, a loss takes `logps`, `old_logps` and `advantages`, [B, T]
float (log-probs in nats of the sampled tokens), and returns a [B, T] float32 loss per token, not
reduced; padded positions hold finite values that a mask removes. No gradient flows through
`old_logps` or `advantages`. All raise ValueError if the shapes differ.
"""

import jax
import jax.numpy as jnp

from llm_jax.losses.inputs import check_shapes, takes
from llm_jax.losses.sequences import sequence_mean


def ppo_clip(
  logps: jax.Array,
  old_logps: jax.Array,
  advantages: jax.Array,
  clip: float = 0.2,
  clip_high: float | None = None,
  max_log_ratio: float | None = 20.0,
) -> jax.Array:
  """The clipped surrogate: max(-A r, -A clip(r, 1 - clip, 1 + clip_high)), r = pi / pi_old.

  Schulman et al. 2017, PPO, arXiv:1707.06347, eq. 7. A wider upper bound is DAPO's clip-higher
  (Yu et al. 2025, arXiv:2503.14476, eq. 10, clip=0.2, clip_high=0.28).

  Args:
    logps: [B, T] log-probs under the policy being trained.
    old_logps: [B, T] log-probs under the policy that sampled.
    advantages: [B, T].
    clip: how far below 1 the ratio may go, in (0, 1].
    clip_high: how far above 1; None: `clip`.
    max_log_ratio: bound on |log r| before the exponential, in nats; None: no bound.

  Returns:
    [B, T] float32, not reduced.

  Raises:
    ValueError: if the shapes differ or a bound is out of range.
  """
  high = clip if clip_high is None else clip_high
  if not 0.0 < clip <= 1.0 or high <= 0.0:
    raise ValueError(f"clip must be in (0, 1] and clip_high > 0, got {clip} and {high}")
  ratio_BT, advantages_BT = _ratio(logps, old_logps, advantages, max_log_ratio)
  clipped_BT = jnp.clip(ratio_BT, 1.0 - clip, 1.0 + high)
  return jnp.maximum(-advantages_BT * ratio_BT, -advantages_BT * clipped_BT)


def dual_clip(
  logps: jax.Array,
  old_logps: jax.Array,
  advantages: jax.Array,
  clip: float = 0.2,
  clip_high: float | None = None,
  bound: float = 3.0,
  max_log_ratio: float | None = 20.0,
) -> jax.Array:
  """PPO whose loss for a negative advantage is at most -bound * A, however large the ratio.

    A < 0: min(ppo_clip, -bound * A);  else: ppo_clip

  Ye et al. 2019, arXiv:1912.09729, eq. 3. Arguments and errors as `ppo_clip`; `bound` > 1.
  """
  if bound <= 1.0:
    raise ValueError(f"bound must exceed 1, got {bound}")
  loss_BT = ppo_clip(logps, old_logps, advantages, clip, clip_high, max_log_ratio)
  advantages_BT = jax.lax.stop_gradient(advantages.astype(jnp.float32))
  bounded_BT = jnp.minimum(loss_BT, -bound * advantages_BT)
  return jnp.where(advantages_BT < 0, bounded_BT, loss_BT)


def value_clip(
  values: jax.Array, old_values: jax.Array, returns: jax.Array, clip: float | None = 0.2
) -> jax.Array:
  """A critic's squared error that does not reward leaving the old value by more than `clip`.

    loss = max((V - R)^2, (V_old + clip(V - V_old, -c, c) - R)^2) / 2

  Schulman et al.'s code of PPO; Huang et al. 2024, arXiv:2403.17031 (N+ details), section 3.

  Args:
    values: [B, T] float, the critic's values, in units of reward.
    old_values: [B, T], the values at sampling time.
    returns: [B, T], the targets.
    clip: c, in units of reward; None is the plain squared error.

  Returns:
    [B, T] float32, not reduced.

  Raises:
    ValueError: if the shapes differ or `clip` is not positive.
  """
  check_shapes(values=values, old_values=old_values, returns=returns)
  values_BT = values.astype(jnp.float32)
  old_BT, returns_BT = (jax.lax.stop_gradient(x.astype(jnp.float32)) for x in (old_values, returns))
  error_BT = jnp.square(values_BT - returns_BT)
  if clip is not None:
    if clip <= 0:
      raise ValueError(f"clip must be positive, got {clip}")
    near_BT = old_BT + jnp.clip(values_BT - old_BT, -clip, clip)
    error_BT = jnp.maximum(error_BT, jnp.square(near_BT - returns_BT))
  return 0.5 * error_BT


@takes("logps", "advantages")
def reinforce(logps: jax.Array, advantages: jax.Array) -> jax.Array:
  """The policy gradient: -A log pi, [B, T]; unbiased for samples of the current policy only.

  Williams 1992, "Simple statistical gradient-following algorithms", eq. 4. No `old_logps`.
  """
  check_shapes(logps=logps, advantages=advantages)
  return -jax.lax.stop_gradient(advantages.astype(jnp.float32)) * logps.astype(jnp.float32)


@takes("logps", "old_logps", "advantages", "mask", "segments", weight="sequences")
def gspo(
  logps: jax.Array,
  old_logps: jax.Array,
  advantages: jax.Array,
  mask: jax.Array,
  segments: jax.Array | None = None,
  clip: float = 3e-4,
  clip_high: float = 4e-4,
  max_log_ratio: float | None = 20.0,
) -> jax.Array:
  """PPO's surrogate with one ratio per sequence, the geometric mean of its tokens' ratios.

    s = exp(mean_t (log pi - log pi_old));  loss = max(-A s, -A clip(s, 1 - clip, 1 + clip_high))

  Zheng et al. 2025, GSPO, arXiv:2507.18071, eqs. 5 and 7. Every token of a sequence carries its
  sequence's value, so that the mean over the tokens of a sequence is the paper's term; averages
  are over sequences ("sequences" is its normaliser, whatever the objective aggregates by).

  Args:
    logps: [B, T], as `ppo_clip`.
    old_logps: [B, T].
    advantages: [B, T], the same on every token of a sequence.
    mask: [B, T], 1 on the tokens that count.
    segments: [B, T] int, which sequence of its row a token belongs to; None: a row is one.
    clip: how far below 1 the ratio may go; the paper's bounds are this small.
    clip_high: how far above 1.
    max_log_ratio: bound on |log s|; None: no bound.

  Returns:
    [B, T] float32, not reduced.

  Raises:
    ValueError: if the shapes differ or a bound is out of range.
  """
  check_shapes(logps=logps, old_logps=old_logps, advantages=advantages, mask=mask)
  change_BT = logps.astype(jnp.float32) - jax.lax.stop_gradient(old_logps.astype(jnp.float32))
  mean_BT = sequence_mean(change_BT, mask, segments)
  return ppo_clip(mean_BT, jnp.zeros_like(mean_BT), advantages, clip, clip_high, max_log_ratio)


def cispo(
  logps: jax.Array,
  old_logps: jax.Array,
  advantages: jax.Array,
  clip: float = 1.0,
  clip_high: float = 4.0,
  max_log_ratio: float | None = 20.0,
) -> jax.Array:
  """REINFORCE weighted by a clipped ratio that has no gradient, so that no token is dropped.

    loss = -stop_gradient(clip(r, 1 - clip, 1 + clip_high)) * A * log pi

  MiniMax 2025, MiniMax-M1, arXiv:2506.13585, eq. 4. The paper sets no lower bound (clip=1).
  Arguments and errors as `ppo_clip`.
  """
  if not 0.0 < clip <= 1.0 or clip_high <= 0.0:
    raise ValueError(f"clip must be in (0, 1] and clip_high > 0, got {clip} and {clip_high}")
  ratio_BT, advantages_BT = _ratio(logps, old_logps, advantages, max_log_ratio)
  weight_BT = jax.lax.stop_gradient(jnp.clip(ratio_BT, 1.0 - clip, 1.0 + clip_high))
  return -weight_BT * advantages_BT * logps.astype(jnp.float32)


def _ratio(logps, old_logps, advantages, max_log_ratio):
  check_shapes(logps=logps, old_logps=old_logps, advantages=advantages)
  log_ratio = logps.astype(jnp.float32) - jax.lax.stop_gradient(old_logps.astype(jnp.float32))
  if max_log_ratio is not None:
    log_ratio = jnp.clip(log_ratio, -max_log_ratio, max_log_ratio)
  return jnp.exp(log_ratio), jax.lax.stop_gradient(advantages.astype(jnp.float32))
