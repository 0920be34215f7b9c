"""The plan of a run: its figures, the compiled step beside it, its errors."""

import json

import pytest

from tools import compile_step, plan

# ml_collections loads the file that --config names in an old way.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

SMALL = ["--config=configs/pretrain.py", "--config.model.vocab_size=512", "--config.model.layers=1"]


def test_every_stage_of_the_quickstart_has_a_row(tmp_path, capsys):
  assert plan.main(["--config=configs/pipeline.py", f"--json={tmp_path / 'plan.json'}"]) == 0
  found = json.loads((tmp_path / "plan.json").read_text())
  rows = {row["stage"]: row for row in found["stages"]}
  assert list(rows) == ["pretrain", "sft", "reward", "dpo", "ppo"]
  assert (rows["ppo"]["trained"], rows["ppo"]["frozen"]) == (2, 2)
  assert sum(row["hours"] for row in rows.values()) > 0
  shown = capsys.readouterr().out
  assert "MiB on a device" in shown and "1 x H100" in shown


def test_a_preset_stands_in_for_a_model_that_is_not_there_yet(capsys):
  words = ["--config=configs/dpo.py", '--preset=llama2(size="7b")', "--devices=8"]
  assert plan.main([*words, "--config.mesh.fsdp=8"]) == 0
  assert "6,738,415,616" in capsys.readouterr().out


@pytest.mark.slow
def test_the_compiled_step_agrees_with_the_closed_form(tmp_path):
  words = [
    *SMALL,
    "--config.mesh.fsdp=4",
    "--config.optimizer.name=adamw",
    "--config.model.dim=256",
  ]
  out = tmp_path / "plan.json"
  assert plan.main([*words, "--devices=4", "--compile", "--weak=2,4", f"--json={out}"]) == 0
  found = json.loads(out.read_text())
  planned, size = found["stages"][0]["bytes"], found["compiled"]["bytes"]
  state = planned["parameters"] + planned["moments"]
  assert 0.9 < state / size["argument"] < 1.1
  assert 0.3 < (planned["total"] - state) / size["temp"] < 3
  assert found["compiled"]["involuntary"] == 0
  assert [row["devices"] for row in found["weak"]] == [2, 4]
  assert 0 < found["weak"][1]["shown"] <= found["weak"][1]["hidden"] <= 1


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["--device=H9"], "--device=H9 is not known"),
    (["--devcies=3"], 'did you mean "devices"'),
    (["--preset=lama2"], 'did you mean "llama2"'),
    ([*SMALL, "--config.mesh.fsdp=3"], "do not make up 1 devices"),
    (["--config=configs/evaluate.py"], "trains no model"),
    (["--mfu=2"], "--mfu in (0, 1]"),
    ([*SMALL, "--weak=a"], "--weak=a must be numbers"),
  ],
)
def test_bad_input_is_one_line(words, message, capsys):
  assert plan.main(words) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1


def test_only_a_decoders_pretraining_is_compiled(capsys):
  assert compile_step.main(["--config=configs/dpo.py"]) == 2
  assert "only the step of a decoder's pretraining" in capsys.readouterr().err


def test_a_budget_needs_no_configuration(tmp_path, capsys):
  out = tmp_path / "budget.json"
  words = ["--params=7B", "--gpus=64", "--gpu=a100-80", "--days=14", f"--json={out}"]
  assert plan.main(words) == 0
  found = json.loads(out.read_text())["budget"]
  assert found["flops"] == pytest.approx(64 * 14 * 86400 * 312e12 * 0.4)
  assert found["tokens"] == pytest.approx(found["flops"] / 6 / 7e9)
  shown = capsys.readouterr().out
  assert "230 B, 32.9 per parameter" in shown and "over-trained" in shown and "kWh" in shown


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["--params=7x", "--days=3"], "--params=7x must be a number above 0"),
    (["--params=7B"], "give two of them, or days alone"),
    (["--days=3", "--config=configs/dpo.py"], "take no configuration"),
    (["--days=3", "--gpu=a1000"], "--device=a1000 is not known"),
    (["--days=nan"], "--days=nan must be a number above 0"),
    (["--days=0"], "--days=0 must be a number above 0"),
    (["--params=0", "--days=1"], "--params=0 must be a number above 0"),
    (["--params=7e9", "--tokens=1e400"], "--tokens=1e400 must be a number above 0"),
    (["--params=1e60", "--tokens=1e60"], "numbers must be 0 to 1e+30"),
    (["--params=1e-9", "--tokens=1e-9"], "less than one parameter and token"),
    (["--days=30", "--gpus=1" + 40 * "0"], "numbers must be 0 to 1e+30"),
    (["--days=1", "--price=nan"], "--price not negative"),
  ],
)
def test_bad_budgets_are_one_line(words, message, capsys):
  assert plan.main(words) == 2
  shown = capsys.readouterr().err
  assert message in shown and shown.count("\n") == 1
