"""The race of PPO iterations: all parts are timed, a peer is asked, errors are one line."""

import json
import sys

import pytest

from llm_jax import config
from tools import bench_ppo, bench_train

PEER = f"{sys.executable} -c \"print('theirs: 10 samples/s')\""
SMALL = ["--rollouts=16", "--batch=8", "--prompt=4", "--new=3", "--repeats=1"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
  monkeypatch.setitem(bench_train.SIZES, "tiny", (config.Model(64, 16, 1, 2), 8, 16))


@pytest.mark.long
def test_an_iteration_has_all_its_parts_and_a_peer(tmp_path, capsys):
  assert bench_ppo.main([*SMALL, f"--peer={PEER}", f"--json={tmp_path / 'p.json'}"]) == 0
  text = capsys.readouterr().out
  figures = json.loads((tmp_path / "p.json").read_text())
  assert list(figures["seconds"]) == list(bench_ppo.PARTS)
  assert all(seconds > 0 for seconds in figures["seconds"].values())
  rate = 16 / sum(figures["seconds"].values())
  assert figures["answers_per_second"] == pytest.approx([rate])
  assert f"ratio of the medians: {rate / 10:.2f}" in text and "1 x 2 updates" in text


@pytest.mark.parametrize(
  ("word", "message"),
  [
    ("--batch=3", "--rollouts=16 must be a multiple of --batch=3"),
    ("--new=0", "--new=0 must be at least 1"),
  ],
)
def test_what_is_wrong_is_one_line(word, message, capsys):
  assert bench_ppo.main([*SMALL, word]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1


def test_a_file_that_cannot_be_written_is_told_before_anything_is_measured(
  tmp_path, capsys, monkeypatch
):
  monkeypatch.setattr(bench_ppo, "race", lambda options: pytest.fail("measured"))
  assert bench_ppo.main([*SMALL, f"--json={tmp_path / 'none' / 'p.json'}"]) == 2
  assert "must be a file in a directory that is there" in capsys.readouterr().err
