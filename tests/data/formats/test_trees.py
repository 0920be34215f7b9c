"""OpenAssistant's trees: every thread, every ranking, and one message a row means the same."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.data import formats
from llm_jax.data.formats import Conversation, Preference, Ranking
from llm_jax.errors import UserError

ROLES = ("prompter", "assistant")


def message(name, role, text="", rank=None, replies=(), **more):
  return {
    "message_id": name, "text": text or f"say {name}", "role": role, "rank": rank,
    "replies": list(replies), **more,
  }  # fmt: skip


TREE = message("q", "prompter", replies=[
  message("a", "assistant", rank=1, replies=[
    message("aq", "prompter", replies=[
      message("aqa", "assistant", rank=0), message("aqb", "assistant", rank=2),
      message("aqc", "assistant"),
    ]),
    message("ar", "prompter"),
  ]),
  message("b", "assistant", rank=0),
  message("c", "assistant", rank=2, deleted=True, replies=[message("cq", "prompter")]),
  message("d", "assistant", rank=3, review_result=False),
])  # fmt: skip


def said(*names):
  roles = ("user", "assistant") * len(names)
  return [{"role": r, "content": f"say {n}"} for r, n in zip(roles, names, strict=False)]


def flat(tree, parent=None):
  """The messages of a tree, one a row, parents first."""
  yield {k: v for k, v in tree.items() if k != "replies"} | {"parent_id": parent}
  for reply in tree["replies"]:
    yield from flat(reply, tree["message_id"])


def read(folder, kind, rows, name="rows.jsonl"):
  path = folder / name
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return formats.read(path, kind)


def shapes(tree):
  """The three ways to write a tree."""
  yield [{"message_tree_id": tree["message_id"], "prompt": tree}]
  yield [tree | {"parent_id": None}]
  yield list(flat(tree))


def test_threads_end_with_the_last_answer_and_learn_each_answer_once(tmp_path):
  for rows in shapes(TREE):
    table = read(tmp_path, "conversations", rows)
    assert (table.format, table.rows) == ("oasst", len(rows))
    assert table.items == [
      Conversation(said("q", "a", "aq", "aqa")),
      Conversation(said("q", "a", "aq", "aqb"), learn=(3,)),
      Conversation(said("q", "a", "aq", "aqc"), learn=(3,)),
      Conversation(said("q", "b")),
    ]
    assert table.drops == {"deleted message": 2, "failed review": 1, "unanswered end": 1}


def test_ranked_siblings_are_rankings_and_their_pairs(tmp_path):
  for rows in shapes(TREE):
    table = read(tmp_path, "rankings", rows)
    first = Ranking(said("q"), ("say a", "say b"), (1, 0), group="q")
    second = Ranking(said("q", "a", "aq"), ("say aqa", "say aqb"), (0, 2), group="aq")
    assert table.items == [first, second]
    assert table.drops == {"deleted message": 2, "failed review": 1, "unranked answer": 1}
    assert read(tmp_path, "preferences", rows).items == [
      Preference(said("q"), "say b", "say a", group="q"),
      Preference(said("q", "a", "aq"), "say aqa", "say aqb", group="aq"),
    ]


def test_messages_whose_tree_is_not_in_the_file_are_dropped(tmp_path):
  rows = [*flat(TREE), *flat(message("x", "prompter", replies=[message("y", "assistant")]), "?")]
  loop = message("l", "prompter"), message("m", "assistant")
  rows += [loop[0] | {"parent_id": "m"}, loop[1] | {"parent_id": "l"}]
  table = read(tmp_path, "conversations", rows)
  assert len(table.items) == 4
  assert table.drops["cut off from its tree"] == 4
  with pytest.raises(UserError, match="the message before it must be in the file"):
    formats.read_conversations(tmp_path / "rows.jsonl")


def test_a_thread_of_thousands_of_messages_is_read(tmp_path):
  count = 3000
  rows = [
    message(str(i), ROLES[i % 2]) | {"parent_id": str(i - 1) if i else None} for i in range(count)
  ]
  (item,) = read(tmp_path, "conversations", rows).items
  assert len(item.messages) == count
  assert item.learn is None


@st.composite
def trees(draw):
  """A tree whose leaves are answers; a number for each message, in the order of the tree."""
  count = iter(range(1000))

  def build(depth):
    ranks = draw(st.lists(st.none() | st.integers(0, 3), min_size=1, max_size=3))
    name = str(next(count))
    return message(name, "prompter", replies=[answer(rank, depth) for rank in ranks])

  def answer(rank, depth):
    more = draw(st.integers(0, 2)) if depth < 2 else 0
    name = str(next(count))
    return message(name, "assistant", rank=rank, replies=[build(depth + 1) for _ in range(more)])

  return build(0)


def leaves(tree, before=()):
  path = (*before, tree["message_id"])
  if not tree["replies"]:
    yield path
  for reply in tree["replies"]:
    yield from leaves(reply, path)


@settings(max_examples=30)
@given(trees(), st.randoms(use_true_random=False))
def test_every_leaf_has_its_thread_and_every_answer_is_learned_once(tmp_path_factory, tree, rng):
  folder = tmp_path_factory.getbasetemp()
  nested, alone, rows = shapes(tree)
  items = read(folder, "conversations", nested).items
  assert [item.messages for item in items] == [said(*path) for path in leaves(tree)]
  learned = [item.messages[i]["content"] for item in items for i in item.learned()]
  answers = [row["text"] for row in rows if row["role"] == "assistant"]
  assert sorted(learned) == sorted(answers)
  for kind in ("conversations", "rankings", "preferences"):
    table = read(folder, kind, nested)
    for other in (alone, rows):
      again = read(folder, kind, other)
      assert (again.items, again.drops) == (table.items, table.drops)
    shuffled = read(folder, kind, rng.sample(rows, len(rows)))
    if kind == "conversations":
      assert by_text(shuffled.items) == by_text(table.items)
    assert (len(shuffled.items), shuffled.drops) == (len(table.items), table.drops)


def by_text(items):
  return sorted("\n".join(m["content"] for m in item.messages) for item in items)


def test_trees_may_be_mixed_with_rows_of_messages(tmp_path):
  rows = [*flat(TREE), {"prompt": message("z", "prompter", replies=[message("y", "assistant")])}]
  random.Random(0).shuffle(rows)
  assert len(read(tmp_path, "conversations", rows).items) == 5
