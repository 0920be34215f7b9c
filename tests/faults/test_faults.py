"""Each fault that can happen to a run: what is promised then, in a process of its own."""

import json
import sys

import jax
import numpy as np
import pytest

from llm_jax.errors import UserError
from llm_jax.train import checkpoint, faults
from tests.faults import kills
from tests.train import toy_run

STEPS = 17


def test_faults_are_for_tests_alone():
  with pytest.raises(UserError, match="LLM_JAX_FAULT=kill@step:1 is for tests alone"):
    faults.Faults({"LLM_JAX_FAULT": "kill@step:1"})
  faults.Faults({})


@pytest.mark.parametrize("text", ["kill", "kill@nowhere", "nan@save:2", "kill@step:x", "@step:1"])
def test_an_unknown_fault_is_named_with_those_that_there_are(text):
  with pytest.raises(UserError, match=r"is none of kill@step, .*truncate@latest"):
    faults.parse(text)


def test_faults_happen_once_where_they_are_due():
  one = faults.Faults({"LLM_JAX_FAULT": "nan@step:3,clock_jump@step:4", "LLM_JAX_TESTING": "1"})
  batch = {"mask": np.ones((1, 2), np.float32), "targets": np.arange(2)}
  assert np.isfinite(one.at_step(2, batch)["mask"]).all()
  spoilt = one.at_step(3, batch)
  assert np.isnan(spoilt["mask"]).all() and (spoilt["targets"] == batch["targets"]).all()
  assert np.isfinite(one.at_step(3, batch)["mask"]).all()
  before = one.now()
  one.at_step(4, batch)
  assert one.now() < before - 86000


def toy(workdir, fault="", *more):
  """Runs the toy run to its end or its fault; returns (exit code, stderr)."""
  words = [sys.executable, "-m", "tests.train.toy_run", str(workdir), str(STEPS), *more]
  code, error, seconds = kills.timed(words, LLM_JAX_FAULT=fault, LLM_JAX_TESTING="1")
  if fault:  # For docs/reliability.md, with `pytest -s`.
    last = checkpoint.latest_step(workdir / "checkpoints")
    print(f"\n| `{fault}` | {code} | {seconds:.2f} | {last} |", end="")
  return code, error


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  path = tmp_path_factory.mktemp("whole")
  toy_run.run(path, STEPS)
  return path


DEADLY = [
  ("kill@step:7", -9), ("kill@save:2", -9), ("kill@commit:2", -9), ("term@step:7", 143),
  ("term@save:2", 143), ("enospc@save:2", 2), ("enospc@commit:2", 2),
  ("term@step:3,kill@save:1", -9),
]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize(("fault", "code"), DEADLY, ids=[fault for fault, _ in DEADLY])
def test_a_run_that_ends_early_goes_on_to_the_bit(fault, code, whole, tmp_path):
  found, error = toy(tmp_path, fault)
  assert found == code, error
  if "enospc" in fault:
    last = 10 if "commit" in fault else 5
    assert "no space left to save step 10" in error and f"goes on from step {last}" in error
  if code == 143:
    assert "and saved; run the same command to go on" in error
  code, error = toy(tmp_path)
  assert code == 0, error
  kills.assert_same(tmp_path, whole)
  assert not [p for p in (tmp_path / "checkpoints").iterdir() if "tmp" in p.name]


@pytest.mark.long
@pytest.mark.parametrize("fault", ["bitflip@latest", "truncate@latest"])
def test_a_damaged_checkpoint_is_set_aside_by_name_and_the_one_before_it_used(
  fault, whole, tmp_path
):
  assert toy(tmp_path, "kill@save:3")[0] == -9
  code, error = toy(tmp_path, fault)
  assert code == 0 and "checkpoints/10 is damaged" in error and "goes on from step 5" in error
  assert (tmp_path / "checkpoints" / "10.damaged").is_dir()
  kills.assert_same(tmp_path, whole)


@pytest.mark.long
def test_what_hangs_ends_with_the_stacks_of_its_threads(whole, tmp_path):
  code, error = toy(tmp_path, "hang@step:7", "3")
  assert code == 1 and "Timeout (0:00:03)!" in error
  assert "in at_step" in error and "in advance" in error
  assert toy(tmp_path, "", "60")[0] == 0
  kills.assert_same(tmp_path, whole)


@pytest.mark.long
def test_a_state_that_is_not_finite_is_never_saved(whole, tmp_path):
  code, error = toy(tmp_path, "nan@step:7")
  assert code == 2 and "diverged at step 7" in error and "no such state was saved" in error
  assert json.loads((tmp_path / "diverged.json").read_text())["batches"][-1]["step"] == 7
  assert checkpoint.latest_step(tmp_path / "checkpoints") == 5
  jax.tree.map(lambda x: np.isfinite(x).all(), checkpoint.load_params(tmp_path))
  assert toy(tmp_path)[0] == 0
  kills.assert_same(tmp_path, whole)


@pytest.mark.long
def test_a_clock_that_is_set_back_changes_nothing_but_the_times(whole, tmp_path):
  assert toy(tmp_path, "clock_jump@step:6")[0] == 0
  kills.assert_same(tmp_path, whole)
  read = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert all(row["time/step"] > 0 for row in read if "time/step" in row)
  assert read[0]["time/unix"] > read[-1]["time/unix"] + 80000


def test_checkpoints_of_steps_that_keep_every_divides_stay(tmp_path):
  made = checkpoint.Checkpoints(tmp_path, keep=2, every=4)
  for step in range(1, 12):
    made.save(step, {"x": np.full(3, step, np.float32)})
  made.close()
  kept = sorted(int(p.name) for p in tmp_path.iterdir())
  assert kept == [4, 8, 10, 11]


@pytest.mark.long
@pytest.mark.parametrize(
  ("flips", "cuts"), [(6, 2), pytest.param(200, 50, marks=pytest.mark.slow)], ids=str
)
def test_every_flipped_bit_and_every_cut_is_found_and_recovered_from(flips, cuts, tmp_path):
  rng = np.random.default_rng(flips)
  state = {"w": rng.normal(size=(64, 64)).astype(np.float32), "step": np.array(1, np.int32)}
  for n in range(flips + cuts):
    folder = tmp_path / str(n)
    made = checkpoint.Checkpoints(folder, keep=3)
    made.save(1, state, {"n": 1})
    made.save(2, jax.tree.map(lambda x: x + 1, state), {"n": 2})
    made.close()
    files = sorted(p for p in (folder / "2").rglob("*") if p.is_file() and p.stat().st_size)
    path = files[rng.integers(len(files))]
    data = bytearray(path.read_bytes())
    if n < flips:
      data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    else:
      del data[rng.integers(len(data)) :]
    path.write_bytes(data)
    again = checkpoint.Checkpoints(folder, keep=3)
    found, extra = again.restore(state)
    again.close()
    assert extra == {"n": 1} and (folder / "2.damaged").is_dir(), (n, path.name)
    jax.tree.map(np.testing.assert_array_equal, found, state)
