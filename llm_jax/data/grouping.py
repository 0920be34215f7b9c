"""Batches that keep groups of rows together, such as all pairs of one K-way prompt."""

import collections
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

_OPEN = 64  # Batches that are filled at once.


class Grouped(Iterator[Any]):
  """Endless batches in which a group is whole, if a batch has room for it.

  InstructGPT (Ouyang et al. 2022, arXiv:2203.02155, section 3.5) trains on all pairs of a prompt as
  one batch element: pairs that share answers overfit where they are shuffled apart. Every epoch has
  an order of its own, and each row once. `set_state(get_state())` goes on with the same batches.

  Args:
    rows: what is batched. A row that is there twice is in two copies of its group.
    groups: of each row; "": a group of its own.
    collate: (rows, of each one over the rows of its group in the batch) -> a batch. It may get
      fewer rows than `batch`.
    batch: rows of a batch; larger groups are split.
    seed: of the orders.
  """

  def __init__(
    self,
    rows: Sequence[Any],
    groups: Sequence[Hashable],
    collate: Callable[[list[Any], list[float]], Any],
    batch: int,
    seed: int = 0,
  ):
    self._rows, self._collate, self._batch, self._seed = rows, collate, batch, seed
    copies: collections.Counter[int] = collections.Counter()
    units: dict[Hashable, list[int]] = {}
    for i, (row, group) in enumerate(zip(rows, groups, strict=True)):
      key = (i,) if group == "" else (group, copies[id(row)])
      copies[id(row)] += 1
      units.setdefault(key, []).append(i)
    self._units = list(units.values())
    self._epoch, self._index = 0, 0
    self._plan = self._planned()

  @property
  def split(self) -> int:
    """The number of groups for which a batch has no room."""
    return sum(len(unit) > self._batch for unit in self._units)

  def __next__(self) -> Any:
    if self._index == len(self._plan):
      self._epoch, self._index = self._epoch + 1, 0
      self._plan = self._planned()
    parts = self._plan[self._index]
    self._index += 1
    weights = [1 / len(part) for part in parts for _ in part]
    return self._collate([self._rows[i] for part in parts for i in part], weights)

  def get_state(self) -> dict[str, int]:
    """Returns what `set_state` needs."""
    return {"epoch": self._epoch, "index": self._index}

  def set_state(self, state: Mapping[str, int]) -> None:
    """Goes on where `get_state` was called."""
    self._epoch, self._index = state["epoch"], state["index"]
    self._plan = self._planned()

  def _planned(self) -> list[list[list[int]]]:
    """Returns the batches of this epoch, each a list of groups, by first fit."""
    random = np.random.default_rng((self._seed, self._epoch))
    parts = []
    for unit in self._units:
      order = [unit[i] for i in random.permutation(len(unit))]
      parts += [order[i : i + self._batch] for i in range(0, len(order), self._batch)]
    done: list[list[list[int]]] = []
    opened: list[tuple[int, list[list[int]]]] = []  # (room, groups) of batches.
    for number in random.permutation(len(parts)):
      part = parts[number]
      at = next((i for i, (room, _) in enumerate(opened) if room >= len(part)), len(opened))
      if at == len(opened):
        opened.append((self._batch, []))
      room, held = opened[at]
      opened[at] = (room - len(part), [*held, part])
      full = min(range(len(opened)), key=lambda i: opened[i][0])
      if not opened[full][0] or len(opened) > _OPEN:
        done.append(opened.pop(full)[1])
    done += [held for _, held in opened]
    return [done[i] for i in random.permutation(len(done))]
