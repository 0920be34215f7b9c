"""C4's rules as its code has them: a readable reference, and each rule at its bound."""

import gzip

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.data.documents import Document
from llm_jax.data.filters import c4_lines, c4_page, c4_words, mc4_paragraphs
from llm_jax.errors import UserError

PIECES = [
  "This line has more than five words.", "And so does this one here?", "no end here at all now",
  "Too short.", "It goes on and on and on...", 'She said "that is all there is"',
  "x" * 1001 + " a b c d.",
  "You must enable JavaScript to see it.", "We use cookies to make it better.",
  "Read our Privacy Policy or leave us.", "As was shown [12] by them [edit].", "", "  a b c d e!  ",
]  # fmt: skip


def doc(text):
  return Document("x", text)


def sentences(text):
  """Lines that C4 keeps, by the order of its rules."""
  kept = []
  for line in text.split("\n"):
    for mark in ("[12]", "[]", "[edit]", "[citation needed]"):
      line = line.replace(mark, "")
    line = line.strip()
    fine = line.endswith((".", "?", "!", '"')) and not line.endswith("...")
    fine = fine and len(line.split()) >= 5 and all(len(w) <= 1000 for w in line.split())
    low = line.lower()
    policies = ("javascript", "terms of use", "privacy policy", "cookie policy", "uses cookies")
    if fine and not any(p in low for p in (*policies, "use of cookies", "use cookies")):
      kept.append(line)
  return "\n".join(kept)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from(PIECES), max_size=12))
def test_lines_are_those_that_c4_keeps(pieces):
  text = "\n".join(pieces)
  assert c4_lines(text) == sentences(text)
  assert c4_lines(c4_lines(text)) == c4_lines(text)


def test_lines_need_no_mark_if_so_told():
  text = "no end here at all\nand on...\n\nEnable javascript to see it."
  assert c4_lines(text, terminal=False, least_words=1) == "no end here at all\nand on..."
  assert c4_lines("As was shown before [12] by them.") == "As was shown before  by them."


def test_both_readings_of_the_line_rules():
  text = "Only four words here.\nThe 'five words' were 'quoted'"
  assert c4_lines(text) == ""
  assert c4_lines(text, least_words=3, marks=".?!\"'") == text
  assert c4_lines("a b c d " + "x" * 1000 + ".", most_chars=1001)
  assert not c4_lines("a b c d " + "x" * 1000 + ".", most_chars=1000)


def test_pages():
  prose = "One is here. Two is there. Three is all."
  assert c4_page(doc(prose)) is None
  assert "curly" in c4_page(doc("{" + prose))
  assert c4_page(doc("{" + prose), braces=False) is None
  assert "lorem" in c4_page(doc("Lorem Ipsum" + prose))
  assert "few" in c4_page(doc("One. Two and v1.2"))
  assert c4_page(doc("One. Two."), sentences=2) is None
  assert "few" in c4_page(doc(prose), sentences=5)  # datatrove's bound.
  assert "long" in c4_page(doc(prose + "x" * 190_000))
  assert c4_page(doc("x" * (190_000 - len(prose)) + prose)) is None


@pytest.fixture
def listed(tmp_path):
  path = tmp_path / "words.txt"
  path.write_text("# ours\nblorp\nzig zag\nf00\n\nna\u00efve\n", encoding="utf-8")
  return str(path)


@pytest.mark.parametrize(
  ("text", "bad"),
  [
    ("He said Blorp!", True),
    ("blorp", True),
    ("blorps and ablorp", False),
    ("blorp2", True),  # Only a letter a-z at its side makes it another word.
    ("a Zig Zag line", True),
    ("zigzag, zig-zag, zig zags, xzig zag", False),
    ("xzig zag and a zig zag", True),
    ("f00 and", True),
    ("of00", False),
    ("so NA\u00cfVE.", True),
    ("ours", False),
  ],
)
def test_words_of_a_list(listed, text, bad):
  assert bool(c4_words(doc(text), words=listed)) == bad
  assert c4_words(doc("xblorpx"), words=listed, boundaries=False)
  assert not c4_words(doc("blurp"), words=listed, boundaries=False)


def test_a_list_may_be_compressed_and_must_hold_something(tmp_path):
  path = tmp_path / "words.gz"
  path.write_bytes(gzip.compress(b"blorp\n"))
  assert c4_words(doc("blorp"), words=str(path)) == "c4: listed word"
  for name, content, says in (
    ("empty.txt", b"# none\n", "empty"),
    ("bytes.txt", b"\xff\xfe\n", "cannot be read"),
    ("cut.gz", gzip.compress(b"blorp\n" * 99)[:-9], "cannot be read"),
    ("none.txt", None, "no such list"),
  ):
    if content is not None:
      (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says) as caught:
      c4_words(doc("x"), words=str(tmp_path / name))
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_paragraphs():
  assert mc4_paragraphs(doc("\n".join(["x" * 200] * 3))) is None
  assert mc4_paragraphs(doc("\n".join(["x" * 200] * 2 + ["x" * 199] * 9)))
  assert mc4_paragraphs(doc("x"), paragraphs=1, chars=1) is None
