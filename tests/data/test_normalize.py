"""Edits: what they mend, what they leave alone."""

from llm_jax.data import normalize


def test_repair_mends_and_composes():
  assert normalize.repair("cafe\u0301 sch\u00c3\u00b6n\r\nx\u200b\x00") == "caf\u00e9 sch\u00f6n\nx"


def test_whitespace_keeps_indentation_and_examples():
  text = "a  b   \n\n\n\n\tc\n>>> x  = 1\n"
  assert normalize.whitespace(text) == "a b\n\n    c\n>>> x  = 1"


def test_rulers_go_and_text_stays():
  text = "Title\n=====\n+---+---+\n| a | b |\na -- b\n***"
  assert normalize.rulers(text).split() == ["Title", "|", "a", "|", "b", "|", "a", "--", "b"]


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


def test_boilerplate_is_what_many_pages_say():
  pages = [f"Copyright by the authors\npage {i} text\nReturns:" for i in range(20)]
  pages[0] += "\nonce here more text" * 9
  lines = normalize.boilerplate(pages, 0.5)
  assert lines == {"Copyright by the authors"}
  assert normalize.without_lines(pages[1], lines) == "page 1 text\nReturns:"


def test_the_first_copy_of_a_paragraph_stays():
  long = "A paragraph that is long enough to be compared with others."
  texts, count, size = normalize.unique_paragraphs([f"{long}\n\na", f"b\n\n{long.upper()}\n\na"])
  assert texts == [f"{long}\n\na", "b\n\na"]
  assert (count, size) == (1, len(long))


def test_bare_signatures_go():
  assert normalize.without_bare_signatures("f(x)\n\ng(x)\nSays.\n\nclass A") == "g(x)\nSays."
