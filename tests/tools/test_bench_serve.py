"""The benchmark of the endpoint: its table, and what it refuses."""

import pytest

from tools import bench_serve


def test_streams_are_compared_with_one():
  rows = [
    {"streams": 1, "tokens_per_second": [90.0, 100.0, 110.0], "first_seconds": [0.02] * 3},
    {"streams": 32, "tokens_per_second": [700.0, 650.0, 900.0], "first_seconds": [0.2, 0.1, 0.3]},
  ]
  shown = bench_serve.table({"model": "sft", "new": 200, "rows": rows})
  assert "| 32 | 700, 650, 900 | 7.0 | 200 |" in shown


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["--streams=0"], "--streams must be numbers above 0"),
    (["--streams=many"], "--streams must be numbers above 0"),
    (["--new=0"], "--new and --rounds at least 1"),
    (["--workdir=/nowhere"], "is no directory"),
  ],
)
def test_bad_input_is_one_line(words, message, capsys):
  assert bench_serve.main(words) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1
