"""Every format of pairs, labels and rankings; ties, margins, soft labels, kinds worked out."""

import json

import pytest

from llm_jax.data import formats
from llm_jax.data.formats import Labelled, Preference, Ranking, rankings
from llm_jax.errors import UserError


def user(text, system=""):
  before = [{"role": "system", "content": system}] if system else []
  return [*before, {"role": "user", "content": text}]


def assistant(text):
  return {"role": "assistant", "content": text}


def read(tmp_path, kind, *rows, format=""):
  path = tmp_path / "rows.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return formats.read(path, kind, format)


ASKED = "Is rain wet?"
PAIR = Preference(user(ASKED), "Yes.", "No.")
TALK = [*user("Hi"), assistant("Ho"), *user(ASKED)]
HH = "\n\nHuman: Hi\n\nAssistant: Ho\n\nHuman: Is rain wet?\n\nAssistant:"
BOTH = {"chosen": "Yes.", "rejected": "No."}
PANDA = {"instruction": ASKED, "input": "", "response1": "No.", "response2": "Yes."}
CASES = [
  ("pairs", {"prompt": ASKED, **BOTH}, PAIR),
  (
    "pairs",
    {"prompt": ASKED, **BOTH, "margin": 0.5, "probability": 0.8, "group": 3, "source": "s"},
    Preference(user(ASKED), "Yes.", "No.", 0.5, 0.8, 3, "s"),
  ),
  (
    "pairs",
    {
      "prompt": ASKED, "prompt_id": "x", "messages": [*user(ASKED), assistant("Yes.")],
      "chosen": [*user(ASKED), assistant("Yes.")], "rejected": [*user(ASKED), assistant("No.")],
      "score_chosen": 8.5, "score_rejected": 6,
    },
    Preference(user(ASKED), "Yes.", "No.", 2.5),
  ),
  (
    "pairs",
    {"chosen": [*TALK, assistant("Yes.")], "rejected": [*TALK, assistant("No.")]},
    Preference(TALK, "Yes.", "No."),
  ),
  (
    "pairs",
    {"prompt": "Hi", "chosen": [*TALK, assistant("Yes.")], "rejected": [*TALK, assistant("No.")]},
    Preference(TALK, "Yes.", "No."),
  ),
  ("hh", {"chosen": HH + " Yes.", "rejected": HH + " No."}, Preference(TALK, "Yes.", "No.")),
  ("hh", {"prompt": HH, "chosen": " Yes.", "rejected": " No."}, Preference(TALK, "Yes.", "No.")),
  (
    "sharegpt_pairs",
    {
      "conversations": [{"from": "system", "value": "Short."}, {"from": "human", "value": ASKED}],
      "chosen": {"from": "gpt", "value": "Yes."}, "rejected": {"from": "gpt", "value": "No."},
    },
    Preference(user(ASKED, "Short."), "Yes.", "No."),
  ),
  (
    "alpaca_pairs",
    {"instruction": ASKED, "input": "In May.", "output": "Oh yes.", **BOTH},
    Preference(user(f"{ASKED}\n\nIn May."), "Yes.", "No."),
  ),
  (
    "alpaca_pairs",
    {"question": ASKED, "system": "Short.", **BOTH},
    Preference(user(ASKED, "Short."), "Yes.", "No."),
  ),
  ("pandalm", PANDA | {"annotator1": 2, "annotator2": 2, "annotator3": 2}, PAIR),
  (
    "pandalm",
    PANDA | {"annotator1": 2, "annotator2": 0, "annotator3": 2, "cmp_key": "a_b"},
    Preference(user(ASKED), "Yes.", "No.", probability=1 - 0.5 / 3),
  ),
  (
    "pandalm",
    PANDA | {"response1": False, "annotator1": 1, "annotator2": 1, "annotator3": 2},
    Preference(user(ASKED), "False", "Yes.", probability=2 / 3),
  ),
  ("llmbar", {"input": ASKED, "output_1": "No.", "output_2": "Yes.", "label": 2}, PAIR),
  (
    "llmbar",
    {"instruction": ASKED, "input": "", "output_1": "Yes.", "output_2": "No.", "preference": 1},
    PAIR,
  ),
  (
    "webgpt",
    {
      "question": {"full_text": ASKED, "id": "q7", "dataset": "eli5"},
      "answer_0": "No.", "answer_1": "Yes.", "score_0": -0.25, "score_1": 0.25,
    },
    Preference(user(ASKED), "Yes.", "No.", 0.5, group="q7", source="eli5"),
  ),
  (
    "shp",
    {
      "history": ASKED, "human_ref_A": "Yes.", "human_ref_B": "No.", "labels": 1, "score_A": 9,
      "score_B": 2, "post_id": "p", "domain": "askrain",
    },
    Preference(user(ASKED), "Yes.", "No.", 7.0, group="p", source="askrain"),
  ),
  (
    "safe_rlhf",
    {"prompt": ASKED, "response_0": "No.", "response_1": "Yes.", "better_response_id": 1},
    PAIR,
  ),
  (
    "helpsteer",
    {"prompt": ASKED, "response_1": "Yes.", "response_2": "No.", "preference_strength": -2},
    Preference(user(ASKED), "Yes.", "No.", 2.0),
  ),
  (
    "tldr",
    {
      "info": {"id": "t3", "post": "It rained.", "title": "Wet", "subreddit": "rain"},
      "summaries": [{"text": " No."}, {"text": " Yes."}], "choice": 1, "worker": "w",
    },
    Preference(
      user("SUBREDDIT: r/rain\n\nTITLE: Wet\n\nPOST: It rained.\n\nTL;DR:"), "Yes.", "No.",
      group="t3", source="rain",
    ),
  ),
  (
    "arena",
    {
      "conversation_a": [*user(ASKED), assistant("No.")],
      "conversation_b": [*user(ASKED), assistant("Yes.")], "winner": "model_b",
    },
    PAIR,
  ),
  (
    "persona",
    {
      "question": ASKED, "answer_matching_behavior": " Yes.", "answer_not_matching_behavior":
      " No.", "label_confidence": 0.75, "behavior": "likes-rain",
    },
    Preference(user(ASKED), "Yes.", "No.", 0.0, 0.75, source="likes-rain"),
  ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "item"), CASES)
def test_a_pair_is_read(tmp_path, name, row, item):
  table = read(tmp_path, "preferences", row)
  assert table.items == [item]
  assert (table.format, table.rows, table.drops) == (name, 1, {})
  labels = read(tmp_path, "labels", row, format=name).items
  assert labels == [
    Labelled(item.prompt, item.chosen, True, item.source),
    Labelled(item.prompt, item.rejected, False, item.source),
  ]


RANKED = {"prompt": ASKED, "responses": ["No.", "Yes.", "Dry.", "Yes, Sir."]}


@pytest.mark.parametrize(
  ("row", "ranks", "ratings"),
  [
    (RANKED | {"ranks": [2, 1, 4, 1]}, (2, 1, 4, 1), None),
    (RANKED | {"scores": [2, 4, 0.5, 4]}, (2, 0, 3, 0), (2, 4, 0.5, 4)),
    (
      {
        "instruction": ASKED,
        "completions": [
          {"model": "m", "response": text, "overall_score": score}
          for text, score in zip(RANKED["responses"], (2, 4, 0.5, 4), strict=True)
        ],
      },
      (2, 0, 3, 0),
      (2, 4, 0.5, 4),
    ),
    (
      {
        "prompt": f"\n\nHuman: {ASKED}\n\nAssistant: ",
        "answers": [
          {"answer": text, "rank": rank}
          for text, rank in zip(RANKED["responses"], (2, 1, 4, 1), strict=True)
        ],
      },
      (2, 1, 4, 1),
      None,
    ),
  ],
)
def test_a_ranking_is_read(tmp_path, row, ranks, ratings):
  table = read(tmp_path, "rankings", row)
  assert table.format == "rankings"
  expected = Ranking(user(ASKED), tuple(RANKED["responses"]), ranks, ratings, "rows.jsonl:1")
  assert table.items == [expected]
  pairs = read(tmp_path, "preferences", row)
  assert pairs.items == expected.pairs()
  assert pairs.drops == {"tie": 1}
  assert [(p.chosen, p.rejected) for p in pairs.items] == [
    ("Yes.", "No."), ("Yes.", "Dry."), ("Yes, Sir.", "No."), ("Yes, Sir.", "Dry."), ("No.", "Dry."),
  ]  # fmt: skip
  margins = [2, 3.5, 2, 3.5, 1.5] if ratings else [0] * 5
  assert [p.margin for p in pairs.items] == margins
  assert {p.group for p in pairs.items} == {"rows.jsonl:1"}


def test_rank_by_rating_is_how_many_are_better():
  assert rankings.by_rating([3, 1, 3, 2]) == (0, 3, 0, 2)


def test_answers_that_cannot_be_compared_are_dropped(tmp_path):
  table = read(
    tmp_path,
    "preferences",
    RANKED | {"ranks": [1, 1, 1, 1]},
    {"prompt": "a", "responses": ["x", " ", "y"], "ranks": [1, 2, None]},
    {"prompt": "a", "responses": ["x", "x"], "ranks": [1, 2]},
  )
  assert table.items == []
  assert table.drops == {
    "tie": 6, "empty answer": 1, "unranked answer": 1, "fewer than two answers": 1,
    "same answers": 1,
  }  # fmt: skip


LABELLED = Labelled(user(ASKED), "Yes.", True)


@pytest.mark.parametrize(
  ("name", "row", "item"),
  [
    ("kto", {"prompt": ASKED, "completion": "Yes.", "label": True}, LABELLED),
    ("kto", {"prompt": ASKED, "response": "Yes.", "desirable": 1}, LABELLED),
    ("kto", {"instruction": ASKED, "input": "", "output": "Yes.", "kto_tag": True}, LABELLED),
    ("kto", {"question": ASKED, "answer": "Yes.", "label": True}, LABELLED),
    (
      "kto",
      {"messages": [*TALK, assistant("No.")], "label": False},
      Labelled(TALK, "No.", False),
    ),
    (
      "kto",
      {"conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": "Yes."}],
       "kto_tag": True},
      LABELLED,
    ),
    (
      "taskmaster",
      {
        "set": "T", "reward": 0.0, "generation": '{"role": "agent", "api": {"pay": {"by": "é"}}}',
        "context": json.dumps([
          {"role": "agent", "text": "Hello?"}, {"role": "user", "text": "Pay."},
          {"role": "agent", "api": {"find": {}}}, {"role": "api", "response": {"find": [1]}},
        ]),
      },
      Labelled(
        [assistant("Hello?"), *user("Pay."), assistant('{"find": {}}'), *user('{"find": [1]}')],
        '{"pay": {"by": "é"}}', False, "T",
      ),
    ),
    ("rewards", {"prompt": ASKED, "response": "Yes.", "reward": 1.0}, LABELLED),
  ],
)  # fmt: skip
def test_a_label_is_read(tmp_path, name, row, item):
  table = read(tmp_path, "labels", row)
  assert (table.format, table.items, table.drops) == (name, [item], {})


def test_what_cannot_be_learned_from_is_counted(tmp_path):
  votes = {"annotator1": 1, "annotator2": 2, "annotator3": 0}
  ties = {"annotator1": 0, "annotator2": 0, "annotator3": 1}
  unsure = {"prompt": "a", "probability": 0.25} | BOTH
  for rows, drops in (
    ([PANDA | votes, PANDA | ties], {"tie": 2}),
    ([unsure | {"rejected": ""}, unsure | {"probability": 0.5}], {"empty answer": 1, "tie": 1}),
    ([unsure | {"score_chosen": 1, "score_rejected": 1}], {"tie": 1}),
    ([unsure | {"score_chosen": 1, "score_rejected": 2}], {"scores contradict": 1}),
    ([{"chosen": HH + " x", "rejected": HH + " x"}], {"same answers": 1}),
    ([{"chosen": HH + " x", "rejected": HH[:30] + " y"}], {"differ too early": 1}),
  ):
    table = read(tmp_path, "preferences", *rows)
    assert (table.items, table.drops) == ([], drops)
  (item,) = read(tmp_path, "preferences", unsure).items
  assert (item.chosen, item.rejected, item.probability) == ("No.", "Yes.", 0.75)
  labels = [{"messages": TALK, "label": True}, {"messages": user("x"), "label": False}]
  assert read(tmp_path, "labels", *labels).drops == {"unanswered end": 1, "no assistant turn": 1}
  empty = {"context": "[]", "generation": '{"role": "agent", "text": "x"}', "reward": 1}
  assert read(tmp_path, "labels", empty).drops == {"no prompt": 1}


def test_a_chosen_answer_is_a_demonstration_only_where_it_is_one(tmp_path):
  rows = [
    {"prompt": ASKED, **BOTH},
    {"instruction": ASKED, "output": "Oh yes.", **BOTH},
    {"instruction": ASKED, **BOTH},
    {"chosen": HH + " Yes.", "rejected": HH + " No."},
  ]
  answers = []
  for row in rows:
    (item,) = read(tmp_path, "conversations", row).items
    answers.append(item.messages[-1]["content"])
  assert answers == ["Yes.", "Oh yes.", "Yes.", "Yes."]
  with pytest.raises(UserError, match="no conversations"):
    read(tmp_path, "conversations", {"input": "a", "output_1": "b", "output_2": "c", "label": 1})
