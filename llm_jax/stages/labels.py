"""What online stages work out once per rollout and put in the batch: rewards, advantages."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from llm_jax import config, spec
from llm_jax.errors import UserError
from llm_jax.losses import returns, token
from llm_jax.losses.inputs import takes_of
from llm_jax.types import Batch

_REWARDS = ("rewards", "rewards_NG", "mask")


def actor_critic(cfg: config.Ppo) -> Callable[..., tuple[Batch, dict[str, jax.Array]]]:
  """Returns the jitted label function of PPO.

  It takes (batch, scores [B], ended [B], kl_coef []) where the batch holds `old_logps`,
  `ref_logps` and `old_values` [B, T], and returns the batch with `advantages` and `returns`, and
  the rollout's metrics under their usual names. What is whitened is so over the whole rollout.
  `objective/kl` is k1, log pi/pi_ref, summed over an answer's tokens and averaged over answers, in
  nats.
  """

  @jax.jit
  def label(batch: Batch, scores: jax.Array, ended: jax.Array, kl_coef: jax.Array):
    mask_BT = batch["mask"]
    worth = returns.whiten(scores, jnp.ones_like(scores)) if cfg.whiten_scores else scores
    rewards_BT = returns.shape_rewards(
      worth,
      batch["old_logps"],
      batch["ref_logps"],
      mask_BT,
      ended,
      beta=kl_coef,
      estimator=cfg.kl_estimator,
      kl_clamp=cfg.kl_clamp if cfg.kl_clamp else None,
      score_clip=cfg.score_clip if cfg.score_clip else None,
      missing_end=cfg.missing_end,
      missing_end_penalty=cfg.missing_end_penalty,
    )
    if cfg.whiten_rewards:
      rewards_BT = returns.whiten(rewards_BT, mask_BT, shift_mean=False)
    advantages_BT, returns_BT = returns.gae(
      rewards_BT, batch["old_values"], mask_BT, gamma=cfg.gamma, lam=cfg.lam
    )
    metrics = _metrics(batch, scores, ended, kl_coef) | {
      "val/explained_variance": explained_variance(batch["old_values"], returns_BT, mask_BT),
    }
    if cfg.whiten_advantages:
      advantages_BT = returns.whiten(advantages_BT, mask_BT) * mask_BT
    return dict(batch) | {"advantages": advantages_BT, "returns": returns_BT}, metrics

  return label


def group(cfg: config.Grpo) -> Callable[..., tuple[Batch, dict[str, jax.Array]]]:
  """Returns the jitted label function of GRPO and its relatives.

  It takes (batch, scores [B], ended [B]) where the batch holds `old_logps` and `ref_logps` [B, T]
  and the answers of a prompt stand side by side, and returns the batch with `advantages` [B, T],
  and the rollout's metrics as `actor_critic` names them. `groups/tied` is the part of the prompts
  whose answers all have one score: nothing is learned from these.

  Raises:
    UserError: if `cfg.advantage` is no function of rewards.
  """
  advantage = spec.resolve(cfg.advantage, "llm_jax.losses.returns", "advantage", _REWARDS)
  try:
    per_token = takes_of(advantage, ("rewards_NG",)).names == ("rewards", "mask")
  except (TypeError, ValueError) as error:
    raise UserError(
      f"config.advantage={cfg.advantage} must be group_advantage, rloo_advantage, batch_advantage, "
      "or a function of the rewards [N, G] of N prompts' answers"
    ) from error

  @jax.jit
  def label(batch: Batch, scores: jax.Array, ended: jax.Array):
    mask_BT = batch["mask"]
    rewards_BT = returns.shape_rewards(
      scores,
      batch["old_logps"],
      batch["ref_logps"],
      mask_BT,
      ended,
      beta=cfg.reward_kl,
      missing_end=cfg.missing_end,
      missing_end_penalty=cfg.missing_end_penalty,
    )
    rewards_NG = rewards_BT.sum(1).reshape(-1, cfg.samples)
    if per_token:
      advantages_BT = advantage(rewards_BT, mask_BT)
    else:
      advantages_BT = advantage(rewards_NG).reshape(-1, 1) * mask_BT
    scores_NG = scores.reshape(-1, cfg.samples)
    tied_N = jnp.max(scores_NG, 1) == jnp.min(scores_NG, 1)
    metrics = _metrics(batch, scores, ended, cfg.reward_kl) | {"groups/tied": tied_N.mean()}
    if cfg.drop_ties:
      mask_BT = mask_BT * ~jnp.repeat(tied_N, cfg.samples)[:, None]
    return dict(batch) | {"advantages": advantages_BT, "mask": mask_BT}, metrics

  return label


def _metrics(batch: Batch, scores: jax.Array, ended: jax.Array, kl_coef: jax.Array | float) -> dict:
  """A rollout's metrics under their usual names."""
  mask_BT = batch["mask"]
  kl = jnp.sum(token.kl(batch["old_logps"], batch["ref_logps"]) * mask_BT, 1).mean()
  return {
    "objective/scores": scores.mean(),
    "objective/kl": kl,
    "objective/non_score_reward": -kl_coef * kl,
    "objective/rlhf_reward": scores.mean() - kl_coef * kl,
    "objective/entropy": -jnp.sum(batch["old_logps"] * mask_BT, 1).mean(),
    "rollout/end_rate": ended.mean(),
    "rollout/length": mask_BT.sum(1).mean(),
  }


def explained_variance(values: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
  """1 - Var(targets - values) / Var(targets) over the masked tokens; 1 is a perfect critic."""

  def variance(x_BT: jax.Array) -> jax.Array:
    mean = jnp.sum(x_BT * mask) / jnp.maximum(mask.sum(), 1)
    return jnp.sum(mask * (x_BT - mean) ** 2)

  return 1 - variance(targets - values) / jnp.maximum(variance(targets), 1e-8)
