"""Feeds what others may have written, broken at random, to all that reads it.

python -m tools.fuzz --cases=50000 --seed=0
python -m tools.fuzz --cases=2000 --only=weights,requests
python -m tools.fuzz --case=4711

Four kinds, in turn: weights (safetensors, config.json, adapters, tokenizers, convert_hf), rows
(files of every format, to batches), messages (conversations, on the endpoint's way to a model) and
requests (to the endpoint and the playground). Each case is taken, or refused as its reader refuses;
anything else is a problem, and --case repeats it alone: an exception, more than one line, a status
of 500 or more, a control token that a text gave, a file that is half there, a case of more than
--limit seconds, or more memory than --memory. Needs the extras data and web. Broken corpora:
tools/fuzz_readers.py.
"""

import argparse
import contextlib
import dataclasses
import faulthandler
import importlib
import logging
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, NamedTuple, Protocol

from llm_jax.errors import UserError
from tools._fuzz_result import Result

KINDS = ("weights", "rows", "messages", "requests")
_WARM = 0.1  # Part of the cases after which memory may grow by no more than --memory,
_LEAST_WARM = 200  # and at least so many: programs are compiled, tables filled.
_ROOM = 6 << 30  # Bytes of address space that cases may take: more is no memory but an error.
_STUCK = 6  # Times the limit after which a case that no signal stops ends the program.
# Python runs no handler while a C library is at work, so another process looks at the clock.
_WATCH = """
import os, select, sys
number = b"none"
while select.select([0], [], [], float(sys.argv[1]))[0]:
  got = os.read(0, 65536)
  if not got:
    sys.exit()
  number = got.split()[-1]
print("case", number.decode(), "hangs, and cannot be stopped", file=sys.stderr, flush=True)
os.kill(int(sys.argv[2]), 6)
"""


class World(Protocol):
  """What cases of one kind need, made once."""

  def case(self, rng: random.Random) -> Result:
    """Makes an input, has it read, and judges what came of it."""
    ...

  def close(self) -> None:
    """Ends what runs in the background."""
    ...


class Done(NamedTuple):
  """A case that was run."""

  number: int
  kind: str
  result: Result
  seconds: float


@dataclasses.dataclass
class Tally:
  """What came of the cases of one kind."""

  cases: int = 0
  accepted: int = 0
  slowest: float = 0.0
  slow: int = 0  # Number of the slowest.
  problems: int = 0

  def add(self, done: Done) -> None:
    """Counts a case."""
    self.cases += 1
    self.accepted += done.result.accepted
    self.problems += bool(done.result.problem)
    if done.seconds >= self.slowest:
      self.slowest, self.slow = done.seconds, done.number


def main(argv: list[str] | None = None) -> int:
  """Prints each problem and a Markdown table; returns 1 if there is a problem, 2 for bad input."""
  options = _parser().parse_args(argv)
  os.environ.setdefault(
    "JAX_DISABLE_MOST_OPTIMIZATIONS", "1"
  )  # To compile takes longer than to run.
  try:
    kinds = _kinds(options)
    logging.disable(logging.CRITICAL)  # Refusals are logged by the thousand.
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
      return _run(options, kinds, pathlib.Path(folder))
  except UserError as error:
    print("error:", error, file=sys.stderr)
    return 2
  finally:
    logging.disable(logging.NOTSET)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument("--cases", type=int, default=2000)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--only", default=",".join(KINDS), help="kinds, with commas")
  parser.add_argument("--case", type=int, default=-1, help="number of the only one to run")
  parser.add_argument("--limit", type=float, default=10.0, help="seconds of a case")
  parser.add_argument("--memory", type=float, default=300.0, help="MB that a run may grow by")
  return parser


def _kinds(options: argparse.Namespace) -> list[str]:
  given = options.only.split(",")
  unknown = [name for name in given if name not in KINDS]
  if unknown or options.cases < 1:
    raise UserError(
      f"--only={options.only} --cases={options.cases}: kinds are {', '.join(KINDS)}, and there is "
      "at least one case"
    )
  return [KINDS[options.case % len(KINDS)]] if options.case >= 0 else given


def _run(options: argparse.Namespace, kinds: list[str], folder: pathlib.Path) -> int:
  tallies = {kind: Tally() for kind in kinds}
  numbers = [options.case] if options.case >= 0 else numbered(options.cases, kinds)
  warm, problems, begin = max(int(_WARM * len(numbers)), _LEAST_WARM), [], time.perf_counter()
  with contextlib.ExitStack() as stack:
    worlds = {}
    for kind in kinds:
      worlds[kind] = make(kind, folder / kind)
      stack.callback(worlds[kind].close)
    stack.enter_context(_bounded())
    watch = stack.enter_context(_watched(_STUCK * options.limit))
    held = 0.0
    for i, done in enumerate(run(worlds, numbers, options.seed, options.limit, watch)):
      tallies[done.kind].add(done)
      if i == warm:
        held = peak()
      if done.result.problem:
        problems.append(done)
        if len(problems) <= 50:
          print(f"case {done.number}: {done.kind}: {done.result.problem}", flush=True)
  grown = peak() - held if held else 0.0
  print(table(tallies))
  note = f"after the first {warm:,} cases by {grown:.0f} MB" if held else "too few to see it grow"
  print(
    f"\n{time.perf_counter() - begin:.0f} s, seed {options.seed}; peak memory {peak():.0f} MB, "
  )
  print(f"grown {note}")
  if grown > options.memory:
    print(f"problem: memory grew by more than {options.memory:.0f} MB")
  return int(bool(problems) or grown > options.memory)


def numbered(cases: int, kinds: Sequence[str]) -> list[int]:
  """Numbers of so many cases of these kinds: case n is of kind n mod 4, whatever others run."""
  own = [KINDS.index(kind) for kind in kinds]
  return [i // len(own) * len(KINDS) + own[i % len(own)] for i in range(cases)]


def make(kind: str, folder: pathlib.Path) -> World:
  """What cases of a kind need, with a folder for their files.

  Raises:
    UserError: if a package is missing.
  """
  folder.mkdir(parents=True, exist_ok=True)
  try:
    return importlib.import_module(f"tools._fuzz_{kind}").World(folder)
  except ModuleNotFoundError as error:
    raise UserError(f"{error.name} is missing: pip install 'llm_jax[data,web]'") from error


def run(
  worlds: Mapping[str, World],
  numbers: Sequence[int],
  seed: int,
  limit: float = 10.0,
  watch: IO[bytes] | None = None,
) -> Iterator[Done]:
  """Runs cases; the same ones for the same seed and number.

  Args:
    worlds: by the names of kinds.
    numbers: of the cases.
    seed: of all of them.
    limit: seconds from which a case is a problem, and is stopped; main thread only.
    watch: gets the number of each case before it begins.
  """
  for number in numbers:
    kind = KINDS[number % len(KINDS)]
    rng = random.Random(f"{seed}:{number}")
    begin = time.perf_counter()
    if watch:
      watch.write(b"%d\n" % number)
    with _stopped(limit):
      result = _judged(worlds[kind], rng)
    seconds = time.perf_counter() - begin
    if seconds > limit and not result.problem:
      result = Result(False, f"took {seconds:.1f} s")
    yield Done(number, kind, result, seconds)


class _Hang(BaseException):
  """A case took too long; nothing may catch it."""


def _judged(world: World, rng: random.Random) -> Result:
  try:
    return world.case(rng)
  except _Hang as error:
    return Result(False, f"hangs at {_place(error)}")
  except Exception as error:
    return Result(False, f"{type(error).__name__} at {_place(error)}: {str(error)[:300]!r}")


def _place(error: BaseException) -> str:
  """The last file and line of an error, of the library if it went through it."""
  frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
  frames = [f for f in frames if "/llm_jax/" in f.filename] or frames
  return f"{pathlib.Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"


@contextlib.contextmanager
def _stopped(limit: float) -> Iterator[None]:
  """Raises _Hang in the block after `limit` seconds."""

  def hang(*_: object) -> None:
    raise _Hang

  before = signal.signal(signal.SIGALRM, hang)
  signal.setitimer(signal.ITIMER_REAL, limit)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _watched(seconds: float) -> Iterator[IO[bytes]]:
  """What is to be told of each case, and ends this program if it hears nothing for so long."""
  faulthandler.enable(file=sys.__stderr__)  # Says where it was.
  command = [sys.executable, "-c", _WATCH, str(seconds), str(os.getpid())]
  with subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0) as process:
    assert process.stdin
    yield process.stdin


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
  """Bounds the address space to what is taken now and some more."""
  before = resource.getrlimit(resource.RLIMIT_AS)
  taken = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
  most = taken + _ROOM
  if before[1] != resource.RLIM_INFINITY:
    most = min(most, before[1])
  resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_AS, before)


def peak() -> float:
  """The most memory that this process had so far, MB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def table(tallies: Mapping[str, Tally]) -> str:
  """A Markdown table, a row a kind."""
  lines = ["| kind | cases | accepted | refused | slowest ms | (case) | problems |"]
  lines.append("|---|" + "--:|" * 6)
  for kind, tally in tallies.items():
    refused = tally.cases - tally.accepted - tally.problems
    cells = (tally.cases, tally.accepted, refused, round(1000 * tally.slowest))
    shown = " | ".join(f"{n:,}" for n in cells)
    lines.append(f"| {kind} | {shown} | {tally.slow} | {tally.problems:,} |")
  return "\n".join(lines)


if __name__ == "__main__":
  sys.exit(main())
