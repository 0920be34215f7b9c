"""Programs that are compiled once: JAX's cache on disk, switched on where a run starts.

JAX is not imported here before it must: it reads its settings when it starts.
"""

import contextlib
import hashlib
import os
import pathlib
import platform
import sys
import time
from collections.abc import Mapping
from typing import Any

LIMIT = 4 * 2**30  # Bytes of a cache of our own.

_FOLDER, _SWITCH = "JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"
_QUICK = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
_SETTLED = 60  # Seconds after which nobody writes a file any more.


def cache(many: bool = False) -> dict[str, str]:
  """Lets JAX keep compiled programs on disk and find them there; returns {"cache": the folder}.

  The folder is JAX_COMPILATION_CACHE_DIR if that is set, else one of this user and kind of CPU
  (`own_folder`) of at most `LIMIT` bytes. JAX_ENABLE_COMPILATION_CACHE=false is none; so is, after
  a warning, a folder that cannot be made. A program that has given JAX a folder keeps it.

  Several runs may share it. A program that is half written is not loaded: JAX warns, and compiles
  it. One that a killed run left so is removed from a folder of our own when a later run starts.

  Args:
    many: whether this is one of many processes. Of those JAX lets the first alone write, so they
      have a cache only if they are told of a folder, which all of them see.
  """
  given, off = os.environ.get(_FOLDER, ""), ("0", "false", "no", "off", "n", "f")
  if os.environ.get(_SWITCH, "").lower() in off or (many and not given):
    return {}
  if "jax" in sys.modules:
    told = sys.modules["jax"].config.jax_compilation_cache_dir
    if told and told != given:
      return {"cache": told}
  folder = given
  try:
    if "://" not in given:  # Those JAX reaches itself.
      folder = given or str(own_folder(os.environ))
      _make(pathlib.Path(folder))
    if not given:
      tidy(pathlib.Path(folder))
  except (OSError, RuntimeError) as error:
    reason = getattr(error, "strerror", None) or error
    text = f"warning: compiled programs are not kept in {folder or '~/.cache'}: {reason}"
    print(f"{text} ({_FOLDER} names another folder)", file=sys.stderr, flush=True)
    _set(_SWITCH, False)
    return {}
  _set(_FOLDER, folder)
  if not os.environ.get(_QUICK):
    _set(_QUICK, 0.1)
  return {"cache": folder}


def own_folder(env: Mapping[str, str]) -> pathlib.Path:
  """Returns the folder of this user for programs of this kind of CPU.

  XLA loads a program that was compiled for another CPU, warns, and may then meet an instruction
  that this one lacks. So hosts that share a home directory have a folder for each kind.
  """
  return home(env) / "compiled" / _cpu()


def home(env: Mapping[str, str]) -> pathlib.Path:
  """Returns this user's folder for what can be made again: in XDG_CACHE_HOME or ~/.cache.

  Raises:
    RuntimeError: if the user has no home directory.
  """
  base = pathlib.Path(env.get("XDG_CACHE_HOME", ""))
  # The XDG base directory specification: a relative path is invalid.
  return (base if base.is_absolute() else pathlib.Path.home() / ".cache") / "llm_jax"


def tidy(folder: pathlib.Path, limit: int = LIMIT, now: float | None = None) -> None:
  """Removes programs that were left half written, and the longest unused above `limit` bytes.

  Each is read whole once, at the first start after it was written.
  """
  now = time.time() if now is None else now
  stamp = folder / ".checked"
  since = stamp.stat().st_mtime if stamp.exists() else 0.0
  programs = []
  for path in folder.glob("*-cache"):
    with contextlib.suppress(FileNotFoundError):  # Another run removes, too.
      stat = path.stat()
      if since <= stat.st_mtime < now - _SETTLED and not _whole(path.read_bytes()):
        path.unlink()
      else:
        programs.append((max(stat.st_atime, stat.st_mtime), stat.st_size, path))
  excess = sum(size for _, size, _ in programs) - limit
  for _, size, path in sorted(programs):
    if excess <= 0:
      break
    path.unlink(missing_ok=True)
    excess -= size
  stamp.touch()
  os.utime(stamp, (now - _SETTLED, now - _SETTLED))


def _make(folder: pathlib.Path) -> None:
  folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # Whoever writes there runs code here.
  if not os.access(folder, os.W_OK | os.X_OK):
    raise PermissionError(13, "Permission denied")


def _cpu() -> str:
  """A name for the CPUs that have the instructions of this one."""
  text = platform.machine() + platform.processor()
  with contextlib.suppress(OSError):
    lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    text += next((line for line in lines if line.startswith(("flags", "Features"))), "")
  return f"{platform.machine()}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _whole(data: bytes) -> bool:
  """Whether a compressed program is complete, as far as this installation can read it."""
  from jax._src import compilation_cache

  compress, decompress = (
    getattr(compilation_cache, f"{name}_executable", None) for name in ("compress", "decompress")
  )
  if compress is None or decompress is None:
    return True  # Another JAX, of which nothing is known.
  if data and data[:2] != compress(b"")[:2]:
    return True  # Another compressor: a Python with other packages shares the folder.
  try:
    decompress(data)
  except Exception:  # Each compressor has errors of its own.
    return False
  return True


def _set(name: str, value: Any) -> None:
  """Sets a variable that JAX reads when it starts, and the same where it has started."""
  os.environ[name] = str(value).lower() if isinstance(value, bool) else str(value)
  if "jax" in sys.modules:
    sys.modules["jax"].config.update(name.lower(), value)
