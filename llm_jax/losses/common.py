"""What all objectives are made of: a model's outputs, a batch's entries, sums of terms.

Shape letters: B rows, T time, K terms.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from llm_jax.losses.token import TokenStats, token_stats
from llm_jax.spec import Sum
from llm_jax.types import Batch, Mean, Outputs


def need(out: Outputs, field: str) -> jax.Array:
  """Returns a field of what a model gives.

  Raises:
    ValueError: if it is not there.
  """
  value = getattr(out, field)
  if value is None:
    raise ValueError(f"the objective needs Outputs.{field}, which apply does not give")
  return value


def entry(batch: Batch, key: str, who: str = "the objective") -> jax.Array:
  """Returns an entry of a batch.

  Raises:
    ValueError: if it is not there.
  """
  if key not in batch:
    raise ValueError(f"{who} needs batch[{key!r}]; the batch has {', '.join(sorted(batch))}")
  return batch[key]


def stats(out: Outputs, batch: Batch, temperature: float) -> TokenStats:
  """Returns the statistics of a batch's targets."""
  hidden, head = need(out, "hidden"), need(out, "head")
  options = {"mask": batch["mask"], "temperature": temperature, "cap": out.logit_cap}
  return token_stats(hidden, head, batch["targets"], **options)


def masked_sum(x_BT: jax.Array, mask_BT: jax.Array) -> jax.Array:
  """[B, T] -> [B] float32, the sum over masked tokens."""
  return jnp.sum(jnp.where(mask_BT > 0, x_BT * mask_BT, 0.0), axis=1, dtype=jnp.float32)


def scaled(weight: float, mean: Mean) -> Mean:
  """Returns a mean times a coefficient."""
  return Mean(weight * mean.total, mean.weight)


def stack(means: list[Mean], loss: Callable | Sum) -> Mean:
  """Returns a Mean of [K] vectors for a sum of K terms, and the only one for a plain loss."""
  if not isinstance(loss, Sum):
    return means[0]
  return Mean(jnp.stack([m.total for m in means]), jnp.stack([m.weight for m in means]))
