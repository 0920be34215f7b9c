"""Lines, arrays and parquet, packed or not, hold the same rows; transcripts are read as written."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_jax.data import formats
from llm_jax.data.formats import transcripts
from llm_jax.errors import UserError

ROWS = [
  {"messages": [{"role": "user", "content": f"é {i}\u2028"}, {"role": "assistant", "content": "b"}]}
  for i in range(3)
]


def test_lines_and_arrays_hold_the_same_rows(tmp_path):
  lines = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
  array = json.dumps(ROWS, indent=1)
  tables = []
  for name, text in (
    ("a.jsonl", lines), ("a.jsonl.gz", lines), ("a.json", array), ("a.JSON.GZ", "\ufeff" + array),
    ("b.json", lines), ("b.json.gz", "\n" + lines), ("b.txt", lines),
  ):  # fmt: skip
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.lower().endswith("gz") else data)
    tables.append(formats.read(tmp_path / name, "conversations"))
  assert all(table == tables[0] for table in tables)
  assert [item.messages for item in tables[0].items] == [row["messages"] for row in ROWS]


def test_parquet_holds_the_same_rows(tmp_path):
  arrow = pytest.importorskip("pyarrow")
  parquet = pytest.importorskip("pyarrow.parquet")
  rows = [ROWS[0] | {"system": "s"}, ROWS[1]]
  rows[1]["messages"][0]["name"] = "ann"
  path = tmp_path / "a.parquet"
  parquet.write_table(arrow.Table.from_pylist(rows), path)
  items = formats.read(path, "conversations").items
  assert [len(item.messages) for item in items] == [3, 2]
  assert items[1].messages == ROWS[1]["messages"][:0] + [
    {"role": m["role"], "content": m["content"]} for m in ROWS[1]["messages"]
  ]
  rows = [{"prompt": "a", "response": "b"}, {"prompt": "a", "response": None}]
  parquet.write_table(arrow.Table.from_pylist(rows), path)
  with pytest.raises(UserError, match='a.parquet, row 2: needs .*"response"; it has: prompt;'):
    formats.read(path, "conversations")
  path.write_bytes(path.read_bytes()[:-9])
  with pytest.raises(UserError, match="cannot read .*a.parquet after row 0"):
    formats.read(path, "conversations")


@pytest.mark.parametrize(
  ("name", "data", "reason"),
  [
    ("a.json", b'[{"prompt": "a"', "not JSON"),
    ("a.json", b"[1]", "a.json, index 0: a JSON int where an object must be"),
    ("a.json", b"[]", "no rows"),
    ("a.json", b"", "no rows"),
    ("a.json", b"[" * 100_000, "JSON nested too deeply"),
    ("a.json", b'[{"prompt": "\xe9"}]', "not UTF-8"),
    ("a.json", b'{\n"data": []}', "line 1: not JSON"),
    ("a.json.gz", b"[{}]", "cannot read"),
    ("a.json.gz", gzip.compress(b"[" + b'{"prompt": "a"},' * 99, mtime=0)[:-9], "cannot read"),
  ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, data, reason):
  (tmp_path / name).write_bytes(data)
  with pytest.raises(UserError, match=name) as error:
    formats.read(tmp_path / name, "conversations")
  assert reason in str(error.value) and "\n" not in str(error.value)
  with pytest.raises(UserError, match="none.json"):
    formats.read(tmp_path / "none.json", "conversations")


texts = st.text(st.sampled_from("ab :\nHA"), max_size=8).filter(lambda t: not t.startswith("\n\nH"))
talks = st.lists(texts, min_size=1, max_size=5).map(
  lambda found: [
    {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(found)
  ]
)


@given(talks)
def test_a_transcript_is_read_as_it_was_written(talk):
  assert transcripts.parse(transcripts.write(talk)) == talk


@given(talks, texts, texts)
def test_two_transcripts_share_all_but_their_last_turn(talk, chosen, rejected):
  talk = talk if talk[-1]["role"] == "user" else talk[:-1]
  sides = [[*talk, {"role": "assistant", "content": text}] for text in (chosen, rejected)]
  found = transcripts.split(*(transcripts.parse(transcripts.write(side)) for side in sides))
  if chosen == rejected:
    assert found == formats.schema.SAME
  else:
    assert found == (talk, chosen, rejected)
