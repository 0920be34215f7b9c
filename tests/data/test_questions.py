"""Questions: what is asked, the split by page and by answer, and that nothing leaks."""

import pytest

from llm_jax.data import documents, questions
from llm_jax.data.pydocs import Entry


def entry(name, doc, module="pkg.mod", kind="function"):
  url = f"https://docs.invalid/{module}"
  return Entry(module, name, kind, f"{name}(x)", doc, "pkg", url)


def pages(split, count):
  """`count` modules whose pages are in `split`."""
  names = (f"pkg.m{i}" for i in range(1000))
  chosen = [n for n in names if documents.split_of(f"https://docs.invalid/{n}", 0, 0.5) == split]
  return chosen[:count]


def build(entries, texts=()):
  return questions.build(entries, texts, seed=0, validation=0.5)


def test_a_question_names_the_object_in_words_and_shows_its_signature():
  made = entry("read_setupFile", "Read a setup file and return it.\n\nMore.", "pkg._src.mod")
  train, held_out, _ = build([made])
  (question,) = train + held_out
  assert question.prompt == "What does read setup file do?\nread_setupFile(x)\npkg mod"
  assert question.answer == "Read a setup file and return it."


@pytest.mark.parametrize(
  "doc",
  [
    "no capital letter here at all.",
    "No full stop at the end",
    "Too short.",
    "See https://example.invalid for all about it.",
    ">>> Call this with care, or not.",
    "word " * 40 + ".",
  ],
)
def test_what_is_no_plain_sentence_is_no_answer(doc):
  train, held_out, counts = build([entry("f", doc)])
  assert not train + held_out
  assert counts["no plain first paragraph"] == 1


def test_pages_decide_the_split():
  entries = [
    entry(f"f{i}", f"Return the number {i} of all things.", module)
    for i, module in enumerate(pages("train", 5) + pages("validation", 5))
  ]
  train, held_out, _ = build(entries)
  assert {q.url for q in train} & {q.url for q in held_out} == set()
  assert (len(train), len(held_out)) == (5, 5)


def test_an_answer_is_used_once_whatever_its_case_and_spacing():
  entries = [
    entry("f", "Return the  answer to all.", pages("train", 1)[0]),
    entry("g", "Return the answer to ALL.", pages("validation", 1)[0]),
  ]
  train, held_out, counts = build(entries)
  assert len(train + held_out) == 1
  assert counts["answer seen before"] == 1


@pytest.mark.parametrize(
  ("text", "kept"),
  [
    ("Before. Return the ANSWER to\n  everything, and after.", 0),
    ("Return the answer to some of everything.", 1),
  ],
)
def test_a_held_out_answer_in_the_training_text_is_dropped(text, kept):
  held = entry("g", "Return the answer to everything.", pages("validation", 1)[0])
  _, held_out, counts = build([held], [text])
  assert len(held_out) == kept
  assert counts["held-out answer in training text"] == 1 - kept


def test_a_held_out_answer_inside_a_training_answer_is_dropped():
  entries = [
    entry("f", "Return the answer to everything. Then stop.", pages("train", 1)[0]),
    entry("g", "Return the answer to everything.", pages("validation", 1)[0]),
  ]
  assert not build(entries)[1]


def test_the_order_of_entries_does_not_matter(tmp_path):
  entries = [entry(f"f{i}", f"Return the number {i} of all things.") for i in range(20)]
  assert build(entries) == build(entries[::-1])
  path = tmp_path / "q.jsonl"
  train, held_out, _ = build(entries)
  questions.write(path, train + held_out)
  assert questions.read(path) == train + held_out


def test_spoken():
  assert questions.spoken("BaseHTTPServer.do_getAll") == "base httpserver do get all"
