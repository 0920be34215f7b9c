"""Where batches come from: what the loop asks of a feed, and iterators as feeds."""

import base64
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from llm_jax.errors import UserError
from llm_jax.types import Batch, TrainState

_NAMES = ("documents", "sources")


class Feed(Protocol):
  """Where batches come from.

  Attributes:
    wants_metrics: whether `observe` is called. It costs a wait for the device at every step.
  """

  wants_metrics: bool

  def next(self, state: TrainState) -> Batch:
    """Returns the next batch, of host arrays. `state` is the newest one, as placed.

    With many processes it is the whole batch, the same in each, or this process' part of the rows
    (`place.share()`). What it says of itself in "documents" (int [B, ...], numbers from 1, 0 where
    there is none) and "sources" (B names), at any depth, is for `named`, not for the step.
    """
    ...

  def get_state(self) -> dict:
    """Returns what `set_state` needs to go on after the last batch given, as JSON."""
    ...

  def set_state(self, state: dict) -> None:
    """Goes on where `get_state` was called."""
    ...

  def skip(self, numbers: Sequence[range]) -> None:
    """Leaves out the batches of these numbers, counted from 1 over the whole run.

    Raises:
      UserError: if it makes its batches itself.
    """
    ...

  def observe(self, step: int, metrics: dict[str, float]) -> None:
    """Is told the metrics of update `step` (from 1)."""
    ...

  def metrics(self) -> dict[str, float]:
    """Returns numbers of its own for the next row of metrics."""
    ...


def named(batch: Batch) -> tuple[Batch, dict[str, Any]]:
  """Returns the batch that a step takes, and what it is made of; of batches in it, too."""
  own, names = {}, {}
  for name, x in batch.items():
    if name in _NAMES:
      names[name] = x
    elif isinstance(x, dict):
      own[name], inside = named(x)
      names |= {name: inside} if inside else {}
    else:
      own[name] = x
  return own, names


def describe(names: dict[str, Any]) -> dict[str, Any]:
  """Returns what a batch was made of, row by row; JSON-able."""
  found: dict[str, Any] = {}
  for name, x in names.items():
    if name == "documents":
      numbers = [np.unique(np.asarray(row)) for row in x]
      found[name] = [row[row > 0].tolist() for row in numbers]
    else:
      found[name] = describe(x) if isinstance(x, dict) else list(map(str, x))
  return found


class IteratorFeed:
  """Batches of an iterator.

  If it has `get_state` and `set_state`, as Grain's have, they are used. Any other iterator must
  give the same batches every time: a resumed run skips those that were used.
  """

  wants_metrics = False

  def __init__(self, iterator: Iterable[Batch]):
    """Takes the iterator (or an iterable, from its start)."""
    self._iterator = iter(iterator)
    self._used = 0
    self._skipped: Sequence[range] = ()

  def next(self, state: TrainState) -> Batch:
    """Returns the next batch.

    Raises:
      UserError: if there is none.
    """
    del state
    while any(self._used + 1 in numbers for numbers in self._skipped):
      self._draw()
    return self._draw()

  def _draw(self) -> Batch:
    try:
      batch = next(self._iterator)
    except StopIteration:
      raise UserError(
        f"the data ran out after {self._used} batches; repeat it or lower config.steps"
      ) from None
    self._used += 1
    return batch

  def skip(self, numbers: Sequence[range]) -> None:
    """Draws the batches of these numbers without giving them."""
    self._skipped = numbers

  def get_state(self) -> dict:
    """Returns the iterator's own state, or the number of batches used."""
    state = {"used": self._used}
    if hasattr(self._iterator, "get_state"):
      state["iterator"] = _to_json(self._iterator.get_state())
    return state

  def set_state(self, state: dict) -> None:
    """Goes on where `get_state` was called."""
    if "iterator" in state:
      self._iterator.set_state(_from_json(state["iterator"]))
    else:
      ahead = state["used"] - self._used
      next(itertools.islice(self._iterator, ahead, ahead), None)
    self._used = state["used"]

  def observe(self, step: int, metrics: dict[str, float]) -> None:
    """Learns nothing from metrics."""

  def metrics(self) -> dict[str, float]:
    """Has no numbers of its own."""
    return {}


def _to_json(value: Any) -> Any:
  if isinstance(value, bytes):
    return {"__bytes__": base64.b64encode(value).decode()}
  if isinstance(value, dict):
    return {str(k): _to_json(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [_to_json(v) for v in value]
  return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def _from_json(value: Any) -> Any:
  if isinstance(value, dict):
    if value.keys() == {"__bytes__"}:
      return base64.b64decode(value["__bytes__"])
    return {k: _from_json(v) for k, v in value.items()}
  return [_from_json(v) for v in value] if isinstance(value, list) else value
