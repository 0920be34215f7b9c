"""Checkpoints: exact, kept in number, checked, readable on another mesh and without a state."""

import contextlib
import logging
import pathlib
import shutil
import subprocess
import sys
import threading
import time
import types

import jax
import numpy as np
import optax
import pytest

from llm_jax import config
from llm_jax.errors import UserError
from llm_jax.train import manifest, parallel, retention
from llm_jax.train.checkpoint import Checkpoints, latest_step, load_params
from llm_jax.train.faults import Faults
from llm_jax.train.step import state_maker
from tests.train import toys

ROOT = pathlib.Path(__file__).parents[2]
TX = optax.adam(1e-3)


def new_state(seed=0, mesh=None, tx=TX):
  place = parallel.make(mesh or config.Mesh(data=1))
  return place.init(state_maker(toys.make_params(toys.Toy()), tx), jax.random.key(seed))


def assert_equal(a, b):
  def same(x, y):
    if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key):
      x, y = jax.random.key_data(x), jax.random.key_data(y)
    np.testing.assert_array_equal(x, y)

  jax.tree.map(same, a, b)


def damage(path):
  largest = max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
  data = bytearray(largest.read_bytes())
  data[len(data) // 2] ^= 1
  largest.write_bytes(bytes(data))


def test_a_state_comes_back_exactly_and_only_the_newest_are_kept(tmp_path):
  checkpoints, states = Checkpoints(tmp_path / "c", keep=2), [new_state(n) for n in range(4)]
  assert checkpoints.latest_step() is None and checkpoints.restore(states[0]) is None
  for n, state in enumerate(states):
    checkpoints.save(n, state, {"feed": {"used": n}})
  checkpoints.close()
  again = Checkpoints(tmp_path / "c", keep=2)
  state, extra = again.restore(new_state(9))
  assert_equal(state, states[3])
  assert extra == {"feed": {"used": 3}}
  assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["2", "3"]
  again.close()


def test_a_save_is_fast(tmp_path):
  checkpoints, state = Checkpoints(tmp_path), new_state()
  checkpoints.save(1, state)
  began = time.process_time()
  checkpoints.save(2, state)
  checkpoints.wait()
  spent = time.process_time() - began
  checkpoints.close()
  assert spent < 1  # Of this process: other ones do not count.


@pytest.fixture
def gate(monkeypatch):
  """Lets no checkpoint be done before it is set."""
  event, write = threading.Event(), manifest.write
  monkeypatch.setattr(manifest, "write", lambda path: (event.wait(60), write(path)))
  return event


@pytest.mark.parametrize("mesh", [None, config.Mesh(data=2, fsdp=2, tensor=2)], ids=["one", "mesh"])
def test_a_state_may_be_used_up_while_it_is_written(tmp_path, gate, caplog, mesh):
  caplog.set_level(logging.INFO)
  checkpoints, state = Checkpoints(tmp_path), new_state(1, mesh)
  was, extra = jax.device_get(state), {"feed": {"used": 1}}
  spoil = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)
  checkpoints.save(1, state.replace(rng=None), extra)
  jax.block_until_ready(spoil(state.replace(rng=None)))
  extra["feed"]["used"] = 2
  assert "is saved" not in caplog.text  # Only what is committed and hashed is said to be.
  gate.set()
  checkpoints.wait()
  assert "1 is saved" in caplog.text
  restored, kept = checkpoints.restore(new_state(2, mesh).replace(rng=None))
  checkpoints.close()
  assert_equal(jax.device_get(restored), was.replace(rng=None))
  assert kept == {"feed": {"used": 1}}


def test_what_fails_beside_the_training_is_raised_at_the_next_step_in_one_line(tmp_path):
  faults = Faults({"LLM_JAX_FAULT": "enospc@commit:2", "LLM_JAX_TESTING": "1"})
  checkpoints = Checkpoints(tmp_path, faults=faults)
  checkpoints.save(1, {"x": np.zeros(3)})
  checkpoints.wait()
  checkpoints.save(2, {"x": np.ones(3)})
  with pytest.raises(UserError, match="no space left to save step 2 in .* goes on from step"):
    for _ in range(600):
      checkpoints.check()
      time.sleep(0.1)
  checkpoints.check()  # It is told once.
  checkpoints.close()


def test_a_save_that_fails_does_not_hide_why_the_run_ended(tmp_path, caplog):
  faults = Faults({"LLM_JAX_FAULT": "enospc@commit:1", "LLM_JAX_TESTING": "1"})
  checkpoints = Checkpoints(tmp_path, faults=faults)
  with pytest.raises(ZeroDivisionError), contextlib.closing(checkpoints):
    checkpoints.save(1, {"x": np.zeros(3)})
    _ = 1 / 0
  assert "no space left to save step 1 in" in caplog.text
  faults = Faults({"LLM_JAX_FAULT": "enospc@commit:1", "LLM_JAX_TESTING": "1"})
  checkpoints = Checkpoints(tmp_path, faults=faults)
  with pytest.raises(UserError, match="no space left"), contextlib.closing(checkpoints):
    checkpoints.save(2, {"x": np.zeros(3)})


_FULL = """
import contextlib, resource, signal, sys
import numpy as np
from llm_jax.errors import UserError
from llm_jax.train.checkpoint import Checkpoints

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
checkpoints = Checkpoints(sys.argv[1])
checkpoints.save(1, {"x": np.zeros(3)})
checkpoints.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, -1))
try:
  with contextlib.closing(checkpoints):
    checkpoints.save(2, {"x": np.random.rand(1 << 18)})
    checkpoints.wait()
except UserError as error:
  sys.exit(f"error: {error}")
"""


def test_what_the_system_refuses_to_write_is_told_in_one_line_and_no_stack(tmp_path):
  command = [sys.executable, "-c", _FULL, str(tmp_path)]
  done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
  expected = "error: it is not possible (File too large) to save step 2 in "
  assert done.stderr.startswith(expected) and done.stderr.count("\n") == 1, done.stderr
  assert "the run goes on from step 1" in done.stderr and done.returncode == 1
  assert latest_step(tmp_path) == 1


def test_the_last_healthy_checkpoint_stays_however_many_follow(tmp_path):
  checkpoints = Checkpoints(tmp_path, keep=2)
  for step in range(1, 9):
    checkpoints.save(step, {"x": np.full(3, step)}, healthy=step in (2, 3))
  checkpoints.close()
  assert retention.steps(tmp_path) == [3, 7, 8] and retention.last_healthy(tmp_path) == 3


def test_what_was_half_removed_is_no_checkpoint_and_goes(tmp_path):
  checkpoints = Checkpoints(tmp_path, keep=2)
  checkpoints.save(1, {"x": np.zeros(3)})
  checkpoints.wait()
  (tmp_path / "1").rename(tmp_path / "1.removed")
  assert checkpoints.latest_step() is None
  checkpoints.save(2, {"x": np.zeros(3)})
  checkpoints.close()
  assert [p.name for p in tmp_path.iterdir()] == ["2"]


def test_stray_files_are_no_checkpoints_and_stay(tmp_path):
  checkpoints, strays = Checkpoints(tmp_path, keep=1), {"7", "notes.txt", "²", "003", "1 (copy)"}
  (tmp_path / "7").write_text("a file")
  (tmp_path / "notes.txt").write_text("a file")
  for name in ("²", "003", "1 (copy)"):
    (tmp_path / name).mkdir()
  for step in (1, 2):
    checkpoints.save(step, {"x": np.full(3, step)})
  assert checkpoints.latest_step() == 2
  state, _ = checkpoints.restore({"x": np.zeros(3)})
  checkpoints.close()
  np.testing.assert_array_equal(state["x"], np.full(3, 2))
  assert {p.name for p in tmp_path.iterdir()} == {*strays, "2"}
  (tmp_path / "healthy.json").write_text("")
  with pytest.raises(UserError, match="healthy.json cannot be read as JSON"):
    retention.last_healthy(tmp_path)


def test_a_sharded_checkpoint_is_restored_on_another_mesh(tmp_path):
  saved = new_state(0, config.Mesh(data=2, fsdp=2, tensor=2))
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(5, saved)
  like = new_state(1, config.Mesh(data=1, fsdp=8))
  restored, _ = checkpoints.restore(like)
  checkpoints.close()
  assert_equal(jax.device_get(restored), jax.device_get(saved))
  shardings = jax.tree.map(lambda x: x.sharding, (restored, like))
  assert shardings[0] == shardings[1]


def test_parameters_are_read_without_a_state(tmp_path):
  state = new_state(0, config.Mesh(data=2, fsdp=2, tensor=2))
  checkpoints = Checkpoints(tmp_path / "checkpoints")
  checkpoints.save(1, new_state(1))
  checkpoints.save(2, state)
  checkpoints.close()
  for directory in (tmp_path, tmp_path / "checkpoints", str(tmp_path)):
    params = load_params(directory)
    assert all(type(x) is np.ndarray for x in jax.tree.leaves(params))
    assert_equal(params, jax.device_get(state.params))


def test_no_checkpoint_is_said_plainly(tmp_path):
  with pytest.raises(UserError, match="nowhere has no checkpoint: no such directory"):
    load_params(tmp_path / "nowhere")
  with pytest.raises(UserError, match="has no checkpoint: an empty directory"):
    load_params(tmp_path)


def test_a_flipped_bit_is_found_and_the_previous_checkpoint_used(tmp_path):
  checkpoints, first = Checkpoints(tmp_path, keep=3), new_state(1)
  checkpoints.save(1, first)
  checkpoints.save(2, new_state(2))
  checkpoints.close()
  damage(tmp_path / "2")
  with pytest.raises(UserError, match="2 is damaged .* has changed"):
    load_params(tmp_path)
  restored, _ = checkpoints.restore(new_state(3))
  assert_equal(restored, first)
  assert latest_step(tmp_path) == 1 and (tmp_path / "2.damaged").is_dir()
  checkpoints.save(2, new_state(4))  # The step can be written again.
  checkpoints.close()
  assert latest_step(tmp_path) == 2


def test_what_does_not_fit_on_the_disk_is_not_begun(tmp_path, monkeypatch):
  made = Checkpoints(tmp_path / "c")
  monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=100))
  with pytest.raises(UserError, match="bytes are needed and 100 are free to save step 1 .* anew"):
    made.save(1, new_state(1))
  assert not (tmp_path / "c").exists()
  monkeypatch.undo()
  made.save(1, new_state(1))
  assert made.latest_step() == 1
  made.close()


def test_an_unfinished_save_is_no_checkpoint(tmp_path):
  checkpoints, state = Checkpoints(tmp_path), new_state(1)
  checkpoints.save(1, state)
  checkpoints.close()
  (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
  assert latest_step(tmp_path) == 1
  assert_equal(checkpoints.restore(new_state(3))[0], state)
  checkpoints.close()


def test_another_model_or_optimizer_is_the_users_error(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, new_state())
  with pytest.raises(UserError, match="does not fit this run's model and optimizer"):
    checkpoints.restore(new_state(tx=optax.sgd(1.0, momentum=0.9)))
  checkpoints.close()
