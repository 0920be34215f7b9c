"""Objectives on pairs: a reward model's on scores, the DPO family's on log-ratios.

A batch may have, beside its two sides, numbers [B] of its pairs:
  probability: p that the chosen answer is the better one. Every term that compares the two sides is
    p loss(chosen, rejected) + (1 - p) loss(rejected, chosen), the cross-entropy of soft labels (Bai
    et al. 2022, arXiv:2212.08073, section 4.1); a margin changes its sign with the sides, as under
    the `smoothing` of a loss. A term on one side alone, such as nll_chosen, is as it is.
  weight: how much a pair counts, in the loss and in the metrics.
  margin, baseline: what goes to every term with such a keyword.

`objectives` has these functions too. Shape letters: B pairs, T time.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from llm_jax.losses import common
from llm_jax.losses.inputs import Takes, name_of, optional_of, takes_of
from llm_jax.spec import Sum, terms_of
from llm_jax.types import Apply, Batch, LossFn, Mean, masked_mean

_LOGRATIOS = ("chosen_logratio", "rejected_logratio")
_SCORES = ("chosen_score", "rejected_score")
_SIDED = {"logratio", "logps", "mean_logps", "lengths", "desirable"}  # Of a single answer.


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
    chosen_B = common.need(apply(params, batch["chosen"], rngs[0]), "scores")
    rejected_B = common.need(apply(params, batch["rejected"], rngs[1]), "scores")
    real = [jnp.any(batch[side]["segments"] > 0, axis=1) for side in ("chosen", "rejected")]
    pairs_B = _weighted((real[0] & real[1]).astype(jnp.float32), batch)
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
    return common.stack(means, loss), metrics

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
      token_BT = common.stats(apply(params, lm, key), lm, temperature).logps
      lengths_B = jnp.sum(lm["mask"], axis=1, dtype=jnp.float32)
      logps_B = common.masked_sum(token_BT, lm["mask"])
      per_token_B = 1.0 / jnp.maximum(lengths_B, 1.0)
      stats[f"{side}_logps"] = logps_B
      stats[f"{side}_mean_logps"] = logps_B * per_token_B
      stats[f"{side}_lengths"] = lengths_B
      stats[f"{side}_desirable"] = jnp.full(logps_B.shape, float(side == "chosen"))
      if f"ref_{side}" in batch:
        logratio_B = logps_B - batch[f"ref_{side}"]
        stats[f"{side}_logratio"] = logratio_B * per_token_B if average else logratio_B
    both_B = (stats["chosen_lengths"] > 0) & (stats["rejected_lengths"] > 0)
    stats["pairs"] = _weighted(both_B.astype(jnp.float32), batch)
    return common.stack(_pair_means(terms, stats, batch), loss), _pair_metrics(stats)

  return loss_fn


def _wins(chosen_B: jax.Array, rejected_B: jax.Array) -> jax.Array:
  return 0.5 * (1.0 + jnp.sign(chosen_B - rejected_B))


def _pair_takes(fn: Callable, usual: tuple[str, ...]) -> Takes:
  wanted = takes_of(fn, usual)
  if usual == _SCORES and wanted.names != _SCORES:
    raise ValueError(f"{name_of(fn)} takes {', '.join(wanted.names)}: it is no loss on scores")
  return wanted


def _weighted(pairs_B: jax.Array, batch: Batch) -> jax.Array:
  return pairs_B * batch["weight"] if "weight" in batch else pairs_B


def _pair_means(terms: list, stats: dict[str, jax.Array], batch: Batch) -> list[Mean]:
  """One Mean per term, each over its own weights."""
  extras = {name: batch[name] for name in ("margin", "baseline") if name in batch}
  used, means = set(), []
  kept = stats["pairs"] > 0
  for weight, fn, wanted in terms:
    used |= {*optional_of(fn, tuple(extras)), *wanted.names}
    values_B = _values(fn, wanted, stats, extras)
    if "probability" in batch and _compares(wanted):
      other_B = _values(fn, wanted, *_swapped(stats, extras))
      values_B = batch["probability"] * values_B + (1 - batch["probability"]) * other_B
    weights_B = stats["pairs"]
    if wanted.weight:
      weights_B = _weighted(_statistic(stats, wanted.weight, fn), batch)
    values_B = _weighted(values_B, batch)
    total = weight * jnp.sum(jnp.where(kept, values_B, 0.0), dtype=jnp.float32)
    means.append(Mean(total, jnp.sum(jnp.where(kept, weights_B, 0.0), dtype=jnp.float32)))
  unused = sorted(set(extras) - used)
  if unused:
    raise ValueError(f"no term of the loss takes the batch's {', '.join(unused)}")
  return means


def _values(fn: Callable, wanted: Takes, stats: dict, extras: dict) -> jax.Array:
  """[B], the loss of each pair; of one on single answers, the sum over both."""
  given = {name: extras[name] for name in optional_of(fn, tuple(extras))}
  sided = _SIDED & set(wanted.names)
  values_B = 0.0
  for side in ("chosen_", "rejected_") if sided else ("",):
    names = [side + name if name in sided else name for name in wanted.names]
    values_B += fn(*(_statistic(stats | extras, name, fn) for name in names), **given)
  return values_B


def _compares(wanted: Takes) -> bool:
  """Tells whether a loss sees both answers of a pair."""
  sides = [any(name.startswith(side) for name in wanted.names) for side in ("chosen", "rejected")]
  return all(sides) or bool(_SIDED & set(wanted.names))


def _swapped(stats: dict, extras: dict) -> tuple[dict, dict]:
  """What a loss would see had the rejected answer been chosen."""
  other = {"chosen": "rejected", "rejected": "chosen"}
  swapped = dict(stats)
  for name in stats:
    side, _, what = name.partition("_")
    if side in other and what != "desirable":
      swapped[name] = stats[f"{other[side]}_{what}"]
  return swapped, {name: -x if name == "margin" else x for name, x in extras.items()}


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
