"""Objectives: a loss plus a model's apply is a LossFn(params, batch, rng) -> (Mean, metrics).

An objective given a `spec.Sum` of K losses returns a Mean of two [K] vectors, coefficients folded
into `total`, so that every term keeps its own normaliser. Inside, K is always there; a plain loss
gives scalars. Metrics are masked Means. Shape letters: B rows or pairs, T time.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from llm_jax.losses import common
from llm_jax.losses.inputs import Takes, name_of, takes_of
from llm_jax.losses.labelled import logratio_labels
from llm_jax.losses.pairwise import logratio_pairs, score_pairs
from llm_jax.losses.sequences import sequence_weights
from llm_jax.losses.token import TokenStats, kl
from llm_jax.spec import Sum, terms_of
from llm_jax.types import Apply, Batch, LossFn, Mean, masked_mean

__all__ = [
  "actor_critic",
  "beside",
  "logratio_labels",
  "logratio_pairs",
  "next_token",
  "policy",
  "score_pairs",
  "sequence_logps",
  "token_logps",
]

_SURROGATE = ("logps", "old_logps", "advantages")


def next_token(apply: Apply, loss: Callable | Sum, *, temperature: float = 1.0) -> LossFn:
  """Pretraining and SFT: `loss(stats) -> [B, T]` averaged over the masked tokens.

  Args:
    apply: (params, LM batch, rng) -> Outputs with hidden and head.
    loss: takes TokenStats, e.g. `token.cross_entropy`; or a Sum of such.
    temperature: divides the logits.

  Returns:
    A LossFn on LM batches. Metric "nll" is in nats per token; exp of its value is the perplexity.
  """
  terms = terms_of(loss)

  def loss_fn(params, batch, rng):
    stats = common.stats(apply(params, batch, rng), batch, temperature)
    means = [common.scaled(weight, masked_mean(fn(stats), batch["mask"])) for weight, fn in terms]
    return common.stack(means, loss), {"nll": masked_mean(-stats.logps, batch["mask"])}

  return loss_fn


def actor_critic(
  apply: Apply,
  policy_loss: Callable | Sum,
  value_loss: Callable | Sum,
  *,
  value_coef: float = 0.1,
  entropy_coef: float = 0.0,
  kl_coef: float = 0.0,
  kl_estimator: str = "k2",
  temperature: float = 1.0,
) -> LossFn:
  """PPO: policy loss + value_coef * value loss - entropy_coef * entropy + kl_coef * KL, per token.

  Everything shares the token normaliser, so a Sum is added up per token and the result is a
  scalar Mean. For losses per sequence (`policy.gspo`) use `policy`.

  Args:
    apply: (params, LM batch, rng) -> Outputs with hidden, head and values [B, T].
    policy_loss: (logps, old_logps, advantages) -> [B, T], or a Sum of such.
    value_loss: (values, old_values, returns) -> [B, T], or a Sum of such.
    value_coef: weight of the value loss.
    entropy_coef: weight of the entropy bonus.
    kl_coef: as in `policy`; 0 where the KL is in the rewards.
    kl_estimator: as in `policy`.
    temperature: divides the logits; the one that the rollout was drawn with.

  Returns:
    A LossFn on rollout batches (old_logps, advantages, old_values, returns: [B, T]). Metrics:
    those of `policy`, loss/value, val/{clipfrac,error (squared),return,return_squared}.

  Raises:
    ValueError: if a policy loss has a normaliser of its own.
  """
  terms = [(weight, fn, takes_of(fn, _SURROGATE)) for weight, fn in terms_of(policy_loss)]
  for _, fn, wanted in terms:
    if wanted.weight:
      raise ValueError(f"{name_of(fn)} averages over {wanted.weight}: use objectives.policy")

  def loss_fn(params, batch, rng):
    out, mask_BT = apply(params, batch, rng), batch["mask"]
    stats = common.stats(out, batch, temperature)
    values_BT = common.need(out, "values").astype(jnp.float32)
    arrays = (common.entry(batch, "old_values"), common.entry(batch, "returns"))
    policy_BT = sum(weight * _surrogate(*term, stats, batch) for weight, *term in terms)
    value_of = functools.partial(_value, value_loss, arrays)
    value_BT = value_of(values_BT)
    penalty_BT, metrics = _penalty(stats, batch, kl_coef, kl_estimator, entropy_coef)
    per_token = {
      "loss/policy": policy_BT,
      "loss/value": value_BT,
      "val/clipfrac": _cut(value_of, values_BT),
      "val/error": jnp.square(values_BT - arrays[1]),
      "val/return": arrays[1],
      "val/return_squared": jnp.square(arrays[1]),
    }
    metrics |= {name: masked_mean(value, mask_BT) for name, value in per_token.items()}
    loss = masked_mean(policy_BT + value_coef * value_BT + penalty_BT, mask_BT)
    return loss, _policy_metrics(terms, stats, batch) | metrics

  return loss_fn


def beside(loss_fn: LossFn, other: LossFn, weight: float, key: str) -> LossFn:
  """A loss, and `weight` times another one on the part of the batch under `key`.

  Each keeps its own normaliser. InstructGPT mixes PPO with pretraining so (Ouyang et al. 2022,
  arXiv:2203.02155, eq. 2).

  Args:
    loss_fn: of the batch.
    other: of batch[key]; its metrics get the prefix "<key>/".
    weight: of the other.
    key: of the batch.

  Returns:
    A LossFn; its Mean has the terms of both.
  """

  def both(params, batch, rng):
    mean, metrics = loss_fn(params, batch, rng)
    more, extra = other(params, common.entry(batch, key), rng)
    joined = jax.tree.map(
      lambda *x: jnp.concatenate([jnp.atleast_1d(part) for part in x]),
      mean,
      common.scaled(weight, more),
    )
    return joined, metrics | {f"{key}/{name}": value for name, value in extra.items()}

  return both


def policy(
  apply: Apply,
  loss: Callable | Sum,
  *,
  kl_coef: float = 0.0,
  kl_estimator: str = "k3",
  entropy_coef: float = 0.0,
  temperature: float = 1.0,
  aggregate: str = "token",
  length: int = 0,
) -> LossFn:
  """Critic-free methods (REINFORCE, RLOO, GRPO and after): policy loss + KL - entropy bonus.

  Args:
    apply: (params, LM batch, rng) -> Outputs with hidden and head.
    loss: (logps, old_logps, advantages) -> [B, T], one marked by `inputs.takes`, or a Sum.
    kl_coef: weight of `token.kl` to the batch's ref_logps, its log-ratio bounded to +-20. It and
      the entropy bonus share the first term's normaliser.
    kl_estimator: "k3" as GRPO has it; "k2" has the reverse KL's gradient.
    entropy_coef: weight of the entropy bonus.
    temperature: divides the logits; the one that the rollout was drawn with.
    aggregate: "token": mean over all tokens (DAPO, arXiv:2503.14476, eq. 8); "sequence": mean over
      sequences of each one's token mean (GRPO, arXiv:2402.03300, eq. 3); "constant": sum over
      tokens / (sequences * length) (Dr. GRPO, arXiv:2503.20783). Sequences are told apart by
      `segments`, so packed rows count as unpacked ones. A loss whose normaliser is "sequences"
      (gspo) is always averaged over sequences.
    length: the constant's tokens per sequence; 0: the row length T.

  Returns:
    A LossFn on rollout batches. Metrics: loss/policy, policy/approxkl (k2 against old_logps, as in
    TRL), policy/clipfrac (tokens whose gradient the loss has cut to zero though their advantage is
    not), policy/entropy, val/ratio (mean of pi / pi_old); with kl_coef also loss/kl.

  Raises:
    ValueError: if `aggregate` is unknown.
  """
  if aggregate not in ("token", "sequence", "constant"):
    raise ValueError(f'aggregate must be "token", "sequence" or "constant", got {aggregate!r}')
  terms = [(weight, fn, takes_of(fn, _SURROGATE)) for weight, fn in terms_of(loss)]

  def loss_fn(params, batch, rng):
    stats = common.stats(apply(params, batch, rng), batch, temperature)
    values = [weight * _surrogate(*term, stats, batch) for weight, *term in terms]
    levels = ["sequence" if wanted.weight else aggregate for *_, wanted in terms]
    metrics = _policy_metrics(terms, stats, batch)
    metrics["loss/policy"] = _aggregate(values[0], batch, levels[0], length)
    penalty_BT, more = _penalty(stats, batch, kl_coef, kl_estimator, entropy_coef)
    values[0] += penalty_BT
    pairs = zip(values, levels, strict=True)
    means = [_aggregate(values_BT, batch, level, length) for values_BT, level in pairs]
    return common.stack(means, loss), metrics | more

  return loss_fn


def token_logps(apply: Apply, *, temperature: float = 1.0) -> Callable:
  """Returns fn(params, LM batch, rng) -> [B, T] log-probs: old and reference ones, as data."""

  def logps_fn(params, batch, rng):
    return common.stats(apply(params, batch, rng), batch, temperature).logps

  return logps_fn


def sequence_logps(apply: Apply, *, temperature: float = 1.0) -> Callable:
  """Returns fn(params, LM batch, rng) -> [B] log-probs summed over masked tokens: references.

  It is the arithmetic of `logratio_pairs`, so the log-ratio of a model to itself is exactly 0.
  """
  logps_fn = token_logps(apply, temperature=temperature)
  return lambda params, batch, rng: common.masked_sum(logps_fn(params, batch, rng), batch["mask"])


def _surrogate(fn: Callable, wanted: Takes, stats: TokenStats, batch: Batch) -> jax.Array:
  given = {"logps": stats.logps, "entropy": stats.entropy}
  return fn(
    *(given[n] if n in given else common.entry(batch, n, name_of(fn)) for n in wanted.names)
  )


def _penalty(
  stats: TokenStats, batch: Batch, kl_coef: float, kl_estimator: str, entropy_coef: float
) -> tuple[jax.Array | float, dict[str, Mean]]:
  """kl_coef * KL - entropy_coef * entropy, per token, and the KL as a metric."""
  penalty_BT, metrics = 0.0, {}
  if kl_coef:
    kl_BT = kl(stats.logps, common.entry(batch, "ref_logps"), kl_estimator, input_clamp=20.0)
    penalty_BT, metrics = kl_coef * kl_BT, {"loss/kl": masked_mean(kl_BT, batch["mask"])}
  if entropy_coef:
    penalty_BT -= entropy_coef * stats.entropy
  return penalty_BT, metrics


def _value(loss: Callable | Sum, arrays: tuple, values: jax.Array) -> jax.Array:
  return sum(weight * fn(values, *arrays) for weight, fn in terms_of(loss))


def _policy_metrics(terms: list, stats: TokenStats, batch: Batch) -> dict[str, Mean]:
  """Of the first term, which by convention is the policy loss."""
  _, fn, wanted = terms[0]
  mask_BT = batch["mask"]
  logps_BT = jax.lax.stop_gradient(stats.logps)
  change_BT = logps_BT - jax.lax.stop_gradient(common.entry(batch, "old_logps"))
  cut_BT = _cut(lambda x: _surrogate(fn, wanted, stats._replace(logps=x), batch), logps_BT)
  moved_BT = mask_BT * (common.entry(batch, "advantages") != 0)
  clipped = Mean(masked_mean(cut_BT, moved_BT).total, jnp.sum(mask_BT, dtype=jnp.float32))
  return {
    "policy/approxkl": masked_mean(0.5 * jnp.square(change_BT), mask_BT),
    "policy/clipfrac": clipped,
    "policy/entropy": masked_mean(jax.lax.stop_gradient(stats.entropy), mask_BT),
    "val/ratio": masked_mean(jnp.exp(jnp.clip(change_BT, -20.0, 20.0)), mask_BT),
  }


def _cut(fn: Callable, x_BT: jax.Array) -> jax.Array:
  """[B, T] float32, 1 where the loss does not depend on x: where a clip is active."""
  x_BT = jax.lax.stop_gradient(x_BT)
  slope_BT = jax.grad(lambda x: jnp.sum(fn(x)))(x_BT)
  return (slope_BT == 0).astype(jnp.float32)


def _aggregate(values_BT: jax.Array, batch: Batch, level: str, length: int) -> Mean:
  if level == "token":
    return masked_mean(values_BT, batch["mask"])
  weights_BT = sequence_weights(batch["mask"], batch["segments"])
  if level == "sequence":
    return masked_mean(values_BT, weights_BT)
  constant = length if length else values_BT.shape[1]
  total = masked_mean(values_BT, batch["mask"]).total
  return Mean(total, constant * jnp.sum(weights_BT))
