"""`--profile` and what a run tells of itself: the same run, its window, recompilations, memory."""

import gc
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import _launch
from llm_jax import config
from llm_jax.errors import UserError
from llm_jax.scaling import devices
from llm_jax.train import checkpoint, feeds, loop, metrics, monitor, profile, trace
from llm_jax.train.proto import Message
from llm_jax.types import Mean
from tests.train import toy_run, toys


def rows(workdir):
  return [
    {k: v for k, v in row.items() if not k.startswith(("time/", "memory/"))}
    for row in metrics.read(workdir)
  ]


@pytest.mark.long
def test_a_profiled_run_is_the_same_run_and_its_products_are_the_closed_form(tmp_path, capsys):
  plain = toy_run.run(tmp_path / "plain", 9)
  capsys.readouterr()
  with profile.steps(range(4, 7)):
    profiled = toy_run.run(tmp_path / "profiled", 9)
  jax.tree.map(np.testing.assert_array_equal, plain, profiled)
  assert rows(tmp_path / "plain") == rows(tmp_path / "profiled")
  found = json.loads((tmp_path / "profiled" / "profile" / "summary.json").read_text())
  assert found["steps"] == [4, 6] and found["seconds"] > 0
  assert sum(entry["share"] for entry in found["kinds"] + found["idle"]) == pytest.approx(1)
  for table in ("operations", "programs", "parts"):
    assert sum(e["share"] for e in found[table]) == pytest.approx(
      sum(e["share"] for e in found["kinds"])
    )
  # The two microbatches are a loop, whose body runs twice a step. The embedding is a table.
  width = toy_run.MODEL.width
  forward = 2 * toys.ROWS * toys.LENGTH * (width * 2 * width + 2 * width * toys.VOCAB)
  assert found["flops"] == 3 * forward
  assert {"forward", "backward"} <= {e["phase"] for e in found["parts"] if e["part"] == "up"}
  assert "where the time goes" in capsys.readouterr().out
  (file,) = (tmp_path / "profiled" / "profile").rglob("*.xplane.pb")
  assert str(file) == found["trace"]


def test_a_program_that_was_compiled_before_is_profiled_as_itself(tmp_path):
  """Loaded from JAX's persistent cache it runs under the number that it had then."""

  def make(layers):
    def step(x):
      for n in range(layers):
        x = jnp.sin(x @ x) + n
      return x

    return jax.jit(step)

  x = jnp.ones((32, 32))
  make(2)(x)  # The cache of these tests keeps it,
  gc.collect()  # and the process does not.
  larger, loaded, others = jnp.ones((64, 64)), make(2), [make(5), make(9)]
  jax.block_until_ready([loaded(x), *(step(larger) for step in others)])
  with profile.recording(tmp_path):
    loaded(x).block_until_ready()
  found = profile.summarize(trace.newest(tmp_path), range(1))
  assert found["flops"] == 2 * 2 * 32**3


@pytest.mark.long
def test_a_run_that_goes_on_traces_what_is_left(tmp_path, capsys):
  toy_run.run(tmp_path, 5)
  with profile.steps(range(4, 9)):
    toy_run.run(tmp_path, 8)
  assert "steps 7 to 8 are traced" in capsys.readouterr().err
  found = json.loads((tmp_path / "profile" / "summary.json").read_text())
  assert found["steps"] == [7, 8]
  with profile.steps(range(4, 9)):
    toy_run.run(tmp_path, 8)
  assert "nothing is traced" in capsys.readouterr().err


def test_a_run_that_ends_within_the_window_says_so(tmp_path, capsys):
  with profile.steps(range(3, 9)), pytest.raises(UserError, match="ran out"):
    toy_run.run(tmp_path, 9, feed=feeds.IteratorFeed(toys.make_batch(n) for n in range(5)))
  assert "the run ended in between" in capsys.readouterr().err
  assert not (tmp_path / "profile" / "summary.json").exists()
  assert checkpoint.latest_step(tmp_path / "checkpoints") == 5


def test_a_trace_that_cannot_be_read_does_not_end_the_run(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(profile.trace, "read", lambda data: Message(b"\xff"))
  with profile.steps(range(3, 4)):
    toy_run.run(tmp_path, 4)
  err = capsys.readouterr().err
  assert "no summary of" in err and "ValueError: no protocol buffer" in err
  assert checkpoint.latest_step(tmp_path / "checkpoints") == 4


@pytest.mark.parametrize(
  ("text", "stage", "cfg", "message"),
  [
    ("13:10", "pretrain", config.Pretrain(), "--profile=13:10: two numbers are needed"),
    ("x", "pretrain", config.Pretrain(), "--profile=10:13 traces steps 10, 11 and 12"),
    ("1:3", "sft", config.Sft(), "step 1 compiles"),
    ("99:102", "sft", config.Sft(steps=100), "there is no step 101, config.steps=100"),
    ("5:9", "pipeline", config.Pipeline(dpo=config.Dpo(steps=7)), "config.dpo.steps=7"),
    ("5:9", "prepare", config.Prepare(), "experiments.prepare trains nothing"),
  ],
)
def test_steps_that_cannot_be_are_one_line(text, stage, cfg, message):
  with pytest.raises(UserError, match=re.escape(message)):
    _launch.profiled(text, stage, cfg)


def test_the_launcher_hands_the_steps_to_the_loop():
  steps = _launch.profiled("99:101", "sft", config.Sft(steps=100))
  assert steps == range(99, 101) and _launch.profiled("", "prepare", config.Prepare()) is None
  with _launch._profiling(steps):
    assert profile._STEPS.get() == steps
  assert profile._STEPS.get() is None


def test_a_step_that_compiles_again_is_counted_and_named(tmp_path, capsys):
  @jax.jit
  def step(state, batch):
    return state.replace(step=state.step + 1), {"loss": Mean(batch["mask"].sum(), jnp.ones(()))}

  place, new_state, _ = toy_run.build()
  sizes = (32, 32, 32, 32, 16, 16, 32, 32)
  feed = feeds.IteratorFeed(toys.make_batch(n, rows) for n, rows in enumerate(sizes))
  loop.fit(step, new_state(), feed, place=place, workdir=tmp_path, steps=8, log_every=2)
  err = capsys.readouterr().err
  assert err.count("compiled again") == 1  # The second change is to a shape that it knows.
  assert "compiled again at step 5: batch mask was float32[32,4] and is float32[16,4]" in err
  table = [row.get("time/recompilations", 0) for row in metrics.read(tmp_path) if "loss" in row]
  assert table[0] == 0 and table[-1] == 1


def test_rows_have_the_memory_in_use(tmp_path):
  toy_run.run(tmp_path, 4)
  (row,) = [row for row in metrics.read(tmp_path) if "loss" in row]
  assert 0.01 < row["memory/host"] < 1000
  assert {"memory/host"} <= set(monitor.memory())


@pytest.mark.parametrize(
  ("kind", "peak"),
  [
    ("NVIDIA H100 80GB HBM3", 989e12),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA A100-SXM4-80GB", 312e12),
    ("NVIDIA GeForce RTX 4090", 165e12),
    ("NVIDIA L4", 121e12),
    ("NVIDIA L40", None),
    ("TPU v5 lite", 197e12),
    ("TPU v5", 459e12),
    ("TPU v6 lite", 918e12),
    ("TPU v4 lite", None),
    ("cpu", None),
  ],
)
def test_peaks_are_found_by_the_devices_name(kind, peak):
  assert devices.peak_flops(kind) == peak
