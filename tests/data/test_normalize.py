"""Edits: what they mend, what they leave alone, and that the fast way is the plain one."""

import re
import time

import ftfy
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm_jax.data import normalize

WRONG = ("latin-1", "cp1252", "cp1251", "cp1253", "cp437", "mac_roman")
# What mistakes are made of: what bytes above 127 look like in the wrong encoding, and everything
# that ftfy changes by itself (quotes, ligatures, wide forms, separators, half characters).
ODD = sorted({c for name in WRONG for c in bytes(range(128, 256)).decode(name, "replace")})
ODD += "\u2018\u2019\u201b\u201c\u201d\u201f\u02bc\u2013\u2014\u2026\ufb01\u0133\u01c6\u3000\uff01"
ODD += "\uff41\u2028\u2029\ufeff\ufffc\u206a\u0301\u0308\u200b\u6f22\U0001f43b\ud83d\udca9"
PARTS = [
  *"aZ \n\t,.!?'\"&;<", "&eacute;", "&amp;", "&#x2019;", "&lt;", "<b>", "e\u0301", "\x1b[0m",
  "\u00e2\u20ac\u2122", "\u00c3\u00a9", " \u00c2 ", "\u0153 ", "\x00", "\x0c",
]  # fmt: skip
PIECE = st.sampled_from(PARTS) | st.sampled_from(ODD) | st.sampled_from("a \n")
TEXTS = st.lists(PIECE, max_size=25).map("".join)


def broken(text, encoding):
  """UTF-8 read in the wrong encoding."""
  return text.encode("utf-8", "surrogatepass").decode(encoding, "replace")


@settings(deadline=None, max_examples=1000)
@given(TEXTS, st.sampled_from(["", *WRONG]))
@example("\u201cOne\u201d \u2013 \u2018two\u2019\u2026", "")
@example("<b>\n\u00e9&eacute;", "")
def test_mending_the_lines_that_need_it_is_mending_all(text, encoding):
  text = broken(text, encoding) if encoding else text
  assert normalize.mend(text) == ftfy.fix_text(text, uncurl_quotes=True, normalization="NFC")


def test_no_character_alone_is_overlooked():
  """Of every character that a library might care about, a line where it stands among ASCII."""
  codes = [*range(0x20), *range(0x7F, 0x3100), *range(0xD7F0, 0x10000), *range(0x1F600, 0x1F680)]
  text = "\n".join(f"a{c}b {c} A{c}.{c}, {c}1 a {c} {c}" for c in map(chr, codes))
  assert normalize.mend(text) == ftfy.fix_text(text, uncurl_quotes=True, normalization="NFC")


def test_lines_beyond_a_million_characters_are_mended_alike():
  text = "x" * 999_999 + "\u00c3\u00a9 \u2019\n\u00c3\u00a9"  # ftfy cuts the first in two.
  assert normalize.mend(text) == ftfy.fix_text(text, uncurl_quotes=True, normalization="NFC")


def test_good_text_is_not_handed_on(monkeypatch):
  monkeypatch.setattr(ftfy, "fix_text", None)
  text = "\u201cCaf\u00e9\u201d \u2014 it\u2019s 5 \u20ac\u2026\n\u0414\u0430"
  assert normalize.repair(text).startswith('"Caf\u00e9" \u2014 it\'s 5')


def test_repair_mends_and_composes():
  assert normalize.repair("cafe\u0301 sch\u00c3\u00b6n\r\nx\u200b\x00") == "caf\u00e9 sch\u00f6n\nx"


def test_whitespace_keeps_indentation_and_examples():
  text = "a  b   \n\n\n\n\tc\n>>> x  = 1\n"
  assert normalize.whitespace(text) == "a b\n\n    c\n>>> x  = 1"


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from([*" \t\n\na.\x0b\u00a0", ">>>", "... ", "  ", " \n"]), max_size=20))
def test_white_space_is_that_of_every_line(parts):
  text = "".join(parts)
  lines = [re.sub(r"[ \t]+$", "", line) for line in text.expandtabs(4).split("\n")]
  kept = re.compile(r" *(>>>|\.\.\. )")
  lines = [line if kept.match(line) else re.sub(r"(?<=\S) {2,}", " ", line) for line in lines]
  expected = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")
  assert normalize.whitespace(text) == expected
  assert normalize.whitespace(expected) == expected


def test_rulers_go_and_text_stays():
  text = "Title\n=====\n+---+---+\n| a | b |\na -- b\n***"
  assert normalize.rulers(text).split() == ["Title", "|", "a", "|", "b", "|", "a", "--", "b"]


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from([*"-=_ .\na|", "===", "___", "\u2500\u2500\u2500"]), max_size=14))
def test_a_ruler_has_no_word_and_a_mark_three_times(parts):
  ruler = re.compile(r"[^\w\n]*([-=*_~#+^.|\u2500-\u257f])\1{2,}[^\w\n]*")
  lines = ["" if ruler.fullmatch(line) else line for line in "".join(parts).split("\n")]
  assert normalize.rulers("".join(parts)) == re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


@pytest.mark.parametrize("edit", [normalize.repair, normalize.whitespace, normalize.rulers])
@pytest.mark.parametrize(
  "text", ["=", "- ", "_", " ", "\n ", "\u2019", "\u00c3", "e\u0301", "&#1;", "\x00"]
)
def test_no_text_is_slow(edit, text):
  begin = time.process_time()
  edit(text * (100_000 // len(text)) + "x")
  assert time.process_time() - begin < 2  # Tenths of a second; what is quadratic takes minutes.


PAGE = """textwrap

shorten(self, text, width, **kwargs)

Collapse and truncate the given text to fit in the given width, since
that is what it is for.

Data descriptors defined here:

__dict__

dictionary for instance variables

__repr__(self, /)
Return repr(self).

Says the same for every class.

empty(self)

Returns:

    A value of :class:`~a.b.Int`.

LIMIT = 3"""


def test_documentation_is_signatures_with_text():
  assert normalize.documentation(PAGE) == (
    "textwrap\n\n"
    "shorten(text, width, **kwargs)\n"
    "Collapse and truncate the given text to fit in the given width, since that is what it is for."
    "\n\nempty()\nReturns:\n    A value of Int."
  )


def test_edits_are_idempotent():
  once = normalize.whitespace(normalize.rulers(normalize.documentation(PAGE)))
  assert normalize.whitespace(normalize.rulers(normalize.documentation(once))) == once


def test_bare_signatures_go():
  assert normalize.without_bare_signatures("f(x)\n\ng(x)\nSays.\n\nclass A") == "g(x)\nSays."
