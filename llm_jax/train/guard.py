"""Updates that are skipped inside the compiled step: what is not finite, and what is an outlier.

Shape letters: W places of the history.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from llm_jax.types import Mean, Params, TrainState


class GuardState(NamedTuple):
  """What a guard keeps in `TrainState.opt_state`, so that it is saved, sharded and copied with it.

  Attributes:
    inner: the optimizer's own state.
    losses, norms: [W] float32, of the last accepted updates; a ring.
    accepted: [] int32, updates accepted in all.
    skipped: [] int32, updates skipped since the last accepted one.
    broken: [] int32, those of them that were not finite.
  """

  inner: Any
  losses: jax.Array
  norms: jax.Array
  accepted: jax.Array
  skipped: jax.Array
  broken: jax.Array


@dataclasses.dataclass(frozen=True)
class Guard:
  """An optimizer whose bad updates are not applied; `make_train_step` knows it by its type.

  An update is skipped if its loss or gradient norm is not finite, or if one of them lies more than
  `sigma` standard deviations above its mean over the last `window` accepted updates, once half of
  them are there. The idea is from OLMo-core's SkipStepOptimizer, which also skips what lies as far
  below, and whose history has the skipped ones in it, so that an outlier hides the next.

  The optimizer's schedule counts its own updates: it waits while they are skipped.

  Attributes:
    tx: the optimizer.
    sigma: standard deviations; 0: outliers are not skipped.
    limit: updates in a row that may be skipped as not finite; the run ends at one more. It also
      ends at `window` skipped ones of any kind: what never ends is no outlier.
    window: W, the length of the history.
  """

  tx: optax.GradientTransformation
  sigma: float = 0.0
  limit: int = 0
  window: int = 128

  def init(self, params: Params) -> GuardState:
    """Returns the state of a new run."""
    count, history_W = jnp.zeros((), jnp.int32), jnp.zeros(self.window, jnp.float32)
    return GuardState(self.tx.init(params), history_W, history_W, count, count, count)

  def update(
    self, grads: Params, state: GuardState, params: Params | None = None
  ) -> tuple[Params, GuardState]:
    """Returns the optimizer's update, not judged yet, as optax' transformations do."""
    updates, inner = self.tx.update(grads, state.inner, params)
    return updates, state._replace(inner=inner)

  def judge(
    self, old: TrainState, new: TrainState, metrics: dict[str, Mean]
  ) -> tuple[TrainState, dict[str, Mean]]:
    """Returns the new state, or the old one with the step counted, and the metrics to sum up.

    Args:
      old: the state before the update.
      new: the state after it, made with `update`.
      metrics: of the update, over all devices; "loss" and "grad_norm" judge it.

    Returns:
      The state, and the metrics with "skipped" (1 or 0). The other metrics of a skipped update
      have no weight, unless the run must end: then they stay as they are and "skipped" is infinite.
    """
    before: GuardState = old.opt_state
    loss, norm = metrics["loss"].value, metrics["grad_norm"].value
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    keep = finite
    if self.sigma:
      keep &= ~self._outlier(loss, before.losses, before.accepted)
      keep &= ~self._outlier(norm, before.norms, before.accepted)
    at = before.accepted % self.window
    noted = new.opt_state._replace(
      losses=before.losses.at[at].set(loss),
      norms=before.norms.at[at].set(norm),
      accepted=before.accepted + 1,
      skipped=jnp.zeros_like(before.skipped),
      broken=jnp.zeros_like(before.broken),
    )
    passed = before._replace(
      skipped=before.skipped + 1, broken=before.broken + jnp.where(finite, 0, 1)
    )
    end = (~keep) & ((passed.broken > self.limit) | (passed.skipped >= self.window))
    state = new.replace(
      params=_choose(keep, new.params, old.params), opt_state=_choose(keep, noted, passed)
    )
    shown = jax.tree.map(lambda x: jnp.where(keep | end, x, 0), metrics)
    skipped = jnp.where(end, jnp.inf, jnp.where(keep, 0.0, 1.0))
    return state, shown | {"skipped": Mean(skipped, jnp.ones((), jnp.float32))}

  def _outlier(self, value: jax.Array, history_W: jax.Array, accepted: jax.Array) -> jax.Array:
    """[] bool: whether `value` lies too far above its history, if that is long enough."""
    count = jnp.minimum(accepted, self.window)
    known_W = jnp.arange(self.window) < count
    mean = jnp.sum(history_W, where=known_W) / jnp.maximum(count, 1)
    variance = jnp.sum((history_W - mean) ** 2, where=known_W) / jnp.maximum(count - 1, 1)
    return (count >= self.window // 2) & (value > mean + self.sigma * jnp.sqrt(variance))


def _choose(keep: jax.Array, new: Any, old: Any) -> Any:
  return jax.tree.map(lambda a, b: jnp.where(keep, a, b), new, old)
