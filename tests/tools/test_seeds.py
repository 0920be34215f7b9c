"""The mean over seeds: its table, and flags that would put every seed into one place."""

import json

import pytest

from tools import seeds


def finished(root, seed, value):
  """What a run leaves."""
  summary = {
    "seed": seed,
    "checks": [{"name": "answers that end", "target": ">= 97 %", "value": value}],
    "time": {"total": 600.0 + seed},
    "peak_memory_gib": 2.0,
  }
  (root / f"seed{seed}").mkdir()
  (root / f"seed{seed}" / "summary.json").write_text(json.dumps(summary))


def test_finished_seeds_are_read_and_averaged(tmp_path, capsys):
  finished(tmp_path, 0, 0.97)
  finished(tmp_path, 4, 0.99)
  assert seeds.main([f"--out={tmp_path}", "--seeds=0,4"]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == "| figure | target | seed 0 | seed 4 | mean |"
  assert lines[2] == "| answers that end | >= 97 % | 0.970 | 0.990 | 0.980 |"
  assert lines[3] == "| seconds | | 600.0 | 604.0 | 602.0 |"


@pytest.mark.parametrize("flag", ["--workdir=x", "--config.seed=3"])
def test_runs_have_places_and_seeds_of_their_own(flag, tmp_path, capsys):
  assert seeds.main([f"--out={tmp_path}", "--seeds=0", flag]) == 2
  assert capsys.readouterr().err.startswith(f"error: {flag}: --out and --seeds say")
  assert not list(tmp_path.iterdir())
