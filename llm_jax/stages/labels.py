"""What online stages work out once per rollout and put in the batch: rewards, advantages."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from llm_jax import config
from llm_jax.losses import returns, token
from llm_jax.types import Batch


def actor_critic(cfg: config.Ppo) -> Callable[..., tuple[Batch, dict[str, jax.Array]]]:
  """Returns the jitted label function of PPO.

  It takes (batch, scores [B], ended [B], kl_coef []) where the batch holds `old_logps`,
  `ref_logps` and `old_values` [B, T], and returns the batch with `advantages` (whitened over the
  whole rollout) and `returns`, and the rollout's metrics under their usual names. `objective/kl`
  is k1, log pi/pi_ref, summed over an answer's tokens and averaged over answers, in nats.
  """

  @jax.jit
  def label(batch: Batch, scores: jax.Array, ended: jax.Array, kl_coef: jax.Array):
    mask_BT = batch["mask"]
    rewards_BT = returns.shape_rewards(
      scores,
      batch["old_logps"],
      batch["ref_logps"],
      mask_BT,
      ended,
      beta=kl_coef,
      estimator=cfg.kl_estimator,
      missing_end="subtract",
      missing_end_penalty=cfg.missing_end_penalty,
    )
    advantages_BT, returns_BT = returns.gae(
      rewards_BT, batch["old_values"], mask_BT, gamma=cfg.gamma, lam=cfg.lam
    )
    kl_B = jnp.sum(token.kl(batch["old_logps"], batch["ref_logps"]) * mask_BT, 1)
    metrics = {
      "objective/scores": scores.mean(),
      "objective/kl": kl_B.mean(),
      "objective/non_score_reward": -kl_coef * kl_B.mean(),
      "objective/rlhf_reward": scores.mean() - kl_coef * kl_B.mean(),
      "objective/entropy": -jnp.sum(batch["old_logps"] * mask_BT, 1).mean(),
      "val/explained_variance": explained_variance(batch["old_values"], returns_BT, mask_BT),
      "rollout/end_rate": ended.mean(),
      "rollout/length": mask_BT.sum(1).mean(),
    }
    advantages_BT = returns.whiten(advantages_BT, mask_BT) * mask_BT
    return dict(batch) | {"advantages": advantages_BT, "returns": returns_BT}, metrics

  return label


def explained_variance(values: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
  """1 - Var(targets - values) / Var(targets) over the masked tokens; 1 is a perfect critic."""

  def variance(x_BT: jax.Array) -> jax.Array:
    mean = jnp.sum(x_BT * mask) / jnp.maximum(mask.sum(), 1)
    return jnp.sum(mask * (x_BT - mean) ** 2)

  return 1 - variance(targets - values) / jnp.maximum(variance(targets), 1e-8)
