"""Runs of experiments in processes of their own, killed at random moments and started again."""

import collections
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np

from experiments import _launch
from llm_jax.train import checkpoint, metrics
from tests.stages.test_many_processes import flags

ROOT = pathlib.Path(__file__).resolve().parents[2]


def command(experiment, cfg, workdir):
  """The words that run `cfg`."""
  usual = _launch.load_config(str(_launch.CONFIGS / f"{experiment}.py"))
  return [
    sys.executable, "-m", f"experiments.{experiment}", f"--workdir={workdir}", *flags(cfg, usual)
  ]  # fmt: skip


def start(words, **environ):
  """Starts a run in a process group of its own."""
  return subprocess.Popen(
    words, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    text=True, env=os.environ | environ,
  )  # fmt: skip


def finish(words, **environ):
  """Runs to the end; returns (exit code, stderr)."""
  with start(words, **environ) as process:
    error = process.communicate(timeout=600)[1]
  return process.returncode, error


def timed(words, **environ):
  """As `finish`; returns also the seconds from the first injected fault to the end, or None."""
  began, lines = None, []
  with start(words, **environ) as process:
    for line in process.stderr:
      lines.append(line)
      if began is None and "Injected fault" in line:
        began = time.monotonic()
    process.wait(600)
  return process.returncode, "".join(lines), began and time.monotonic() - began


def rows(workdir):
  """The rows of a run without wall times and memory; no step is there twice, none is missing."""
  found = metrics.read(workdir)
  steps = [row["step"] for row in found if "loss" in row]
  assert steps == sorted(set(steps)), "a step was written twice"
  return [{k: v for k, v in row.items() if not k.startswith(("time/", "memory/"))} for row in found]


def assert_same(workdir, whole):
  """Parameters and metrics are those of the other run, to the bit."""
  assert rows(workdir) == rows(whole)
  mine, other = checkpoint.load_params(workdir), checkpoint.load_params(whole)
  jax.tree.map(np.testing.assert_array_equal, mine, other)


def place(workdir, before):
  """What a kill hit, as far as files tell."""
  folder = workdir / "checkpoints"
  if folder.is_dir() and any("tmp" in path.name for path in folder.iterdir()):
    return "while saving"
  step = checkpoint.latest_step(folder)
  if step is not None and not (folder / str(step) / "sha256.json").exists():
    return "between commit and hashes"
  return "before the first step" if state(workdir) == before else "between steps"


def state(workdir):
  """What changes as a run goes on."""
  return len(metrics.read(workdir)), checkpoint.latest_step(workdir / "checkpoints")


def torture(experiment, cfg, folder, kills, seed=0):
  """Kills runs of `cfg` so often, and compares each in the end; returns what was hit."""
  whole, hit, rng = folder / "whole", collections.Counter(), random.Random(seed)
  begin = time.monotonic()
  code, error = finish(command(experiment, cfg, whole))
  assert code == 0, error
  seconds, runs = time.monotonic() - begin, 0
  while hit.total() < kills:
    workdir, done, runs = folder / f"killed{runs}", False, runs + 1
    words = command(experiment, cfg, workdir)
    while not done and hit.total() < kills:
      before = state(workdir)
      with start(words) as process:
        try:
          error = process.communicate(timeout=rng.uniform(0.2, 1.0) * seconds)[1]
          done = True
          assert process.returncode == 0, error
        except subprocess.TimeoutExpired:
          os.killpg(process.pid, signal.SIGKILL)
          process.communicate()
          hit[place(workdir, before)] += 1
    if not done:
      code, error = finish(words)
      assert code == 0, error
    assert_same(workdir, whole)
  return hit
