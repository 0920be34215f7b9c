"""Files of one's own: weights, what is held out, what is dropped and counted, what is learned."""

import json

import hypothesis
import hypothesis.strategies as st
import pytest

from llm_jax.data import chat, posttraining, seq2seq
from llm_jax.data import tokenizer as tokenizer_lib
from llm_jax.data.formats import Conversation
from llm_jax.data.posttraining import Encoded, File
from llm_jax.errors import UserError

TALK = [
  {"role": "system", "content": "Be short."},
  {"role": "user", "content": "What is a list?"},
  {"role": "assistant", "content": "A list is a sequence."},
  {"role": "user", "content": "And a tuple?"},
  {"role": "assistant", "content": "A tuple never changes."},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  texts = [" ".join(m["content"] for m in TALK) + f" {i}\n" for i in range(9)]
  return tokenizer_lib.train(texts, tmp_path_factory.mktemp("tokenizer"), 300)


def write(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def talks(path, count, first=0, **more):
  rows = [
    {"messages": [{"role": "user", "content": f"question {i}"},
                  {"role": "assistant", "content": f"answer {i}"}]} | more
    for i in range(first, first + count)
  ]  # fmt: skip
  return write(path, rows)


def text(item):
  return Encoded(item.messages[0]["content"])


def test_a_weight_stands_behind_the_last_equals_sign(tmp_path):
  assert posttraining.files(["a.jsonl", "b=c.jsonl", "d.jsonl=0.5"]) == [
    File("a.jsonl"), File("b=c.jsonl"), File("d.jsonl", 0.5),
  ]  # fmt: skip
  odd = tmp_path / "x=2"
  odd.write_text("")
  assert posttraining.files([str(odd)]) == [File(str(odd))]
  for wrong in ("a.jsonl=0", "a.jsonl=-1", "a.jsonl=nan", "a.jsonl=inf", "", "=2"):
    with pytest.raises(UserError, match="config.data"):
      posttraining.files([wrong])


@hypothesis.given(st.integers(1, 50), st.floats(0.01, 5), st.integers(0, 3))
def test_a_weight_is_how_often_each_row_counts(count, weight, seed):
  got = posttraining.repeated(count, weight, seed)
  times = [got.count(i) for i in range(count)]
  assert len(got) == max(round(count * weight + 1e-9), 1) or abs(len(got) - count * weight) <= 1
  assert max(times) - min(times) <= 1
  assert got == posttraining.repeated(count, weight, seed)


def test_another_seed_leaves_other_rows_out():
  assert posttraining.repeated(50, 0.5, 0) != posttraining.repeated(50, 0.5, 1)


@hypothesis.given(st.lists(st.text(max_size=5), min_size=2), st.floats(0.01, 0.5))
def test_a_prompt_is_on_one_side_and_both_sides_have_some(prompts, fraction):
  if len(set(prompts)) < 2:
    with pytest.raises(UserError, match="ask the same"):
      posttraining.chosen(prompts, fraction)
    return
  apart = posttraining.chosen(prompts, fraction)
  assert apart and apart == posttraining.chosen(reversed(prompts), fraction)
  assert apart <= posttraining.chosen(prompts, 0.6)


def test_the_fraction_is_about_what_it_says():
  assert 60 < len(posttraining.chosen([str(i) for i in range(1000)], 0.1)) < 140
  assert posttraining.chosen(["a", "b"], 0.0) == set()


def test_rows_with_one_prompt_are_never_on_both_sides(tmp_path):
  files = [talks(tmp_path / "a.jsonl", 40), talks(tmp_path / "b.jsonl", 40, first=20)]
  found = posttraining.load("conversations", files, text, validation=0.2)
  assert not set(found.train) & set(found.validation)
  assert len(found.train) + len(found.validation) == 80
  assert set(found.sources) == {"a", "b"}
  other = posttraining.load("conversations", files, text, validation=0.2, seed=7)
  assert other.validation == found.validation  # Whatever the seed.


def test_weights_count_training_rows_only(tmp_path):
  files = [talks(tmp_path / "a.jsonl", 20), talks(tmp_path / "b.jsonl", 20, first=20) + "=2.5"]
  found = posttraining.load("conversations", files, text, validation=0.2)
  assert len(set(found.validation)) == len(found.validation)
  own = [row for row in found.train if int(row.split()[1]) >= 20]
  left = 20 - sum(int(row.split()[1]) >= 20 for row in found.validation)
  assert len(own) == int(2.5 * left + 0.5) and "weight 2.5" in found.reports[1]


def test_held_out_files_replace_the_fraction_and_overlaps_are_told(tmp_path):
  train, apart = talks(tmp_path / "a.jsonl", 10), talks(tmp_path / "b.jsonl", 4, first=8)
  found = posttraining.load("conversations", [train], text, validation=0.5, held_out=[apart])
  assert (len(found.train), len(found.validation)) == (10, 4)
  assert found.reports[-1] == "2 prompts are both trained on and held out"


def test_a_report_counts_everything(tmp_path, tokenizer):
  rows = [
    {"messages": TALK},
    {"messages": [TALK[1], {"role": "assistant", "content": ""}]},
    {"messages": [TALK[1], {"role": "assistant", "content": "A long answer. " * 40}]},
    {"messages": [TALK[1], TALK[2] | {"weight": 0}, TALK[3], TALK[4]], "source": "mine"},
    {"messages": [TALK[1], TALK[2], {"role": "user", "content": "why " * 90},
                  TALK[4] | {"weight": 0}]},
  ]  # fmt: skip
  path = write(tmp_path / "talks.jsonl", rows)
  found = posttraining.load(
    "conversations", [path], lambda item: posttraining.conversation(tokenizer, item, 100)
  )
  report = f"{path}: messages, 5 rows, 3 conversations kept, 1 cut to the length; "
  dropped = "dropped: empty answer 1, nothing to learn after the cut 1"
  assert found.reports == [report + dropped]
  assert all(len(tokens) == len(mask) <= 101 for tokens, mask in found.train)


def test_nothing_left_is_one_line(tmp_path):
  path = talks(tmp_path / "a.jsonl", 3)
  with pytest.raises(UserError, match="no row is left.*nothing to learn 3"):
    posttraining.load("conversations", [path], lambda item: posttraining.NOTHING)
  write(tmp_path / "same.jsonl", [{"messages": TALK}] * 3)
  with pytest.raises(UserError, match="ask the same"):
    posttraining.load("conversations", [str(tmp_path / "same.jsonl")], text, validation=0.1)
  with pytest.raises(UserError, match="cannot read"):
    posttraining.load("conversations", ["nowhere.jsonl"], text)


def test_small_sources_are_measured_together():
  sources = ["a"] * 5 + ["b"] * 3 + ["c", "d"]
  assert posttraining.bounded(sources, 2) == ["a"] * 5 + ["b"] * 3 + ["other"] * 2
  assert posttraining.bounded(sources) == sources


@pytest.mark.parametrize("template", ["llm_jax", "llama-2", "chatml", "gemma"])
def test_what_is_learned_changes_the_mask_alone(tokenizer, template, monkeypatch):
  from llm_jax.data import templates

  monkeypatch.setattr(tokenizer, "template", template, raising=False)
  known = {}
  monkeypatch.setattr(
    tokenizer, "control_id", lambda name, where: known.setdefault(name, 1000 + len(known)),
    raising=False,
  )  # fmt: skip
  assert templates.get(template)
  talk = TALK if template != "gemma" else TALK[1:]
  numbers = [i for i, m in enumerate(talk) if m["role"] == "assistant"]
  tokens, whole = chat.render(tokenizer, talk)
  parts = [chat.render(tokenizer, talk, learn=(i,)) for i in numbers]
  assert all(part[0] == tokens for part in parts)
  assert [a + b for a, b in zip(*(mask for _, mask in parts), strict=True)] == whole
  assert all(any(mask) for _, mask in parts)
  assert not any(chat.render(tokenizer, talk, learn=())[1])
  with pytest.raises(ValueError, match="not the assistant's"):
    chat.render(tokenizer, talk, learn=(numbers[0] - 1,))


def test_a_learned_answer_has_its_own_turn_end(tokenizer):
  tokens, mask = chat.render(tokenizer, TALK, learn=(2,))
  ends = [i for i, token in enumerate(tokens) if token == tokenizer.end_id]
  assert [mask[i] for i in ends] == [0, 0, 1, 0, 0]
  assert tokenizer.decode([t for t, m in zip(tokens, mask, strict=True) if m]) == TALK[2]["content"]


def test_a_conversation_keeps_its_choice_when_it_is_cut(tokenizer):
  item = Conversation(TALK, learn=(4,))
  (tokens, mask), cut = posttraining.conversation(tokenizer, item, 40)
  assert cut and len(tokens) <= 41
  assert sum(mask) == len(tokenizer.encode(TALK[4]["content"])) + 1


def test_an_encoder_reads_what_is_before_the_last_answer(tokenizer):
  item = Conversation(TALK)
  (given, answer), cut = seq2seq.last_answer(tokenizer, item, 200, 100)
  assert tokenizer.decode(given[:-1]) == "\n".join(m["content"] for m in TALK[:-1])
  assert tokenizer.decode(answer[:-1]) == TALK[-1]["content"] and not cut
  assert (given[-1], answer[-1]) == (tokenizer.eos_id, tokenizer.eos_id)
  (given, answer), cut = seq2seq.last_answer(tokenizer, item, 10, 5)
  assert cut and (len(given), len(answer)) == (10, 5)
  unlearned = Conversation(TALK, learn=(2,))
  assert seq2seq.last_answer(tokenizer, unlearned, 200, 100) == posttraining.NOTHING
