"""How a loss says what it eats: `@takes(...)`, read by the objectives."""

import functools
import inspect
from collections.abc import Callable
from typing import NamedTuple

import jax


class Takes(NamedTuple):
  """What an objective passes to a loss, by position, and what its values are averaged over.

  Attributes:
    names: the statistics passed, in order; each objective lists the ones that it has.
    weight: "" for the objective's usual normaliser, or the name of another one.
  """

  names: tuple[str, ...]
  weight: str = ""


def takes(*names: str, weight: str = "") -> Callable[[Callable], Callable]:
  """Declares the statistics that a loss is called with; a loss without it gets the usual ones.

  The usual ones are (chosen_logratio, rejected_logratio) for `objectives.logratio_pairs` and
  (logps, old_logps, advantages) for `objectives.policy`.

  Args:
    *names: names of statistics, in the order of the loss's positional arguments.
    weight: the normaliser, if not the usual one: "chosen_lengths" for a loss that is a sum over
      the tokens of the chosen answers, "sequences" for one that has one value per sequence.
  """

  def mark(loss: Callable) -> Callable:
    loss.takes = Takes(names, weight)
    return loss

  return mark


def takes_of(loss: Callable, usual: tuple[str, ...]) -> Takes:
  """Returns what `loss` takes, through `functools.partial`; `usual` if it does not say.

  Raises:
    ValueError: if the loss cannot be called with these inputs alone.
  """
  bare = loss
  while isinstance(bare, functools.partial):
    bare = bare.func
  wanted = getattr(bare, "takes", Takes(usual))
  try:
    inspect.signature(loss).bind(*wanted.names)
  except TypeError as e:
    raise ValueError(f"{name_of(loss)} cannot be called with {wanted.names}: {e}") from e
  return wanted


def optional_of(loss: Callable, names: tuple[str, ...]) -> tuple[str, ...]:
  """Returns those of `names` that `loss` has as keywords and that nobody has bound yet."""
  bare, bound = loss, set()
  while isinstance(bare, functools.partial):
    bound |= set(bare.keywords)
    bare = bare.func
  bound |= set(getattr(bare, "takes", Takes(())).names)
  parameters = inspect.signature(loss).parameters
  return tuple(n for n in names if n in parameters and n not in bound)


def name_of(loss: Callable) -> str:
  """Returns the name of a loss, for messages and metrics."""
  while isinstance(loss, functools.partial):
    loss = loss.func
  return getattr(loss, "__name__", type(loss).__name__)


def check_shapes(**arrays: jax.Array) -> None:
  """Raises ValueError, naming both shapes, unless all arrays have the shape of the first."""
  (first, want), *rest = ((name, x.shape) for name, x in arrays.items())
  for name, shape in rest:
    if shape != want:
      raise ValueError(f"{first} {want} and {name} {shape} must match")
