"""The profile of one step: figures that agree with each other, errors in one line."""

import json

import pytest

from llm_jax import config
from tools import bench_train, profile_step

# How ml_collections loads a config file.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
SMALL = [
  "--config.model.dim=16", "--config.model.layers=1", "--config.model.vocab_size=32",
  "--config.batch=8", "--config.length=16", "--config.optimizer.name=adamw", "--config.mesh.data=1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  monkeypatch.setattr(bench_train, "matmul_rate", lambda dtype, size: 1e10)
  monkeypatch.setattr(profile_step, "copy_rate", lambda size: 1e9)


@pytest.mark.slow
def test_it_says_where_the_step_goes(tmp_path, capsys):
  out = [f"--json={tmp_path / 'step.json'}", f"--out={tmp_path / 'trace'}"]
  assert profile_step.main([*SMALL, "--steps=3", "--traced=2", *out]) == 0
  text = capsys.readouterr().out
  for title in ("memory of the compiled step", "FLOPs of a step", "roofline", "MFU", "where the"):
    assert title in text
  found = json.loads((tmp_path / "step.json").read_text())
  assert found["recompilations"] == 0 and len(found["seconds"]) == 3
  memory = found["memory"]
  assert memory["in all"] == (
    memory["arguments"] + memory["outputs"] - memory["aliased"] + memory["temporaries"]
    + memory["code"]
  )  # fmt: skip
  # The state is given up for the new one, and the batch is all that comes beside it.
  assert 0 < memory["aliased"] <= memory["arguments"]
  # Products of the trace, that is with the logits a second time, and none of a loop left out.
  ratio = found["profile"]["flops"] * found["measured"] / found["model_flops"]["all keys"]
  assert 1.0 <= ratio < 1.5
  assert found["model_flops"]["causal half"] < found["model_flops"]["all keys"]
  assert found["profile"]["steps"] == [7, 8] and list((tmp_path / "trace").rglob("*.xplane.pb"))


def test_mfu_names_both_conventions_and_the_peak_where_it_is_known():
  found = {
    "seconds": [1.0, 2.0, 3.0], "measured": 2, "peak_flops": 100.0, "matmul_flops_per_second": 80.0,
    "model_flops": {"all keys": 80.0, "causal half": 40.0},
  }  # fmt: skip
  assert profile_step.utilization(found) == [
    ("all keys", "the bfloat16 peak", pytest.approx(0.2)),
    ("causal half", "the bfloat16 peak", pytest.approx(0.1)),
    ("all keys", "the measured matmul rate", pytest.approx(0.25)),
    ("causal half", "the measured matmul rate", pytest.approx(0.125)),
  ]
  assert len(profile_step.utilization(found | {"peak_flops": None})) == 2


def test_an_operation_is_bound_by_what_takes_longer():
  operations = [{"flops": 100.0, "bytes": 10.0}, {"flops": 0.0, "bytes": 30.0}]
  found = {
    "profile": {"operations": operations}, "matmul_flops_per_second": 50.0,
    "copy_bytes_per_second": 10.0,
  }  # fmt: skip
  assert profile_step.roofline(found) == {"products": 2.0, "memory": 3.0}


def test_a_size_comes_before_the_fields():
  cfg, _ = profile_step.configured(["--config.model.dtype=bfloat16", "--config.batch=2"], "gpt2s")
  assert (cfg.model.dim, cfg.model.dtype, cfg.batch, cfg.length) == (768, "bfloat16", 2, 1024)
  assert bench_train.SIZES["gpt2s"][0].dtype == "float32"
  cfg, note = profile_step.configured(["--config.prepared=nowhere"])
  assert cfg.model.vocab_size == config.Prepare().vocab_size and "is assumed" in note


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["--stesp=3"], 'unknown flag --stesp; did you mean "steps"?'),
    (["--config.model.dmi=3"], 'did you mean "config.model.dim"?'),
    (["--config=configs/sft.py"], "a config of experiments.pretrain is needed"),
    (["--config.model.encoder_layers=2"], "encoder_layers must be 0"),
    (["--steps=0"], "must be at least 1"),
    (["--config.batch=5", "--config.accum=2"], "config.batch=5 must be a multiple of"),
  ],
)
def test_bad_input_is_one_line(words, message, capsys):
  assert profile_step.main(words) == 2
  err = capsys.readouterr().err
  assert err.startswith("error: ") and err.count("\n") == 1 and message in err
