"""The race of training steps: figures that add up, a peer in turn, errors in one line."""

import json
import subprocess
import sys

import pytest

from llm_jax import config
from tools import bench_train

PEER = f"{sys.executable} -c \"print('torch: 1,000 tokens/s')\""


@pytest.fixture(autouse=True)
def small(monkeypatch):
  shape = config.Model(64, 16, 1, 2)
  monkeypatch.setitem(bench_train.SIZES, "tiny", (shape, 8, 16))
  monkeypatch.setattr(bench_train, "matmul_rate", lambda dtype: 1e9)


@pytest.mark.long
def test_it_prints_a_table_and_writes_the_figures(tmp_path, capsys):
  words = ["--rounds=2", "--steps=1", f"--peer={PEER}", f"--json={tmp_path / 'step.json'}"]
  assert bench_train.main(words) == 0
  text = capsys.readouterr().out
  assert "| peer, tokens/s | 1,000, 1,000 |" in text and "ratio of the medians" in text
  figures = json.loads((tmp_path / "step.json").read_text())
  assert len(figures["tokens_per_second"]) == len(figures["peer_tokens_per_second"]) == 2
  assert figures["share"] > 0 and figures["temporary_bytes"] > 0
  assert 0 < figures["first_step_seconds"] and 0 < figures["first_step_cpu_seconds"]
  assert figures["programs_loaded"] + figures["programs_compiled"] > 0


@pytest.mark.long
def test_a_peer_that_fails_is_one_line(capsys):
  words = ["--steps=1", f"--peer={sys.executable} -c 'raise SystemExit(3)'"]
  assert bench_train.main(words) == 2
  assert "--peer ended with 3 and printed no tokens/s" in capsys.readouterr().err


def test_the_age_of_a_process_counts_from_its_start():
  code = "import time; time.sleep(0.3); from tools import bench_train as b; t = time.perf_counter()"
  code += "; a = b.age(); time.sleep(0.2); print(a, b.age() - a)"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  age, slept = map(float, done.stdout.split())
  assert age > 0.29 and slept > 0.19
