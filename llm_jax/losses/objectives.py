"""Objectives: a loss plus a model's apply is a LossFn(params, batch, rng) -> (Mean, metrics).

An objective given a `spec.Sum` of K losses returns a Mean of two [K] vectors, coefficients folded
into `total`, so that every term keeps its own normaliser. Inside, K is always there; a plain loss
gives scalars. Metrics are masked Means. Shape letters: B rows or pairs, T time.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from llm_jax.losses.inputs import Takes, name_of, optional_of, takes_of
from llm_jax.losses.sequences import sequence_weights
from llm_jax.losses.token import TokenStats, kl, token_stats
from llm_jax.spec import Sum, terms_of
from llm_jax.types import Apply, Batch, LossFn, Mean, Outputs, masked_mean

_LOGRATIOS = ("chosen_logratio", "rejected_logratio")
_SCORES = ("chosen_score", "rejected_score")
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
    stats = _stats(apply(params, batch, rng), batch, temperature)
    means = [_scaled(weight, masked_mean(fn(stats), batch["mask"])) for weight, fn in terms]
    return _stack(means, loss), {"nll": masked_mean(-stats.logps, batch["mask"])}

  return loss_fn


def score_pairs(apply: Apply, loss: Callable | Sum, *, center: float = 0.0) -> LossFn:
  """Reward model: `loss(chosen, rejected) -> [B]` on scores, averaged over pairs.

  Args:
    apply: (params, LM batch, rng) -> Outputs with scores [B].
    loss: takes scores, e.g. `preference.logistic`. If the batch has "margin" [B], it goes to every
      term with such a keyword.
    center: weight of (chosen + rejected)^2, which fixes the scores' free offset (Eisenstein et al.
      2023, arXiv:2312.09244; 0.01 in TRL). It shares the first term's normaliser.

  Returns:
    A LossFn on pair batches. A pair of which a side is all padding weighs nothing. Metrics:
    accuracy (a tie counts one half), margin, chosen_score, rejected_score.
  """
  terms = [(weight, fn, _pair_takes(fn, _SCORES)) for weight, fn in terms_of(loss)]

  def loss_fn(params, batch, rng):
    rngs = jax.random.split(rng)
    chosen_B = _need(apply(params, batch["chosen"], rngs[0]), "scores")
    rejected_B = _need(apply(params, batch["rejected"], rngs[1]), "scores")
    real = [jnp.any(batch[side]["segments"] > 0, axis=1) for side in ("chosen", "rejected")]
    pairs_B = (real[0] & real[1]).astype(jnp.float32)
    stats = {"chosen_score": chosen_B, "rejected_score": rejected_B, "pairs": pairs_B}
    means = _pair_means(terms, stats, batch)
    if center:
      means[0] = Mean(
        means[0].total + masked_mean(center * jnp.square(chosen_B + rejected_B), pairs_B).total,
        means[0].weight,
      )
    metrics = {
      "accuracy": masked_mean(_wins(chosen_B, rejected_B), pairs_B),
      "margin": masked_mean(chosen_B - rejected_B, pairs_B),
      "chosen_score": masked_mean(chosen_B, pairs_B),
      "rejected_score": masked_mean(rejected_B, pairs_B),
    }
    return _stack(means, loss), metrics

  return loss_fn


def logratio_pairs(
  apply: Apply, loss: Callable | Sum, *, temperature: float = 1.0, average: bool = False
) -> LossFn:
  """The DPO family: `loss(chosen, rejected) -> [B]` on log-ratios log pi / pi_ref.

  A plain function takes the two log-ratios; one marked with `inputs.takes` gets what it names:
  {chosen,rejected}_{logratio,logps,mean_logps,lengths}, "baseline". A name without a side
  (logratio, logps, mean_logps, lengths, desirable) makes it a loss on single answers, which is
  called for both sides and added. "margin" and "baseline" of the batch [B] also go to every term
  that has them as keywords.

  Args:
    apply: (params, LM batch, rng) -> Outputs with hidden and head.
    loss: a loss of `preference`, a function of one's own, or a Sum.
    temperature: divides the logits; the reference's log-probs must have used the same.
    average: log-ratios per token instead of summed over the answer's tokens. Peers disagree for
      IPO: the paper's equation and Mitchell's code sum, TRL averages.

  Returns:
    A LossFn on pair batches with ref_chosen and ref_rejected [B] (sums over tokens, even if
    `average`), unless no term uses log-ratios. A pair with an empty side weighs nothing. Metrics:
    rewards/{chosen,rejected,margins} are log-ratios as the loss sees them, not multiplied by beta
    (mean log-probs in a batch without references); rewards/accuracies counts a tie one half;
    logps/{chosen,rejected} are sums over tokens.
  """
  terms = [(weight, fn, _pair_takes(fn, _LOGRATIOS)) for weight, fn in terms_of(loss)]

  def loss_fn(params, batch, rng):
    rngs = jax.random.split(rng)
    stats = {}
    for side, key in zip(("chosen", "rejected"), rngs, strict=True):
      lm = batch[side]
      token_BT = _stats(apply(params, lm, key), lm, temperature).logps
      lengths_B = jnp.sum(lm["mask"], axis=1, dtype=jnp.float32)
      logps_B = _masked_sum(token_BT, lm["mask"])
      per_token_B = 1.0 / jnp.maximum(lengths_B, 1.0)
      stats[f"{side}_logps"] = logps_B
      stats[f"{side}_mean_logps"] = logps_B * per_token_B
      stats[f"{side}_lengths"] = lengths_B
      stats[f"{side}_desirable"] = jnp.full(logps_B.shape, float(side == "chosen"))
      if f"ref_{side}" in batch:
        logratio_B = logps_B - batch[f"ref_{side}"]
        stats[f"{side}_logratio"] = logratio_B * per_token_B if average else logratio_B
    both_B = (stats["chosen_lengths"] > 0) & (stats["rejected_lengths"] > 0)
    stats["pairs"] = both_B.astype(jnp.float32)
    return _stack(_pair_means(terms, stats, batch), loss), _pair_metrics(stats)

  return loss_fn


def actor_critic(
  apply: Apply,
  policy_loss: Callable | Sum,
  value_loss: Callable | Sum,
  *,
  value_coef: float = 0.1,
  entropy_coef: float = 0.0,
  temperature: float = 1.0,
) -> LossFn:
  """PPO: policy loss + value_coef * value loss - entropy_coef * entropy, per token.

  Everything shares the token normaliser, so a Sum is added up per token and the result is a
  scalar Mean. For losses per sequence (`policy.gspo`) use `policy`.

  Args:
    apply: (params, LM batch, rng) -> Outputs with hidden, head and values [B, T].
    policy_loss: (logps, old_logps, advantages) -> [B, T], or a Sum of such.
    value_loss: (values, old_values, returns) -> [B, T], or a Sum of such.
    value_coef: weight of the value loss.
    entropy_coef: weight of the entropy bonus.
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

  def value_of(*arrays):
    return sum(weight * fn(*arrays) for weight, fn in terms_of(value_loss))

  def loss_fn(params, batch, rng):
    out = apply(params, batch, rng)
    mask_BT = batch["mask"]
    stats = _stats(out, batch, temperature)
    values_BT = _need(out, "values").astype(jnp.float32)
    arrays = (_of(batch, "old_values"), _of(batch, "returns"))
    policy_BT = sum(weight * _surrogate(*term, stats, batch) for weight, *term in terms)
    value_BT = value_of(values_BT, *arrays)
    total_BT = policy_BT + value_coef * value_BT
    if entropy_coef:
      total_BT -= entropy_coef * stats.entropy
    cut_BT = _cut(lambda v: value_of(v, *arrays), values_BT)
    metrics = _policy_metrics(terms, stats, batch) | {
      "loss/policy": masked_mean(policy_BT, mask_BT),
      "loss/value": masked_mean(value_BT, mask_BT),
      "val/clipfrac": masked_mean(cut_BT, mask_BT),
      "val/error": masked_mean(jnp.square(values_BT - arrays[1]), mask_BT),
      "val/return": masked_mean(arrays[1], mask_BT),
      "val/return_squared": masked_mean(jnp.square(arrays[1]), mask_BT),
    }
    return masked_mean(total_BT, mask_BT), metrics

  return loss_fn


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
    stats = _stats(apply(params, batch, rng), batch, temperature)
    values = [weight * _surrogate(*term, stats, batch) for weight, *term in terms]
    levels = ["sequence" if wanted.weight else aggregate for *_, wanted in terms]
    metrics = _policy_metrics(terms, stats, batch)
    metrics["loss/policy"] = _aggregate(values[0], batch, levels[0], length)
    if kl_coef:
      kl_BT = kl(stats.logps, _of(batch, "ref_logps"), kl_estimator, input_clamp=20.0)
      metrics["loss/kl"] = masked_mean(kl_BT, batch["mask"])
      values[0] += kl_coef * kl_BT
    if entropy_coef:
      values[0] -= entropy_coef * stats.entropy
    pairs = zip(values, levels, strict=True)
    means = [_aggregate(values_BT, batch, level, length) for values_BT, level in pairs]
    return _stack(means, loss), metrics

  return loss_fn


def token_logps(apply: Apply, *, temperature: float = 1.0) -> Callable:
  """Returns fn(params, LM batch, rng) -> [B, T] log-probs: old and reference ones, as data."""

  def logps_fn(params, batch, rng):
    return _stats(apply(params, batch, rng), batch, temperature).logps

  return logps_fn


def sequence_logps(apply: Apply, *, temperature: float = 1.0) -> Callable:
  """Returns fn(params, LM batch, rng) -> [B] log-probs summed over masked tokens: references.

  It is the arithmetic of `logratio_pairs`, so the log-ratio of a model to itself is exactly 0.
  """
  logps_fn = token_logps(apply, temperature=temperature)
  return lambda params, batch, rng: _masked_sum(logps_fn(params, batch, rng), batch["mask"])


def _need(out: Outputs, field: str) -> jax.Array:
  value = getattr(out, field)
  if value is None:
    raise ValueError(f"the objective needs Outputs.{field}, which apply does not give")
  return value


def _of(batch: Batch, key: str, who: str = "the objective") -> jax.Array:
  if key not in batch:
    raise ValueError(f"{who} needs batch[{key!r}]; the batch has {', '.join(sorted(batch))}")
  return batch[key]


def _stats(out: Outputs, batch: Batch, temperature: float) -> TokenStats:
  hidden, head = _need(out, "hidden"), _need(out, "head")
  options = {"mask": batch["mask"], "temperature": temperature, "cap": out.logit_cap}
  return token_stats(hidden, head, batch["targets"], **options)


def _masked_sum(x_BT: jax.Array, mask_BT: jax.Array) -> jax.Array:
  return jnp.sum(jnp.where(mask_BT > 0, x_BT * mask_BT, 0.0), axis=1, dtype=jnp.float32)


def _scaled(weight: float, mean: Mean) -> Mean:
  return Mean(weight * mean.total, mean.weight)


def _stack(means: list[Mean], loss: Callable | Sum) -> Mean:
  if not isinstance(loss, Sum):
    return means[0]
  return Mean(jnp.stack([m.total for m in means]), jnp.stack([m.weight for m in means]))


def _wins(chosen_B: jax.Array, rejected_B: jax.Array) -> jax.Array:
  return 0.5 * (1.0 + jnp.sign(chosen_B - rejected_B))


def _pair_takes(fn: Callable, usual: tuple[str, ...]) -> Takes:
  wanted = takes_of(fn, usual)
  if usual == _SCORES and wanted.names != _SCORES:
    raise ValueError(f"{name_of(fn)} takes {', '.join(wanted.names)}: it is no loss on scores")
  return wanted


def _pair_means(terms: list, stats: dict[str, jax.Array], batch: Batch) -> list[Mean]:
  """One Mean per term, each over its own weights."""
  extras = {name: batch[name] for name in ("margin", "baseline") if name in batch}
  used, means = set(), []
  for weight, fn, wanted in terms:
    options = optional_of(fn, tuple(extras))
    used |= {*options, *wanted.names}
    given = {name: extras[name] for name in options}
    sided = {"logratio", "logps", "mean_logps", "lengths", "desirable"} & set(wanted.names)
    values_B = 0.0
    for side in ("chosen_", "rejected_") if sided else ("",):
      names = [side + name if name in sided else name for name in wanted.names]
      values_B += fn(*(_statistic(stats | extras, name, fn) for name in names), **given)
    kept = stats["pairs"] > 0
    weights_B = _statistic(stats, wanted.weight if wanted.weight else "pairs", fn)
    total = weight * jnp.sum(jnp.where(kept, values_B, 0.0), dtype=jnp.float32)
    means.append(Mean(total, jnp.sum(jnp.where(kept, weights_B, 0.0), dtype=jnp.float32)))
  unused = sorted(set(extras) - used)
  if unused:
    raise ValueError(f"no term of the loss takes the batch's {', '.join(unused)}")
  return means


def _statistic(stats: dict[str, jax.Array], name: str, fn: Callable) -> jax.Array:
  if name not in stats:
    source = f"ref_{name.removesuffix('_logratio')}" if name.endswith("_logratio") else name
    raise ValueError(f"{name_of(fn)} takes {name}: the batch needs {source!r}")
  return stats[name]


def _pair_metrics(stats: dict[str, jax.Array]) -> dict[str, Mean]:
  kind = "logratio" if {*_LOGRATIOS} <= set(stats) else "mean_logps"
  chosen_B, rejected_B = stats[f"chosen_{kind}"], stats[f"rejected_{kind}"]
  metrics = {
    "rewards/chosen": chosen_B,
    "rewards/rejected": rejected_B,
    "rewards/accuracies": _wins(chosen_B, rejected_B),
    "rewards/margins": chosen_B - rejected_B,
    "logps/chosen": stats["chosen_logps"],
    "logps/rejected": stats["rejected_logps"],
  }
  return {name: masked_mean(value, stats["pairs"]) for name, value in metrics.items()}


def _surrogate(fn: Callable, wanted: Takes, stats: TokenStats, batch: Batch) -> jax.Array:
  given = {"logps": stats.logps, "entropy": stats.entropy}
  return fn(*(given[n] if n in given else _of(batch, n, name_of(fn)) for n in wanted.names))


def _policy_metrics(terms: list, stats: TokenStats, batch: Batch) -> dict[str, Mean]:
  """Of the first term, which by convention is the policy loss."""
  _, fn, wanted = terms[0]
  mask_BT = batch["mask"]
  logps_BT = jax.lax.stop_gradient(stats.logps)
  change_BT = logps_BT - jax.lax.stop_gradient(_of(batch, "old_logps"))
  cut_BT = _cut(lambda x: _surrogate(fn, wanted, stats._replace(logps=x), batch), logps_BT)
  moved_BT = mask_BT * (_of(batch, "advantages") != 0)
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
