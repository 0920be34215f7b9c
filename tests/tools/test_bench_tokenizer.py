"""The tool says how fast, checks every id, and names bad input."""

import json

import pytest

from llm_jax.data import tokenizer as tokenizer_lib
from llm_jax.data.tokenizers.words import WordEncoder
from tools import bench_tokenizer

TEXTS = [f"Text {i} speaks of the sum of {i} and {i * 7}, and of words.\n" * 3 for i in range(40)]


@pytest.fixture
def file(tmp_path):
  path = tmp_path / "texts.jsonl"
  path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*TEXTS, "a ▁ b"]))
  return path


def test_two_tables_are_printed(file, capsys):
  assert bench_tokenizer.main([str(file), "--train=330"]) == 0
  said = capsys.readouterr().out
  assert "texts.jsonl" in said
  assert said.count("| yes |") == 3


def test_other_ids_are_an_error(file, tmp_path, capsys, monkeypatch):
  tokenizer_lib.train(TEXTS, tmp_path / "t", 330)
  whole = WordEncoder.encode
  monkeypatch.setattr(WordEncoder, "encode", lambda self, text: whole(self, text)[:-1])
  assert bench_tokenizer.main([str(file), f"--tokenizer={tmp_path / 't'}"]) == 1
  assert "| NO |" in capsys.readouterr().out


def test_bad_input_is_one_line(file, capsys):
  for flags in (
    [],
    ["--train=330", "--tokenizer=x"],
    ["--tokenizer=none"],
    ["--train=330", "--field=no"],
  ):
    assert bench_tokenizer.main([str(file), *flags]) == 2
    assert capsys.readouterr().err.count("\n") == 1
