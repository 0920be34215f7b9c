"""Logical axes of arrays inside a compiled function: what the mesh makes of their names.

A room that computes names an array's axes ("batch", "heads", "vocab"); the placement's rules say
which axes of the mesh these are (train/parallel.py). Without a mesh all of this does nothing.
"""

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec as P

Names = tuple[str | None, ...]


def axes(name: str | None) -> tuple[str, ...]:
  """Returns the axes of the current mesh, of more than one device, that a name is split over."""
  if not name or not _placed():
    return ()
  mesh = jax.sharding.get_abstract_mesh()
  found = dict(nn.get_logical_axis_rules()).get(name)
  found = (found,) if isinstance(found, str) else found or ()
  return tuple(axis for axis in found if mesh.shape.get(axis, 1) > 1)


def ways(name: str | None) -> int:
  """Returns the number of parts that an axis of this name is split into."""
  mesh = jax.sharding.get_abstract_mesh()
  return math.prod(mesh.shape[axis] for axis in axes(name))


def constrain(x: jax.Array, names: Names) -> jax.Array:
  """Returns `x`, laid out as the names of its axes say; an axis that does not divide stays whole.

  Args:
    x: an array of a compiled function.
    names: one per axis of x; None: whole on every device.
  """
  return (
    jax.lax.with_sharding_constraint(x, _spec(names, _uneven([x], [names]))) if _placed() else x
  )


def spread(fn: Callable, arrays: Sequence[Any], names: Sequence[Names | None], out: Any) -> Any:
  """Returns fn(split, *parts) of each device's parts of the arrays, put together again.

  It is a `jax.shard_map` over the current mesh, in which `fn` itself adds up over axes. Derivatives
  do not pass through it: it is for the inside of a custom rule.

  Args:
    fn: its first argument is a function from a name to the axes of the mesh that it is split over.
    arrays: None where there is none.
    names: the names of each array's axes. A name by which some array does not divide is not split.
    out: names of the outputs' axes: a tuple, or a list or a named tuple of such.
  """
  whole = _uneven(arrays, names)
  split = lambda name: () if name in whole else axes(name)  # noqa: E731
  local = lambda *parts: fn(split, *parts)  # noqa: E731
  if not _placed():
    return local(*arrays)
  is_names = lambda x: type(x) is tuple  # noqa: E731
  specs = tuple(_spec(own or (), whole) for own in names)
  outs = jax.tree.map(lambda own: _spec(own, whole), out, is_leaf=is_names)
  return jax.shard_map(local, in_specs=specs, out_specs=outs, check_vma=False)(*arrays)


def gather(x: jax.Array, over: tuple[str, ...], axis: int) -> jax.Array:
  """Returns the parts of `x` on the devices along mesh axes, side by side; inside `spread`."""
  return jax.lax.all_gather(x, over, axis=axis, tiled=True) if over else x


def offset(size: int, over: tuple[str, ...]) -> jax.Array | int:
  """Returns where this device's part of an axis begins, of `size` each; inside `spread`."""
  return jax.lax.axis_index(over) * size if over else 0


def add(x: jax.Array, over: Sequence[str], keep: tuple[str, ...] = (), axis: int = 0) -> jax.Array:
  """Returns the sum of `x` over mesh axes, inside `spread`.

  Args:
    x: what each device has.
    over: the axes whose devices have different terms.
    keep: the axes along which each device keeps its own part of the sum, of its `axis`.
    axis: see `keep`.
  """
  if keep and set(keep) <= set(over):
    x = jax.lax.psum_scatter(x, keep, scatter_dimension=axis, tiled=True)
    over = [name for name in over if name not in keep]
  elif keep:  # Its devices have the same terms.
    size = x.shape[axis] // jax.lax.axis_size(keep)
    x = jax.lax.dynamic_slice_in_dim(x, offset(size, keep), size, axis)
  return jax.lax.psum(x, tuple(over)) if over else x


def _placed() -> bool:
  """Whether there is a mesh of several devices with rules, as `parallel.MeshJit` sets them."""
  mesh = jax.sharding.get_abstract_mesh()
  return bool(nn.get_logical_axis_rules()) and not mesh.empty and mesh.size > 1


def _uneven(arrays: Sequence[Any], names: Sequence[Names | None]) -> set[str | None]:
  return {
    name
    for array, own in zip(arrays, names, strict=True)
    if array is not None
    for name, size in zip(own or (), array.shape, strict=True)
    if size % ways(name)
  }


def _spec(names: Names, whole: Collection[str | None]) -> P:
  return P(*(None if name in whole or not axes(name) else axes(name) for name in names))
