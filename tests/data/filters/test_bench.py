"""The table of speeds: every step has a row, a recipe hands on what is left, bad input is said."""

import json
import lzma

import pytest

from llm_jax.data import filters
from tools import bench_filters

PROSE = "The old house near the water was empty, and nobody could tell who had lived there. " * 9


@pytest.fixture
def pages(tmp_path):
  path = tmp_path / "pages.jsonl.xz"
  rows = [{"body": f"{PROSE}\n{i}"} for i in range(20)] + [{"body": "Short."}] * 5
  with lzma.open(path, "wt") as file:
    file.writelines(json.dumps(row) + "\n" for row in rows)
  return str(path)


def test_every_step_has_a_row(pages, capsys):
  assert bench_filters.main([pages, "--field=body"]) == 0
  rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
  names = {row[0].strip() for row in rows}
  assert set(filters.__all__) - {"blocked_urls", "c4_words"} | {"repair", "rulers"} <= names
  assert all(float(row[1]) > 0 for row in rows)
  dropped = {row[0].strip(): row[3].strip() for row in rows}
  assert dropped["length"] == "20.0%" and dropped["repair"] == "0.0%"


def test_a_recipe_hands_on_what_is_left(pages, capsys, tmp_path):
  path = tmp_path / "mine.py"
  path.write_text(
    "from llm_jax import config\n"
    "get_config = lambda: config.Prepare(recipe=('extract', *['length(least=99)'] * 2))\n"
  )
  assert bench_filters.main([pages, "--field=body", f"--config={path}"]) == 0
  *_, first, second, total = capsys.readouterr().out.splitlines()
  assert "| 20.0% |" in first and "| 0.0% |" in second and "20 left" in total


@pytest.mark.parametrize(
  ("arguments", "says"),
  [
    (["--field=text"], "has no text in the field 'text'"),
    (["--field=body", "--step=lenght"], 'did you mean "length"'),
    (["--field=body", "--config=none.py"], "none.py"),
  ],
)
def test_bad_input_is_one_line(pages, arguments, says, capsys):
  assert bench_filters.main([pages, *arguments]) == 2
  message = capsys.readouterr().err
  assert says in message and message.count("\n") == 1


def test_a_missing_file_is_one_line(capsys, tmp_path):
  assert bench_filters.main([str(tmp_path / "none.jsonl")]) == 2
  assert "none.jsonl: cannot be read" in capsys.readouterr().err
