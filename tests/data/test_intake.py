"""Rows that cannot be read: put aside with file, place, reason and start, up to a budget."""

import dataclasses
import gzip
import json

import pytest

from llm_jax import config, rundir
from llm_jax.data import formats, posttraining
from llm_jax.data.intake import Intake
from llm_jax.data.posttraining import Encoded
from llm_jax.data.readers.streams import Lost
from llm_jax.errors import UserError

GOOD = [{"prompt": f"question {i}", "response": f"answer {i}"} for i in range(4)]
BAD = [
  ("line 2", b"{", "not JSON", "{"),
  ("line 4", b'{"prompt": "\xff"}', "not UTF-8", '{"prompt": "\\xff"}'),
  ("line 5", b"[1]", "a JSON list where an object must be", "[1]"),
  ("line 6", b"[" * 100_000, "JSON nested too deeply", "[" * 200),
  (
    "line 8",
    b'{"prompt": 7, "response": "b"}',
    '"prompt" must be a text, not int',
    '{"prompt": 7,',
  ),
  ("line 10", b'{"prompt": "a"}', "needs ", '{"prompt": "a"}'),
]


def lines():
  """Good and bad rows in turn, and a blank line, which is no row."""
  found = {int(where.split()[1]): text for where, text, _, _ in BAD} | {9: b""}
  good = (json.dumps(row).encode() for row in GOOD)
  return [found[n] if n in found else next(good) for n in range(1, 12)]


@pytest.fixture(params=["rows.jsonl", "rows.jsonl.gz"])
def mixed(request, tmp_path):
  path = tmp_path / request.param
  data = b"\xef\xbb\xbf" + b"\n".join(lines())
  path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
  return path


def text(item):
  return Encoded(item.messages[0]["content"])


def load(path, intake):
  return posttraining.load("conversations", [str(path)], text, intake=intake)


def quarantine(folder):
  return [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]


def test_every_bad_row_is_put_aside_and_every_good_one_kept(mixed, tmp_path):
  intake = Intake(tmp_path, most=6)
  found = load(mixed, intake)
  assert found.train == [row["prompt"] for row in GOOD]
  intake.write()
  intake.check()
  rows = quarantine(tmp_path)
  assert [row["where"] for row in rows] == [where for where, _, _, _ in BAD]
  for row, (_, _, reason, start) in zip(rows, BAD, strict=True):
    assert row["file"] == str(mixed) and row["reason"].startswith(reason)
    assert row["start"].startswith(start) and len(row["start"]) <= 200
  assert sum(intake.reasons().values()) == 6
  assert "10 rows, 4 conversations kept; cannot be read: " in found.reports[0]
  assert "6 of 10 rows cannot be read (" in intake.told() and "other reasons 3)" in intake.told()
  (entry,) = json.loads((tmp_path / "data.json").read_text())
  assert (entry["rows"], entry["kept"], sum(entry["lost"].values())) == (10, 4, 6)


def test_without_a_budget_the_first_one_is_an_error_that_names_it(mixed, tmp_path):
  says = r"rows.jsonl\S*, line 2: not JSON .*; correct or remove this line"
  with pytest.raises(UserError, match=f"{says}, or let some rows be lost with config.max_lost$"):
    load(mixed, Intake(tmp_path / "run"))
  with pytest.raises(UserError, match=f"{says}$"):
    load(mixed, None)
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("most", "enough"), [(6, True), (5, False), (0.6, True), (0.59, False)])
def test_a_budget_is_a_count_or_a_share(mixed, tmp_path, most, enough):
  intake = Intake(tmp_path, most)
  load(mixed, intake)
  intake.write()
  if enough:
    intake.check()
    return
  with pytest.raises(UserError) as error:
    intake.check()
  said = str(error.value)
  assert said.startswith("6 of 10 rows cannot be read (") and "\n" not in said
  assert f"more than config.max_lost={most:g}; the first: {mixed}, line 2: not JSON" in said
  assert f"all are in {tmp_path / 'quarantine.jsonl'}: correct" in said


def test_a_share_is_not_rounded_down(tmp_path):
  for lost in range(1, 100):
    intake = Intake(tmp_path, lost / 100)
    for n in range(lost):
      intake.lose(Lost("a", f"line {n}", "why"))
    intake.count(100, "a")
    intake.check()
    intake.lose(Lost("a", "line 200", "why"))
    if lost < 99:
      with pytest.raises(UserError, match=f"{lost + 1} of 100 rows cannot be read"):
        intake.check()


def test_reading_again_writes_the_same_and_doubles_nothing(mixed, tmp_path):
  seen = []
  for times in (1, 1, 2):
    intake = Intake(tmp_path, most=6)
    posttraining.load("conversations", [str(mixed)] * times, text, intake=intake)
    intake.write()
    intake.check()
    seen.append((tmp_path / "quarantine.jsonl").read_bytes())
  assert seen[0] == seen[1] == seen[2] and len(quarantine(tmp_path)) == 6
  mixed.write_bytes(b"\n".join(json.dumps(row).encode() for row in GOOD))
  clean = mixed.rename(tmp_path / "clean.jsonl")
  intake = Intake(tmp_path)
  load(clean, intake)
  intake.write()
  assert not (tmp_path / "quarantine.jsonl").exists() and intake.told() == ""


def test_elements_of_arrays_and_rows_of_parquet_have_their_places(tmp_path):
  (tmp_path / "a.json").write_text(json.dumps([GOOD[0], 7, {"prompt": "a"}, GOOD[1]]))
  intake = Intake(tmp_path, most=9)
  assert load(tmp_path / "a.json", intake).train == ["question 0", "question 1"]
  arrow = pytest.importorskip("pyarrow")
  parquet = pytest.importorskip("pyarrow.parquet")
  texts = [b"a", b"\xff", b"c"]
  column = arrow.array(texts, arrow.binary()).view(arrow.utf8())
  table = arrow.table({"prompt": column, "response": ["x", "y", None]})
  parquet.write_table(table, tmp_path / "a.parquet")
  assert load(tmp_path / "a.parquet", intake).train == ["a"]
  intake.write()
  assert [row["where"] for row in quarantine(tmp_path)] == ["index 1", "index 2", "row 2", "row 3"]


def test_a_bad_message_of_a_tree_goes_with_what_hangs_on_it(tmp_path):
  def message(name, parent, role, **more):
    return {"message_id": name, "parent_id": parent, "role": role, "text": name} | more

  rows = [
    message("a", None, "prompter"), message("b", "a", "assistant"),
    message("c", None, "prompter", text=7), message("d", "c", "assistant"),
    message("e", 5, "assistant"), message("b", "a", "assistant"),
  ]  # fmt: skip
  path = tmp_path / "trees.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  lost = []
  table = formats.read(path, "conversations", lost=lost.append)
  assert [item.messages[-1]["content"] for item in table.items] == ["b"]
  assert [x.where for x in lost] == ["line 3", "line 6", "line 5"] and table.rows == 6
  assert table.drops == {"cut off from its tree": 1}


def test_a_file_that_is_damaged_is_no_matter_of_rows(tmp_path):
  path = tmp_path / "a.jsonl.gz"
  path.write_bytes(gzip.compress(b"\n".join(lines()))[:-20])
  with pytest.raises(UserError, match="cannot read .*a.jsonl.gz after line"):
    load(path, Intake(tmp_path, most=100))
  (tmp_path / "b.jsonl").write_text("{\n" * 9)
  with pytest.raises(UserError, match="holds no rows that can be read"):
    load(tmp_path / "b.jsonl", Intake(tmp_path, most=100))


def test_half_a_surrogate_pair_and_a_newline_stay_in_their_line(tmp_path):
  path = tmp_path / "a.jsonl"
  odd = r'{"prompt": "\ud800", "re\nsp\u001b": 1}'
  path.write_text(json.dumps(GOOD[0]) + "\n" + odd + "\n")
  intake = Intake(tmp_path, most=1)
  load(path, intake)
  intake.lose(Lost("b", "line 1", "why", "\ud800"))
  intake.write()
  first, second = quarantine(tmp_path)
  assert first["start"] == odd and "\x1b" not in first["reason"] and "\n" not in first["reason"]
  assert second["start"] == "\ud800"


@pytest.mark.parametrize("most", [-1, 1.5, float("nan"), float("inf")])
def test_a_budget_that_is_neither_count_nor_share_is_refused(most):
  for made in (config.Sft(), config.Dpo(), config.Reward(), config.Prepare(), config.Grpo()):
    with pytest.raises(UserError, match="config.max_lost=.* must be 0"):
      dataclasses.replace(made, max_lost=most).validate()
  config.Sft(max_lost=1).validate()
  config.Sft(max_lost=0.01).validate()


def test_a_refused_run_leaves_the_quarantine_alone_and_may_start_with_another_budget(
  mixed, tmp_path
):
  def launch(most):
    with rundir.launch(config.Sft(data=(str(mixed),), max_lost=most), tmp_path / "run"):
      intake = Intake(tmp_path / "run", most)
      load(mixed, intake)
      intake.write()
      intake.check()

  with pytest.raises(UserError, match="more than config.max_lost=2"):
    launch(2)
  assert [p.name for p in (tmp_path / "run").iterdir()] == ["quarantine.jsonl"]
  launch(6)
  assert {"config.json", "data.json"} < {p.name for p in (tmp_path / "run").iterdir()}
  launch(7)  # A budget says nothing about what is trained: the run may go on with another one.
  with pytest.raises(UserError, match="holds a run of another config: config.seed"):
    rundir.start(config.Sft(data=(str(mixed),), seed=1), tmp_path / "run")
