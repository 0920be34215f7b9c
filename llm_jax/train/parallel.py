"""Where arrays live. Two placements, one interface; the train step knows neither."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from llm_jax import config
from llm_jax.errors import UserError
from llm_jax.types import TrainState

AXES = ("data", "fsdp", "sequence", "tensor")

# Logical axis -> mesh axes; a name that is not listed stays whole on every device. "length" is the
# time axis inside a layer; between layers, where nothing mixes features, it is "stream" and split
# over the tensor axis too (Korthikanti et al. 2022, arXiv:2205.05198, section 4.2.2).
RULES = (
  ("batch", ("data", "fsdp")),
  ("length", "sequence"),
  ("stream", ("sequence", "tensor")),
  ("embed", "fsdp"),
  ("mlp", "tensor"),
  ("heads", "tensor"),
  ("kv", "tensor"),
  ("vocab", "tensor"),
)

_ROWS = ("data", "fsdp")  # What the rows of a batch are split over.


def make(cfg: config.Mesh) -> "Placement":
  """Returns the placement that `cfg` names, over all devices of the program.

  Raises:
    UserError: if the kind is unknown or the axes do not fit the devices.
  """
  if cfg.kind == "pmap":
    split = (cfg.fsdp, cfg.sequence, cfg.tensor) != (1, 1, 1)
    if split or cfg.zero or cfg.data not in (-1, jax.device_count()):
      raise UserError(
        f"config.mesh.kind=pmap replicates over all {jax.device_count()} devices; leave data, "
        'fsdp, sequence, tensor and zero at their defaults, or use kind="mesh"'
      )
    if jax.process_count() > 1:
      raise UserError(
        f"config.mesh.kind=pmap is for one process, there are {jax.process_count()}: use kind=mesh"
      )
    return Pmap()
  if cfg.kind != "mesh":
    raise UserError(f'config.mesh.kind must be "mesh" or "pmap", got "{cfg.kind}"')
  return MeshJit(make_mesh(cfg), zero=cfg.zero)


def make_mesh(cfg: config.Mesh) -> Mesh:
  """Returns a mesh of `AXES`; one size of -1 takes the devices that are left.

  Raises:
    UserError: if the sizes do not fit the number of devices.
  """
  sizes = [getattr(cfg, name) for name in AXES]
  count = jax.device_count()
  if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
    raise UserError(f"config.mesh sizes must be positive, at most one of them -1, got {sizes}")
  known = int(np.prod([s for s in sizes if s != -1]))
  if -1 in sizes:
    if count % known:
      raise UserError(
        f"config.mesh: {count} devices cannot be divided by {', '.join(AXES)} = {sizes}"
      )
    sizes[sizes.index(-1)] = count // known
  elif known > count:
    raise UserError(
      f"config.mesh wants {known} devices ({', '.join(AXES)} = {sizes}), there are {count}"
    )
  elif known < count and jax.process_count() > 1:
    raise UserError(
      f"config.mesh takes {known} of {count} devices ({', '.join(AXES)} = {sizes}): several "
      "processes need a mesh of all, such as data=-1"
    )
  # The default axis type is Explicit, which refuses what the compiler may decide itself.
  return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


@dataclasses.dataclass(frozen=True)
class MeshJit:
  """`jax.jit` over a named mesh; the compiler inserts the collectives.

  Attributes:
    mesh: its axes are `AXES`.
    rules: logical axis name -> mesh axis or axes.
    zero: whether the optimizer's state is split over the data axis too (ZeRO's first stage,
      Rajbhandari et al. 2020, arXiv:1910.02054, section 5.1): each device updates its own part.
    axis_name: None, for jit sees global arrays: there is nothing to sum over.
  """

  mesh: Mesh
  rules: tuple[tuple[str, Any], ...] = RULES
  zero: bool = False
  axis_name: str | None = None

  def init(self, make_state: Callable[..., TrainState], rng: jax.Array, *args: Any) -> TrainState:
    """Returns make_state(rng, *args), unboxed and made in its shards.

    `args` (loaded parameters) are arguments of the compiled function, not constants in it. The
    optimizer's state is sharded like the parameters that it belongs to.

    Raises:
      UserError: if a dimension cannot be divided by its mesh axis.
    """
    shardings = self.shardings(jax.eval_shape(make_state, rng, *args))
    with self._context():
      return jax.jit(lambda *a: nn.unbox(make_state(*a)), out_shardings=shardings)(rng, *args)

  def put(self, path: str, array: Any, names: tuple[str | None, ...]) -> jax.Array:
    """Returns the parameter of a path in its shards; `names` are the logical names of its axes.

    Raises:
      UserError: if a dimension cannot be divided by its mesh axis.
    """
    shape = np.shape(array)
    sharding = NamedSharding(self.mesh, self._spec(path, names, shape))
    # One by one: the host never holds more than one shard besides the array.
    shards = [
      jax.block_until_ready(jax.device_put(np.ascontiguousarray(array[part]), device))
      for device, part in sharding.addressable_devices_indices_map(shape).items()
    ]
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)

  def shardings(self, state: TrainState) -> TrainState:
    """Returns the sharding of each array of an abstract state whose params are still boxed."""
    boxes = jax.tree_util.tree_leaves_with_path(
      (state.params, state.frozen), is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata)
    )
    specs = {}
    for path, box in boxes:
      names = box.names if isinstance(box, nn.Partitioned) else ()
      specs[path[1:]] = (
        self._spec(_keys(path[1:]), names, nn.unbox(box).shape),
        nn.unbox(box).shape,
      )

    def of(path: tuple, leaf: Any) -> NamedSharding:
      for start in range(len(path)):
        spec, shape = specs.get(path[start:], (None, None))
        if spec is not None and shape == leaf.shape:
          return NamedSharding(self.mesh, spec)
      return NamedSharding(self.mesh, P())

    def of_optimizer(path: tuple, leaf: Any) -> NamedSharding:
      sharding = of(path, leaf)
      return self._split_over_data(sharding, leaf.shape) if self.zero else sharding

    plain = nn.unbox(state)
    return plain.replace(
      step=of((), plain.step),
      params=jax.tree_util.tree_map_with_path(of, plain.params),
      opt_state=jax.tree_util.tree_map_with_path(of_optimizer, plain.opt_state),
      frozen=jax.tree_util.tree_map_with_path(of, plain.frozen),
      rng=of((), plain.rng),
    )

  def share(self) -> tuple[int, int]:
    """Returns (which, of how many) part of a batch's rows the devices of this process hold.

    Processes that hold the same rows, as along a tensor axis across hosts, have the same part.
    """
    ways = self._ways(_ROWS)
    rows = self._rows.devices_indices_map((ways,))
    parts: dict[int, set[int]] = {}
    for device, (part,) in rows.items():
      parts.setdefault(device.process_index, set()).update(range(ways)[part])
    distinct = sorted({tuple(sorted(part)) for part in parts.values()})
    if len({len(part) for part in distinct}) > 1 or sum(map(len, distinct)) != ways:
      return 0, 1  # They overlap: each takes all rows.
    return distinct.index(tuple(sorted(parts[jax.process_index()]))), len(distinct)

  def batch(self, tree: Any, rows: int | None = None) -> Any:
    """Puts a batch of [B, ...] host arrays on the devices, split by rows over data and fsdp.

    Args:
      tree: the whole batch, the same in every process; or this process' part (`share`).
      rows: B, which must be given with a part.

    Raises:
      UserError: if the rows cannot be divided by the devices.
    """
    rows = rows if jax.process_count() > 1 else None
    _check_rows(tree, self._ways(_ROWS), "config.mesh data x fsdp", rows)
    if jax.process_count() == 1:
      return jax.device_put(tree, self._rows)

    def put(x: Any) -> jax.Array:
      shape = (len(x) if rows is None else rows, *np.shape(x)[1:])
      return jax.make_array_from_process_local_data(self._rows, np.asarray(x), shape)

    return jax.tree.map(put, tree)

  def compile(self, fn: Callable, *, donate: bool = True) -> Callable:
    """Compiles `fn` under the mesh and its rules.

    With `donate`, `fn` is state, ... -> (state, ...): the state's memory is given to the new state,
    which keeps the old one's shardings.
    """
    if not donate:
      return self.under(jax.jit(fn))

    @functools.cache
    def jitted(treedef: Any, leaves: tuple) -> Callable:
      shardings = jax.tree.unflatten(treedef, leaves)
      return jax.jit(fn, donate_argnums=0, out_shardings=(shardings, None))

    def of(state: Any) -> Callable:
      leaves, treedef = jax.tree.flatten(jax.tree.map(lambda x: x.sharding, state))
      return jitted(treedef, tuple(leaves))

    def call(state: Any, *args: Any) -> Any:
      with self._context():
        return of(state)(state, *args)

    def lower(state: Any, *args: Any) -> Any:
      with self._context():
        return of(state).lower(state, *args)

    call.lower = lower
    return call

  def fetch(self, tree: Any) -> Any:
    """Returns the arrays as numpy, whole, on every host."""
    return to_host(tree)

  def unreplicate(self, tree: Any) -> Any:
    """Returns one copy of `tree` for checkpoints and plain jit: a mesh's arrays are that."""
    return tree

  def replicate(self, tree: Any) -> Any:
    """Undoes `unreplicate`."""
    return tree

  def under(self, fn: Callable) -> Callable:
    """Returns `fn`, called under the mesh and its rules; what it compiles is bound to them."""

    def call(*args: Any, **kwargs: Any) -> Any:
      with self._context():
        return fn(*args, **kwargs)

    def lower(*args: Any) -> Any:
      with self._context():
        return fn.lower(*args)

    call.lower = lower
    return call

  def rows(self, tree: Any) -> Any:
    """Puts arrays [B, ...] where functions `under` the mesh read them: as `batch` does.

    Rows that cannot be divided by the devices are whole on each.
    """
    whole, ways = NamedSharding(self.mesh, P()), self._ways(_ROWS)
    return jax.tree.map(lambda x: jax.device_put(x, whole if len(x) % ways else self._rows), tree)

  @contextlib.contextmanager
  def _context(self) -> Iterator[None]:
    with jax.set_mesh(self.mesh), nn.logical_axis_rules(self.rules):
      yield

  def _split_over_data(self, sharding: NamedSharding, shape: tuple[int, ...]) -> NamedSharding:
    """The same with the first axis that is whole, and can be, split over data; if there is one."""
    parts = [*sharding.spec, *[None] * (len(shape) - len(sharding.spec))]
    for i, size in enumerate(shape):
      if self._ways(parts[i]) == 1 and size % self.mesh.shape["data"] == 0:
        return NamedSharding(self.mesh, P(*parts[:i], "data", *parts[i + 1 :]))
    return sharding

  @property
  def _rows(self) -> NamedSharding:
    return NamedSharding(self.mesh, P(_ROWS))

  def _spec(self, where: str, names: tuple, shape: tuple[int, ...]) -> P:
    spec = nn.logical_to_mesh_axes(names, self.rules)
    for name, axes, size in zip(names, spec, shape, strict=False):
      ways = self._ways(axes)
      if size % ways:
        raise UserError(
          f'parameter {where}: its dimension "{name}" of {size} cannot be divided by '
          f"config.mesh.{axes}={ways}; change the model's size or the mesh"
        )
    return spec

  def _ways(self, axes: Any) -> int:
    return int(np.prod([self.mesh.shape[a] for a in np.atleast_1d(axes) if a]))


@dataclasses.dataclass(frozen=True)
class Pmap:
  """`jax.pmap` with every array replicated; the step sums over `axis_name` itself.

  Attributes:
    axis_name: the name of the devices' axis.
  """

  axis_name: str = "data"

  def init(self, make_state: Callable[..., TrainState], rng: jax.Array, *args: Any) -> TrainState:
    """Returns make_state(rng, *args), unboxed, one copy per device (a leading axis)."""
    return self.replicate(jax.jit(lambda *a: nn.unbox(make_state(*a)))(rng, *args))

  def put(self, path: str, array: Any, names: tuple[str | None, ...]) -> Any:
    """Returns a parameter as it is: `init` makes the copies."""
    del path, names
    return array

  def share(self) -> tuple[int, int]:
    """Returns (0, 1): a single process holds all rows."""
    return 0, 1

  def batch(self, tree: Any, rows: int | None = None) -> Any:
    """Splits [B, ...] host arrays into [devices, B / devices, ...].

    Raises:
      UserError: if the rows cannot be divided by the devices.
    """
    del rows  # A single process has all of them.
    n = jax.local_device_count()
    _check_rows(tree, n, "the devices (config.mesh.kind=pmap)")
    return jax.tree.map(lambda x: np.reshape(x, (n, -1, *np.shape(x)[1:])), tree)

  def compile(self, fn: Callable, *, donate: bool = True) -> Callable:
    """Compiles `fn` for every device; with `donate`, its first argument's memory is given up."""
    return jax.pmap(fn, axis_name=self.axis_name, donate_argnums=(0,) if donate else ())

  def under(self, fn: Callable) -> Callable:
    """Returns `fn`: what is not `compile`d runs on one device."""
    return fn

  def rows(self, tree: Any) -> Any:
    """Returns `tree`, as plain functions read it."""
    return tree

  def fetch(self, tree: Any) -> Any:
    """Returns the first device's copy as numpy."""
    return jax.tree.map(_first_on_host, tree)

  def unreplicate(self, tree: Any) -> Any:
    """Returns one copy of `tree` for checkpoints and plain jit: the first device's."""
    return jax.tree.map(_first, tree)

  def replicate(self, tree: Any) -> Any:
    """Returns a copy of `tree` per local device, under a new leading axis."""
    n = jax.local_device_count()
    copy = jax.pmap(lambda _, x: x, axis_name=self.axis_name, in_axes=(0, None))
    return copy(jnp.arange(n), tree)


Placement = MeshJit | Pmap


def to_host(tree: Any) -> Any:
  """Returns global arrays as numpy, whole, in every process; all of them must call it."""
  if jax.process_count() == 1:
    return jax.device_get(tree)

  def one(x: Any) -> Any:
    apart = isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated)
    return multihost_utils.process_allgather(x, tiled=True) if apart else jax.device_get(x)

  return jax.tree.map(one, tree)


def _keys(path: tuple) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")


def _first(x: Any) -> Any:
  shard = x.addressable_shards[0].data if isinstance(x, jax.Array) else x
  return shard[0]


def _first_on_host(x: Any) -> Any:
  if isinstance(x, jax.Array) and not jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    x = np.asarray(x.addressable_shards[0].data)
  return _first(x)


def _check_rows(tree: Any, ways: int, where: str, rows: int | None = None) -> None:
  for leaf in jax.tree.leaves(tree):
    size = np.shape(leaf)[0] if rows is None else rows
    if size % ways:
      raise UserError(
        f"a batch of {size} rows cannot be divided by {ways}, {where}; make "
        "config.batch a multiple of it"
      )
