"""Checkpoints on disk: Orbax commits them in a thread, a manifest tells whether they are whole."""

import contextlib
import errno
import logging as std_logging
import os
import pathlib
import shutil
import sys
import threading
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from absl import logging

from llm_jax.errors import UserError
from llm_jax.train import allocator, manifest, processes, retention
from llm_jax.train.faults import Faults
from llm_jax.types import Params

_LONGEST = 4 * 3600  # Seconds that a save may take.
# Beside a full disk, in the system's words: what a user can do something about.
_MENDED = tuple(
  os.strerror(n)
  for n in (errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO, errno.ESTALE)
)
# Of optax' ScheduleFreeState; its base_optimizer_state is not needed to evaluate.
_AVERAGE = {"b1", "z", "weight_sum", "max_lr", "step_count"}


class Checkpoints:
  """The newest `keep` checkpoints of a directory, those of some steps, and the last healthy one.

  `save` returns as soon as the state may change; a thread writes, commits and hashes it meanwhile,
  and `wait` returns when that is done. A process that is killed at any moment leaves the previous
  checkpoint usable. `restore` checks every byte against the hashes that were taken at the commit,
  and goes back to the previous checkpoint if they differ. Of many processes, which share the
  directory, all call every method: each writes, hashes and reads its part.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    keep: int = 2,
    every: int = 0,
    faults: Faults | None = None,
  ):
    """Opens `directory`, which is made by the first save.

    Args:
      directory: of the checkpoints.
      keep: how many of the newest stay.
      every: checkpoints of steps that it divides stay too; 0: none.
      faults: what tests do to it.
    """
    self.directory = pathlib.Path(directory).absolute()
    self._keep, self._every, self._faults = keep, every, faults or Faults({})
    self._open: ocp.CheckpointManager | None = None
    self._writing: threading.Thread | None = None
    self._failed: UserError | Exception | None = None
    self._broken = False  # Whether the manager has failed.

  def save(self, step: int, state: Any, extra: dict | None = None, healthy: bool = False) -> None:
    """Begins to write `state` (a pytree of arrays) and `extra` (JSON) under `step`.

    It waits for the save before. What is not committed when the process is killed is not there.

    Args:
      step: of the state.
      state, extra: may be changed or donated when this returns.
      healthy: whether it replaces the one that stays as the last healthy one.

    Raises:
      UserError: if the disk is full, or would be: then nothing is written; if a quota is used up,
        or the directory cannot be written. Also of the save before.
    """
    self.wait()
    state = jax.tree.map(_held, state)
    self._check_space(step, state)
    args = {"state": ocp.args.StandardSave(state), "extra": ocp.args.JsonSave(extra or {})}
    try:
      self._faults.at_save()
      self._manager.save(step, args=ocp.args.Composite(**args), force=True)
    except Exception as error:
      raise self._told(step, error) from error
    self._writing = threading.Thread(target=self._commit, args=(step, healthy), name="checkpoint")
    self._writing.start()

  def check(self) -> None:
    """Raises what a save failed with, if one did; waits for nothing."""
    if self._failed is not None:
      self.wait()

  def wait(self) -> None:
    """Returns when what was saved is committed and hashed.

    Raises:
      UserError: if the disk is full, or cannot be written.
    """
    if self._writing is not None:
      self._writing.join()
      self._writing = None
    failed, self._failed = self._failed, None
    if failed is not None:
      raise failed

  def _commit(self, step: int, healthy: bool) -> None:
    """The part of a save beside the training."""
    try:
      self._manager.wait_until_finished()
      self._faults.at_save("commit")
      self._settle(step, healthy)
      allocator.trim()  # The copy of the state lay between a step's arrays: a long run grows.
      logging.info("Checkpoint %s/%d is saved.", self.directory, step)
    except Exception as error:
      self._failed = told = self._told(step, error)
      if told is not error:
        told.__cause__ = error

  def finish(self, step: int, healthy: bool = False) -> None:
    """Does what is left to do of the save of a committed step, if a kill came between.

    Args:
      step: of the newest checkpoint.
      healthy: as `save` was told.

    Raises:
      UserError: if the disk is full, or cannot be written.
    """
    if processes.agree((self.directory / str(step) / manifest.NAME).exists()):
      return
    try:
      self._settle(step, healthy)
    except Exception as error:
      raise self._told(step, error) from error

  def _settle(self, step: int, healthy: bool) -> None:
    """What follows a commit. The hashes come last: where they are, nothing is left to do."""
    if processes.primary():
      retention.apply(self.directory, step, healthy, keep=self._keep, every=self._every)
    manifest.write(self.directory / str(step))

  def _check_space(self, step: int, state: Any) -> None:
    """A save that cannot be finished would leave a full disk to everyone."""
    needed = sum(x.nbytes for x in jax.tree.leaves(state)) // jax.process_count()
    place = next(p for p in (self.directory, *self.directory.parents) if p.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
      raise self._full(step, f"{needed:,} bytes are needed and {free:,} are free")

  def _told(self, step: int, error: Exception) -> Exception:
    self._broken, text = True, str(error)
    if "No space left" in text:
      return self._full(step, "no space left")
    found = [reason for reason in _MENDED if reason in text]
    return self._full(step, f"it is not possible ({found[0]})", "mend that") if found else error

  def _full(self, step: int, why: str, todo: str = "free some") -> UserError:
    before = latest_step(self.directory)
    goes_on = f"goes on from step {before}" if before is not None else "begins anew"
    return UserError(
      f"{why} to save step {step} in {self.directory}; {todo} and start again: the run {goes_on}"
    )

  def restore(self, like: Any) -> tuple[Any, dict] | None:
    """Returns (state, extra) of the newest whole checkpoint, or None if there is none.

    A damaged one is set aside as "<step>.damaged" and named in the log.

    Args:
      like: a state of arrays (or ShapeDtypeStructs with shardings) whose shapes, dtypes and
        shardings the restored one gets. It may lie on another mesh than the saved one did.

    Raises:
      UserError: if the checkpoint was written by a run with other parameters or optimizer.
    """
    like = jax.tree.map(_abstract, like)
    while (step := self.latest_step()) is not None:
      self._faults.at_latest(self.directory / str(step))
      damage = manifest.damage(self.directory / str(step))
      if not damage:
        return self._read(step, like)
      logging.error("Checkpoint %s/%d is damaged (%s).", self.directory, step, damage)
      self.close()
      bad, aside = self.directory / str(step), self.directory / f"{step}.damaged"
      processes.first(lambda bad=bad, aside=aside: os.replace(bad, aside))
    return None

  def latest_step(self) -> int | None:
    """Returns the step of the newest committed checkpoint, or None: the same in every process."""
    self.wait()
    return processes.agree(latest_step(self.directory))

  def close(self) -> None:
    """Waits, and frees what the manager holds; the next call opens it again.

    Where it is called because of another error, a save that failed is logged, not raised.
    """
    before = sys.exception()
    try:
      self.wait()
    except UserError as error:
      if before is None:
        raise
      logging.error("%s.", error)
    finally:
      manager, self._open = self._open, None
      if manager is not None:
        # What failed has been told, and Orbax would raise it once more.
        with contextlib.suppress(Exception) if self._broken else contextlib.nullcontext():
          manager.close()
      self._broken = False

  def _read(self, step: int, like: Any) -> tuple[Any, dict]:
    state, extra = ocp.args.StandardRestore(like), ocp.args.JsonRestore()
    try:
      out = self._manager.restore(step, args=ocp.args.Composite(state=state, extra=extra))
    except (ValueError, KeyError, TypeError) as e:
      raise UserError(
        f"the checkpoint {self.directory}/{step} does not fit this run's model and optimizer "
        f"({str(e).splitlines()[0][:200]}); use another workdir or the old config"
      ) from e
    return out["state"], out["extra"]

  @property
  def _manager(self) -> ocp.CheckpointManager:
    if self._open is None:
      options = ocp.CheckpointManagerOptions(
        create=True,
        enable_async_checkpointing=True,
        async_options=ocp.options.AsyncOptions(timeout_secs=_LONGEST),
        cleanup_tmp_directories=True,
      )
      self._open = ocp.CheckpointManager(self.directory, options=options)
    return self._open


def latest_step(directory: str | os.PathLike) -> int | None:
  """Returns the step of the newest committed checkpoint of `directory`, or None."""
  return max(retention.steps(directory), default=None)


def fingerprint(directory: str | os.PathLike) -> str:
  """Returns what changes when the newest checkpoint of a workdir does; "" if there is none."""
  path = pathlib.Path(directory) / "checkpoints"
  step = latest_step(path)
  if step is None:
    return ""
  hashes = path / str(step) / manifest.NAME
  return f"{step}:{manifest.sha256(hashes)}" if hashes.exists() else f"{step}:"


def load_params(directory: str | os.PathLike) -> Params:
  """Returns the parameters of a directory's newest checkpoint: nested dicts of numpy arrays.

  Of a schedule-free run they are the average x, not the point y that it would go on from.

  Args:
    directory: a directory of checkpoints, or a workdir with one under `checkpoints`.

  Raises:
    UserError: if there is no checkpoint, or the newest one is damaged.
  """
  path = pathlib.Path(directory).absolute()
  path = path / "checkpoints" if (path / "checkpoints").is_dir() else path
  step = latest_step(path)
  if step is None:
    state = "an empty directory" if path.is_dir() else "no such directory"
    raise UserError(f"{directory} has no checkpoint: {state}; run the stage that writes it first")
  if damage := manifest.damage(path / str(step)):
    raise UserError(f"the checkpoint {path}/{step} is damaged ({damage}); delete it or train again")
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    tree = reader.metadata(path / str(step) / "state").item_metadata.tree
    tree = {"params": tree["params"]} | _averages(tree)
    item = jax.tree.map(lambda m: np.zeros(m.shape, m.dtype), tree)
    kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
    args = ocp.args.PyTreeRestore(item=item, restore_args=kinds, partial_restore=True)
    found = reader.restore(path / str(step) / "state", args=args)
  for node in filter(_is_average, jax.tree.leaves(found, is_leaf=_is_average)):
    return optax.contrib.schedule_free_eval_params(types.SimpleNamespace(**node), found["params"])
  return found["params"]


def _averages(tree: dict[str, Any]) -> dict[str, Any]:
  """The part of a stored state that x is computed from; empty unless a run was schedule-free."""
  given = tree.get("opt_state")
  if not any(map(_is_average, jax.tree.leaves(given, is_leaf=_is_average))):
    return {}

  def trim(node: Any) -> Any:
    return {k: node[k] for k in _AVERAGE} if _is_average(node) else node

  return {"opt_state": jax.tree.map(trim, given, is_leaf=_is_average)}


def _is_average(node: Any) -> bool:
  return isinstance(node, dict) and node.keys() >= _AVERAGE


def _abstract(x: Any) -> Any:
  if isinstance(x, jax.Array):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
  return x


def _held(x: Any) -> Any:
  """What a thread may write while the step that follows uses up the array."""
  if not isinstance(x, jax.Array):
    return np.array(x)
  # Orbax would let each replica write a slice, and compile one program per shape for it.
  if jax.process_count() == 1 and x.sharding.is_fully_replicated:
    x = x.addressable_shards[0].data
  # Of a GPU's array Orbax makes a copy on the host, a CPU's it reads in place.
  return jnp.copy(x) if jax.default_backend() == "cpu" else x


class _Quiet(std_logging.Filter):
  """Keeps Orbax's own log out of a run's: what it logs as an error, stacks and all, it raises."""

  def filter(self, record: std_logging.LogRecord) -> bool:
    return "orbax/checkpoint/" not in record.pathname


std_logging.getLogger("absl").addFilter(_Quiet())
