"""The table of what files hold, the items shown, and a line for each file that cannot be read."""

import json

import pytest

from tools import inspect_data

TALK = [{"role": "user", "content": "Hi\u001b[31m\nyou"}, {"role": "assistant", "content": "Ho"}]
FILES = {
  "talks.json": [{"messages": TALK, "source": "forum"}, {"messages": TALK[:1]}],
  "pairs.json": [{"prompt": "a", "chosen": "b" * 400, "rejected": "c", "margin": 2}],
  "ranks.json": [{"prompt": "a", "answers": ["b", "c"], "ranks": [2, 1]}],
  "kto.json": [{"prompt": "a", "completion": "b", "label": False}],
  "bad.json": [{"x": 1}],
}


@pytest.fixture
def shown(tmp_path, capsys):
  for name, rows in FILES.items():
    (tmp_path / name).write_text(json.dumps(rows))

  def run(*words):
    words = [str(tmp_path / word) if word in FILES else word for word in words]
    return inspect_data.main(words), *capsys.readouterr()

  return run


def test_the_table_has_a_line_for_each_kind(shown):
  code, out, err = shown("talks.json", "pairs.json", "ranks.json")
  assert (code, err) == (0, "")
  assert [line.split() for line in out.splitlines()] == [
    ["file", "format", "kind", "rows", "kept", "dropped"],
    ["talks.json", "messages", "conversations", "2", "1", "no", "assistant", "turn", "1"],
    ["pairs.json", "pairs", "preferences", "1", "1", "-"],
    ["pairs.json", "pairs", "conversations", "1", "1", "-"],
    ["ranks.json", "rankings", "rankings", "1", "1", "-"],
  ]
  _, out, _ = shown("ranks.json", "--kind=preferences", "--format=rankings")
  assert "preferences" in out


def test_items_are_shown_and_cannot_steer_the_terminal(shown):
  _, out, _ = shown("talks.json", "pairs.json", "ranks.json", "kto.json", "--show=1")
  assert "[user] Hi\\x1b[31m\n    you\n[assistant, learned] Ho\nsource: forum\n" in out
  assert f"[chosen (probability 1)] {'b' * 300} ... 100 characters more\n" in out
  assert "[rejected (margin 2)] c\n" in out
  assert "[rank 1] c\n[rank 2] b\ngroup: ranks.json:0\n" in out
  assert "[undesirable] b\n" in out
  assert "\x1b" not in out


def test_a_bad_file_is_one_line_and_the_others_are_shown(shown):
  code, out, err = shown("bad.json", "talks.json")
  assert code == 2
  assert "talks.json" in out
  assert err.startswith("error: ") and err.count("\n") == 1 and "bad.json, index 0" in err
  code, out, err = shown("talks.json", "--kind=labels")
  assert (code, out) == (2, "") and "ask for conversations" in err


def test_bad_rows_are_named_and_the_others_counted(shown, tmp_path):
  rows = [json.dumps({"prompt": "a", "response": "b"}), *["{"] * 7, '{"prompt": "\\u001b"}']
  (tmp_path / "mixed.jsonl").write_text("\n".join(rows))
  code, out, err = shown(str(tmp_path / "mixed.jsonl"), "talks.json")
  assert code == 2 and "cannot be read 8" in out
  said = err.splitlines()
  assert "mixed.jsonl, line 2: not JSON" in said[0] and len(said) == 6
  assert said[-1].startswith("error: 3 more; of all, not JSON 7, ") and "\x1b" not in err
