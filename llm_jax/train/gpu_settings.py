"""What XLA compiles for NVIDIA GPUs with, tried before it is set; nothing here imports JAX."""

import contextlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

from llm_jax import rundir
from llm_jax.errors import UserError
from llm_jax.train import compiling

_LEVEL, _FLAGS = "JAX_OPTIMIZATION_LEVEL", "XLA_FLAGS"
# What NVIDIA advises for training on several GPUs (JAX-Toolbox, GPU_performance.md, 2026):
# collectives beside computation, loops of two rounds. The level stands for all of the flags.
LEVEL = f"{_LEVEL}=O1"
PARTS = (
  "--xla_gpu_enable_latency_hiding_scheduler=true",
  "--xla_gpu_enable_pipelined_all_gather=true",
  "--xla_gpu_enable_pipelined_reduce_scatter=true",
  "--xla_gpu_enable_pipelined_all_reduce=true",
  "--xla_gpu_enable_while_loop_double_buffering=true",
)
_PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin")
_DRIVERS = ("/dev/nvidiactl", "/dev/dxg")
_REFUSED = re.compile(
  r"Unknown flags? in XLA_FLAGS|Couldn't interpret|AttributeError|Invalid value"
)
_PATIENCE = 180  # Seconds for a probe: a GPU's first program.
_PROBE = """
import sys, jax
for name in sys.argv[1:]: getattr(jax.config, name.lower())
jax.jit(lambda x: x + 1)(1.0).block_until_ready()
"""


def apply() -> dict[str, str]:
  """Sets what programs for NVIDIA GPUs are compiled with; returns what holds, for the record.

  Each setting is tried in a process of its own first, as XLA ends a program with a flag that it
  does not know. What came of it is remembered for the installed versions. What the environment
  sets (XLA_FLAGS, JAX_OPTIMIZATION_LEVEL) stays. Without such a GPU nothing is set.

  Returns:
    The variables' values, where they have any; "set" and "refused": the settings, as words.
  """
  found: dict[str, str] = {}
  if uses_cuda(os.environ):
    taken, refused = choose(wanted(os.environ), _remembering(accepted))
    for word in taken:
      name, _, value = word.partition("=")
      flag = name.startswith("--")
      os.environ[_FLAGS if flag else name] = _joined(word) if flag else value
    found = {"set": " ".join(taken), "refused": " ".join(refused)}
  found |= {name: os.environ.get(name, "") for name in (_LEVEL, _FLAGS)}
  return {name: text for name, text in found.items() if text}


def announce(settings: Mapping[str, str], many: bool) -> None:
  """Says in one line what `apply` set and what was refused.

  Args:
    settings: what it returned.
    many: whether this is one of many processes, of which the first one says it.

  Raises:
    UserError: if the processes set different things: their programs would wait for each other.
  """
  own = [settings.get(name, "") for name in ("set", "refused")]
  if many:
    from llm_jax.train import processes

    if any(each != own for each in processes.gather(own)):
      raise UserError(
        f"the processes of this run would compile with different settings: give {_LEVEL}=O1 to all "
        "of them, or O0 for none"
      )
    if not processes.primary():
      return
  if any(own):
    refused = f"; refused by what is installed: {own[1]}" if own[1] else ""
    print(f"compiles with {own[0] or 'no settings'}{refused}", file=sys.stderr, flush=True)


def uses_cuda(env: Mapping[str, str]) -> bool:
  """Whether JAX will compute on NVIDIA GPUs, as far as can be told without it."""
  first = env.get("JAX_PLATFORMS", "").split(",")[0]
  if first not in ("", "cuda", "gpu") or env.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
    return False
  return any(_version(name) for name in _PLUGINS) and any(map(os.path.exists, _DRIVERS))


def wanted(env: Mapping[str, str]) -> tuple[str, ...]:
  """Returns the settings to try: the level, or what it stands for where the user sets a part."""
  if env.get(_LEVEL):
    return ()
  theirs = {word.partition("=")[0] for word in env.get(_FLAGS, "").split()}
  parts = tuple(word for word in PARTS if word.partition("=")[0] not in theirs)
  return (LEVEL,) if parts == PARTS else parts


def choose(
  words: Sequence[str], accepts: Callable[[str], bool | None]
) -> tuple[list[str], list[str]]:
  """Returns (settings to use, settings that are refused).

  Args:
    words: variables "NAME=value" and flags "--xla_name=value". Instead of a level that is refused
      its parts are tried.
    accepts: whether one is known; None: that could not be told, and it is not used.
  """
  answers = {word: accepts(word) for word in words}
  if answers.get(LEVEL, True) is False:
    answers |= {word: accepts(word) for word in PARTS}
  taken = [word for word, answer in answers.items() if answer]
  return taken, [word for word, answer in answers.items() if answer is False]


def accepted(word: str) -> bool | None:
  """Returns whether JAX compiles and runs a program with a setting, in a process of its own.

  None, with a line on stderr, if it fails for another reason: nothing follows from that.
  """
  name, _, value = word.partition("=")
  flag = word.startswith("--")
  own = {_FLAGS: word} if flag else {name: value}
  env = {key: text for key, text in os.environ.items() if key not in (_FLAGS, _LEVEL)} | own
  env |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "JAX_ENABLE_COMPILATION_CACHE": "false"}
  command = [sys.executable, "-c", _PROBE, *([] if flag else [name])]
  try:
    done = subprocess.run(
      command, env=env, capture_output=True, text=True, errors="replace", timeout=_PATIENCE
    )
  except (OSError, subprocess.TimeoutExpired) as error:
    lines = [str(error)]
  else:
    if not done.returncode:
      return True
    if _REFUSED.search(done.stderr):
      return False
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
  print(f"note: {word} could not be tried: {lines[-1][:200]}", file=sys.stderr, flush=True)
  return None


def _remembering(ask: Callable[[str], bool | None]) -> Callable[[str], bool | None]:
  """`ask`, whose answers for the installed versions are kept in a file of this user."""

  def answer(word: str) -> bool | None:
    versions = " ".join(f"{name}={_version(name)}" for name in ("jax", "jaxlib", *_PLUGINS))
    path, known = None, {}
    with contextlib.suppress(OSError, RuntimeError, ValueError):
      path = compiling.home(os.environ) / "xla.json"
      known = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(known.get(versions), dict) and word in known[versions]:
      return known[versions][word]
    found = ask(word)
    if found is not None and path is not None:
      with contextlib.suppress(OSError):  # It is tried again next time.
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        known[versions] = known.get(versions, {}) | {word: found}
        rundir.write_json(path, known, shared=True)
    return found

  return answer


def _joined(word: str) -> str:
  return f"{os.environ.get(_FLAGS, '')} {word}".strip()


def _version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return ""
