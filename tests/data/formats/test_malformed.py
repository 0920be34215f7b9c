"""A bad row, a bad file, a wrong kind or format: one line that says what, where and what to do."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.data import formats
from llm_jax.errors import UserError

SAID = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
PANDA = {"instruction": "a", "response1": "b", "response2": "c", "annotator1": 1}
ARENA = {"conversation_a": SAID, "conversation_b": SAID, "winner": "tie"}
TREE = {"message_id": "1", "text": "a", "role": "prompter", "replies": [{}]}
FLAT = {"message_id": "1", "parent_id": None, "text": "a", "role": "prompter"}
RANK = {"prompt": "a", "answers": ["b", "c"], "ranks": [1, 2]}


def write(tmp_path, *rows, name="rows.jsonl"):
  path = tmp_path / name
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def error_of(path, kind, format=""):
  with pytest.raises(UserError) as error:
    formats.read(path, kind, format)
  assert "\n" not in str(error.value)
  return str(error.value)


@pytest.mark.parametrize(
  ("kind", "good", "bad", "reason"),
  [
    ("conversations", {"messages": SAID}, {"messages": [{"from": "x", "value": ""}]}, "role 'x'"),
    ("conversations", {"messages": SAID}, {"messages": SAID, "system": 3}, '"system" must be a te'),
    (
      "conversations",
      {"messages": SAID},
      {"messages": [SAID[0], SAID[1] | {"weight": 0.5}]},
      '"messages"[1]."weight" must be true or false',
    ),
    (
      "conversations",
      {"messages": SAID},
      {"messages": [{"role": "assistant", "tool_calls": [{}]}]},
      '"tool_calls" must be objects',
    ),
    ("conversations", {"messages": SAID}, {"messages": SAID, "label": False}, "format kto"),
    (
      "conversations",
      {"conversations": ["a"]},
      {"conversations": ["a", 1]},
      '"conversations"[1] must',
    ),
    ("conversations", {"conversations": ["a"]}, {"conversations": {}}, "must be a list of texts"),
    (
      "conversations",
      {"instruction": "a", "output": "b"},
      {"instruction": "a"},
      '"output" is missing; it has: instruction',
    ),
    (
      "conversations",
      {"instruction": "a", "output": "b"},
      {"instruction": "a", "output": "b", "history": [["q"]]},
      '"history"[0]',
    ),
    (
      "conversations",
      {"instruction": "a", "output": "b"},
      {"instruction": "a", "output": "b", "history": 5},
      '"history" must be a list, not int',
    ),
    (
      "conversations",
      {"instruction": "a", "instances": []},
      {"instruction": "a", "instances": [1]},
      '"instances"[0] must be an object',
    ),
    ("conversations", {"inputs": "a", "targets": "b"}, {"inputs": "a"}, '"targets" is missing'),
    (
      "conversations",
      {"prompt": "a", "completion": "b"},
      {"prompt": "a", "completion": "b", "label": False},
      "format kto",
    ),
    (
      "conversations",
      {"question": "a", "answer": "#### 1"},
      {"question": "a", "answer": "1"},
      "must end with ####",
    ),
    ("conversations", {"prompt": TREE | {"replies": []}}, {"prompt": TREE}, '"text" is missing'),
    ("conversations", FLAT, FLAT, '"message_id" 1 stands in two rows'),
    ("conversations", FLAT, FLAT | {"message_id": 2}, '"message_id" must be a text'),
    ("conversations", FLAT, FLAT | {"message_id": "2", "text": 2}, '"text" must be a text'),
    (
      "conversations",
      FLAT,
      FLAT | {"message_id": "2", "parent_id": "1", "replies": 5},
      "must be a l",
    ),
    ("conversations", FLAT, FLAT | {"message_id": "2", "parent_id": 2}, '"parent_id" must be a'),
    ("preferences", PAIR, PAIR | {"margin": -1}, '"margin" must not be negative'),
    ("preferences", PAIR, PAIR | {"margin": float("nan")}, "finite number, not nan"),
    ("preferences", PAIR, PAIR | {"probability": 1.5}, "between 0 and 1, not 1.5"),
    ("preferences", PAIR, PAIR | {"chosen": {"a": 1}}, '"chosen"[0] must be an object'),
    (
      "preferences",
      {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
      {"chosen": "Human a", "rejected": "b"},
      '"chosen" must begin with "\\n\\nHuman: "',
    ),
    ("preferences", PANDA, PANDA | {"annotator1": 3}, '"annotator1" must be 1 or 2'),
    ("preferences", PANDA, {"instruction": "a"}, 'no vote ("annotator1", ...)'),
    ("preferences", ARENA, ARENA | {"winner": "a"}, '"winner" must be'),
    ("labels", {"messages": SAID, "label": True}, {"messages": SAID}, '"label" is missing'),
    ("labels", {"messages": SAID, "label": True}, {"messages": SAID, "label": "no"}, "not 'no'"),
    ("labels", {"messages": SAID, "label": True}, {"label": True}, "no conversation"),
    (
      "labels",
      {"prompt": "a", "response": "b", "reward": 1},
      {"prompt": "a", "response": "b", "reward": 0.5},
      "put a threshold on it",
    ),
    (
      "labels",
      {"context": "[]", "generation": '{"role": "agent", "text": "b"}', "reward": 1},
      {"context": "[", "generation": "{}", "reward": 1},
      '"context" is not JSON',
    ),
    ("rankings", RANK, RANK | {"ranks": [1]}, '"ranks" must be a list of 2 numbers'),
    ("rankings", RANK, RANK | {"ranks": [1, "2"]}, '"rank" must be a finite number, not str'),
    ("rankings", RANK, {"prompt": "a", "answers": [{"text": "b"}]}, 'no "rank" and no "score"'),
  ],
)
def test_a_malformed_row_is_named(tmp_path, kind, good, bad, reason):
  for name, where, text in (
    ("rows.jsonl", "line 2", json.dumps(good) + "\n" + json.dumps(bad)),
    ("rows.json", "index 1", json.dumps([good, bad])),
  ):
    path = tmp_path / name
    path.write_text(text)
    said = error_of(path, kind)
    assert said.startswith(f"{path}, {where}: ")
    assert reason in said
    assert said.endswith(f"correct or remove this {'line' if where[0] == 'l' else 'element'}")


def test_a_file_of_no_format_is_told_what_it_has_and_what_is_near(tmp_path):
  said = error_of(write(tmp_path, {"prompt": "a", "chosen": "b", "id": 1}), "preferences")
  assert "line 1: of no known format; it has: chosen, id, prompt" in said
  assert 'the nearest is "pairs": "rejected" is missing' in said
  assert all(format.name in said for format in formats.FORMATS)
  said = error_of(write(tmp_path, {"x": 1}), "labels")
  assert "it has: x; write its rows as one of: oasst, " in said
  assert "no rows" in error_of(write(tmp_path), "labels")


def test_kinds_and_formats_are_names_that_exist(tmp_path):
  path = write(tmp_path, {"messages": SAID})
  assert 'did you mean "preferences"?' in error_of(path, "preference")
  assert 'did you mean "sharegpt"?' in error_of(path, "conversations", "share_gpt")
  said = error_of(path, "preferences")
  assert "format messages, which has no preferences: ask for conversations" in said
  said = error_of(write(tmp_path, RANK), "labels")
  assert "ask for preferences or rankings" in said


@pytest.mark.parametrize(
  ("row", "format", "true"),
  [
    ({"conversations": ["a", "b"]}, "sharegpt", "lima"),
    ({"conversations": [{"from": "human", "value": "a"}]}, "lima", "sharegpt"),
    (PAIR, "alpaca", "pairs"),
    ({"prompt": "a", "completion": "b"}, "kto", "flan"),
    ({"question": "a", "answer": "b"}, "gsm8k", "questions"),
  ],
)
def test_a_format_that_is_named_must_fit(tmp_path, row, format, true):
  said = error_of(write(tmp_path, row), "conversations", format)
  assert f'line 1: not of the format "{format}", ' in said
  assert said.endswith(f'; it is "{true}" (docs/posttraining.md)')


def test_rows_that_say_nothing_are_passed_over_to_find_the_format(tmp_path):
  nothing = {"conversations": []}
  for turns, format in (
    (["a", "b"], "lima"),
    ([{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "sharegpt"),
    (SAID, "messages"),
  ):
    path = write(tmp_path, nothing, nothing, {"conversations": turns})
    table = formats.read(path, "conversations")
    assert (table.format, table.rows, table.drops) == (format, 3, {"no messages": 2})
    assert [item.messages for item in table.items] == [SAID]
  assert "of no known format; it has: conversations" in error_of(
    write(tmp_path, nothing), "conversations"
  )


def test_the_strict_readers_refuse_what_would_be_dropped(tmp_path):
  for rows, read, reason in (
    ([{"messages": SAID}, {"messages": [*SAID, SAID[0]]}], "conversations", "the last message"),
    ([PAIR, PAIR | {"chosen": " "}], "preferences", "is empty"),
  ):
    with pytest.raises(UserError, match=f"line 2: .*{reason}"):
      getattr(formats, f"read_{read}")(write(tmp_path, *rows))


NAMES = sorted({key for format in formats.FORMATS for key in format.keys})
EXTRA = ["messages", "conversation", "input", "output", "system", "history", "tools", "label",
         "reward", "scores", "replies", "rank", "probability", "margin", "generation", "context",
         "response", "completion", "winner", "group"]  # fmt: skip
scalars = st.none() | st.booleans() | st.integers(-1, 3) | st.floats() | st.text(max_size=3)
texts = st.sampled_from(["a", "", "b", "\n\nHuman: a\n\nAssistant:", "#### 1", "[", "tie"])
inner = st.sampled_from(
  ["role", "content", "from", "value", "text", "name", "function", "tool_calls", "weight",
   "full_text", "id", "response", "rank", "score", "message_id", "replies", "deleted"]
)  # fmt: skip
values = st.recursive(
  scalars | texts | st.sampled_from(["user", "assistant", "gpt", "human", "prompter"]),
  lambda below: st.lists(below, max_size=3) | st.dictionaries(inner, below, max_size=4),
  max_leaves=8,
)
rows = st.sampled_from(formats.FORMATS).flatmap(
  lambda format: st.builds(
    lambda own, more: own | more,
    st.fixed_dictionaries(dict.fromkeys(format.keys, texts | values)),
    st.dictionaries(st.sampled_from(NAMES + EXTRA), texts | values, max_size=4),
  )
)


@settings(max_examples=100)
@given(st.lists(rows, min_size=1, max_size=3))
def test_whatever_a_file_holds_it_is_read_or_refused_with_a_line(tmp_path_factory, rows):
  path = tmp_path_factory.getbasetemp() / "any.json"
  path.write_text(json.dumps(rows))
  for kind in formats.KINDS:
    for name in ("", *(f.name for f in formats.FORMATS if f.fits(rows[0]))):
      try:
        table = formats.read(path, kind, name)
      except UserError as error:
        assert "\n" not in str(error)
        continue
      assert table.rows == len(rows)
      for item in table.items:
        messages = item.messages if kind == "conversations" else item.prompt
        assert messages and all(set(m) == {"role", "content"} for m in messages)
        assert (messages[-1]["role"] == "assistant") == (kind == "conversations")
