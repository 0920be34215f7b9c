"""The launcher as a user meets it: exit codes, one line on stderr, nothing written on an error."""

import json
import os
import pathlib
import resource
import subprocess
import sys

import pytest

from experiments import _fields, _plan
from llm_jax import config
from llm_jax.scaling import flops

ROOT = pathlib.Path(__file__).resolve().parents[1]
# A stage of the test's own in place of the real one, so that no test here loads JAX.
WITH_STAGE = """
import sys, types
from llm_jax.errors import UserError
from experiments import _launch
def run(cfg, workdir):
{body}
sys.modules["llm_jax.stages.sft"] = types.SimpleNamespace(run=run)
_launch.main("sft")
"""


def launch(experiment, *words):
  command = [sys.executable, "-m", f"experiments.{experiment}", *words]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def launch_stage(body, *words):
  code = WITH_STAGE.format(body="\n".join(f"  {line}" for line in body.splitlines()))
  return subprocess.run(
    [sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True
  )


def test_help_answers_at_once_with_command_flags_and_fields():
  begin = resource.getrusage(resource.RUSAGE_CHILDREN)
  done = launch("pipeline", "--help")
  end = resource.getrusage(resource.RUSAGE_CHILDREN)
  # Seconds of the processor: other work is no delay.
  assert end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime < 3
  assert (done.returncode, done.stderr) == (0, "")
  for text in ("python -m experiments.pipeline", "--workdir", "--config.pretrain.optimizer.lr="):
    assert text in done.stdout


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["--config.modle.dim=8"], 'config has no field "modle"; did you mean "config.model"?'),
    (["--config.model.dmi", "8"], 'did you mean "config.model.dim"?'),
    (["--config.dim=8"], 'did you mean "config.model.dim"?'),
    (["--config.steps=abc"], "--config.steps=abc: config.steps takes an integer"),
    (["--config.optimizer.lr=none"], "config.optimizer.lr takes a number"),
    (["--config.model.bias=maybe"], "config.model.bias takes true or false"),
    (["--config.model=none"], "config.model is a group"),
    (["--config.steps.x=1"], "config.steps is a value"),
    (["--config.steps"], "Missing value for flag --config.steps"),
    (["--confg.steps=8"], 'unknown flag --confg.steps; did you mean "--config.steps"?'),
    (["--wrkdir=x"], 'unknown flag --wrkdir; did you mean "--workdir"?'),
    (["--config=configs/pretrian.py"], 'no file configs/pretrian.py; did you mean "pretrain"?'),
    (["--config=configs/pipeline.py:cii"], 'no variant "cii"; did you mean "ci"?'),
    (["--config=Makefile"], "Makefile is no Python file"),
    (["steps=5"], 'unexpected word "steps=5"'),
    (["--config.batch=5", "--config.accum=2"], "config.batch=5 must be a multiple of"),
    (["--config.mixture.sources=a=b, c=d"], "takes a tuple of texts, such as"),
    (["--config.mixture.preset=gpt3"], "are of config.mixture.sources, and there are none"),
    (["--config.optimizer.name=adamww"], 'config.optimizer.name="adamww" is unknown; did you'),
    ([], "--workdir is missing"),
  ],
  ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(words, message, tmp_path):
  where = [f"--workdir={tmp_path / 'run'}"] if words else []
  done = launch("pretrain", *where, *words)
  assert done.returncode == 2
  assert done.stdout == ""
  assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
  assert message in done.stderr
  assert not (tmp_path / "run").exists()


def test_a_nested_configs_check_names_the_whole_field():
  done = launch("pipeline", "--config.sft.batch=5", "--config.sft.accum=2")
  assert done.returncode == 2
  assert "config.sft.batch=5 must be a multiple of config.sft.accum=2" in done.stderr


def test_a_stage_gets_the_overridden_config_and_the_workdir(tmp_path):
  words = [
    f"--workdir={tmp_path / 'run'}", "--config.loss=ipo(beta=0.2)", "--config.optimizer.lr=1e-4"
  ]  # fmt: skip
  done = launch_stage("print(cfg.loss, cfg.optimizer.lr, workdir)", *words)
  assert (done.returncode, done.stderr) == (0, "")
  assert done.stdout == f"ipo(beta=0.2) 0.0001 {tmp_path / 'run'}\n"
  overrides = json.loads((tmp_path / "run" / "overrides.json").read_text())
  assert overrides == {"loss": "ipo(beta=0.2)", "optimizer.lr": 1e-4}
  (info,) = json.loads((tmp_path / "run" / "info.json").read_text())
  assert info["compiled"]["cache"] == os.environ["JAX_COMPILATION_CACHE_DIR"]
  other = launch_stage("print('ran')", *words[:1])
  assert (other.returncode, other.stdout) == (2, "")
  assert other.stderr.count("\n") == 1
  assert 'config.loss is "ipo(beta=0.2)" there and "cross_entropy()" now' in other.stderr


def test_a_refused_first_launch_does_not_stand_in_the_way_of_the_corrected_one(tmp_path):
  workdir = f"--workdir={tmp_path / 'runs' / 'sft'}"
  body = "if cfg.loss == 'typo()': raise UserError('no such loss')"
  done = launch_stage(body, workdir, "--config.loss=typo()")
  assert (done.returncode, done.stderr) == (2, "error: no such loss\n")
  assert not list(tmp_path.iterdir())
  done = launch_stage(body, workdir)
  assert (done.returncode, done.stderr) == (0, "")


def test_what_a_refused_launch_says_of_its_files_is_no_progress(tmp_path):
  body = """
from llm_jax.stages import own
with own.intake(cfg, workdir) as taken:
  taken.add("a.jsonl", 9)
if cfg.loss == 'typo()': raise UserError('no such loss')"""
  workdir = f"--workdir={tmp_path / 'runs' / 'sft'}"
  done = launch_stage(body, workdir, "--config.loss=typo()")
  assert (done.returncode, done.stderr) == (2, "error: no such loss\n")
  assert not list(tmp_path.iterdir())
  done = launch_stage(body, workdir)
  assert (done.returncode, done.stderr) == (0, "")
  assert json.loads((tmp_path / "runs" / "sft" / "data.json").read_text())[0]["rows"] == 9


def test_a_loss_of_ones_own_trains_the_published_dpo(tmp_path):
  read = json.JSONDecoder().raw_decode
  mine, published = (read(launch(name, "--dry_run").stdout)[0] for name in ("custom_loss", "dpo"))
  assert mine == published | {"loss": "capped"}
  code = """
import runpy, sys, types
def run(cfg, workdir, *, loss): print(cfg.loss, cfg.steps, loss.__name__)
sys.modules["llm_jax.stages.dpo"] = types.SimpleNamespace(run=run)
runpy.run_module("experiments.custom_loss", run_name="__main__")
"""
  command = [sys.executable, "-c", code, f"--workdir={tmp_path}", "--config.steps=7"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert (done.stdout, done.stderr) == ("capped 7 capped\n", "")
  done = launch("custom_loss", "--wrkdir=x")
  assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


@pytest.mark.parametrize(
  ("body", "code", "stderr"),
  [
    ("raise UserError('two\\nlines')", 2, "error: two lines\n"),
    (
      "raise KeyboardInterrupt",
      130,
      "interrupted: the same command continues from the last checkpoint\n",
    ),
  ],
)
def test_a_stages_ending_is_one_line(body, code, stderr, tmp_path):
  done = launch_stage(body, f"--workdir={tmp_path}")
  assert (done.returncode, done.stderr) == (code, stderr)


SECRET = "abcdefghij0123456789"


@pytest.mark.parametrize(
  "body",
  [
    "raise UserError(f'{cfg.init} is missing')",
    "raise KeyError(cfg.init)",
    "open(workdir + '/made', 'w')",
  ],
)
def test_a_secret_stays_in_the_flag_and_in_the_environment(body, tmp_path, monkeypatch):
  for name in ("WANDB_API_KEY", "HF_TOKEN", "LLM_JAX_TOKEN", "JUDGE_KEY"):
    monkeypatch.setenv(name, f"{SECRET}-{name}")
  words = [f"--workdir={tmp_path / 'run'}", f"--config.init=https://me:{SECRET}@host/model"]
  said = [launch_stage(body, *words) for _ in range(2)]
  said += [launch_stage(body, *words, "--config.steps=7"), launch_stage(body, *words, "--dry_run")]
  said.append(launch_stage(body, f"--api_key={SECRET}", *words))
  assert [done.returncode for done in said][2:] == [2, 0, 2]
  files = [path for path in tmp_path.rglob("*") if path.is_file()]
  text = "".join([*(d.stdout + d.stderr for d in said), *(path.read_text() for path in files)])
  assert SECRET not in text and "[redacted]" in text


def test_an_unexpected_error_keeps_its_traceback(tmp_path):
  done = launch_stage("raise KeyError('bug')", f"--workdir={tmp_path}")
  assert done.returncode == 1
  assert "Traceback" in done.stderr and "KeyError: 'bug'" in done.stderr


@pytest.mark.parametrize(
  ("fields", "line"),
  [
    ("steps='10'", "config.steps takes an integer, got '10' (str)"),
    ("steps=1.5", "config.steps takes an integer, got 1.5 (float)"),
    ("steps=True", "config.steps takes an integer, got True (bool)"),
    ("optimizer=None", "config.optimizer takes a config.Optimizer, got None (NoneType)"),
    ("prepared=None", "config.prepared takes text, got None (NoneType)"),
    (
      "model=config.Model(windows=[8, 0])",
      "config.model.windows takes a tuple of integers, such as '(1, 2)' or '(1,)', "
      "got [8, 0] (list)",
    ),
    (
      "optimizer=config.Optimizer(lr='1e-3')",
      "config.optimizer.lr takes a number, got '1e-3' (str)",
    ),
  ],
)
def test_a_config_file_with_the_wrong_type_of_value_is_one_line(fields, line, tmp_path):
  file = tmp_path / "mine.py"
  text = "from llm_jax import config\n\ndef get_config():\n  return config.Pretrain("
  file.write_text(f"{text}{fields})\n")
  done = launch("pretrain", f"--config={file}", f"--workdir={tmp_path / 'run'}")
  assert (done.returncode, done.stderr) == (2, f"error: {line}\n")
  assert not (tmp_path / "run").exists()


def test_a_config_file_may_give_an_integer_for_a_number():
  _fields.validate(config.Pretrain(optimizer=config.Optimizer(lr=1)))


def test_chatter_of_the_libraries_stays_off_the_terminal(tmp_path):
  body = "import logging\nfrom absl import logging as log\nlog.info('a')\n"
  body += "[logging.getLogger(n).info('b') for n in ('orbax', 'jax')]\nlog.warning('kept')"
  done = launch_stage(body, f"--workdir={tmp_path}")
  assert done.returncode == 0
  assert "kept" in done.stderr and done.stderr.count("\n") == 1


def test_a_dry_run_prints_config_and_costs_and_writes_nothing(tmp_path):
  done = launch(
    "pipeline", "--dry_run", f"--workdir={tmp_path / 'run'}", "--config.pretrain.steps=100"
  )
  assert (done.returncode, done.stderr) == (0, "")
  text, table = done.stdout.split("\n\n")
  cfg = json.loads(text)
  assert cfg["pretrain"]["steps"] == 100
  row = next(line for line in table.splitlines() if line.split()[0] == "pretrain").split()
  assert row[2] == f"{100 * cfg['pretrain']['batch'] * cfg['pretrain']['length']:,}"
  assert not (tmp_path / "run").exists()


def test_a_plan_reads_the_shape_of_a_trained_model(tmp_path):
  cfg = config.Dpo(init=str(tmp_path))
  assert f"--config.init={tmp_path} holds no trained model" in _plan.describe("dpo", cfg)
  (tmp_path / "model.json").write_text(json.dumps({"vocab_size": 99, "dim": 16, "layers": 1}))
  count = flops.parameters(config.Model(vocab_size=99, dim=16, layers=1))
  assert f" {count:,} " in _plan.describe("dpo", cfg)


def test_every_experiment_has_a_config_that_validates():
  for path in sorted((ROOT / "experiments").glob("[!_]*.py")):
    if path.stem == "sweep":  # It has flags of its own: test_sweep.py.
      continue
    words = ["--config=configs/recipes/zephyr.py"] if path.stem == "recipe" else []
    done = launch(path.stem, "--dry_run", *words)
    assert (done.returncode, done.stderr) == (0, ""), path.stem
