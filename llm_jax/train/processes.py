"""What many processes do together, and what the first of them does alone.

With one process all of this is immediate. Otherwise every process must call these functions, in the
same order. Values are JSON.
"""

import functools
import hashlib
import itertools
import json
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from llm_jax.errors import UserError

_HEAD = 256  # Bytes of the first exchange, of which four are the size.
_LONGEST = 3_600_000  # Milliseconds at a barrier.
_EACH = "__processes__"
# Barriers and values need names that were never used.
_numbers, _asides = itertools.count(), itertools.count()


def primary() -> bool:
  """Whether this is the first process, which alone writes and prints."""
  return jax.process_index() == 0


def say(text: str) -> None:
  """Prints a line to the terminal (stderr), once."""
  if primary():
    print(text, file=sys.stderr, flush=True)


def gather(value: Any) -> list[Any]:
  """Returns the value of every process, in their order."""
  if jax.process_count() == 1:
    return [value]
  text = json.dumps(value).encode()
  head = np.zeros(_HEAD, np.uint8)
  head[:4] = np.frombuffer(len(text).to_bytes(4, "little"), np.uint8)
  head[4 : 4 + len(text)] = np.frombuffer(text[: _HEAD - 4], np.uint8)
  rows = np.asarray(multihost_utils.process_allgather(head))
  sizes = [int.from_bytes(row[:4].tobytes(), "little") for row in rows]
  if max(sizes) <= _HEAD - 4:
    return [json.loads(row[4 : 4 + n].tobytes()) for row, n in zip(rows, sizes, strict=True)]
  # Powers of two: few shapes compile.
  whole = np.zeros(1 << (max(sizes) - 1).bit_length(), np.uint8)
  whole[: len(text)] = np.frombuffer(text, np.uint8)
  rows = np.asarray(multihost_utils.process_allgather(whole))
  return [json.loads(row[:n].tobytes()) for row, n in zip(rows, sizes, strict=True)]


def aside(value: Any) -> list[Any]:
  """Like `gather`, in a thread beside the one that trains: devices have no part in it.

  One such thread at a time may call it.
  """
  if jax.process_count() == 1:
    return [value]
  # Nothing public gives the client of the coordinator, which Orbax' barriers use too.
  from jax._src import distributed

  client, number = distributed.global_state.client, next(_asides)
  name, mine = f"llm_jax/aside/{number}", jax.process_index()
  client.key_value_set(f"{name}/{mine}", json.dumps(value))
  keys = (f"{name}/{process}" for process in range(jax.process_count()))
  values = [json.loads(client.blocking_key_value_get(key, _LONGEST)) for key in keys]
  if number:  # All have come here, so all have read what was there before.
    client.key_value_delete(f"llm_jax/aside/{number - 1}/{mine}")
  return values


def agree(value: Any) -> Any:
  """Returns the first process' value in all of them."""
  return gather(value if primary() else None)[0]


def first(do: Callable[[], Any]) -> None:
  """Lets the first process do something that is done once, while the others wait.

  Raises:
    UserError: in every process, if the first one fails.
  """
  if jax.process_count() == 1:
    do()
    return
  error: Exception | None = None
  if primary():
    try:
      do()
    except Exception as e:
      error = e
  line = agree(error and (str(error) or type(error).__name__))
  if error is not None:
    raise error
  if line:
    raise UserError(line)


def joint(value: Any) -> Any:
  """Returns what to save once for all: the value if all have the same one, else all of them."""
  digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
  return value if len(set(gather(digest))) == 1 else {_EACH: gather(value)}


def own(saved: Any) -> Any:
  """Returns this process' value of what `joint` gave.

  Raises:
    UserError: if they differed, and there were more or fewer processes then.
  """
  if not isinstance(saved, dict) or saved.keys() != {_EACH}:
    return saved
  values = saved[_EACH]
  if len(values) != jax.process_count():
    raise UserError(
      f"{len(values)} processes read the data of this run, each from a place of its own, and now "
      f"there are {jax.process_count()}: start {len(values)} to go on"
    )
  return values[jax.process_index()]


def barrier() -> None:
  """Returns when all processes have come here."""
  if jax.process_count() > 1:
    ocp.multihost.get_barrier_sync_fn()(key=f"llm_jax/{next(_numbers)}", timeout_ms=_LONGEST)


def highest(value: int) -> jax.Array:
  """Returns the largest value of all processes, on its way: only who reads it waits for it."""
  everywhere, largest = _everywhere()
  mine = np.full(1, value, np.int32)
  shape = (jax.device_count(),)
  return largest(jax.make_array_from_callback(shape, everywhere, lambda _: mine))


@functools.cache
def _everywhere() -> tuple[NamedSharding, Callable[[jax.Array], jax.Array]]:
  mesh = Mesh(np.array(jax.devices()), ("all",))
  largest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, P()))
  return NamedSharding(mesh, P("all")), largest
