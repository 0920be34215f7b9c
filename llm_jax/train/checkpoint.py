"""Checkpoints on disk: Orbax commits them, a SHA-256 manifest tells whether they are whole."""

import hashlib
import json
import logging as std_logging
import os
import pathlib
import shutil
import types
from typing import Any

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from absl import logging

from llm_jax.errors import UserError
from llm_jax.train import processes
from llm_jax.train.faults import Faults
from llm_jax.types import Params

_MANIFEST = "sha256.json"
# Of optax' ScheduleFreeState; its base_optimizer_state is not needed to evaluate.
_AVERAGE = {"b1", "z", "weight_sum", "max_lr", "step_count"}


class Checkpoints:
  """The newest `keep` checkpoints of a directory.

  `save` returns when the checkpoint is committed: a process that is killed at any moment leaves the
  previous one usable. `restore` checks every byte against the hashes that were taken at the commit,
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

  def save(self, step: int, state: Any, extra: dict | None = None) -> None:
    """Writes `state` (a pytree of arrays) and `extra` (JSON) under `step`; returns when committed.

    Raises:
      UserError: if the disk is full, or would be: then nothing is written.
    """
    state = jax.tree.map(_one_copy, state)
    self._check_space(step, state)
    args = {"state": ocp.args.StandardSave(state), "extra": ocp.args.JsonSave(extra or {})}
    try:
      self._faults.at_save()
      with _quiet():
        self._manager.save(step, args=ocp.args.Composite(**args), force=True)
        self._manager.wait_until_finished()
    except Exception as e:
      if "No space left" not in str(e):
        raise
      raise self._full(step, "no space left") from e
    self._faults.at_save("commit")
    _write_manifest(self.directory / str(step))

  def _check_space(self, step: int, state: Any) -> None:
    """A save that cannot be finished would leave a full disk to everyone."""
    needed = sum(x.nbytes for x in jax.tree.leaves(state)) // jax.process_count()
    place = next(p for p in (self.directory, *self.directory.parents) if p.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
      raise self._full(step, f"{needed:,} bytes are needed and {free:,} are free")

  def _full(self, step: int, why: str) -> UserError:
    before = latest_step(self.directory)
    goes_on = f"goes on from step {before}" if before is not None else "begins anew"
    return UserError(
      f"{why} to save step {step} in {self.directory}; free some and start again: the run {goes_on}"
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
      damage = _damage(self.directory / str(step))
      if not damage:
        return self._read(step, like)
      logging.error("Checkpoint %s/%d is damaged (%s).", self.directory, step, damage)
      self.close()
      bad, aside = self.directory / str(step), self.directory / f"{step}.damaged"
      processes.first(lambda bad=bad, aside=aside: os.replace(bad, aside))
    return None

  def latest_step(self) -> int | None:
    """Returns the step of the newest committed checkpoint, or None: the same in every process."""
    return processes.agree(latest_step(self.directory))

  def wait(self) -> None:
    """Returns when everything is on disk (`save` waits by itself)."""
    if self._open is not None:
      self._open.wait_until_finished()

  def close(self) -> None:
    """Frees what the manager holds; the next call opens it again."""
    if self._open is not None:
      self._open.close()
      self._open = None

  def _read(self, step: int, like: Any) -> tuple[Any, dict]:
    state, extra = ocp.args.StandardRestore(like), ocp.args.JsonRestore()
    try:
      with _quiet():
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
        max_to_keep=self._keep,
        keep_period=self._every or None,
        create=True,
        enable_async_checkpointing=False,
        cleanup_tmp_directories=True,
      )
      with _quiet():
        self._open = ocp.CheckpointManager(self.directory, options=options)
    return self._open


def latest_step(directory: str | os.PathLike) -> int | None:
  """Returns the step of the newest committed checkpoint of `directory`, or None."""
  directory = pathlib.Path(directory)
  if not directory.is_dir():
    return None
  # Orbax commits by renaming "<step>.orbax-checkpoint-tmp" to "<step>".
  return max((int(p.name) for p in directory.iterdir() if p.name.isdigit()), default=None)


def fingerprint(directory: str | os.PathLike) -> str:
  """Returns what changes when the newest checkpoint of a workdir does; "" if there is none."""
  path = pathlib.Path(directory) / "checkpoints"
  step = latest_step(path)
  if step is None:
    return ""
  manifest = path / str(step) / _MANIFEST
  return f"{step}:{_sha256(manifest)}" if manifest.exists() else f"{step}:"


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
  if damage := _damage(path / str(step)):
    raise UserError(f"the checkpoint {path}/{step} is damaged ({damage}); delete it or train again")
  with _quiet(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
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


def _one_copy(x: Any) -> Any:
  # Orbax would let each replica write a slice, and compile one program per shape for it.
  if isinstance(x, jax.Array) and jax.process_count() == 1 and x.sharding.is_fully_replicated:
    return x.addressable_shards[0].data
  return x


def _write_manifest(step_dir: pathlib.Path) -> None:
  # The first process' list: another one may not see all files of a shared disk yet.
  names = processes.agree([str(p.relative_to(step_dir)) for p in _files(step_dir)])
  parts = processes.gather({name: _sha256(step_dir / name) for name in _mine(names)})
  hashes = {name: digest for part in parts for name, digest in part.items()}

  def write() -> None:
    temporary = step_dir / (_MANIFEST + ".tmp")
    temporary.write_text(json.dumps({name: hashes[name] for name in names}, indent=1))
    os.replace(temporary, step_dir / _MANIFEST)

  processes.first(write)


def _damage(step_dir: pathlib.Path) -> str:
  """Returns what is wrong with a committed checkpoint, or ""; the same in every process.

  One without a manifest was committed right before the process was killed: it is whole.
  """
  manifest = step_dir / _MANIFEST
  text = manifest.read_text(errors="replace") if manifest.exists() else "{}"
  found = processes.agree(text)
  try:
    hashes = json.loads(found)
  except ValueError:
    return f"{_MANIFEST} is no JSON"
  return next(filter(None, processes.gather(_first_damage(step_dir, hashes))), "")


def _first_damage(step_dir: pathlib.Path, hashes: dict[str, str]) -> str:
  """What is wrong with this process' part of the files, or ""."""
  for name in _mine(list(hashes)):
    if not (step_dir / name).is_file():
      return f"{name} is missing"
    if _sha256(step_dir / name) != hashes[name]:
      return f"{name} has changed since it was written"
  return ""


def _mine(names: list[str]) -> list[str]:
  return names[jax.process_index() :: jax.process_count()]


def _files(step_dir: pathlib.Path) -> list[pathlib.Path]:
  return sorted(p for p in step_dir.rglob("*") if p.is_file() and not p.name.startswith(_MANIFEST))


def _sha256(path: pathlib.Path) -> str:
  with open(path, "rb") as f:
    return hashlib.file_digest(f, "sha256").hexdigest()


class _quiet:
  """Keeps Orbax's own log lines out of a run's log; errors are raised, not logged."""

  def __enter__(self) -> None:
    self._logger = std_logging.getLogger("absl")
    self._level = self._logger.level
    self._logger.setLevel(std_logging.ERROR)

  def __exit__(self, *exc: object) -> None:
    self._logger.setLevel(self._level)
