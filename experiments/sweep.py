"""A grid of runs: all of them in order, or one by its number.

python -m experiments.sweep --stage=dpo --workdir=runs/sweep --grid='loss=ipo(),robust(); seed=0..2'
python -m experiments.sweep --stage=ppo --workdir=runs/kl --grid='kl_init=.1,.2' --config.steps=80
python -m experiments.sweep ... --list
python -m experiments.sweep ... --index=$SLURM_ARRAY_TASK_ID

--grid has fields of the config, a semicolon between them: values with commas, or first..last of
whole numbers. Every combination is a run, in WORKDIR/0, WORKDIR/1, ...; all of them are given what
follows. All command lines are checked before the first run starts. The same command again goes on
with what is not done. Then WORKDIR/results.csv has a row for each run, with the last value of all
that it measured. --sbatch prints a script for Slurm.
"""

import argparse
import csv
import itertools
import json
import pathlib
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence

from absl import flags

from experiments import _fields, _launch
from llm_jax import rundir
from llm_jax.errors import UserError, nearest

_DONE = "sweep_done.json"
_LEFT_OUT = ("sweep", "pipeline", "custom_loss")
_MOST = 10_000  # Values of a field.
_OPEN, _CLOSE = "([{", ")]}"


def main(argv: Sequence[str] | None = None) -> int:
  """Runs what is asked for; exit code 2 and one line for bad input, 1 if a run failed."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument("--stage", required=True, help="the experiment, such as dpo")
  parser.add_argument("--grid", required=True, help="fields and their values")
  parser.add_argument("--workdir", required=True, type=pathlib.Path, help="gets a folder a run")
  parser.add_argument("--index", type=int, help="run this one alone")
  parser.add_argument("--list", action="store_true", help="print the command lines; run nothing")
  parser.add_argument("--sbatch", action="store_true", help="print a script for Slurm")
  options, words = parser.parse_known_args(argv)
  try:
    return _sweep(options, words)
  except UserError as error:
    print("error:", " ".join(str(error).split()), file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print("interrupted: the same command goes on with what is not done", file=sys.stderr)
    return 130


def _sweep(options: argparse.Namespace, words: list[str]) -> int:
  known = sorted(p.stem for p in pathlib.Path(__file__).parent.glob("[!_]*.py"))
  known = [name for name in known if name not in _LEFT_OUT]
  if options.stage not in known:
    raise UserError(f"--stage={options.stage}: no such experiment{nearest(options.stage, known)}")
  if any(word.lstrip("-").split("=")[0] == "dry_run" for word in words):
    raise UserError("--dry_run: see what a sweep would do with --list")
  if options.workdir.is_file():
    raise UserError(f"--workdir={options.workdir} is a file")
  runs = points(options.grid)
  if options.index is not None and not 0 <= options.index < len(runs):
    raise UserError(f"--index={options.index}: the runs are 0 to {len(runs) - 1}")
  lines = [command(options.stage, options.workdir / str(i), run, words)
           for i, run in enumerate(runs)]  # fmt: skip
  for line in lines:
    check(options.stage, line[2:])
  if options.list:
    print("\n".join(shlex.join(line) for line in lines))
    return 0
  if options.sbatch:
    options.workdir.mkdir(parents=True, exist_ok=True)  # Slurm opens logs in it.
    print(script(options, words, len(runs)))
    return 0
  _record(options.workdir, options.stage, runs, words)
  chosen = range(len(runs)) if options.index is None else [options.index]
  failed = [i for i in chosen if not _run(options.workdir / str(i), lines[i], i, len(runs))]
  results(options.workdir, runs)
  if failed:
    print(f"failed: {', '.join(map(str, failed))}", file=sys.stderr)
  return 1 if failed else 0


def points(grid: str) -> list[dict[str, str]]:
  """Returns the overrides of each run, dotted name of a field -> value.

  Raises:
    UserError: if the grid cannot be read, or names a field twice.
  """
  axes: dict[str, list[str]] = {}
  for part in filter(None, (text.strip() for text in _split(grid, ";"))):
    name, equals, text = part.partition("=")
    name = name.strip().removeprefix("--").removeprefix("config.")
    values = [value.strip() for value in _split(text, ",")]
    if not equals or not re.fullmatch(r"[\w.]+", name) or not all(values):
      raise UserError(f'--grid: "{part}" must be FIELD=VALUE,VALUE, such as seed=0..2')
    if name in axes:
      raise UserError(f"--grid: {name} is there twice")
    axes[name] = [one for value in values for one in _range(value)]
    if len(set(axes[name])) < len(axes[name]):
      raise UserError(f"--grid: {name} has a value twice")
  if not axes:
    raise UserError("--grid is empty: name a field and its values, such as seed=0..2")
  return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _range(value: str) -> list[str]:
  match = re.fullmatch(r"(-?\d+)\.\.(-?\d+)", value)
  if not match:
    return [value]
  first, last = int(match[1]), int(match[2])
  if not first <= last < first + _MOST:
    raise UserError(f"--grid: {value} must go upwards, and by less than {_MOST:,}")
  return [str(i) for i in range(first, last + 1)]


def _split(text: str, at: str) -> list[str]:
  """The parts of a text between these characters, those in brackets or quotes left alone."""
  parts, depth, quote = [""], 0, ""
  for char in text:
    if quote:
      quote = "" if char == quote else quote
    elif char in "'\"":
      quote = char
    else:
      depth += (char in _OPEN) - (char in _CLOSE)
    if char == at and not depth and not quote:
      parts.append("")
    else:
      parts[-1] += char
  if depth or quote:
    raise UserError(f'--grid: a bracket or quote in "{text}" is not closed')
  return parts


def command(
  stage: str, workdir: pathlib.Path, run: dict[str, str], words: Sequence[str]
) -> list[str]:
  """Returns the command line of one run, which a shell can be given."""
  own = [f"--config.{name}={value}" for name, value in run.items()]
  return [sys.executable, "-m", f"experiments.{stage}", f"--workdir={workdir}", *words, *own]


def check(stage: str, argv: Sequence[str]) -> None:
  """Checks a command line as the experiment itself would.

  Raises:
    UserError: in the experiment's words.
  """
  path = _launch.config_path(argv) or str(_launch.CONFIGS / f"{stage}.py")
  if stage == "recipe" and not _launch.config_path(argv):
    raise UserError(
      "--stage=recipe needs --config, such as --config=configs/recipes/zephyr.py:tiny"
    )
  default = _launch.load_config(path)
  _fields.check_overrides(argv[1:], default)
  values = flags.FlagValues()
  _fields.validate(_launch.parse(argv, path, default, values).cfg)


def script(options: argparse.Namespace, words: Sequence[str], count: int) -> str:
  """Returns a Slurm script of one job a run."""
  given = ["--stage", options.stage, "--workdir", str(options.workdir), "--grid", options.grid]
  line = shlex.join([sys.executable, "-m", "experiments.sweep", *given, *words])
  return (
    f"#!/bin/bash\n#SBATCH --job-name={options.stage}-sweep\n#SBATCH --array=0-{count - 1}\n"
    f"#SBATCH --gpus=1\n#SBATCH --output={shlex.quote(f'{options.workdir}/%a.log')}\n\n"
    f"{line} --index=$SLURM_ARRAY_TASK_ID"
  )


def _record(
  workdir: pathlib.Path, stage: str, runs: list[dict[str, str]], words: list[str]
) -> None:
  """Writes down what the numbers mean, once."""
  path, sweep = workdir / "sweep.json", {"stage": stage, "runs": runs, "words": words}
  try:
    other = path.exists() and json.loads(path.read_text()) != sweep
  except ValueError as error:
    raise UserError(
      f"{path} is damaged: {error}; remove it, or choose another --workdir"
    ) from error
  if other:
    raise UserError(f"{workdir} holds another sweep (sweep.json): choose another --workdir")
  workdir.mkdir(parents=True, exist_ok=True)
  rundir.write_json(path, sweep, shared=True)  # By each job of an array.


def _run(workdir: pathlib.Path, line: Sequence[str], number: int, count: int) -> bool:
  """Makes one run if it is not done; returns whether it is."""
  if (workdir / _DONE).exists():
    return True
  print(f"run {number} of 0 to {count - 1}: {shlex.join(line[3:])}", flush=True)
  start = time.time()
  code = subprocess.run(line, check=False).returncode
  if code == 130:
    raise KeyboardInterrupt
  if code == 0:
    rundir.write_json(workdir / _DONE, {"seconds": round(time.time() - start, 1)})
  return code == 0


def results(workdir: pathlib.Path, runs: list[dict[str, str]]) -> None:
  """Writes results.csv: of each run that is done its fields and the last of all it measured."""
  from llm_jax.train import metrics

  rows = []
  for i, run in enumerate(runs):
    if (workdir / str(i) / _DONE).exists():
      last: dict[str, object] = {}
      for row in metrics.read(workdir / str(i)):
        last |= row
      rows.append({"run": i} | run | {k: v for k, v in last.items() if k not in run})
  if rows:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with (workdir / "results.csv").open("w", newline="") as file:
      writer = csv.DictWriter(file, names)
      writer.writeheader()
      writer.writerows(rows)


if __name__ == "__main__":
  sys.exit(main())
