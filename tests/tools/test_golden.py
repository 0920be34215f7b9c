"""Golden curves hold, a second process gives the same bits, and a small change is seen."""

import hashlib
import math
import os
import pathlib
import re
import subprocess
import sys

import jax
import pytest

from llm_jax.stages import parts, sft
from llm_jax.train import checkpoint
from tests.faults.kills import rows
from tools import _golden_runs, golden

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAMES = list(_golden_runs.runs(pathlib.Path()))
# What draws answers: a checkpoint of it holds them, or files beside its metrics do.
DRAWING = {"ppo": '"rollout"', "grpo": '"rollout"', "online_dpo": '"rollout"'}
DRAWING |= {"rejection": '"answers"', "rlaif": '"answers"'}


def marked(test):
  """Of one worker, for all of these need the same two processes' runs."""
  return pytest.mark.long(pytest.mark.xdist_group("golden")(test))


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
  """The runs of two processes, one after the other: (folder, exit code, what it said) of each."""
  folder, found = tmp_path_factory.mktemp("golden"), []
  quick = {  # Nothing kills these: what they compile is kept for this process, too.
    "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
  }
  for seed in ("1", "2"):  # Of Python's hashes: an order of a set must not matter.
    words = [sys.executable, "-m", "tools.golden", f"--workdir={folder / seed}"]
    done = subprocess.run(
      words, cwd=ROOT, capture_output=True, text=True,
      env=os.environ | quick | {"PYTHONHASHSEED": seed},
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    found.append((folder / seed, done.returncode, done.stdout))
  return found


def here(name, root, workdir, change=None):
  """A run in this process, from what another one began with; returns its curve."""
  run = _golden_runs.runs(root)[name]
  if change:
    change(run.cfg)
  run.stage.run(run.cfg, str(workdir))
  return golden.curve(run, workdir)


def moved(name, found):
  return [line for size, line in golden.differences(found, golden.load(name)) if size > 1]


def drawn(workdir):
  """What was drawn: the files of answers, and the feed's state in checkpoints."""
  files = [
    path
    for path in sorted(workdir.rglob("*"))
    if path.is_file() and path.name != "metrics.jsonl"
    if path.suffix == ".jsonl" or ("extra" in path.parts and path.name != "commit_success.txt")
  ]
  return {str(path.relative_to(workdir)): path.read_bytes() for path in files}


def bits(workdir):
  """What must be the same: parameters, metrics without times, and what was drawn."""
  params = ""
  if (workdir / "checkpoints").exists():
    params = parts.fingerprint(checkpoint.load_params(workdir))
  files = {name: hashlib.sha256(data).hexdigest() for name, data in drawn(workdir).items()}
  return {"parameters": params, "metrics": rows(workdir), "drawn": files}


@marked
def test_the_program_says_that_nothing_moved(twice):
  for _, code, said in twice:
    assert code == 0, said
    lines = [line for line in said.splitlines() if re.match(r"\w+: golden; the largest diff", line)]
    assert [line.partition(":")[0] for line in lines] == NAMES


@marked
@pytest.mark.parametrize("name", NAMES)
def test_curves_are_golden(name, twice):
  run = _golden_runs.runs(twice[0][0])[name]
  assert not moved(name, golden.curve(run, twice[0][0] / name))


@marked
@pytest.mark.parametrize("name", NAMES)
def test_a_second_process_gives_the_same_bits(name, twice):
  one, two = (bits(folder / name) for folder, _, _ in twice)
  for what in one:
    assert one[what] == two[what], what
  assert one["metrics"] or name == "rlaif"
  if name in DRAWING:
    assert any(DRAWING[name].encode() in data for data in drawn(twice[0][0] / name).values())


@marked
@pytest.mark.parametrize(
  ("name", "seed"), [("pretrain", 0), ("pretrain", 1), ("dpo", 1), ("ppo", 0), ("ppo", 1)]
)
def test_the_seed_decides(name, seed, twice, tmp_path):
  """The control of the tests above: this process gives the same bits too, but by another seed."""
  root, apart = twice[0][0], tmp_path / "run"
  found = here(name, root, apart, lambda cfg: setattr(cfg, "seed", seed))
  one, two = bits(root / name), bits(apart)
  if seed:
    assert moved(name, found)
    assert one["parameters"] != two["parameters"] and one["metrics"] != two["metrics"]
    assert one["drawn"] != two["drawn"] or name not in DRAWING
  else:
    assert one == two


def spoilt_mask(tokenizer, question, length, example=sft.example):
  """What is asked is learned, in the place of what is answered."""
  tokens, mask = example(tokenizer, question, length)
  return tokens, [1 - x for x in mask]


def faster(cfg):
  cfg.optimizer.lr *= 1.02


CHANGES = {
  "a learning rate 2 % higher": ("pretrain", faster),
  "longer spans": ("t5", lambda cfg: setattr(cfg.corruption, "mean_span", 3.5)),
  "the other mask": ("sft", lambda cfg: None),
  "an adapter 5 % stronger": ("sft_lora", lambda cfg: setattr(cfg.lora, "alpha", 4.2)),
  "labels 1 % softer": ("reward", lambda cfg: setattr(cfg, "loss", "logistic(smoothing=0.01)")),
  "DPO's beta 5 % higher": ("dpo", lambda cfg: setattr(cfg, "loss", "logistic(beta=0.105)")),
  "KTO's beta 5 % higher": ("kto", lambda cfg: setattr(cfg, "loss", "kto(beta=0.105)")),
  "PPO's lambda 2 % lower": ("ppo", lambda cfg: setattr(cfg, "lam", 0.93)),
  "groups of n, not of n - 1": (
    "grpo", lambda cfg: setattr(cfg, "advantage", "group_advantage(ddof=0)"),
  ),
  "the two best answers": ("rejection", lambda cfg: setattr(cfg, "keep", 2)),
  "a reference that moves": ("online_dpo", lambda cfg: setattr(cfg, "reference", "iteration")),
  "one principle more": ("rlaif", lambda cfg: setattr(cfg, "drawn", 3)),
}  # fmt: skip


@marked
@pytest.mark.parametrize("what", CHANGES)
def test_a_small_change_of_the_algorithm_is_seen(what, twice, tmp_path, monkeypatch):
  name, change = CHANGES[what]
  if name == "sft":
    monkeypatch.setattr(sft, "example", spoilt_mask)
  assert moved(name, here(name, twice[0][0], tmp_path / "run", change))


def test_every_stage_that_trains_has_a_curve():
  folder = ROOT / "llm_jax" / "stages"
  training = {p.stem for p in folder.glob("*.py") if "return training.train(" in p.read_text()}
  stages = {run.stage.__name__.rpartition(".")[2] for run in _golden_runs.runs(ROOT).values()}
  # The stages of "t5" and "kto" hand on to these.
  assert training - stages == {"seq2seq", "unpaired"}
  assert {path.stem for path in golden.GOLDEN.glob("*.json")} == set(NAMES)


GOLD = {
  "relative": 1e-3, "absolute": 1e-4, "steps_compared": 2,
  "curve": {"loss": [2.0, 1.0, 0.5], "eval/loss": [None, 3.0, None]},
}  # fmt: skip


@pytest.mark.parametrize(
  ("change", "largest"),
  [
    ({}, 0),
    ({"loss": [2.0 + 1.05e-3, 1.0, 0.5]}, 0.5),
    ({"loss": [2.0, 1.0 - 2.2e-3, 0.5]}, 2),
    ({"loss": [2.0, 1.0, 9.0]}, 0),  # Beyond what is compared.
    ({"eval/loss": [3.0, None, None]}, math.inf),
    ({"loss": [2.0]}, math.inf),
    ({"more": [1.0, 2.0, 3.0]}, math.inf),
  ],
)
def test_differences_are_in_tolerances(change, largest):
  found = golden.differences(GOLD["curve"] | change, GOLD)
  assert max(size for size, _ in found) == pytest.approx(largest)


def test_what_it_cannot_do_is_one_line(tmp_path, capsys):
  for flag, message in (
    ("--stages=dop", '"dop"; did you mean "dpo"'),
    (f"--workdir={tmp_path}", "is there"),
  ):
    assert golden.main([flag]) == 2
    line = capsys.readouterr().err
    assert message in line and line.count("\n") == 1
