"""The race of samplers: a row for each batch size, a peer that is told of it, errors in a line."""

import json
import sys

import pytest

from llm_jax import config
from tools import bench_generation, bench_train

PEER = f"{sys.executable} -c \"print('torch: {{batch}},000 tokens/s')\""
SMALL = ["--prompt=4", "--new=3", "--repeats=1"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
  monkeypatch.setitem(bench_train.SIZES, "tiny", (config.Model(64, 16, 1, 2), 8, 16))


def test_each_batch_size_is_a_row_and_its_peer_knows_it(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(bench_generation, "prepared", lambda *_: lambda: 0.001)
  words = [*SMALL, "--batch=2,5", "--rounds=2", f"--peer={PEER}", f"--json={tmp_path / 'g.json'}"]
  assert bench_generation.main(words) == 0
  text = capsys.readouterr().out
  assert "| 2 | 6,000, 6,000 | 2,000, 2,000 | 3.00 |" in text
  assert "| 5 | 15,000, 15,000 | 5,000, 5,000 | 3.00 |" in text
  rows = json.loads((tmp_path / "g.json").read_text())["batches"]
  assert [row["batch"] for row in rows] == [2, 5]
  assert rows[1]["tokens_per_second"] == pytest.approx([15000.0] * 2)


@pytest.mark.long
def test_without_a_peer_there_is_no_ratio(capsys):
  assert bench_generation.main([*SMALL, "--batch=2"]) == 0
  assert capsys.readouterr().out.strip().endswith("|  |  |")


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["--batch=2,x"], "--batch=2,x must be numbers of at least 1"),
    (["--batch=0"], "--batch=0 must be"),
    (["--mesh=tnsor=2"], "--mesh=tnsor=2 must be numbers of devices by axis"),
    (["--mesh=tensor=x"], "--mesh=tensor=x must be numbers of devices by axis"),
    (["--mesh=tensor=3"], "8 devices cannot be divided by"),
    (["--cpu_devices=-1"], "--cpu_devices=-1 must not be negative"),
    (["--batch=2", f"--peer={sys.executable} -c 'raise SystemExit(3)'"], "--peer ended with 3"),
  ],
)
def test_what_is_wrong_is_one_line(words, message, capsys):
  assert bench_generation.main([*SMALL, *words]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1
