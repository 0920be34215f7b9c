"""C4's rules for lines and pages, and mC4's for paragraphs.

Sources: Raffel et al. 2020, arXiv:1910.10683, sec. 2.2, and its code, TFDS's c4_utils.py, which
decides where they differ; Xue et al. 2021, arXiv:2010.11934, sec. 3.1, for mC4.
"""

import re

from llm_jax.data.documents import Document
from llm_jax.data.filters.lists import read_phrases

_POLICIES = (
  "terms of use",
  "privacy policy",
  "cookie policy",
  "uses cookies",
  "use of cookies",
  "use cookies",
)
_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_SENTENCE = re.compile(r"[.!?]+(?=\s|$)")


def c4_lines(
  text: str,
  terminal: bool = True,
  least_words: int = 5,
  most_chars: int = 1000,
  marks: str = '.?!"',
) -> str:
  """C4's rules for lines: returns the lines that are sentences.

  Marks of citations ("[3]", "[edit]", "[citation needed]") go, and lines about javascript, cookies,
  terms of use or privacy.

  Args:
    text: a page.
    terminal: want one of `marks` at the end, and no "...".
    least_words: words a line has at least. TFDS 5; datatrove, which made FineWeb, 3 (an older
      reading).
    most_chars: a line with a longer word goes.
    marks: what ends a sentence. datatrove adds the apostrophe.
  """
  kept = []
  ends = tuple(marks)
  if "[" in text:
    text = _CITATION.sub("", text)
  for line in text.split("\n"):
    line = line.strip()
    if terminal and (not line.endswith(ends) or line.endswith("...")):
      continue
    words = line.split()
    if len(words) < least_words or not words:
      continue
    if len(line) > most_chars and max(map(len, words)) > most_chars:
      continue
    low = line.lower()
    if "javascript" not in low and not any(policy in low for policy in _POLICIES):
      kept.append(line)
  return "\n".join(kept)


def c4_page(
  document: Document, braces: bool = True, most_chars: int = 190_000, sentences: int = 3
) -> str | None:
  """C4's rules for pages, to be run on what `c4_lines` left: a brace in another line is no reason.

  Args:
    document: to judge.
    braces: drop a page that has a `{`, which C4 takes for code.
    most_chars: longest page (in the code, not in the paper).
    sentences: fewest; counted by terminal punctuation, not by a trained splitter. TFDS 3;
      datatrove, which made FineWeb, 5 (an older reading).
  """
  text = document.text.lower()
  if "lorem ipsum" in text:
    return "c4: lorem ipsum"
  if braces and "{" in text:
    return "c4: curly brace"
  if len(text) > most_chars:
    return "c4: too long"
  found = _SENTENCE.finditer(text)
  return "c4: few sentences" if any(next(found, None) is None for _ in range(sentences)) else None


def c4_words(document: Document, words: str, boundaries: bool = True) -> str | None:
  """Drops a page that has a word or phrase of a list, in any case.

  C4 used a public list of obscene words (LDNOOBW, some 400 English ones). It is a third party's
  list of slurs, so it is not shipped: give a file. Expect false positives, for such lists also hold
  words of medicine and of minorities (Dodge et al. 2021, arXiv:2104.08758).

  Args:
    document: to judge.
    words: a file of words and phrases, one a line.
    boundaries: neither the character before nor the one after may be one of a-z. False finds it
      inside words too: mC4's reading for Japanese, Thai and Chinese.

  Raises:
    UserError: if the file cannot be read or is empty.
  """
  found = read_phrases(words).search(document.text.lower(), boundaries)
  return "c4: listed word" if found else None


def mc4_paragraphs(document: Document, paragraphs: int = 3, chars: int = 200) -> str | None:
  """Wants lines as long as paragraphs: mC4's rule for languages without sentence marks.

  Args:
    document: to judge.
    paragraphs: lines of at least `chars` characters, at least.
    chars: of such a line.
  """
  enough = sum(len(line) >= chars for line in document.text.split("\n"))
  return "mc4: few paragraphs" if enough < paragraphs else None
