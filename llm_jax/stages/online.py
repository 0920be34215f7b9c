"""Online learning as a feed: sample -> score -> label, cut into minibatches for the one step."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from llm_jax.errors import UserError
from llm_jax.train import feeds
from llm_jax.types import Batch, TrainState


@dataclasses.dataclass
class OnlineFeed:
  """Batches from the policy itself.

  `collect` is the algorithm: it samples, scores and labels one rollout with the state that it is
  given, and returns a host batch with one row an answer (or a pair of them, the batch's dicts may
  be nested), and the rollout's metrics. The feed shuffles the rows into minibatches, `epochs` times
  over.

  Attributes:
    collect: (state, iteration, carried) -> (batch, metrics).
    rows: rows of a minibatch; must divide the rollout's.
    epochs: passes over a rollout.
    seed: of the minibatches' order.
    carried: what outlives an iteration, such as a KL controller; a JSON-able dict that `collect`
      may change, saved with every checkpoint.
    max_approxkl: drops the rest of an iteration's minibatches once the update's approximate KL
      exceeds it; 0 never does.
  """

  collect: Callable[[TrainState, int, dict[str, Any]], tuple[Batch, dict[str, float]]]
  rows: int
  epochs: int
  seed: int
  carried: dict[str, Any] = dataclasses.field(default_factory=dict)
  max_approxkl: float = 0.0

  def __post_init__(self):
    self.wants_metrics = self.max_approxkl > 0
    self._iteration = 0
    self._used = 0  # Minibatches of this iteration that were handed out.
    self._rollout: Batch | None = None
    self._sums: dict[str, float] = {}  # Of the rollouts since `metrics` was last called.
    self._count = 0
    self._stopped = False

  def next(self, state: TrainState) -> Batch:
    """The next minibatch; samples a new rollout when the last one is used up."""
    if self._rollout is None or self._stopped or self._used >= self._minibatches():
      if self._rollout is not None:
        self._iteration += 1
      self._rollout, metrics = self.collect(state, self._iteration, self.carried)
      self._used, self._stopped = 0, False
      self._sums = {name: self._sums.get(name, 0.0) + value for name, value in metrics.items()}
      self._count += 1
    index = self._order(self._used)
    self._used += 1
    return jax.tree.map(lambda x: x[index], self._rollout)

  def skip(self, numbers: Sequence[range]) -> None:
    """Cannot: what it gives follows from the policy.

    Raises:
      UserError: always.
    """
    raise UserError("--skip_batches is for stages that read their batches; this one draws answers")

  def metrics(self) -> dict[str, float]:
    """Means over the rollouts since the last call; empty if there was none."""
    means = {name: total / self._count for name, total in self._sums.items()}
    self._sums, self._count = {}, 0
    return means

  def observe(self, step: int, metrics: dict[str, float]) -> None:
    """Stops an iteration whose last update went too far."""
    if 0 < self.max_approxkl < metrics.get("policy/approxkl", 0.0):
      self._stopped = True

  def get_state(self) -> dict[str, Any]:
    """JSON-able; holds the rollout, so that a resumed run is the same to the bit."""
    return {
      "iteration": self._iteration,
      "used": self._used,
      "stopped": self._stopped,
      "carried": dict(self.carried),
      "sums": self._sums,
      "count": self._count,
      "rollout": self._rollout and _to_json(self._rollout),
    }

  def set_state(self, state: dict[str, Any]) -> None:
    """Takes back what `get_state` gave."""
    self._iteration, self._used = state["iteration"], state["used"]
    self._stopped = state["stopped"]
    self._sums, self._count = dict(state["sums"]), state["count"]
    self.carried.update(state["carried"])
    self._rollout = state["rollout"] and _from_json(state["rollout"])

  def _minibatches(self) -> int:
    return self.epochs * (self._size() // self.rows)

  def _size(self) -> int:
    return len(jax.tree.leaves(self._rollout)[0])

  def _order(self, used: int) -> np.ndarray:
    """Rows of minibatch `used`: a new permutation for every pass."""
    size = self._size()
    epoch, part = divmod(used, size // self.rows)
    rng = np.random.default_rng([self.seed, self._iteration, epoch])
    return rng.permutation(size)[part * self.rows : (part + 1) * self.rows]


@dataclasses.dataclass
class Beside:
  """Batches of a feed with, under `key`, those of another one.

  Attributes:
    feed: the one that is told and asked.
    other: gives LM batches.
    key: of the batch.
  """

  feed: feeds.Feed
  other: feeds.Feed
  key: str

  @property
  def wants_metrics(self) -> bool:
    """Whether the first feed is told of updates."""
    return self.feed.wants_metrics

  def next(self, state: TrainState) -> Batch:
    """The next batch of both."""
    return dict(self.feed.next(state)) | {self.key: self.other.next(state)}

  def skip(self, numbers: Sequence[range]) -> None:
    """As the first feed does."""
    self.feed.skip(numbers)

  def metrics(self) -> dict[str, float]:
    """Those of the first feed."""
    return self.feed.metrics()

  def observe(self, step: int, metrics: dict[str, float]) -> None:
    """Tells the first feed."""
    self.feed.observe(step, metrics)

  def get_state(self) -> dict[str, Any]:
    """Of both; JSON-able."""
    return {"feed": self.feed.get_state(), self.key: self.other.get_state()}

  def set_state(self, state: dict[str, Any]) -> None:
    """Takes back what `get_state` gave."""
    self.feed.set_state(state["feed"])
    self.other.set_state(state[self.key])


def _to_json(value: Any) -> Any:
  if isinstance(value, dict):
    return {k: _to_json(v) for k, v in value.items()}
  return [value.dtype.name, list(value.shape), value.tobytes().hex()]


def _from_json(value: Any) -> Any:
  if isinstance(value, dict):
    return {k: _from_json(v) for k, v in value.items()}
  dtype, shape, data = value
  return np.frombuffer(bytes.fromhex(data), dtype).reshape(shape)
