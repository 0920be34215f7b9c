"""A run's directory: whole files, one config for ever, no secrets."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import time
from typing import Any

import pytest

from experiments import _launch
from llm_jax import config, rundir
from llm_jax.errors import UserError


def test_a_start_records_config_overrides_and_provenance(tmp_path):
  how = {"cache": "compiled", "XLA_FLAGS": "--a=1 --password=hunter2hunter2"}
  rundir.start(config.Sft(steps=7), tmp_path / "a" / "run", {"steps": 7}, ["sft", "--x"], how)
  run = tmp_path / "a" / "run"
  assert json.loads((run / "config.json").read_text())["steps"] == 7
  assert json.loads((run / "overrides.json").read_text()) == {"steps": 7}
  (launch,) = json.loads((run / "info.json").read_text())
  assert launch["command"] == ["sft", "--x"]
  assert launch["versions"]["numpy"] and launch["python"].startswith("3.")
  assert set(launch["git"]) == {"revision", "status", "diff"}
  assert launch["compiled"] == {"cache": "compiled", "XLA_FLAGS": "--a=1 --password=[redacted]"}
  assert sorted(p.name for p in run.iterdir()) == ["config.json", "info.json", "overrides.json"]


def test_the_same_config_continues_and_another_is_refused_with_both_values(tmp_path):
  rundir.start(config.Sft(), tmp_path)
  rundir.start(config.Sft(), tmp_path)
  assert len(json.loads((tmp_path / "info.json").read_text())) == 2
  before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
  other = config.Sft(steps=7)
  other.optimizer.lr = 0.5
  with pytest.raises(UserError, match="another --workdir or delete it") as raised:
    rundir.start(other, tmp_path)
  assert "config.optimizer.lr is 0.001 there and 0.5 now" in str(raised.value)
  assert "config.steps is 100 there and 7 now" in str(raised.value)
  assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir()}


def test_another_stages_config_is_refused(tmp_path):
  rundir.start(config.Prepare(), tmp_path)
  with pytest.raises(UserError, match="absent"):
    rundir.start(config.Evaluate(), tmp_path)


def refused(workdir, *files, cfg=None, error=UserError):
  """A launch whose stage makes a directory and these files, then raises."""
  with pytest.raises(error), rundir.launch(cfg or config.Sft(), workdir):
    (workdir / "checkpoints" / "tmp").mkdir(parents=True, exist_ok=True)
    for name in files:
      (workdir / name).write_text("")
    raise error("no such input")


def test_a_refused_first_launch_leaves_no_trace(tmp_path):
  refused(tmp_path / "runs" / "sft")
  assert not list(tmp_path.iterdir())
  (tmp_path / "empty").mkdir()
  (tmp_path / "notes.txt").write_text("mine")
  refused(tmp_path)
  assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "notes.txt"]
  with rundir.launch(config.Sft(steps=7), tmp_path):
    pass
  assert (tmp_path / "config.json").exists()


@pytest.mark.parametrize(
  ("files", "error"), [(["checkpoints/1"], UserError), ([], RuntimeError), ([], KeyboardInterrupt)]
)
def test_progress_and_other_errors_keep_the_records(files, error, tmp_path):
  refused(tmp_path / "run", *files, error=error)
  assert {p.name for p in (tmp_path / "run").iterdir()} == {*rundir.RECORDS, "checkpoints"}


def test_a_later_refused_launch_keeps_the_run(tmp_path):
  rundir.start(config.Sft(), tmp_path)
  refused(tmp_path)
  assert len(json.loads((tmp_path / "info.json").read_text())) == 2
  with pytest.raises(UserError, match="another config"):
    with rundir.launch(config.Sft(steps=7), tmp_path):
      pytest.fail("the block must not run")
  assert (tmp_path / "config.json").exists()


def test_a_refused_stage_of_a_pipeline_keeps_what_the_others_made(tmp_path):
  with pytest.raises(UserError), rundir.launch(config.Pipeline(), tmp_path):
    with rundir.launch(config.Sft(), tmp_path / "sft"):
      (tmp_path / "sft" / "model.json").write_text("{}")
    with rundir.launch(config.Dpo(), tmp_path / "dpo"):
      raise UserError("no such loss")
  assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*rundir.RECORDS, "sft"])


ROOT = pathlib.Path(__file__).resolve().parents[1]
HOLDER = """
import sys, time
from llm_jax import config, rundir
with rundir.launch(config.Sft(), sys.argv[1]):
  print("held", flush=True)
  time.sleep(60)
"""


def test_two_processes_never_work_in_one_directory(tmp_path, monkeypatch):
  monkeypatch.setattr(rundir, "_PATIENCE", 0.3)
  run = tmp_path / "run"
  command = [sys.executable, "-c", HOLDER, run]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
    try:
      assert process.stdout.readline() == "held\n"
      files = {p.name: p.read_bytes() for p in run.iterdir()}
      with pytest.raises(rundir.InUse, match="in use by another process"):
        with rundir.launch(config.Sft(), run):
          raise AssertionError("two at a time")
      assert files == {p.name: p.read_bytes() for p in run.iterdir()}
      with rundir.launch(config.Sft(), tmp_path / "other"):
        pass
    finally:
      process.kill()
  with rundir.launch(config.Sft(), run):  # A kill leaves nothing behind that would bar the way.
    pass


def test_a_broken_config_file_is_named(tmp_path):
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(UserError, match="config.json cannot be read as JSON"):
    rundir.start(config.Sft(), tmp_path)


def test_a_file_in_the_way_is_named(tmp_path):
  (tmp_path / "run").write_text("")
  with pytest.raises(UserError, match="--workdir=.*run"):
    rundir.start(config.Sft(), tmp_path / "run")


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
  rundir.write_json(tmp_path / "x.json", 1)

  def fail(self, target):
    raise OSError("no space")

  monkeypatch.setattr(pathlib.Path, "replace", fail)
  with pytest.raises(OSError, match="no space"):
    rundir.write_json(tmp_path / "x.json", 2)
  assert (tmp_path / "x.json").read_text() == "1\n"


_KILLED = """
import os, pathlib, signal, sys
from llm_jax import rundir
pathlib.Path.replace = lambda self, target: os.kill(os.getpid(), signal.SIGKILL)
rundir.write_json(pathlib.Path(sys.argv[1]), 2)
"""


def test_what_a_kill_leaves_of_a_write_is_gone_after_the_next(tmp_path):
  command = [sys.executable, "-c", _KILLED, tmp_path / "x.json"]
  assert subprocess.run(command, cwd=ROOT, check=False).returncode == -9
  assert not (tmp_path / "x.json").exists() and len(list(tmp_path.iterdir())) == 1
  rundir.write_json(tmp_path / "x.json", 2)
  assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


SECRET = "abcdefghij0123456789"


@pytest.mark.parametrize(
  "text",
  [
    f"WANDB_API_KEY={SECRET}", f'api_key: "{SECRET}"', f"--password={SECRET}", f"HF_TOKEN={SECRET}",
    f"+secret = '{SECRET}'", f"x = 'hf_{SECRET}'", f"https://me:{SECRET}@example.org/",
    f"aws_access_key_id = {SECRET}", f"token:{SECRET}", f'{{"token":"{SECRET}"}}',
  ],
)  # fmt: skip
def test_secrets_are_redacted(text):
  assert SECRET not in rundir.redact(text)
  assert "[redacted]" in rundir.redact(text)


@pytest.mark.parametrize(
  "text",
  [
    "tokens = 123456789", "tokenizer: Tokenizer", "key = jax.random.key(0)", "max_tokens=100000000",
    "keys=sorted(names)", "https://example.org/a:b",
    "--config.loss=my.losses.token:smoothed(alpha=0.1)", '"loss": "token:cross_entropy"',
  ],
)  # fmt: skip
def test_other_text_is_left_alone(text):
  assert rundir.redact(text) == text


@pytest.mark.parametrize("piece", ["a", "secret", "token-", "secret ", "://", "sk-", "://a:"])
def test_a_long_line_costs_little_to_redact(piece):
  began = time.process_time()
  rundir.redact(piece * (300_000 // len(piece)))
  assert time.process_time() - began < 2


@pytest.mark.parametrize("name", ["init", "data", "api_key"])
def test_a_secret_in_a_config_is_in_no_record(tmp_path, name):
  value = {"init": f"https://me:{SECRET}@host/x", "data": (f"s3://b?secret={SECRET}",)}.get(
    name, SECRET
  )
  other = json.loads(json.dumps(value).replace(SECRET, SECRET[::-1]))
  make = dataclasses.make_dataclass("Cfg", [(name, Any, ""), ("steps", int, 4)])
  for given in (value, other):  # The same run, for all that is on record.
    rundir.start(make(given), tmp_path, {name: given}, [f"--config.{name}={given}"])
  with pytest.raises(UserError, match="another config") as raised:
    rundir.start(make(f"https://me:{SECRET}@elsewhere/x", 5), tmp_path)
  text = "".join(p.read_text() for p in tmp_path.iterdir()) + str(raised.value)
  assert SECRET not in text and SECRET[::-1] not in text and "[redacted]" in text


def test_the_published_configs_have_nothing_to_redact():
  for path in sorted((ROOT / "configs").rglob("[!_]*.py")):
    cfg = dataclasses.asdict(_launch.load_config(str(path)))
    assert rundir.redacted(cfg) == json.loads(json.dumps(cfg)), path


def test_a_field_that_came_later_has_its_default_in_an_older_run(tmp_path):
  rundir.start(config.Prepare(), tmp_path)
  path = tmp_path / "config.json"
  old = json.loads(path.read_text())
  del old["reader"], old["tokenizer"]["weights"]
  path.write_text(json.dumps(old))
  rundir.start(config.Prepare(), tmp_path)
  path.write_text(json.dumps(old))
  other = config.Prepare()
  other.reader.text = "body"
  with pytest.raises(UserError, match='config.reader.text is absent there and "body" now'):
    rundir.start(other, tmp_path)
