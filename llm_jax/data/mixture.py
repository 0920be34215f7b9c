"""Several sources in proportions of tokens, none of them repeated more than its cap.

A plan is arithmetic on sizes alone, so it can be read before anything runs. A schedule says row by
row which source is read at which step, exactly, and may change its weights on the way; `scheduled`
carries it out, or `rows.RowStream`. The weights of published mixtures are in mixture_presets.py.

Letters: B rows of a step, K sources.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from llm_jax.data import packing, words
from llm_jax.data.mixture_presets import Preset, preset
from llm_jax.errors import UserError

__all__ = [
  "Preset", "Schedule", "ScheduledStream", "Share", "plan", "preset", "scheduled", "table",
]  # fmt: skip


# Rows in which every source has its exact share; more of them where a source is very small.
_BLOCK, _MOST = 10_000, 1_000_000
_LEAST = 10  # Rows of a block that the smallest source should have.


@dataclasses.dataclass(frozen=True)
class Share:
  """One source's part of a mixture.

  Attributes:
    weight: fraction of the mixture's tokens that was asked for.
    share: fraction that it gets.
    tokens: tokens that it gives.
    epochs: passes over the source, tokens / its size.
    capped: whether its cap took effect.
  """

  weight: float
  share: float
  tokens: float
  epochs: float
  capped: bool


def plan(
  sizes: Mapping[str, int],
  weights: Mapping[str, float],
  tokens: float,
  max_epochs: float | Mapping[str, float] = 4.0,
) -> dict[str, Share]:
  """Divides `tokens` among sources by weight; what caps leave over goes to the others, by weight.

  Four epochs are about as good as fresh data (arXiv:2305.16264), hence the default cap.

  Args:
    sizes: tokens of each source.
    weights: relative weight of each source, > 0; they need not add up to 1.
    tokens: wanted in all.
    max_epochs: cap on the passes over each source, or over all of them.

  Returns:
    A Share of each source, in the order of `weights`; tokens add up to `tokens`.

  Raises:
    UserError: for a weight without a source or the reverse, a weight <= 0, an empty source, or if
      all caps together give fewer tokens than wanted.
  """
  _check(sizes, weights, tokens)
  caps = {
    name: size * (max_epochs[name] if isinstance(max_epochs, Mapping) else max_epochs)
    for name, size in sizes.items()
  }
  if sum(caps.values()) < tokens:
    raise UserError(
      f"{tokens:.0f} tokens are wanted, but all sources at their epoch caps give "
      f"{sum(caps.values()):.0f}: raise max_epochs, add data, or train on fewer tokens"
    )
  total = sum(weights.values())
  given: dict[str, float] = {}
  while True:
    # Sources at their cap are settled; the rest share what remains, which may cap more of them.
    open_ = {name: weight for name, weight in weights.items() if name not in given}
    left = tokens - sum(given.values())
    parts = {name: left * weight / sum(open_.values()) for name, weight in open_.items()}
    over = {name: caps[name] for name, part in parts.items() if part > caps[name]}
    if not over:
      break
    given |= over
  return {
    name: Share(
      weight=weight / total,
      share=(given | parts)[name] / tokens,
      tokens=(given | parts)[name],
      epochs=(given | parts)[name] / sizes[name],
      capped=name in given,
    )
    for name, weight in weights.items()
  }


class Schedule:
  """Which source each row of each step is from: a pure function of the seed and the step.

  Weights hold for rows, so for tokens too, as packed rows are all about full. Sources are spread
  evenly: of any n rows in a row, each has its share of n, give or take two.

  Args:
    phases: (first step, {source: weight}), the first from step 0 on, steps rising: a curriculum.
      Weights need not add up to 1; a source that a phase leaves out is not read in it.
    batch: B, rows of a step.
    seed: of the order within a block of 10,000 rows, or of a million at most for small weights.

  Attributes:
    names: K sources, in the order in which they first occur.
    batch: B.

  Raises:
    UserError: if there is no phase at step 0, steps do not rise, or weights are not numbers >= 0
      with one above.
  """

  def __init__(self, phases: Sequence[tuple[int, Mapping[str, float]]], batch: int, seed: int = 0):
    self._phases = [(int(step), dict(weights)) for step, weights in phases]
    self.batch, self._seed = batch, seed
    _check_phases(self._phases, batch)
    self.names = tuple(dict.fromkeys(name for _, weights in self._phases for name in weights))
    self._starts = np.array([step for step, _ in self._phases])
    weights = [np.array([own.get(name, 0.0) for name in self.names]) for _, own in self._phases]
    self._blocks = [_block_size(weights_K) for weights_K in weights]
    self._quotas = [_apportioned(*pair) for pair in zip(weights, self._blocks, strict=True)]
    self._order = functools.lru_cache(maxsize=4)(self._block_order)

  def sources(self, step: int) -> np.ndarray:
    """Returns the source of each row of a step, int64 [B], as an index into `names`."""
    phase = self._phase(step)
    rows = (step - self._starts[phase]) * self.batch + np.arange(self.batch)
    size = self._blocks[phase]
    blocks = rows // size
    found = [self._order(phase, int(b))[rows[blocks == b] % size] for b in np.unique(blocks)]
    return np.concatenate(found)

  def counts(self, step: int) -> np.ndarray:
    """Returns how many rows of each source come before a step, int64 [K]."""
    phase = self._phase(step)
    ends = [*self._starts[1 : phase + 1], step]
    parts = zip(range(phase + 1), self._starts, ends, strict=False)
    return sum((self._before(p, (b - a) * self.batch) for p, a, b in parts), self._none())

  def plan(
    self,
    sizes: Mapping[str, int],
    steps: int,
    length: int,
    max_epochs: float | Mapping[str, float] = 4.0,
    fill: Mapping[str, float] | None = None,
  ) -> dict[str, Share]:
    """Returns what each source gives in so many steps, for `table`.

    Args:
      sizes: tokens of each source.
      steps: of the run.
      length: T, tokens of a row.
      max_epochs: cap on the passes over each source, or over all of them; two rows more are none.
      fill: of a source's rows, the part that is no padding; None: rows are full.

    Raises:
      UserError: if the sources differ from the schedule's, or one is read more often than its cap.
    """
    if set(sizes) != set(self.names):
      raise UserError(f"the schedule is of sources {sorted(self.names)}, got {sorted(sizes)}")
    spans = np.diff(np.minimum([*self._starts, steps], steps))
    out = {}
    fill = fill or dict.fromkeys(self.names, 1.0)
    rows = zip(self.names, self.counts(steps).tolist(), strict=True)
    given = {name: count * length * fill[name] for name, count in rows}
    for name, tokens in given.items():
      asked = [w.get(name, 0.0) / sum(w.values()) for _, w in self._phases]
      epochs = tokens / sizes[name] if sizes[name] else float("inf")
      cap = max_epochs[name] if isinstance(max_epochs, Mapping) else max_epochs
      if tokens > cap * sizes[name] + 2 * length:
        raise UserError(
          f"source {name!r} is read {epochs:.2f} times in {steps} steps, and its cap is {cap}: "
          "lower its weight, raise max_epochs, add data, or train for fewer steps"
        )
      weight = float(np.dot(asked, spans) / steps)
      out[name] = Share(weight, tokens / sum(given.values()), tokens, epochs, False)
    return out

  def identity(self) -> dict[str, Any]:
    """Returns what the schedule is made of, JSON-able: equal ones read the same rows."""
    phases = [[step, dict(sorted(weights.items()))] for step, weights in self._phases]
    return {"phases": phases, "batch": self.batch, "seed": self._seed}

  def _phase(self, step: int) -> int:
    return int(np.searchsorted(self._starts, step, side="right")) - 1

  def _before(self, phase: int, rows: int) -> np.ndarray:
    """Returns rows of each source among the first `rows` of a phase, int64 [K]."""
    block, rest = divmod(int(rows), self._blocks[phase])
    counts = block * self._quotas[phase]
    if rest:
      counts = counts + np.bincount(self._order(phase, block)[:rest], minlength=len(self.names))
    return counts

  def _none(self) -> np.ndarray:
    return np.zeros(len(self.names), np.int64)

  def _block_order(self, phase: int, block: int) -> np.ndarray:
    """Returns the source of each row of a block, int64: each source's rows are evenly apart."""
    quotas = self._quotas[phase]
    kinds = np.repeat(np.arange(len(quotas)), quotas)
    number = np.arange(len(kinds)) - np.repeat(np.cumsum(quotas) - quotas, quotas)
    key = np.array([self._seed, phase, block], np.int64).astype(np.uint64)
    salt = functools.reduce(lambda a, b: words.mix(a + b), key, np.zeros(1, np.uint64))
    starts = words.mix(salt + np.arange(1, len(quotas) + 1, dtype=np.uint64)) / 2.0**64
    return kinds[np.argsort((number + starts[kinds]) / quotas[kinds], kind="stable")]


def scheduled(
  sources: Mapping[str, packing.Chunks],
  schedule: Schedule,
  length: int,
  seed: int = 0,
  strategy: str = "best_fit",
) -> "ScheduledStream":
  """Packs each source by itself, endlessly, and takes rows from them as the schedule says.

  Args:
    sources: documents by name; those of the schedule.
    schedule: its weights hold for rows.
    length: T.
    seed: of the orders.
    strategy: see `packing.pack`.

  Raises:
    UserError: if the names differ, or a source is empty.
  """
  if set(sources) != set(schedule.names):
    raise UserError(
      f"the schedule is of sources {sorted(schedule.names)}, got {sorted(sources)}: they must match"
    )
  streams = {}
  for i, name in enumerate(schedule.names):
    own = seed * len(schedule.names) + i
    dataset = packing.shuffled(sources[name], own, epochs=-1)
    # Open rows of a small source would hold several of its epochs, and mix them.
    bins = sources[name].predictions // (8 * length)
    streams[name] = packing.pack(dataset, length, 1, own, strategy, bins=bins)
  sizes = {name: source.predictions for name, source in sources.items()}
  return ScheduledStream(streams, schedule, sizes)


class ScheduledStream(Iterator[dict[str, np.ndarray]]):
  """Endless LM batches [B, T] whose rows come from several streams of one row each."""

  def __init__(
    self, streams: Mapping[str, packing.Stream], schedule: Schedule, sizes: Mapping[str, int]
  ):
    self._streams, self._schedule, self._step = dict(streams), schedule, 0
    self._of = {**schedule.identity(), "sizes": dict(sizes)}

  def __next__(self) -> dict[str, np.ndarray]:
    names = [self._schedule.names[k] for k in self._schedule.sources(self._step)]
    rows = [next(self._streams[name]) for name in names]
    self._step += 1
    batch = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    return batch | ({"sources": np.array(names)} if "documents" in batch else {})

  def get_state(self) -> dict[str, Any]:
    """Returns where the stream is; JSON-able."""
    states = {name: stream.get_state() for name, stream in self._streams.items()}
    return {"step": self._step, "of": self._of, "streams": states}

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Goes to where `get_state` was called on a stream that was made with the same arguments.

    Raises:
      UserError: if the state is of another schedule.
    """
    if state["of"] != self._of:
      raise UserError(
        "the mixture or one of its corpora is another than when the run began: use another workdir "
        f"({state['of']} then, {self._of} now)"
      )
    self._step = int(state["step"])
    for name, stream in self._streams.items():
      stream.set_state(state["streams"][name])


def table(shares: Mapping[str, Share]) -> str:
  """Returns the plan as lines for people: share of tokens, tokens, effective epochs."""
  width = max(len("source"), *map(len, shares))
  lines = [f"{'source':<{width}}  asked %  gets %        tokens  epochs"]
  for name, s in shares.items():
    lines.append(
      f"{name:<{width}}  {100 * s.weight:7.2f} {100 * s.share:7.2f} {s.tokens:13,.0f} "
      f"{s.epochs:7.2f}{'  (capped)' if s.capped else ''}"
    )
  return "\n".join(lines)


def _check(sizes: Mapping[str, int], weights: Mapping[str, float], tokens: float) -> None:
  if set(sizes) != set(weights) or not weights:
    raise UserError(
      f"every source needs a weight: there are sources {sorted(sizes)}, weights {sorted(weights)}"
    )
  for name in weights:
    if not weights[name] > 0:
      raise UserError(f"the weight of source {name!r} must be above 0, got {weights[name]}")
    if not sizes[name] > 0:
      raise UserError(f"source {name!r} is empty: remove it from the mixture")
  if not tokens > 0:
    raise UserError(f"a mixture needs tokens to divide, got {tokens}")


def _check_phases(phases: Sequence[tuple[int, Mapping[str, float]]], batch: int) -> None:
  steps = [step for step, _ in phases]
  if not steps or steps[0] != 0 or any(b <= a for a, b in zip(steps, steps[1:], strict=False)):
    raise UserError(f"phases of a schedule must start at step 0 and rise, got {steps}")
  for step, weights in phases:
    finite = all(weight >= 0 and math.isfinite(weight) for weight in weights.values())
    if not finite or not sum(weights.values()) > 0:
      raise UserError(f"weights from step {step} on must be >= 0, one above, got {dict(weights)}")
  if batch < 1:
    raise UserError(f"a schedule needs rows in a step, got batch={batch}")


def _block_size(weights_K: np.ndarray) -> int:
  """Returns in how many rows the smallest weight is a few."""
  least = (weights_K[weights_K > 0] / weights_K.sum()).min()
  size = _BLOCK
  while size < _MOST and least * size < _LEAST:
    size *= 10
  return size


def _apportioned(weights_K: np.ndarray, size: int) -> np.ndarray:
  """Divides a block's rows by weight, int64 [K]; whoever has a weight gets a row."""
  exact = weights_K / weights_K.sum() * size
  quotas = np.maximum(np.floor(exact), weights_K > 0).astype(np.int64)
  over = int(quotas.sum()) - size
  if over > 0:  # Rows of the very small ones come from the largest.
    quotas[np.argmax(quotas)] -= over
  else:
    quotas[np.argsort(quotas - exact, kind="stable")[:-over]] += 1
  return quotas
