"""From the layout that trains to the one that decodes."""

from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

_SPLIT = "fsdp"  # The axis over which training splits weights that it gathers again to use them.


def gathered(params: Any) -> Any:
  """The same weights, whole over the mesh axis "fsdp"; what "tensor" splits stays split.

  Training gathers a layer's weights when it gets there. A loop over tokens would gather all of
  them at every token, unless the compiler takes that out of the loop; so they are gathered once,
  before it. A device needs room for them, besides its part of those that are trained.

  Args:
    params: arrays; those that are split over no "fsdp" are returned as they are.
  """
  leaves, treedef = jax.tree.flatten(params)
  split = [i for i, x in enumerate(leaves) if _axes(x) and _SPLIT in _axes(x)]
  if split:
    whole = tuple(_without(leaves[i].sharding) for i in split)
    made = jax.jit(lambda *x: x, out_shardings=whole)(*(leaves[i] for i in split))
    for i, x in zip(split, made, strict=True):
      leaves[i] = x
  return jax.tree.unflatten(treedef, leaves)


def _axes(x: Any) -> list[str]:
  """The mesh axes that an array is split over."""
  sharding = getattr(x, "sharding", None)
  if not isinstance(sharding, NamedSharding) or sharding.mesh.shape.get(_SPLIT, 1) == 1:
    return []
  return [axis for entry in sharding.spec for axis in _names(entry)]


def _without(sharding: NamedSharding) -> NamedSharding:
  kept = (tuple(axis for axis in _names(entry) if axis != _SPLIT) for entry in sharding.spec)
  return NamedSharding(sharding.mesh, P(*(axes or None for axes in kept)))


def _names(entry: Any) -> tuple[str, ...]:
  if entry is None:
    return ()
  return (entry,) if isinstance(entry, str) else tuple(entry)
