"""The playground's command and its benchmark: bad input is one line."""

import pytest

from tools import bench_playground, playground, serve


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["--workdir=nowhere/at/all"], "nowhere/at/all is no directory"),
    (["--workdir=.", "--beside=missing"], "missing is no directory"),
    (["--workdir=.", "--bind=0.0.0.0"], "LLM_JAX_TOKEN"),
  ],
)
def test_bad_input_is_one_line(words, message, capsys, monkeypatch):
  monkeypatch.delenv(serve.TOKEN, raising=False)
  assert playground.main(words) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["--url=http://127.0.0.1:1"], "start tools.playground first"),
    (["--url=ftp://127.0.0.1"], "--url like http://127.0.0.1:8000"),
    (["--rounds=0"], "--rounds must be at least 1"),
  ],
)
def test_the_benchmark_says_what_it_lacks(words, message, capsys):
  assert bench_playground.main(words) == 2
  assert message in capsys.readouterr().err
