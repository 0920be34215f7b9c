"""Two processes train like one, stop after the same step, and hand checkpoints over both ways."""

import json

import numpy as np
import pytest

from llm_jax.train import checkpoint, metrics
from tests.train import two_processes


def losses(folder, name):
  rows = metrics.read(folder / name)
  assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))  # Written once.
  return [row["loss"] for row in rows]


@pytest.mark.long
def test_two_processes_are_one_run(tmp_path):
  two_processes.write_documents(tmp_path / "tokens")
  two_processes.run(tmp_path, "whole", 8, data=2)
  two_processes.run(tmp_path, "one", 4, data=2)
  tasks = two_processes.start("tests.train.two_processes", str(tmp_path))
  assert [code for code, _ in tasks] == [143, 143], tasks
  # Only process 1 had the signal, at step 3; both know of it a step later.
  assert checkpoint.latest_step(tmp_path / "two" / "checkpoints") == 4
  said = [text.splitlines() for _, text in tasks]
  for line in ("two: stopped at step 4 of 100 and saved", "one: goes on from step 4"):
    assert [sum(x.startswith(line) for x in lines) for lines in said] == [1, 0]
  # One process has whole on each device what two had in halves; they halved what one had whole.
  two_processes.run(tmp_path, "two", 8, data=2)
  whole = losses(tmp_path, "whole")
  for name in ("one", "two"):
    np.testing.assert_allclose(losses(tmp_path, name), whole, rtol=1e-5)
    manifest = json.loads((tmp_path / name / "checkpoints" / "8" / "sha256.json").read_text())
    assert any(file.startswith("state/") for file in manifest)
