"""The nouns that every room speaks: Batch, Mean, LossFn, Outputs, TrainState."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import flax.struct
import jax
import jax.numpy as jnp

Params = Any  # Pytree of jax.Array.
Batch = Mapping[str, Any]  # Pytree of [B, ...] arrays; the keys are listed in data/batches.py.


class Mean(NamedTuple):
  """An average that remembers its weight, so that it adds up exactly everywhere.

  Add two means with `jax.tree.map(jnp.add, a, b)`: microbatches, devices and evaluation batches
  all use that one rule. A loss that is a sum of K terms, each with a normaliser of its own, is a
  Mean of two [K] vectors; its value is the sum of the terms' averages.

  Attributes:
    total: [] or [K] float32, the sum of weight * value.
    weight: [] or [K] float32, the sum of the weights (tokens, pairs, ...).
  """

  total: jax.Array
  weight: jax.Array

  @property
  def value(self) -> jax.Array:
    """[] float32. A term of no weight counts as zero."""
    return jnp.sum(self.total / jnp.maximum(self.weight, 1e-8))


def masked_mean(values: jax.Array, mask: jax.Array) -> Mean:
  """Mean of `values` weighted by `mask`, both of one shape; masked values may be anything finite.

  Raises:
    ValueError: if the shapes differ.
  """
  if values.shape != mask.shape:
    raise ValueError(f"values {values.shape} and mask {mask.shape} must match")
  total = jnp.sum(jnp.where(mask > 0, values * mask, 0.0), dtype=jnp.float32)
  return Mean(total, jnp.sum(mask, dtype=jnp.float32))


class Outputs(NamedTuple):
  """What a model's `apply` gives to an objective; a field that it has no head for is None.

  Attributes:
    hidden: [B, T, D], the states that predict `targets`.
    head: [D, V], the output matrix; logits are `hidden @ head` (never materialised for a batch).
    values: [B, T] float32, a critic's values.
    scores: [B] float32, a reward model's scores.
    logit_cap: logits are cap tanh(logit / cap); 0: as they are.
  """

  hidden: jax.Array | None = None
  head: jax.Array | None = None
  values: jax.Array | None = None
  scores: jax.Array | None = None
  logit_cap: float = 0.0


class Apply(Protocol):
  """A model bound to its architecture: (params, one LM batch, rng) -> Outputs."""

  def __call__(self, params: Params, batch: Batch, rng: jax.Array) -> Outputs:
    """Runs the model on one LM batch."""
    ...


class LossFn(Protocol):
  """The one signature of every stage: (params, batch, rng) -> (loss, metrics)."""

  def __call__(self, params: Params, batch: Batch, rng: jax.Array) -> tuple[Mean, dict[str, Mean]]:
    """Returns the loss as a Mean and the metrics by name."""
    ...


@flax.struct.dataclass
class TrainState:
  """All that training changes, and what it does not, as arrays only.

  Attributes:
    step: [] int32, the number of updates made.
    params: the trained parameters.
    opt_state: the optimizer's state.
    rng: the run's key; step n uses `fold_in(rng, n)`.
    frozen: parameters that training reads and never changes: what an adapter is on. Checkpoints
      leave them out.
    reference: an older mean of `params` that follows them, in the same tree; {}: there is none.
      Checkpoints hold it.
  """

  step: jax.Array
  params: Params
  opt_state: Any
  rng: jax.Array
  frozen: Params = flax.struct.field(default_factory=dict)
  reference: Params = flax.struct.field(default_factory=dict)

  @property
  def whole(self) -> Params:
    """All parameters of the model, trained and frozen."""
    return join(self.params, self.frozen)


def join(params: Params, more: Params) -> Params:
  """Returns one nested dict of two that share no leaf."""
  joined = dict(params)
  for name, value in more.items():
    joined[name] = join(params[name], value) if name in params else value
  return joined
