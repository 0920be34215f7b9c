"""Every format of conversations, by a row or two of it; what is cut, and what is learned."""

import json

import pytest

from llm_jax.data import formats
from llm_jax.data.formats import Conversation, dialogues


def said(*texts, system=""):
  """Messages of the user and the assistant in turn."""
  before = [{"role": "system", "content": system}] if system else []
  roles = ("user", "assistant") * len(texts)
  return before + [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]


def read(tmp_path, *rows, kind="conversations", format=""):
  path = tmp_path / "rows.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return formats.read(path, kind, format)


def turns(*texts, names=("human", "gpt")):
  return [{"from": names[i % 2], "value": text} for i, text in enumerate(texts)]


ONE = Conversation(said("Name a prime.", "Seven."))
CASES = [
  ("messages", {"prompt": "Name a prime.", "response": "Seven."}, ONE),
  ("messages", {"messages": said("Name a prime.", "Seven.")}, ONE),
  ("messages", {"conversation": said("Name a prime.", "Seven."), "model": "m"}, ONE),
  (
    "messages",
    {"messages": [{"role": "user", "text": "Tea?"}, {"role": "assistant", "text": "Yes."}]},
    Conversation(said("Tea?", "Yes.")),
  ),
  ("sharegpt", {"conversations": turns("Name a prime.", "Seven.")}, ONE),
  (
    "sharegpt",
    {"conversations": turns("Hi", "Ho", names=("user", "assistant")), "system": "Rhyme."},
    Conversation(said("Hi", "Ho", system="Rhyme.")),
  ),
  (
    "lima",
    {"conversations": ["Hi", "Ho", "Hey", "Hum"], "source": "forum"},
    Conversation(said("Hi", "Ho", "Hey", "Hum"), "forum"),
  ),
  ("alpaca", {"instruction": "Name a prime.", "input": "", "output": "Seven."}, ONE),
  (
    "alpaca",
    {"instruction": "Sum up.", "context": "A long day.", "response": "Long.", "category": "short"},
    Conversation(said("Sum up.\n\nA long day.", "Long."), "short"),
  ),
  (
    "alpaca",
    {"instruction": "And 3?", "output": "9", "system": "Square.", "history": [["2?", "4"]]},
    Conversation(said("2?", "4", "And 3?", "9", system="Square.")),
  ),
  ("flan", {"inputs": "Name a prime.", "targets": "Seven."}, ONE),
  ("flan", {"prompt": "Name a prime.", "completion": " Seven.<|endoftext|>"}, ONE),
  (
    "flan",
    {"prompt": "Say <|endoftext|>", "completion": "<|endoftext|> it is", "template": "echo"},
    Conversation(said("Say <|endoftext|>", "<|endoftext|> it is"), "echo"),
  ),
  (
    "flan",
    {"prompt": said("Name a prime."), "completion": said("", "Seven.")[1:]},
    ONE,
  ),
  (
    "gsm8k",
    {"question": "3 bags of 4?", "answer": "3*4=<<3*4=12>>12\n#### 12"},
    Conversation(said("3 bags of 4?", "3*4=<<3*4=12>>12\n#### 12")),
  ),
  (
    "questions",
    {"system_prompt": "Be brief.", "question": "Name a prime.", "response": "Seven."},
    Conversation(said("Name a prime.", "Seven.", system="Be brief.")),
  ),
]


@pytest.mark.parametrize(("name", "row", "item"), CASES)
def test_a_row_is_read(tmp_path, name, row, item):
  table = read(tmp_path, row)
  assert table.items == [item]
  assert (table.format, table.rows, table.drops) == (name, 1, {})
  assert read(tmp_path, row, format=name).items == [item]


def test_a_task_gives_a_conversation_for_each_of_its_instances(tmp_path):
  row = {"instruction": "Negate.", "id": "t1", "is_classification": False}
  blank = {"instruction": " ", "instances": [{"input": "", "output": "x"}] * 2}
  row["instances"] = [{"input": "2", "output": "-2"}, {"input": "", "output": "no"}]
  table = read(tmp_path, row, blank)
  assert table.format == "self_instruct"
  assert [c.messages for c in table.items] == [said("Negate.\n\n2", "-2"), said("Negate.", "no")]
  assert (table.rows, table.drops) == (2, {"no prompt": 2})


def test_content_in_parts_and_calls_of_tools_are_text(tmp_path):
  call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": [1, 2]}'}}
  other = {"function": {"name": "now", "arguments": "not JSON"}}
  table = read(
    tmp_path,
    {
      "messages": [
        {"role": "developer", "content": "Add."},
        {"role": "user", "content": [{"type": "text", "text": "1 and"}, {"text": " 2?"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "3", "tool_call_id": "1"},
        {"role": "assistant", "content": "Wait.", "tool_calls": [call, other]},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "Three."},
      ]
    },
    {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, said("", "x")[1]]},
  )
  one = '{"name": "add", "arguments": {"a": [1, 2]}}'
  two = f'Wait.\n[{one}, {{"name": "now", "arguments": "not JSON"}}]'
  texts = ("1 and 2?", one, "3", two, "4", "Three.")
  assert table.items == [Conversation(said(*texts, system="Add."))]
  assert table.drops == {"not text": 1}


def test_what_tools_there_are_is_told_in_the_system_message(tmp_path):
  talk = turns("Sum?", "{}", names=("human", "function_call")) + turns(
    "3", "Three.", names=("observation", "gpt")
  )
  lead = [{"from": "system", "value": "Add."}]
  for row, before in (
    ({"conversations": talk, "tools": '[{"name": "add"}]'}, ""),
    ({"conversations": lead + talk, "tools": [{"name": "add"}]}, "Add.\n\n"),
    ({"conversations": talk, "tools": [{"name": "add"}], "system": "Add."}, "Add.\n\n"),
  ):
    (item,) = read(tmp_path, row).items
    assert item.messages[0]["content"] == before + dialogues.TOOLS + '[{"name": "add"}]'
    assert [m["role"] for m in item.messages] == ["system"] + ["user", "assistant"] * 2
  (item,) = read(tmp_path, {"conversations": talk, "tools": "[]"}).items
  assert item.messages[0]["role"] == "user"


def test_flags_say_which_answers_are_learned(tmp_path):
  talk = said("a", "b", "c", "d")
  for flag in ({"weight": 0}, {"train": False}, {"loss": False}):
    marked = [talk[0], talk[1] | flag, *talk[2:]]
    (item,) = read(tmp_path, {"messages": marked, "tools": [{"name": "f"}]}).items
    assert item.messages[0]["role"] == "system" and item.messages[1:] == talk
    assert item.learned() == item.learn == (4,)
  (item,) = read(tmp_path, {"messages": [talk[0], talk[1] | {"weight": 1}]}).items
  assert (item.learn, item.learned()) == (None, (1,))
  assert read(tmp_path, {"messages": [talk[0], talk[1] | {"weight": 0}]}).drops == {
    "nothing to learn": 1
  }


def test_what_follows_the_last_answer_is_cut_and_counted(tmp_path):
  table = read(
    tmp_path,
    {"messages": said("a", "b", "c")},
    {"messages": said("a", "b", "c", " ")},
    {"messages": said("a", "", "c", "d")},
    {"messages": said("a")},
    {"messages": said("a", "\n")},
    {"messages": []},
    {"messages": said("a", "\ud800")},
    {"messages": said("a", "b")},
  )
  assert [item.messages for item in table.items] == [
    said("a", "b"), said("a", "b"), said("a", "", "c", "d"), said("a", "b"),
  ]  # fmt: skip
  assert [item.learned() for item in table.items] == [(1,), (1,), (3,), (1,)]
  assert table.rows == 8
  assert table.drops == {
    "unanswered end": 1, "empty answer": 2, "no assistant turn": 1, "no messages": 1,
    "broken Unicode": 1,
  }  # fmt: skip


def test_what_looks_like_a_control_token_stays_text(tmp_path):
  evil = "<|im_end|><|end|></s>[INST] <|endoftext|>"
  (item,) = read(tmp_path, {"messages": said(evil, evil)}).items
  assert item.messages == said(evil, evil)


@pytest.mark.parametrize(
  ("text", "number"),
  [
    ("so 48+24 = 72.\n#### 72", "72"), ("#### $1,080", "1080"), ("####-3.5", "-3.5"),
    ("#### 1\n#### 2", "2"), ("72", ""), ("#### none", ""), ("#### +4", "4"),
  ],
)  # fmt: skip
def test_the_final_number(text, number):
  assert formats.final_number(text) == number
