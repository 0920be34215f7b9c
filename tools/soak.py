"""Kills a run at random moments for an hour, and compares it with one that nothing happens to.

python -m tools.soak --workdir=runs/soak --minutes=60 -- ppo --config.steps=100000 \
  --config.checkpoint_every=20 --config.keep_every=200

Words behind "--" are an experiment and its flags. It runs twice at the same time: one run gets a
SIGKILL every --kill_every seconds on average, and is started again; the other is left alone. In the
end both are told to stop. Their metrics must be the same to the bit as far as both came (wall times
and memory apart), and so must their parameters at the newest step that both kept a checkpoint of
(config.keep_every). The memory of the run that is left alone, from a sixth of the time on, may grow
by --growth at most, last fifth over first, in the peaks of minutes; so may that of the other one's
lives of a minute and more.
"""

import argparse
import contextlib
import math
import pathlib
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from llm_jax.errors import UserError
from llm_jax.train import checkpoint, metrics, retention
from tools import _figures

KILLED, WHOLE = NAMES = ("killed", "whole")
_GRACE = 120  # Seconds in which a run has to save and leave.
_LEFT = {128 + signal.SIGTERM, -signal.SIGTERM}  # The latter before its first step.
_WARM = 20  # Seconds of a life in which it loads and compiles.
_MOST_OF_A_MINUTE = 40  # Samples, one a second.
_MIB = 1024  # In the units of /proc.


class Life:
  """A process of a run, and how much memory it had when.

  Args:
    words: of the experiment.
    log: file that its output is added to.
  """

  def __init__(self, words: Sequence[str], log: pathlib.Path):
    self._log = open(log, "a")  # noqa: SIM115  For as long as the process lives.
    self.process = subprocess.Popen(
      [sys.executable, "-m", *words], stdout=self._log, stderr=self._log, start_new_session=True
    )
    self.began = time.monotonic()
    self.memory: list[tuple[float, float]] = []  # (seconds since it began, MiB resident).

  def sample(self) -> None:
    """Notes the memory."""
    with contextlib.suppress(OSError, StopIteration):
      lines = pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
      size = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
      self.memory.append((time.monotonic() - self.began, size / _MIB))

  def end(self, number: signal.Signals) -> int:
    """Sends a signal and waits; returns the exit code.

    Raises:
      UserError: if it does not end.
    """
    self.process.send_signal(number)
    try:
      return self.process.wait(_GRACE)
    except subprocess.TimeoutExpired:
      raise UserError(f"{self._log.name}: a run did not leave within {_GRACE} seconds") from None

  def close(self) -> None:
    """Kills it, unless it has ended."""
    self.process.kill()
    self.process.wait()
    self._log.close()


def main(argv: list[str] | None = None) -> int:
  """Prints a table; exit code 1 if runs differ or memory grows, 2 and a line for bad input."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--workdir", type=pathlib.Path, required=True, help="gets both runs")
  parser.add_argument("--minutes", type=float, default=60)
  parser.add_argument("--kill_every", type=float, default=60, help="seconds, the mean")
  parser.add_argument("--growth", type=float, default=0.03, help="part of the memory")
  parser.add_argument("--seed", type=int, default=0, help="of the moments")
  parser.add_argument("--json", type=pathlib.Path, help="gets the figures")
  parser.add_argument("words", nargs="+", help="experiment and its flags")
  options = parser.parse_args(argv)
  figures: dict[str, Any] = {}

  def measure() -> dict[str, Any]:
    figures.update(soak(options))
    return figures

  code = _figures.finish(measure, table, options.json)
  return code or int(bool(figures["problems"]))


def soak(options: argparse.Namespace) -> dict[str, Any]:
  """Runs both; returns the figures, "problems" among them.

  Raises:
    UserError: if a flag is out of bounds, or a run ends by itself or does not end when told to.
  """
  folder = options.workdir
  for name in ("minutes", "kill_every"):
    if not 0 < getattr(options, name) < math.inf:
      raise UserError(f"--{name}={getattr(options, name):g} must be above 0")
  if folder.exists() and any(folder.iterdir()):
    raise UserError(f"--workdir={folder} is not empty: name a new directory")
  folder.mkdir(parents=True, exist_ok=True)
  experiment, *flags = options.words
  words = {n: [f"experiments.{experiment}", f"--workdir={folder / n}", *flags] for n in NAMES}
  lives: dict[str, list[Life]] = {name: [] for name in NAMES}
  try:
    _live(folder, words, lives, options)
    codes = {name: lives[name][-1].end(signal.SIGTERM) for name in NAMES}
  finally:  # Nobody else would: they are in sessions of their own.
    for life in (life for name in NAMES for life in lives[name]):
      life.close()
  found = compare(folder) | memory(lives)
  found |= {"minutes": options.minutes, "kills": len(lives[KILLED]) - 1, "codes": codes}
  return found | {"problems": problems(found, options.growth)}


def _live(
  folder: pathlib.Path,
  words: dict[str, list[str]],
  lives: dict[str, list[Life]],
  options: argparse.Namespace,
) -> None:
  """Starts both runs, and kills one again and again; adds to `lives`.

  Raises:
    UserError: if a run ends by itself.
  """

  def begin(name: str) -> None:
    lives[name].append(Life(words[name], folder / f"{name}.log"))

  for name in NAMES:
    begin(name)
  rng = random.Random(options.seed)
  end = time.monotonic() + 60 * options.minutes
  strike = time.monotonic() + rng.expovariate(1 / options.kill_every)
  while time.monotonic() < end:
    time.sleep(min(1.0, max(0.0, strike - time.monotonic())))
    if time.monotonic() >= strike:
      lives[KILLED][-1].close()
      begin(KILLED)
      strike = time.monotonic() + rng.expovariate(1 / options.kill_every)
    for name in NAMES:
      life = lives[name][-1]
      life.sample()
      if life.process.poll() is not None:
        raise UserError(f"the run of {folder / name} ended by itself: see {folder / name}.log")


def compare(folder: pathlib.Path) -> dict[str, Any]:
  """Returns how far both runs came, and what differs."""
  rows = {name: _rows(folder / name) for name in NAMES}
  last = {name: max(rows[name], default=0) for name in NAMES}
  common = [step for step in rows[WHOLE] if step <= min(last.values())]
  kept = {name: retention.steps(folder / name / "checkpoints") for name in NAMES}
  at = max(set(kept[KILLED]) & set(kept[WHOLE]), default=None)
  same = at is not None and _same(*(_params(folder / name, at) for name in NAMES))
  return {
    "steps": last,
    "rows_compared": len(common),
    "rows_that_differ": sum(rows[KILLED].get(step) != rows[WHOLE][step] for step in common),
    "parameters_compared_at": at,
    "parameters_equal": same,
  }


def memory(lives: dict[str, list[Life]]) -> dict[str, Any]:
  """Returns by which part memory grew: of the run left alone, and over the lives of the other.

  Memory goes up and down with what an iteration does: what counts are the peaks of minutes.
  """
  (alone,) = lives[WHOLE]
  seconds = alone.memory[-1][0]
  minutes: dict[int, float] = {}
  for when, size in alone.memory:
    if when > seconds / 6:
      minutes[int(when // 60)] = max(size, minutes.get(int(when // 60), 0.0))
  settled = [*minutes.values()]
  parts = [[size for when, size in life.memory if when > _WARM] for life in lives[KILLED]]
  peaks = [max(part) for part in parts if len(part) >= _MOST_OF_A_MINUTE]
  return {
    "peaks_MiB": [round(part) for part in _ends(settled)],
    "growth": _growth(settled),
    "lives_with_memory": len(peaks),
    "growth_over_lives": _growth(peaks),
  }


def problems(found: dict[str, Any], growth: float) -> list[str]:
  """Returns what should not be."""
  checks = {
    "metrics differ": not found["rows_that_differ"] and found["rows_compared"] > 0,
    "parameters differ, or no step has two checkpoints": found["parameters_equal"],
    "memory grows": found["growth"] is not None and found["growth"] <= growth,
    "memory grows from life to life": (found["growth_over_lives"] or 0) <= growth,
    "a run did not save and leave": set(found["codes"].values()) <= _LEFT,
  }
  return [text for text, good in checks.items() if not good]


def table(figures: dict[str, Any]) -> str:
  """Returns the figures as Markdown."""
  lines = ["| figure | |", "|---|--:|"]
  for name, value in figures.items():
    shown = f"{100 * value:+.1f} %" if name.startswith("growth") and value is not None else value
    lines.append(f"| {name.replace('_', ' ')} | {shown} |")
  return "\n".join(lines)


def _rows(workdir: pathlib.Path) -> dict[int, list[dict]]:
  """The rows of each step, without wall times and memory; a step may have an evaluation's too."""
  found: dict[int, list[dict]] = {}
  for row in metrics.read(workdir):
    kept = {k: v for k, v in row.items() if not k.startswith(("time/", "memory/"))}
    found.setdefault(row["step"], []).append(kept)
  return found


def _params(workdir: pathlib.Path, step: int) -> Any:
  with tempfile.TemporaryDirectory() as only:
    source = (workdir / "checkpoints" / str(step)).absolute()
    pathlib.Path(only, str(step)).symlink_to(source, target_is_directory=True)
    return checkpoint.load_params(only)


def _same(a: Any, b: Any) -> bool:
  return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def _ends(sizes: Sequence[float]) -> list[float]:
  """Medians of the first and of the last fifth."""
  count = max(1, len(sizes) // 5)
  return [statistics.median(part) for part in (sizes[:count], sizes[-count:]) if part]


def _growth(sizes: Sequence[float]) -> float | None:
  first, last = _ends(sizes) if sizes else (0.0, 0.0)
  return last / first - 1 if first else None


if __name__ == "__main__":
  sys.exit(main())
