"""Sweeps: what a grid means, what is checked before it starts, and what is done twice."""

import csv
import json
import pathlib

import pytest

from experiments import sweep
from llm_jax.errors import UserError

# ml_collections loads the file that --config names in an old way.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.mark.parametrize(
  ("grid", "expected"),
  [
    ("seed=0..2", [{"seed": "0"}, {"seed": "1"}, {"seed": "2"}]),
    ("a=1,2; b=x", [{"a": "1", "b": "x"}, {"a": "2", "b": "x"}]),
    ("a=1,2;b=3,4;", [{"a": a, "b": b} for a in "12" for b in "34"]),
    ("loss=ipo(beta=0.1),logistic(beta=0.2, smoothing=0.1)",
     [{"loss": "ipo(beta=0.1)"}, {"loss": "logistic(beta=0.2, smoothing=0.1)"}]),
    ("data=('a,b',),()", [{"data": "('a,b',)"}, {"data": "()"}]),
    ("--config.optimizer.lr = 1e-3", [{"optimizer.lr": "1e-3"}]),
    ("x=-1..1", [{"x": "-1"}, {"x": "0"}, {"x": "1"}]),
  ],
)  # fmt: skip
def test_a_grid_is_every_combination(grid, expected):
  assert sweep.points(grid) == expected


@pytest.mark.parametrize(
  ("grid", "message"),
  [
    ("", "is empty"),
    ("seed", "must be FIELD=VALUE"),
    ("seed=", "must be FIELD=VALUE"),
    ("seed=1,,2", "must be FIELD=VALUE"),
    ("seed=1;seed=2", "there twice"),
    ("seed=3..1", "go upwards"),
    ("seed=0..1000000000", "less than 10,000"),
    ("seed=0,0", "a value twice"),
    ("loss=ipo(beta=1", "not closed"),
    ("loss='ipo", "not closed"),
  ],
)
def test_grids_that_cannot_be_read(grid, message):
  with pytest.raises(UserError, match=message):
    sweep.points(grid)


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["--stage=dpoo", "--grid=seed=0"], 'did you mean "dpo"?'),
    (["--stage=dpo", "--grid=optimizer.lrr=1"], 'config.optimizer has no field "lrr"'),
    (["--stage=dpo", "--grid=seed=0,half"], "config.seed takes an integer"),
    (["--stage=dpo", "--grid=steps=5,0"], "config.steps must be at least 1"),
    (["--stage=dpo", "--grid=seed=0", "--config.stepss=1"], "has no field"),
    (["--stage=dpo", "--grid=seed=0..2", "--index=3"], "the runs are 0 to 2"),
    (["--stage=dpo", "--grid=seed=0", "--dry_run"], "with --list"),
    (["--stage=recipe", "--grid=seed=0"], "--stage=recipe needs --config"),
  ],
)
def test_all_runs_are_checked_before_the_first_one(words, message, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(sweep.subprocess, "run", None)
  assert sweep.main([f"--workdir={tmp_path / 'new'}", *words]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1
  assert not (tmp_path / "new").exists()


class Done:
  """What subprocess.run returns."""

  def __init__(self, returncode):
    self.returncode = returncode


def swept(tmp_path, *words):
  grid = "--grid=seed=0..1;optimizer.lr=1e-3,2e-3"
  return sweep.main(["--stage=dpo", f"--workdir={tmp_path}", grid, *words])


def faked(monkeypatch, codes=()):
  """Runs that write one row of metrics; returns their folders' names."""
  seen = []

  def run(line, check):
    folder = pathlib.Path(line[3].removeprefix("--workdir="))
    code = codes[len(seen)] if len(seen) < len(codes) else 0
    seen.append(folder.name)
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 9, "loss": len(seen)}) + "\n")
    return Done(code)

  monkeypatch.setattr(sweep.subprocess, "run", run)
  return seen


def test_runs_are_made_in_order_and_once(tmp_path, monkeypatch):
  seen = faked(monkeypatch)
  assert swept(tmp_path) == swept(tmp_path) == 0
  assert seen == ["0", "1", "2", "3"]
  with (tmp_path / "results.csv").open() as file:
    rows = list(csv.DictReader(file))
  assert [(row["seed"], row["optimizer.lr"], row["loss"]) for row in rows] == [
    ("0", "1e-3", "1"), ("0", "2e-3", "2"), ("1", "1e-3", "3"), ("1", "2e-3", "4"),
  ]  # fmt: skip


def test_one_by_its_number(tmp_path, monkeypatch):
  seen = faked(monkeypatch)
  assert swept(tmp_path, "--index=2") == 0
  assert seen == ["2"]
  assert swept(tmp_path) == 0
  assert seen == ["2", "0", "1", "3"]


def test_a_run_that_fails_stops_no_other_and_is_made_again(tmp_path, monkeypatch, capsys):
  seen = faked(monkeypatch, codes=(0, 1))
  assert swept(tmp_path) == 1
  assert seen == ["0", "1", "2", "3"] and "failed: 1" in capsys.readouterr().err
  assert swept(tmp_path) == 0
  assert seen[4:] == ["1"]


def test_an_interrupted_run_ends_the_sweep(tmp_path, monkeypatch):
  seen = faked(monkeypatch, codes=(0, 130))
  assert swept(tmp_path) == 130
  assert seen == ["0", "1"]


def test_another_sweep_does_not_mix_with_it(tmp_path, monkeypatch, capsys):
  faked(monkeypatch)
  assert swept(tmp_path) == 0
  assert swept(tmp_path, "--config.steps=3") == 2
  assert "holds another sweep" in capsys.readouterr().err


def test_lines_and_scripts_are_printed_and_nothing_runs(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(sweep.subprocess, "run", None)
  assert swept(tmp_path, "--list", "--config.steps=3") == 0
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 4 and all("--config.steps=3" in line for line in lines)
  assert swept(tmp_path, "--sbatch") == 0
  text = capsys.readouterr().out
  assert "--array=0-3" in text and text.endswith("--index=$SLURM_ARRAY_TASK_ID\n")
  assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_read_is_one_line(tmp_path, capsys):
  (tmp_path / "file").write_text("")
  assert swept(tmp_path / "file") == 2
  (tmp_path / "sweep.json").write_text("{")
  assert swept(tmp_path) == 2
  errors = capsys.readouterr().err.splitlines()
  assert "is a file" in errors[0] and "is damaged" in errors[1] and len(errors) == 2
