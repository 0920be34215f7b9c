"""The record of a run: strict JSON, no row twice after a resume, a progress line for people."""

import json
import math

from llm_jax.train import metrics


def write(workdir, first, last, step=0):
  writer = metrics.MetricsWriter(workdir, step)
  for n in range(first, last + 1):
    writer.write(n, {"loss": 1.0 / n})
  writer.close()


def test_rows_are_strict_json(tmp_path):
  writer = metrics.MetricsWriter(tmp_path, tensorboard=False)
  writer.write(1, {"loss": 0.5, "bad": math.nan, "worse": -math.inf, "count": 3})
  (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()  # Readable before the close.
  writer.close()

  def refuse(name):
    raise AssertionError(name)

  row = json.loads(line, parse_constant=refuse)
  assert row == {"step": 1, "loss": 0.5, "bad": None, "worse": None, "count": 3}


def test_a_resumed_run_writes_no_row_twice(tmp_path):
  write(tmp_path, 1, 6)
  with open(tmp_path / "metrics.jsonl", "a") as f:
    f.write('{"step": 7, "lo')  # Cut short by a kill.
  assert [row["step"] for row in metrics.read(tmp_path)] == [1, 2, 3, 4, 5, 6]
  write(tmp_path, 5, 8, step=4)
  assert [row["step"] for row in metrics.read(tmp_path)] == [1, 2, 3, 4, 5, 6, 7, 8]
  assert all(row["loss"] == 1 / row["step"] for row in metrics.read(tmp_path))
  assert [p.name for p in tmp_path.iterdir() if "tmp" in p.name] == []


def test_a_new_run_in_an_old_directory_starts_afresh(tmp_path):
  write(tmp_path, 1, 3)
  write(tmp_path, 1, 2)
  assert [row["step"] for row in metrics.read(tmp_path)] == [1, 2]
  assert list((tmp_path / "tb").glob("events.*"))


def test_progress_is_plain_lines_where_there_is_no_terminal(capsys):
  progress = metrics.Progress("sft", 0, 3, every=1000.0)
  progress.note("loss 1.2")
  for step in (1, 2, 3):
    progress.update(step)
  progress.close()
  assert capsys.readouterr().err == "sft: step 3/3, 0 s left, loss 1.2\n"
