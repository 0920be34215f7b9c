"""Conversation files: three shapes, one schema, and the first bad row named."""

import gzip
import json

import pytest

from llm_jax.data import formats
from llm_jax.errors import UserError

USER = {"role": "user", "content": "Hi?"}
SAID = {"role": "assistant", "content": "Hello."}


def write(path, *rows):
  path.write_text(
    "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
  )
  return path


def test_both_shapes_of_conversations_mean_the_same(tmp_path):
  path = write(
    tmp_path / "a.jsonl",
    {"prompt": "Hi?", "response": "Hello.", "source": "x"},
    "",
    {"messages": [USER | {"name": "ann"}, SAID]},
  )
  assert formats.read_conversations(path) == [[USER, SAID]] * 2


def test_preferences_in_texts_or_messages(tmp_path):
  path = write(
    tmp_path / "a.jsonl",
    {"prompt": "Hi?", "chosen": "Hello.", "rejected": "Go."},
    {"prompt": [USER], "chosen": [SAID], "rejected": "Go."},
    {"prompt": "Hi?", "chosen": [USER, SAID], "rejected": [USER, SAID | {"content": "Go."}]},
  )
  assert formats.read_preferences(path) == [formats.Preference([USER], "Hello.", "Go.")] * 3


def test_compressed_files_and_byte_order_marks(tmp_path):
  row = json.dumps({"prompt": "Hi?", "response": "Hello.\u2028"}, ensure_ascii=False) + "\r\n"
  (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(("\ufeff" + row).encode()))
  assert formats.read_conversations(tmp_path / "a.jsonl.gz")[0][1]["content"] == "Hello.\u2028"


@pytest.mark.parametrize(
  ("row", "reason"),
  [
    ("{", "not JSON"),
    ("3", "a JSON int"),
    ("[" * 100_000, "JSON"),
    ({}, "it has: nothing"),
    ({"prompt": "a", "answer": "b"}, "it has: answer, prompt"),
    ({"prompt": "a", "response": None}, '"response" must be a text, not NoneType'),
    ({"prompt": "a", "response": " "}, "is empty"),
    ({"messages": []}, "at least one message"),
    ({"messages": "hi"}, '"messages" must be a list'),
    ({"messages": [{"role": "user"}]}, '"messages"[0] must be an object'),
    ({"messages": [{"role": "bot", "content": "x"}]}, "role 'bot'"),
    ({"messages": [{"role": [], "content": "x"}]}, "role []"),
    ({"messages": [USER, {"role": "assistant", "content": [1]}]}, '"messages"[1]."content"'),
    ({"messages": [USER]}, "last message must be the assistant's"),
  ],
)
def test_first_bad_conversation_is_named(tmp_path, row, reason):
  path = write(tmp_path / "a.jsonl", {"prompt": "a", "response": "b"}, row, {})
  with pytest.raises(UserError) as error:
    formats.read_conversations(path)
  assert f"{path}, line 2: " in str(error.value)
  assert reason in str(error.value)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("row", "reason"),
  [
    ({"prompt": "a", "chosen": "b"}, '"rejected" is missing'),
    ({"prompt": "a", "chosen": "b", "rejected": "b"}, "the same answer"),
    ({"prompt": [USER, SAID], "chosen": "b", "rejected": "c"}, "must not end with"),
    ({"prompt": "a", "chosen": [USER, SAID], "rejected": "c"}, "after the prompt"),
    ({"prompt": "a", "chosen": [USER], "rejected": "c"}, "assistant's answer"),
    ({"prompt": "a", "chosen": 1, "rejected": "c"}, '"chosen" must be a text'),
  ],
)
def test_first_bad_preference_is_named(tmp_path, row, reason):
  path = write(tmp_path / "a.jsonl", row)
  with pytest.raises(UserError, match="line 1: ") as error:
    formats.read_preferences(path)
  assert reason in str(error.value)


def test_unreadable_files_are_named(tmp_path):
  with pytest.raises(UserError, match="none.jsonl"):
    formats.read_conversations(tmp_path / "none.jsonl")
  with pytest.raises(UserError, match="no rows"):
    formats.read_conversations(write(tmp_path / "empty.jsonl"))
  (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "a", "response": "b"}\n{"prompt": "\xe9"}\n')
  with pytest.raises(UserError, match="not UTF-8"):
    formats.read_conversations(tmp_path / "latin.jsonl")
  whole = gzip.compress(json.dumps({"prompt": "a" * 9999, "response": "b"}).encode())
  (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-20])
  with pytest.raises(UserError, match="cut.jsonl.gz"):
    formats.read_conversations(tmp_path / "cut.jsonl.gz")
