"""Data workers that die, and parents that die: an error at once, nothing left behind."""

import contextlib
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.faults import test_prepare_kill as prepare_kill

ROOT = pathlib.Path(__file__).resolve().parents[2]
DIED = re.compile(
  r"error: a data worker \(process \d+\) was killed by SIGKILL: if memory ran out, set "
  r"config.workers lower; run the same command again, what was done is kept\n"
)
PROMISED = 10.0  # Seconds.


@pytest.fixture
def source(tmp_path):
  """One file of pages, enough for five shards of `prepare_run`."""
  rng = random.Random(0)
  rows = [json.dumps({"text": prepare_kill.page(rng)}) + "\n" for _ in range(400)]
  path = tmp_path / "pages.jsonl"
  path.write_text("".join(rows))
  return path


@contextlib.contextmanager
def start(words, **environ):
  """Gives a process in a session of its own, so that all that belong to it can be found."""
  process = subprocess.Popen(
    [sys.executable, *words], cwd=ROOT, start_new_session=True, text=True,
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | environ,
  )  # fmt: skip
  with process:
    try:
      yield process
    finally:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def members(session):
  """The processes of a session that live: workers, their resource tracker, and the leader."""
  found = []
  for entry in pathlib.Path("/proc").iterdir():
    if entry.name.isdecimal():
      try:
        state, *numbers = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
      except (FileNotFoundError, ProcessLookupError):
        continue
      if int(numbers[2]) == session and state not in "ZX":
        found.append(int(entry.name))
  return found


def emptied(session, seconds):
  """Waits until a session is empty; returns whether it is."""
  deadline = time.monotonic() + seconds
  while (left := members(session)) and time.monotonic() < deadline:
    time.sleep(0.05)
  return not left


def shares_memory(process):
  """Whether a process has a semaphore, or other memory that outlives it if nobody removes it."""
  return "/dev/shm/" in pathlib.Path(f"/proc/{process}/maps").read_text()


def begun(process, count):
  """Waits until so many tasks run; returns the processes of their workers."""
  return [int(process.stdout.readline()) for _ in range(count)]


@pytest.mark.parametrize("kinds", ["sleep,sleep,quick", "spin,sleep,quick"])
def test_a_killed_parent_takes_its_workers_along(kinds):
  """One sleeps, or is in a call that nothing interrupts, and one waits for its next task."""
  with start(["-m", "tests.faults.pool_run", kinds]) as parent:
    workers = begun(parent, 3)
    assert len(set(workers)) == 3 and set(workers) < set(members(parent.pid))
    assert not any(map(shares_memory, [parent.pid, *workers]))
    parent.kill()
    assert emptied(parent.pid, PROMISED)
    assert "leaked" not in parent.stderr.read()


def test_the_search_finds_workers_and_semaphores_that_are_left():
  with start(["-m", "tests.faults.pool_run", "plain"]) as parent:
    workers = begun(parent, 2)
    assert all(map(shares_memory, [parent.pid, *workers]))
    parent.kill()
    assert not emptied(parent.pid, 1.0)
    assert set(workers) <= set(members(parent.pid))


def test_a_killed_worker_ends_the_run_though_an_earlier_task_goes_on():
  fault = {"LLM_JAX_FAULT": "worker_kill@task:2", "LLM_JAX_TESTING": "1"}
  begin = time.monotonic()
  with start(["-m", "tests.faults.pool_run", "sleep,sleep,sleep"], **fault) as parent:
    told = parent.communicate(timeout=60)[1]
  assert time.monotonic() - begin < PROMISED and parent.returncode == 2
  assert DIED.search(told) and told.startswith("Injected fault: worker_kill@task:2.\n")
  assert emptied(parent.pid, 1.0)


def test_a_worker_that_somebody_else_kills_is_the_same_error():
  with start(["-m", "tests.faults.pool_run", "sleep,spin,quick"]) as parent:
    workers = begun(parent, 3)
    os.kill(workers[0], signal.SIGKILL)
    begin = time.monotonic()
    told = parent.communicate(timeout=60)[1]
  assert time.monotonic() - begin < PROMISED and parent.returncode == 2
  assert DIED.fullmatch(told) and f"process {workers[0]})" in told
  assert emptied(parent.pid, 1.0)


@pytest.mark.long
def test_prepare_names_the_dead_worker_and_goes_on_from_there(source, tmp_path):
  words = prepare_kill.command(source, tmp_path / "killed")[1:]
  fault = {"LLM_JAX_FAULT": "worker_kill@task:4", "LLM_JAX_TESTING": "1"}
  with start(words, **fault) as parent:
    while "Injected fault" not in (line := parent.stderr.readline()):
      assert line, "it ended without a fault"
    begin = time.monotonic()
    told = parent.stderr.read()
    code = parent.wait(60)
  assert time.monotonic() - begin < PROMISED and code == 2
  assert DIED.fullmatch(told) and emptied(parent.pid, 1.0)
  with start(words) as parent:
    out, told = parent.communicate(timeout=300)
  assert parent.returncode == 0, told
  assert "goes on where an earlier run stopped" in out and emptied(parent.pid, 1.0)
  words[2] = f"--workdir={tmp_path / 'whole'}"
  subprocess.run([sys.executable, *words], cwd=ROOT, check=True, capture_output=True)
  assert prepare_kill.digests(tmp_path / "killed") == prepare_kill.digests(tmp_path / "whole")
