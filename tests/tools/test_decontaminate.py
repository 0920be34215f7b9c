"""The tool's three commands, from files to files."""

import json

import pytest

from llm_jax.data import decontaminate
from llm_jax.data.documents import Document
from tools import decontaminate as tool

ROW = "how many of the nineteen red apples did the old woman from the next village sell"


@pytest.fixture
def files(tmp_path):
  rows = [{"question": ROW, "answer": "seven"}, {"question": "two words", "answer": "none"}]
  (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  corpus = [{"id": "a", "text": f"Say: {ROW.upper()}?"}, {"id": "b", "text": "nothing of it"}]
  (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in corpus))
  return tmp_path


def run(folder, command, *more):
  where = {
    "build": [f"--eval=maths={folder / 'sums.jsonl'}", f"--out={folder / 'index'}"],
    "count": [f"--index={folder / 'index'}", f"--corpus={folder / 'corpus.jsonl'}"],
  }
  where["report"] = [*where["count"], f"--out={folder / 'report'}"]
  return tool.main([command, *where[command], *more])


def test_build_report_and_count(files, capsys):
  assert run(files, "build", "--fields=maths=question") == 0
  assert "| maths | 2 | 18 | 0 | 1 |" in capsys.readouterr().out
  assert run(files, "report") == 0
  said = capsys.readouterr().out
  assert "| maths | 2 | 1 | 1 | 0.5000 | 1 | 1 |" in said
  assert "maths row 0: 100% covered, 1 documents, first in a: how many of the nineteen" in said
  (row,) = map(json.loads, (files / "report" / "rows.jsonl").read_text().splitlines())
  assert (row["set"], row["row"], row["share"], row["document"]) == ("maths", 0, 1.0, "a")
  assert json.loads((files / "report" / "report.json").read_text())["contaminated"] == 1
  assert run(files, "count") == 0
  assert "4 n-grams found in 2 documents" in capsys.readouterr().out
  document = Document("c", ROW)
  index = str(files / "index")
  assert decontaminate.decontaminate(document, index, frequent=1) == "contaminated: maths"
  assert run(files, "report", "--frequent=1") == 0


@pytest.mark.parametrize(
  ("command", "more", "reason"),
  [
    ("build", ["--fields=math=question"], "with a NAME of maths"),
    ("build", ["--fields=maths=ask"], 'no field "ask"'),
    ("report", [], "build it with"),
    ("count", [], "build it with"),
  ],
)
def test_bad_input_ends_in_one_line(files, capsys, command, more, reason):
  assert run(files, command, *more) == 2
  said = capsys.readouterr().err
  assert reason in said and said.count("\n") == 1
