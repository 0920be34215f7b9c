"""What computes a run's attention: said and tested before its first step, and rows that fit it."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from llm_jax.errors import UserError
from llm_jax.models import backends, selftest
from llm_jax.train import feeds
from llm_jax.types import Batch, TrainState


def watched(step: Callable, feed: feeds.Feed, name: str) -> tuple[Callable, feeds.Feed]:
  """Returns the step and the feed of a run, which look after its attention.

  Before the first step a line a kind of call says which backend was chosen and why, and any but
  "xla" is compared with it (models/selftest.py). Under cuDNN no batch has a row of more texts than
  `config.model.attention_segments`, or of other numbers than 1, 2, ...

  Args:
    step: (state, batch) -> (state, metrics), compiled by a placement: it has `lower`.
    feed: of batches whose "segments" are [..., T] int32 host arrays, wherever in the tree.
    name: of the run, for people.
  """
  rows = _Rows(feed)
  begun = False

  def call(state: TrainState, batch: Batch) -> tuple[TrainState, dict]:
    nonlocal begun
    if not begun:
      begun = True
      with backends.recorded() as chosen:  # The step below uses what is traced here.
        step.lower(state, batch)
      for request, choice in chosen.items():
        _begin(request, choice, name)
        if choice.backend == "cudnn" and request.packed:
          rows.limit = min(rows.limit, request.max_segments)
      rows.check()
    return step(state, batch)

  return call, rows


def _begin(request: backends.Request, choice: backends.Choice, name: str) -> None:
  """Tests a backend and says so.

  Raises:
    UserError: if it fails.
  """
  why = choice.why if choice.why else f"config.model.attention={request.backend}"
  found = "" if choice.backend == "xla" else f"; {selftest.check(request, choice.backend)}"
  if jax.process_index() == 0:
    line = f"{name}: attention by {choice.backend} ({why}): {request}{found}"
    print(line, file=sys.stderr, flush=True)


class _Rows:
  """A feed that counts the texts of rows, and from a limit on gives no more.

  Attributes:
    limit: the most texts of a row; it may be set late.
  """

  def __init__(self, feed: feeds.Feed):
    self.limit: float = np.inf
    self._feed, self._most, self._upwards = feed, 0, True

  @property
  def wants_metrics(self) -> bool:
    return self._feed.wants_metrics

  def next(self, state: TrainState) -> Batch:
    batch = self._feed.next(state)
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
      if getattr(path[-1], "key", "") == "segments":
        self._count(np.asarray(leaf))
    self.check()
    return batch

  def skip(self, numbers: Sequence[range]) -> None:
    self._feed.skip(numbers)

  def get_state(self) -> dict:
    return self._feed.get_state()

  def set_state(self, state: dict) -> None:
    self._feed.set_state(state)

  def observe(self, step: int, metrics: dict[str, float]) -> None:
    self._feed.observe(step, metrics)

  def metrics(self) -> dict[str, float]:
    return self._feed.metrics()

  def check(self) -> None:
    if self._most > self.limit:
      raise UserError(
        f"a row holds {self._most} texts, and cudnn attention was told of at most {self.limit}: "
        f"set config.model.attention_segments to {self._most} or more, or config.model.attention "
        'to "xla_chunked"'
      )
    if not self._upwards and np.isfinite(self.limit):
      raise UserError(
        "cudnn attention takes rows whose texts are in one piece each and numbered 1, 2, ...: set "
        'config.model.attention to "xla_chunked" for this batch'
      )

  def _count(self, segments: np.ndarray) -> None:
    before = np.pad(segments[..., :-1], [(0, 0)] * (segments.ndim - 1) + [(1, 0)])
    first = (segments > 0) & (segments != before)
    self._most = max(self._most, int(first.sum(axis=-1).max(initial=0)))
    highest: Any = np.maximum.accumulate(before, axis=-1)
    self._upwards = self._upwards and not bool((first & (segments <= highest)).any())
