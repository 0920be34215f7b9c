"""The objective on single answers that are wanted or not: KTO's.

`objectives` has it too. Shape letters: B answers, T time.
"""

import inspect
from collections.abc import Callable

import jax.numpy as jnp

from llm_jax.losses import common
from llm_jax.losses.inputs import Takes, name_of, takes_of
from llm_jax.spec import Sum, terms_of
from llm_jax.types import Apply, LossFn, masked_mean

_USUAL = ("logratio", "desirable", "baseline")
_KNOWN = {*_USUAL, "logps", "mean_logps", "lengths"}


def logratio_labels(
  apply: Apply, loss: Callable | Sum, *, temperature: float = 1.0, average: bool = False
) -> LossFn:
  """Answers with labels: `loss(logratio, desirable, baseline) -> [B]`, averaged over answers.

  A plain function takes these three; one marked with `inputs.takes` gets what it names of them and
  of logps, mean_logps and lengths.

  Args:
    apply: (params, LM batch, rng) -> Outputs with hidden and head.
    loss: such as `preference.kto`, or a Sum. Of a plain function the first parameters must have
      these names.
    temperature: divides the logits; the reference's log-probs must have used the same.
    average: log-ratios per token instead of summed over the answer's tokens. Of the batch's
      baseline, too, which is to be made the same way.

  Returns:
    A LossFn on LM batches of one answer a row, with numbers [B]: "desirable" 0 or 1, "ref_answer"
    the reference's log-prob (a sum over tokens), "baseline" in nats, without gradient. A row
    without an answer weighs nothing. Metrics: rewards/{chosen,rejected} and
    logps/{chosen,rejected} are over the desirable and the other answers; rewards/accuracies: on
    which side of the baseline an answer is, a tie counting one half; kl: the baseline.

  Raises:
    ValueError: if a loss takes what single answers do not have.
  """
  terms = [(weight, fn, _checked(fn)) for weight, fn in terms_of(loss)]

  def loss_fn(params, batch, rng):
    token_BT = common.stats(apply(params, batch, rng), batch, temperature).logps
    lengths_B = jnp.sum(batch["mask"], axis=1, dtype=jnp.float32)
    per_token_B = 1.0 / jnp.maximum(lengths_B, 1.0)
    logps_B = common.masked_sum(token_BT, batch["mask"])
    ratio_B = logps_B - common.entry(batch, "ref_answer")
    good_B, real_B = common.entry(batch, "desirable"), (lengths_B > 0).astype(jnp.float32)
    stats = {
      "logratio": ratio_B * per_token_B if average else ratio_B,
      "logps": logps_B,
      "mean_logps": logps_B * per_token_B,
      "lengths": lengths_B,
      "desirable": good_B,
      "baseline": common.entry(batch, "baseline"),
    }
    means = []
    for weight, fn, wanted in terms:
      values_B = fn(*(stats[name] for name in wanted.names))
      means.append(common.scaled(weight, masked_mean(values_B, real_B)))
    sides = {"chosen": real_B * good_B, "rejected": real_B * (1.0 - good_B)}
    ahead_B = 0.5 * (1.0 + jnp.sign(stats["logratio"] - jnp.maximum(stats["baseline"], 0.0)))
    metrics = {
      "rewards/accuracies": masked_mean(good_B * ahead_B + (1 - good_B) * (1 - ahead_B), real_B),
      "kl": masked_mean(stats["baseline"], real_B),
    }
    for side, weights_B in sides.items():
      metrics[f"rewards/{side}"] = masked_mean(stats["logratio"], weights_B)
      metrics[f"logps/{side}"] = masked_mean(logps_B, weights_B)
    return common.stack(means, loss), metrics

  return loss_fn


def _checked(fn: Callable) -> Takes:
  # By name: a loss on pairs would take the label for the rejected answer's log-ratio.
  first = tuple(inspect.signature(fn).parameters)[:3]
  wanted = takes_of(fn, _USUAL) if first == _USUAL else takes_of(fn, first[:2])
  strange = [name for name in wanted.names if name not in _KNOWN]
  if strange:
    raise ValueError(
      f"{name_of(fn)} takes {', '.join(strange)}: it is no loss on single answers, as kto() is"
    )
  if wanted.weight:
    raise ValueError(f"{name_of(fn)} averages over {wanted.weight}, which single answers lack")
  return wanted
