"""Every stage that many processes share gives the losses of one process, on any mesh, resumed."""

import dataclasses
import json
import re
import shlex

import numpy as np
import pytest

from experiments import _launch
from llm_jax import config
from llm_jax.stages import dpo, pack, pretrain, reward, sft
from llm_jax.train import checkpoint, feeds, metrics
from tests.stages import one_of_two
from tests.stages.conftest import SHAPE, tiny
from tests.train import two_processes

pytestmark = pytest.mark.slow


def flags(cfg, usual, prefix="config"):
  """The command line that makes `cfg` of the usual config."""
  words = []
  for name, value in vars(cfg).items():
    if dataclasses.is_dataclass(value):
      words += flags(value, getattr(usual, name), f"{prefix}.{name}")
    elif value != getattr(usual, name):
      words.append(f"--{prefix}.{name}={value}")
  return words


def start(step, experiment, cfg, workdir, *more, devices):
  usual = _launch.load_config(str(_launch.CONFIGS / f"{experiment}.py"))
  words = [f"--workdir={workdir}", *flags(cfg, usual), *more]
  return two_processes.start(
    "tests.stages.one_of_two", str(step), experiment, *words, devices=devices
  )


def losses(workdir):
  """(step, name) -> loss, evaluations included; each was written once."""
  rows = metrics.read(workdir)
  found = [(row["step"], k, row[k]) for row in rows for k in ("loss", "eval/loss") if k in row]
  assert len({item[:2] for item in found}) == len(found)
  return {item[:2]: item[2] for item in found}


def assert_same(workdir, whole):
  found = losses(workdir)
  assert found.keys() == whole.keys()
  np.testing.assert_allclose(list(found.values()), [whole[k] for k in found], rtol=2e-5)


@pytest.fixture(scope="module")
def task(request, prepared, tmp_path_factory):
  """A pretraining on documents that are packed as they are read, or before; and its losses."""
  path = tmp_path_factory.mktemp("whole")
  cfg = tiny(config.Pretrain, prepared, steps=8, log_every=1)
  cfg.model = dataclasses.replace(SHAPE, heads=4)
  if request.param == "rows":
    pack.run(config.Pack(prepared=str(prepared), length=96, workers=1), path / "rows")
    cfg.mixture = config.Mixture(sources=(f"{path}/rows",), max_epochs=1000.0)
  pretrain.run(cfg, str(path / "whole"))
  return cfg, losses(path / "whole")


@pytest.mark.parametrize(
  ("task", "mesh", "then"),
  [
    ("documents", "data=2 fsdp=2", "fsdp=8"),
    ("documents", "tensor=4", "data=8"),  # Both processes need all rows.
    ("rows", "data=2 tensor=2", "fsdp=2"),
  ],
  indirect=["task"],
)
def test_two_processes_stop_and_one_goes_on(task, mesh, then, tmp_path):
  cfg, whole = task
  words = [f"--config.mesh.{part}" for part in mesh.split()]
  tasks = start(3, "pretrain", cfg, tmp_path / "run", *words, devices=2)
  assert [code for code, _ in tasks] == [143, 143], tasks
  assert checkpoint.latest_step(tmp_path / "run" / "checkpoints") == 4
  assert "Traceback" not in tasks[0][1] + tasks[1][1]
  cfg.mesh = config.Mesh(**{k: int(v) for k, v in [then.split("=")]})
  pretrain.run(cfg, str(tmp_path / "run"))
  cfg.mesh = config.Mesh()
  assert_same(tmp_path / "run", whole)


@pytest.mark.parametrize("task", ["rows"], indirect=True)
def test_one_process_stops_and_two_go_on_twice(task, tmp_path, monkeypatch):
  cfg, whole = task
  with monkeypatch.context() as patch, pytest.raises(SystemExit):
    patch.setattr(feeds, "IteratorFeed", feeds.IteratorFeed)
    one_of_two.interrupt(feeds, 2)
    pretrain.run(cfg, str(tmp_path))
  tasks = start(3, "pretrain", cfg, tmp_path, "--config.mesh.fsdp=4", devices=2)
  assert [code for code, _ in tasks] == [143, 143], tasks
  tasks = start(0, "pretrain", cfg, tmp_path, "--config.mesh.fsdp=2", devices=1)
  assert [code for code, _ in tasks] == [0, 0], tasks
  assert_same(tmp_path, whole)
  assert json.loads((tmp_path / "config.json").read_text())["mesh"]["fsdp"] == 2
  # Once more is at once.
  assert [code for code, _ in start(0, "pretrain", cfg, tmp_path, devices=1)] == [0, 0]


@pytest.mark.parametrize("stage", [sft, reward, dpo], ids=lambda stage: stage.__name__[15:])
def test_later_stages_are_shared_too(stage, prepared, root, tmp_path):
  name = stage.__name__.rpartition(".")[2]
  given = {"init": str(root / ("pretrain" if stage is sft else "sft"))}
  if stage is not sft:
    given["preferences"] = str(root / "preferences")
  cfg = tiny(getattr(config, name.capitalize()), prepared, log_every=1, **given)
  stage.run(cfg, str(tmp_path / "one"))
  tasks = start(0, name, cfg, tmp_path / "two", "--config.mesh.fsdp=2", devices=2)
  assert [code for code, _ in tasks] == [0, 0], tasks
  one, two = (metrics.read(tmp_path / run) for run in ("one", "two"))
  for a, b in zip(one, two, strict=True):
    assert a.keys() == b.keys()
    # An accuracy counts signs, and before the first update all margins are about 0.
    for key in (k for k in a if not re.search("^time/|^memory/|accurac", k)):
      np.testing.assert_allclose(a[key], b[key], rtol=1e-4, atol=1e-5, err_msg=key)


@pytest.mark.parametrize(
  ("more", "message"),
  [
    ("--config.batch=6", "a batch of 6 rows cannot be divided by 4"),
    ("--config.mesh.data=2", "config.mesh takes 2 of 4 devices"),
    ("--config.mesh.kind=pmap", "config.mesh.kind=pmap is for one process, there are 2"),
    ("--config.prepared=gone", "gone holds no prepared corpus"),
  ],
)
def test_bad_input_is_one_line_of_each_process(more, message, prepared, tmp_path):
  cfg = tiny(config.Pretrain, prepared)
  cfg.model = SHAPE
  for code, text in start(0, "pretrain", cfg, tmp_path, *shlex.split(more), devices=2):
    lines = [x for x in text.splitlines() if x.startswith("error: ")]
    assert code == 2 and len(lines) == 1 and message in lines[0], text
    assert "Traceback" not in text
  # Rows are counted when the first batch is there, after model.json: then a run has begun.
  assert (tmp_path / "config.json").exists() == ("batch" in more)


def test_other_stages_are_of_one_process(prepared, tmp_path):
  cfg = config.Evaluate(prepared=str(prepared), run=str(tmp_path))
  for code, text in start(0, "evaluate", cfg, tmp_path / "out", devices=1):
    assert code == 2 and "experiments.evaluate runs in one process" in text
