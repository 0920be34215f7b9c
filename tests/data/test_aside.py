"""Folders that are built aside: one builder at a time, and workers that end with their parent."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from llm_jax.data.pipeline import aside
from llm_jax.errors import UserError


def test_a_second_builder_is_refused_and_leaves_the_first_alone(tmp_path):
  with aside.building(tmp_path / "out", {"a": 1}) as folder:
    (folder / "part").write_text("x")
    with (
      pytest.raises(UserError, match="another process works on"),
      aside.building(tmp_path / "out", {"a": 2}),
    ):
      pass
    assert (folder / "part").read_text() == "x"
  assert not (tmp_path / "out").exists()


def test_what_a_killed_builder_left_is_gone_on_with_for_the_same_only(tmp_path):
  with pytest.raises(KeyboardInterrupt), aside.building(tmp_path, {"a": 1}) as folder:
    (folder / "part").write_text("x")
    raise KeyboardInterrupt
  with pytest.raises(KeyboardInterrupt), aside.building(tmp_path, {"a": 1}) as folder:
    assert (folder / "part").exists()
    raise KeyboardInterrupt
  with aside.building(tmp_path, {"a": 2}) as folder:
    assert not (folder / "part").exists()
  with pytest.raises(UserError, match="refused"), aside.building(tmp_path / "b", {}) as folder:
    raise UserError("refused")
  assert [p.name for p in tmp_path.iterdir()] == []


def test_what_a_kill_left_of_a_removal_is_not_gone_on_with(tmp_path, monkeypatch):
  def killed(folder, *args):
    (folder / "part").unlink()
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    with pytest.raises(KeyboardInterrupt), aside.building(tmp_path, {"a": 1}) as folder:
      for name in ("part", "part.json"):
        (folder / name).write_text("x")
      patch.setattr(shutil, "rmtree", killed)
  assert [p.name for p in folder.iterdir()] == ["part.json"]
  with aside.building(tmp_path, {"a": 1}) as folder:
    assert [p.name for p in folder.iterdir()] == [aside.MARK]
  assert not any(tmp_path.iterdir())


def test_what_is_left_beside_a_complete_result_goes_unless_somebody_builds(tmp_path):
  (tmp_path / ".building/work").mkdir(parents=True)
  (tmp_path / ".building.lock").touch()
  (tmp_path / "made").touch()
  aside.clear(tmp_path)
  aside.clear(tmp_path)
  assert [p.name for p in tmp_path.iterdir()] == ["made"]
  with aside.building(tmp_path, {}) as folder:
    with pytest.raises(UserError, match="another process works on"):
      aside.clear(tmp_path)
    assert folder.exists()


@pytest.mark.parametrize("another", [False, True])
def test_a_lock_that_went_with_its_owner_is_no_lock(tmp_path, monkeypatch, another):
  lock, real = tmp_path / ".building.lock", fcntl.flock

  def late(*args):
    real(*args)
    lock.unlink()
    if another:
      (tmp_path / "other").touch()
      (tmp_path / "other").rename(lock)

  monkeypatch.setattr(fcntl, "flock", late)
  with pytest.raises(UserError, match="another process"), aside.building(tmp_path, {}):
    pass
  assert lock.exists() == another


def test_a_file_is_no_directory(tmp_path):
  (tmp_path / "file").write_text("")
  with (
    pytest.raises(UserError, match="cannot be made"),
    aside.building(tmp_path / "file", {}),
  ):
    pass


PROGRAM = """
import os, time
from llm_jax.data.pipeline import engines

def slow(out):
  open(out + ".pid", "w").write(str(os.getpid()))
  time.sleep(60)
  return {}

if __name__ == "__main__":
  import sys
  with engines.Local(2) as engine:
    engines.results(engine, slow, [engines.Task(f"{sys.argv[1]}/{i}") for i in range(4)])
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_parent(tmp_path, number):
  program = tmp_path / "program.py"
  program.write_text(PROGRAM)
  env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
  parent = subprocess.Popen([sys.executable, str(program), str(tmp_path)], env=env)
  pids = [tmp_path / f"{i}.pid" for i in range(2)]
  wait(lambda: all(p.exists() and p.read_text() for p in pids))
  parent.send_signal(number)
  parent.wait()
  wait(lambda: not any(alive(int(p.read_text())) for p in pids))


def wait(true, seconds=30):
  end = time.monotonic() + seconds
  while not true():
    assert time.monotonic() < end
    time.sleep(0.05)


def alive(pid):
  try:
    with open(f"/proc/{pid}/stat") as f:
      return f.read().rpartition(")")[2].split()[0] != "Z"
  except FileNotFoundError:
    return False
