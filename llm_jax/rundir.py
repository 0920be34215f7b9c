"""A run's directory: its config, overrides and provenance, written once and compared ever after."""

import contextlib
import dataclasses
import datetime
import fcntl
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llm_jax import config
from llm_jax.errors import UserError

PACKAGES = (
  "llm_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy",
  "tensorflow-datasets", "sentencepiece", "trafilatura", "warcio", "ftfy", "xxhash",
)  # fmt: skip
MAX_DIFF = 200_000  # Characters of `git diff` kept.
_PATIENCE = 3.0  # Seconds that workers of a process that was killed may take to end.
RECORDS = ("config.json", "overrides.json", "info.json")
# What a stage says of the files that it read (data/intake.py): that is no progress yet.
DATA, QUARANTINE = "data.json", "quarantine.jsonl"

_SECRETS = (
  # name = value, where the name says that the value is a secret; "token:name" is of a module.
  (
    re.compile(
      # Bounds: without them a line of a megabyte, as diffs have them, would take hours.
      r"""(?ix) ( (?: api_?key | access_?key | secret | passwo?r?d | credential
          | (?<![a-z]) token (?![a-z]) (?! :[a-z_]+ (?: \W | $ ) ) )
          [\w-]{0,40} ["']? \s{0,9} [:=] \s{0,9} ["']? ) [^\s"',;]{8,} """
    ),
    r"\1[redacted]",
  ),
  # Values whose shape is that of a well-known secret, whatever they are called.
  (re.compile(r"\b(hf_|gh[opsu]_|github_pat_|sk-|AKIA|xox[abp]-)[\w-]{12,}"), "[redacted]"),
  (re.compile(r"(://)[^/\s:@]+:[^/\s@]+@"), r"\1[redacted]@"),
)


@contextlib.contextmanager
def launch(
  cfg: Any,
  workdir: str | os.PathLike[str],
  overrides: Mapping[str, Any] | None = None,
  argv: Sequence[str] = (),
  compiled: Mapping[str, str] | None = None,
) -> Iterator[None]:
  """`start`, then the stage in the block; a first launch refused by the stage leaves no trace.

  The directory is locked meanwhile: two processes would write over each other's files. The lock
  goes with the process, however it ends.

  If the block raises UserError, the directory held no run before and the block made no file in
  it, then the records, empty directories and whatever `start` made are removed again: the
  corrected command would otherwise be refused as another config. Any other file is progress,
  and any other error may be resumed from; then everything stays.

  Args and raises: those of `start`, and what the block raises.
  """
  path = pathlib.Path(workdir)
  first = not any(os.path.lexists(path / name) for name in RECORDS)
  before = set(path.rglob("*")) if first else set()
  made = [p for p in (path, *path.parents) if not os.path.lexists(p)]
  try:
    with _locked(path):
      start(cfg, workdir, overrides, argv, compiled)
      yield
  except InUse:
    raise
  except UserError:
    if first:
      _forget(path, before, made)
    raise


class InUse(UserError):
  """Another process works in the directory."""


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
  try:
    path.mkdir(parents=True, exist_ok=True)
    held = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
  except OSError as error:
    raise UserError(
      f"--workdir={path} cannot be written ({error.strerror}): use another --workdir"
    ) from error
  try:
    deadline = time.monotonic() + _PATIENCE
    while not _lock(held, path):
      if time.monotonic() > deadline:
        raise InUse(
          f"--workdir={path} is in use by another process: wait until it is done, stop it, or use"
          " another --workdir"
        )
      time.sleep(0.1)
    yield
  finally:
    os.close(held)


def _lock(held: int, path: pathlib.Path) -> bool:
  """Whether the directory is ours now."""
  try:
    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except OSError as error:
    print(
      f"note: {path} is not locked, as its file system has no locks ({error.strerror}): see that "
      "no other process uses it",
      file=sys.stderr,
    )
  return True


def start(
  cfg: Any,
  workdir: str | os.PathLike[str],
  overrides: Mapping[str, Any] | None = None,
  argv: Sequence[str] = (),
  compiled: Mapping[str, str] | None = None,
) -> None:
  """Makes `workdir` the directory of a run of `cfg`, or checks that it is one already.

  Writes config.json (every field), overrides.json (the fields that the command line set) and
  info.json (one entry a launch: time, command, versions, git revision and diff, how programs are
  compiled; not the rest of the environment), all with secrets redacted: two configs that differ in
  a secret alone are the same. Each file appears whole or not at all.

  Args:
    cfg: a dataclass of llm_jax.config.
    workdir: made if missing.
    overrides: dotted field name -> value.
    argv: the command, for info.json.
    compiled: what programs are compiled with, and where they are kept, for info.json.

  Raises:
    UserError: if the directory belongs to a run of another config (nothing is written then), or
      cannot be written.
  """
  path = pathlib.Path(workdir)
  resolved, usual = (redacted(dataclasses.asdict(x)) for x in (cfg, type(cfg)()))
  if (path / "config.json").exists():
    _check_same(resolved, read_json(path / "config.json"), path, usual)
  launches = read_json(path / "info.json") if (path / "info.json").exists() else []
  try:
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / "config.json", resolved)
    write_json(path / "overrides.json", redacted(dict(overrides or {})))
    write_json(path / "info.json", [*launches, provenance(argv, compiled)])
  except OSError as error:
    raise UserError(
      f"--workdir={path} cannot be written ({error.strerror}): use another --workdir"
    ) from error


def provenance(
  argv: Sequence[str] = (), compiled: Mapping[str, str] | None = None
) -> dict[str, Any]:
  """When, how and from which code a run was launched, with secrets redacted."""
  return {
    "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "command": [redact(word) for word in argv],
    "python": platform.python_version(),
    "platform": platform.platform(),
    "versions": _versions(),
    "compiled": {name: redact(text) for name, text in (compiled or {}).items()},
    "git": _git(pathlib.Path(__file__).resolve().parents[1]),
  }


def redact(text: str) -> str:
  """Returns `text` without values that are, or are named as, a password or a key."""
  for pattern, replacement in _SECRETS:
    text = pattern.sub(replacement, text)
  return text


def redacted(value: Any, name: str = "") -> Any:
  """Returns a value of JSON with `redact` applied to its texts.

  Args:
    value: texts, numbers, lists and mappings; tuples become lists.
    name: of the field that holds it.
  """
  if isinstance(value, Mapping):
    return {key: redacted(inner, str(key)) for key, inner in value.items()}
  if isinstance(value, list | tuple):
    return [redacted(inner, name) for inner in value]
  if not isinstance(value, str):
    return value
  return redact(f"{name}={value}").removeprefix(f"{name}=")


def write_json(path: pathlib.Path, value: Any, shared: bool = False) -> None:
  """Writes `value` as JSON so that a reader sees the old file or the new one, never a part.

  What a kill leaves of it on the way is replaced when the file is written again.

  Args:
    path: of the file.
    value: what it is to hold.
    shared: whether several processes may write it at once; then what a kill leaves stays.
  """
  own = f".{os.getpid()}" if shared else ""
  temporary = path.with_name(f".{path.name}{own}.tmp")
  temporary.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")
  temporary.replace(path)


def read_json(path: pathlib.Path) -> Any:
  """Returns what a record of a run holds.

  Raises:
    UserError: if it cannot be read.
  """
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise UserError(
      f"{path} cannot be read as JSON ({error}): use another --workdir or delete it"
    ) from error


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Returns {"optimizer.lr": 0.001, ...} for nested dicts."""
  flat = {}
  for name, value in tree.items():
    if isinstance(value, Mapping):
      flat.update(flatten(value, f"{prefix}{name}."))
    else:
      flat[prefix + name] = value
  return flat


def _forget(path: pathlib.Path, before: set[pathlib.Path], made: list[pathlib.Path]) -> None:
  """Removes the records and the new directories, unless there is another new file.

  What the error may point to, the rows that cannot be read, stays.
  """
  records = [path / name for name in (*RECORDS, DATA)]
  new = set(path.rglob("*")) - before - {*records, path / QUARANTINE}
  if any(p.is_symlink() or not p.is_dir() for p in new):
    return
  for record in records:
    record.unlink(missing_ok=True)
  # Children before parents; one that somebody else fills meanwhile stays.
  with contextlib.suppress(OSError):
    for directory in [*sorted(new, reverse=True), *made]:
      directory.rmdir()


def differences(
  new: Mapping[str, Any], old: Mapping[str, Any], usual: Mapping[str, Any]
) -> list[str]:
  """Returns a line for each field that differs.

  Args:
    new: a config, as nested dicts.
    old: one that was read from a file; fields that there were not then have their usual value.
    usual: the defaults.
  """
  # Through JSON, so that a tuple equals the list that it became in the file.
  new, usual = (flatten(json.loads(json.dumps(x, default=str))) for x in (new, usual))
  old, absent = flatten(old), object()
  added = {name: value for name, value in usual.items() if name not in old}
  return [
    f"config.{name} is {_show(old, name)} there and {_show(new, name)} now"
    for name in sorted({*new, *old})
    if new.get(name, absent) != (added | old).get(name, absent)
    and not set(name.split(".")) & set(config.HOW)
  ]


def _check_same(
  new: Mapping[str, Any], old: Any, path: pathlib.Path, usual: Mapping[str, Any]
) -> None:
  differing = differences(new, old, usual)
  if differing:
    more = f" (and {len(differing) - 4} more)" if len(differing) > 4 else ""
    raise UserError(
      f"{path} holds a run of another config: {', '.join(differing[:4])}{more}; "
      "use another --workdir or delete it"
    )


def _show(flat: Mapping[str, Any], name: str) -> str:
  return json.dumps(flat[name]) if name in flat else "absent"


def _versions() -> dict[str, str]:
  versions = {}
  for package in PACKAGES:
    try:
      versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      versions[package] = ""
  return versions


def _git(root: pathlib.Path) -> dict[str, Any]:
  """Revision, changed files and diff of the source tree; empty where it is not a checkout."""
  if not (root / ".git").exists():
    return {"revision": "", "status": [], "diff": ""}
  diff = redact(_run_git(root, "diff", "HEAD"))
  if len(diff) > MAX_DIFF:
    diff = diff[:MAX_DIFF] + f"\n[{len(diff) - MAX_DIFF} more characters]\n"
  return {
    "revision": _run_git(root, "rev-parse", "--verify", "--quiet", "HEAD").strip(),
    "status": _run_git(root, "status", "--porcelain").splitlines(),
    "diff": diff,
  }


def _run_git(root: pathlib.Path, *words: str) -> str:
  """The output of a git command, or "" where git is missing, fails or hangs."""
  try:
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, timeout=20, check=False)
  except (OSError, subprocess.TimeoutExpired) as error:
    print(f"note: no git information in info.json ({error})", file=sys.stderr)
    return ""
  return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""
