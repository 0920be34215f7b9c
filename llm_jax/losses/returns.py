"""From scores to advantages: shaped rewards, GAE, whitening, group baselines, the KL controller.

These run where a rollout is labelled, never inside a loss: their results are data. Shape letters:
B rollouts, T time, N prompts, G samples of one prompt.
"""

import dataclasses

import jax
import jax.numpy as jnp

from llm_jax.losses.inputs import check_shapes, takes
from llm_jax.losses.token import kl


def gae(
  rewards: jax.Array,
  values: jax.Array,
  mask: jax.Array,
  gamma: float = 1.0,
  lam: float = 0.95,
  gaps: str = "carry",
) -> tuple[jax.Array, jax.Array]:
  """Generalised advantage estimation over the masked tokens of each row.

    delta_t = r_t + gamma V_next - V_t;  A_t = delta_t + gamma lam A_next;  R_t = A_t + V_t

  Schulman et al. 2015, arXiv:1506.02438, eqs. 11 to 16. What follows the last masked token is the
  end: value 0. Peers disagree on masked-out tokens *between* masked ones (tool or user turns):
  "carry" skips them, so "next" is the next masked token (verl, Tunix, NeMo-RL); "dense" keeps
  them as steps of reward 0 and value 0 (OpenRLHF, EasyLM).

  Args:
    rewards: [B, T] float, at the token whose choice earned it.
    values: [B, T] float, of the state before token t is drawn.
    mask: [B, T], 1 on the tokens that the policy chose.
    gamma: discount per token, in [0, 1].
    lam: 1 is Monte Carlo (low bias), 0 is one-step (low variance).
    gaps: "carry" or "dense".

  Returns:
    advantages and returns, [B, T] float32, 0 where masked. Not whitened.

  Raises:
    ValueError: if the shapes differ or `gaps` is neither.
  """
  check_shapes(rewards=rewards, values=values, mask=mask)
  if gaps not in ("carry", "dense"):
    raise ValueError(f'gaps must be "carry" or "dense", got {gaps!r}')
  live_BT = mask.astype(bool)
  rewards_BT = jnp.where(live_BT, rewards.astype(jnp.float32), 0.0)
  values_BT = jnp.where(live_BT, values.astype(jnp.float32), 0.0)
  steps_BT = live_BT if gaps == "carry" else jnp.ones_like(live_BT)

  def body(after, now):
    advantage_B, value_B = after
    r_B, v_B, step_B = now
    new_B = r_B + gamma * value_B - v_B + gamma * lam * advantage_B
    carried = jnp.where(step_B, new_B, advantage_B), jnp.where(step_B, v_B, value_B)
    return carried, carried[0]

  end_B = jnp.zeros(values.shape[0], jnp.float32)
  xs = jax.tree.map(jnp.transpose, (rewards_BT, values_BT, steps_BT))
  _, advantages_TB = jax.lax.scan(body, (end_B, end_B), xs, reverse=True)
  advantages_BT = jnp.where(live_BT, advantages_TB.T, 0.0)
  return advantages_BT, jnp.where(live_BT, advantages_BT + values_BT, 0.0)


def whiten(
  x: jax.Array, mask: jax.Array, shift_mean: bool = True, ddof: int = 1, eps: float = 1e-8
) -> jax.Array:
  """Scales the masked entries to unit variance, and to zero mean if `shift_mean`.

    (x - mean) / sqrt(var + eps) [+ mean]

  Peers disagree on the variance: divided by n (OpenAI's code: ddof=0) or n - 1 (TRL, verl, Tunix:
  ddof=1). Rewards are whitened without shifting the mean (Ziegler et al. 2019, arXiv:1909.08593,
  code).

  Args:
    x: float, any shape; statistics run over all masked entries.
    mask: same shape, 1 where an entry counts.
    shift_mean: whether the result has mean zero; otherwise it keeps x's mean.
    ddof: 0 or 1, subtracted from the count in the variance.
    eps: added to the variance.

  Returns:
    float32, same shape, 0 where masked.

  Raises:
    ValueError: if the shapes differ.
  """
  check_shapes(x=x, mask=mask)
  live = mask.astype(bool)
  x = jnp.where(live, x.astype(jnp.float32), 0.0)
  count = jnp.sum(live, dtype=jnp.float32)
  mean = jnp.sum(x) / jnp.maximum(count, 1.0)
  squares = jnp.sum(jnp.where(live, jnp.square(x - mean), 0.0))
  scaled = (x - mean) * jax.lax.rsqrt(squares / jnp.maximum(count - ddof, 1.0) + eps)
  return jnp.where(live, scaled if shift_mean else scaled + mean, 0.0)


def group_advantage(
  rewards_NG: jax.Array, scale: bool = True, ddof: int = 1, eps: float = 1e-6
) -> jax.Array:
  """GRPO's advantage: a sample's reward against the samples of the same prompt, [N, G] float32.

    (r - mean_G) / (std_G + eps);  without `scale`: r - mean_G

  Shao et al. 2024, GRPO, arXiv:2402.03300, section 4.1.2; scale=False is Dr. GRPO (Liu et al. 2025,
  arXiv:2503.20783, section 3.2). A group of one gets 0. Peers' eps: 1e-4 (TRL), 1e-6 (verl, Tunix).
  """
  rewards_NG = rewards_NG.astype(jnp.float32)
  centred_NG = rewards_NG - jnp.mean(rewards_NG, axis=1, keepdims=True)
  if not scale:
    return centred_NG
  count = max(rewards_NG.shape[1] - ddof, 1)
  std_N1 = jnp.sqrt(jnp.sum(jnp.square(centred_NG), axis=1, keepdims=True) / count)
  return centred_NG / (std_N1 + eps)


def rloo_advantage(rewards_NG: jax.Array) -> jax.Array:
  """REINFORCE leave-one-out: r_i - mean of the group's other rewards, [N, G] float32.

  Ahmadian et al. 2024, arXiv:2402.14740, eq. 8 (Kool et al. 2019). A group of one gets 0.
  """
  rewards_NG = rewards_NG.astype(jnp.float32)
  size = rewards_NG.shape[1]
  centred_NG = rewards_NG - jnp.mean(rewards_NG, axis=1, keepdims=True)
  return centred_NG * (size / max(size - 1, 1))


@takes("rewards", "mask")
def batch_advantage(rewards: jax.Array, mask: jax.Array, gamma: float = 1.0) -> jax.Array:
  """REINFORCE++: each token's return to go, whitened over all tokens of the batch.

    G_t = sum over s >= t of gamma^(s - t) r_s;  A = (G - mean) / std

  Hu 2025, arXiv:2501.03262, section 3: the batch is the baseline, so one answer a prompt will do.

  Args:
    rewards: [B, T] float, per token, the KL's part included.
    mask: [B, T], 1 on the tokens that the policy chose.
    gamma: discount per token.

  Returns:
    [B, T] float32, 0 where masked.
  """
  _, returns_BT = gae(rewards, jnp.zeros_like(rewards), mask, gamma=gamma, lam=1.0)
  return whiten(returns_BT, mask)


def shape_rewards(
  scores: jax.Array,
  logps: jax.Array,
  ref_logps: jax.Array,
  mask: jax.Array,
  ended: jax.Array,
  beta: jax.Array | float,
  estimator: str = "k1",
  kl_clamp: float | None = None,
  score_clip: float | None = None,
  missing_end: str = "subtract",
  missing_end_penalty: float = 0.0,
  score_position: str = "last",
) -> jax.Array:
  """Per-token rewards of RLHF: a KL penalty on each token and the score at the end.

    r_t = -beta * KL_t + [t = end] * score

  Ziegler et al. 2019, arXiv:1909.08593, eq. 2; Ouyang et al. 2022, arXiv:2203.02155, eq. 2.

  Args:
    scores: [B] float, one per answer.
    logps: [B, T] log-probs in nats of the sampled tokens under the policy that drew them.
    ref_logps: [B, T], under the reference.
    mask: [B, T], 1 on the answer's tokens, the end token included.
    ended: [B] bool, whether the answer has an end token.
    beta: KL coefficient in reward per nat; may be traced.
    estimator: of `token.kl`; "k1" makes the sum of rewards the exact KL-regularised objective.
    kl_clamp: bounds each token's KL estimate to [-c, c] (OpenRLHF, verl: 10). None: no bound.
    score_clip: bounds the score to [-c, c], before the penalty. None: no bound.
    missing_end: what happens to an answer that does not end: "subtract" the penalty from its score
      (TRL), or "replace" its score by -penalty (OpenAI's summarisation, EasyLM).
    missing_end_penalty: in units of score.
    score_position: "last" puts the score on the answer's last token; "after" on the one after it
      if the row has room (TRL), and `value_mask` gives the mask that `gae` then needs.

  Returns:
    [B, T] float32, 0 where there is neither a token nor a score. An empty answer gets nothing.

  Raises:
    ValueError: if shapes do not fit or an option is unknown.
  """
  check_shapes(logps=logps, ref_logps=ref_logps, mask=mask)
  check_shapes(scores=scores, ended=ended)
  if scores.shape != mask.shape[:1]:
    raise ValueError(f"scores {scores.shape} and mask {mask.shape} must share B")
  if missing_end not in ("subtract", "replace"):
    raise ValueError(f'missing_end must be "subtract" or "replace", got {missing_end!r}')
  score_B = scores.astype(jnp.float32)
  if score_clip is not None:
    score_B = jnp.clip(score_B, -score_clip, score_clip)
  unended_B = score_B - missing_end_penalty if missing_end == "subtract" else -missing_end_penalty
  score_B = jnp.where(ended.astype(bool), score_B, unended_B)
  kl_BT = kl(logps, ref_logps, estimator, output_clamp=kl_clamp)
  penalty_BT = jnp.where(mask > 0, -beta * kl_BT, 0.0)
  return penalty_BT + jnp.where(_score_here(mask, score_position), score_B[:, None], 0.0)


def value_mask(mask: jax.Array, score_position: str = "last") -> jax.Array:
  """The tokens that `gae` runs over: `mask`, and the score's own place, [B, T] float32.

  Raises:
    ValueError: if `score_position` is neither "last" nor "after".
  """
  return jnp.maximum(mask.astype(jnp.float32), _score_here(mask, score_position))


def _score_here(mask: jax.Array, score_position: str) -> jax.Array:
  """[B, T] bool, true at the one place of a non-empty row that gets the score."""
  if score_position not in ("last", "after"):
    raise ValueError(f'score_position must be "last" or "after", got {score_position!r}')
  length = mask.shape[1]
  at_T = jnp.arange(length)
  place_B = jnp.max(jnp.where(mask > 0, at_T, -1), axis=1)
  empty_B = place_B < 0
  if score_position == "after":
    place_B = jnp.minimum(place_B + 1, length - 1)
  return (at_T == place_B[:, None]) & ~empty_B[:, None]


@dataclasses.dataclass(frozen=True)
class AdaptiveKL:
  """Proportional controller of the KL coefficient (Ziegler et al. 2019, arXiv:1909.08593).

    e = clip(kl / target - 1, -0.2, 0.2);  coefficient *= 1 + e * samples / horizon

  Attributes:
    init: the first coefficient, in reward per nat.
    target: nats per answer (the sum over its tokens); 0 keeps the coefficient fixed.
    horizon: answers over which the coefficient may change by a fifth.
  """

  init: float
  target: float
  horizon: float

  def update(self, coefficient: jax.Array, kl: jax.Array, samples: int) -> jax.Array:
    """Returns the next coefficient. It is pure: the caller keeps the coefficient in its state.

    Args:
      coefficient: scalar, the current one.
      kl: scalar nats, the mean over answers of the KL summed over tokens.
      samples: answers that `kl` was measured on.
    """
    if not self.target:
      return coefficient
    error = jnp.clip(kl / self.target - 1.0, -0.2, 0.2)
    return coefficient * (1.0 + error * samples / self.horizon)
