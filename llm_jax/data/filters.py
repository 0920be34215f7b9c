"""Published rules that tell natural text from the rest: a document in, a reason or None out.

Thresholds are the papers' unless a keyword says otherwise. Words are separated by white space.
Sources: Gopher (Rae et al. 2021, arXiv:2112.11446, table A1), C4 (Raffel et al. 2020,
arXiv:1910.10683, sec. 2.2, and TFDS's c4_utils.py), FineWeb (Penedo et al. 2024, arXiv:2406.17557).
"""

import re
from collections import Counter
from collections.abc import Sequence

from llm_jax.data.documents import Document

_STOP = frozenset("the be to of and that have with".split())
_TERMINAL = (".", "?", "!", '"')
_BULLETS = ("-", "*", "\u2022", "\u2023", "\u25cf", "\u25e6")
_ELLIPSES = ("...", "\u2026")
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
_TOP_FRACTIONS = {2: 0.20, 3: 0.18, 4: 0.16}
_REPEATED_FRACTIONS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}


def length(document: Document, least: int = 200, most: int = 0) -> str | None:
  """Bounds the number of characters; `most` 0: no bound."""
  if len(document.text) < least:
    return "too short"
  return "too long" if most and len(document.text) > most else None


def letters(document: Document, least: float = 0.6) -> str | None:
  """Wants a fraction of letters among the characters that are no white space."""
  marks = "".join(document.text.split())
  alphabetic = sum(map(str.isalpha, marks))
  return "few letters" if alphabetic < least * len(marks) or not marks else None


def c4_page(
  document: Document, braces: bool = True, most_chars: int = 190_000, sentences: int = 3
) -> str | None:
  """C4's rules for pages.

  Args:
    document: to judge.
    braces: drop a page that has a `{`, which C4 takes for code.
    most_chars: longest page.
    sentences: fewest; counted by terminal punctuation.
  """
  text = document.text.lower()
  if "lorem ipsum" in text:
    return "c4: lorem ipsum"
  if braces and "{" in text:
    return "c4: curly brace"
  if len(text) > most_chars:
    return "c4: too long"
  return "c4: few sentences" if len(_SENTENCE.findall(text)) < sentences else None


def c4_lines(text: str, terminal: bool = True, least_words: int = 5, most_chars: int = 1000) -> str:
  """C4's rules for lines: returns the lines that are sentences.

  Args:
    text: a page.
    terminal: want . ? ! or a quote at the end, and no ellipsis.
    least_words: words a line has at least.
    most_chars: a line with a longer word goes.
  """
  kept = []
  for line in _CITATION.sub("", text).split("\n"):
    line = line.strip()
    low = line.lower()
    words = line.split()
    ends = line.endswith(_TERMINAL) and not line.endswith("...")
    fine = len(words) >= least_words and max(map(len, words)) <= most_chars
    if fine and (ends or not terminal) and "javascript" not in low:
      if not any(policy in low for policy in _POLICIES):
        kept.append(line)
  return "\n".join(kept)


def gopher_quality(
  document: Document,
  words: tuple[int, int] = (50, 100_000),
  mean_length: tuple[float, float] = (3, 10),
  symbols: float = 0.1,
  bullets: float = 0.9,
  ellipses: float = 0.3,
  with_letter: float = 0.8,
  stop_words: int = 2,
) -> str | None:
  """Gopher's quality rules; each keyword is the bound of one of them."""
  tokens = document.text.split()
  spoken = [token for token in tokens if any(map(str.isalnum, token))]
  if not words[0] <= len(spoken) <= words[1]:
    return "gopher: word count"
  mean = sum(map(len, spoken)) / len(spoken)
  if not mean_length[0] <= mean <= mean_length[1]:
    return "gopher: mean word length"
  text = document.text
  dots = sum(text.count(ellipsis) for ellipsis in _ELLIPSES)
  if max(text.count("#"), dots) > symbols * len(tokens):
    return "gopher: symbols"
  lines = [line.strip() for line in text.split("\n") if line.strip()]
  if sum(line.startswith(_BULLETS) for line in lines) > bullets * len(lines):
    return "gopher: bullets"
  if sum(line.endswith(_ELLIPSES) for line in lines) > ellipses * len(lines):
    return "gopher: ellipses"
  if sum(any(map(str.isalpha, token)) for token in tokens) < with_letter * len(tokens):
    return "gopher: words without a letter"
  if len(_STOP & {token.lower().strip(".,;:()'\"") for token in tokens}) < stop_words:
    return "gopher: stop words"
  return None


def gopher_repetition(
  document: Document, scale: float = 1.0, gram_scale: float = 1.0
) -> str | None:
  """Gopher's repetition rules; the bounds are times `scale`, those on n-grams `gram_scale`."""
  text = document.text
  paragraphs = [p.strip() for p in text.split("\n\n") if p.strip()]
  lines = [line.strip() for line in text.split("\n") if line.strip()]
  for name, parts in (("line", lines), ("paragraph", paragraphs)):
    count, chars = _repeated(parts)
    if count > 0.30 * scale * len(parts):
      return f"gopher: repeated {name}s"
    if chars > 0.20 * scale * len(text):
      return f"gopher: characters in repeated {name}s"
  words = text.split()
  total = sum(map(len, words))
  for n, bound in _TOP_FRACTIONS.items():
    if _top_gram(words, n) > bound * gram_scale * total:
      return f"gopher: most frequent {n}-gram"
  for n, bound in _REPEATED_FRACTIONS.items():
    if _in_repeated_grams(words, n) > bound * gram_scale * total:
      return f"gopher: repeated {n}-grams"
  return None


def fineweb(
  document: Document,
  terminal: float = 0.12,
  short: float = 0.67,
  repeated: float = 0.1,
  newlines: float = 0.3,
) -> str | None:
  """FineWeb's own rules, found by comparing statistics of good and bad dumps.

  Args:
    document: to judge.
    terminal: fraction of lines that end in terminal punctuation, at least.
    short: fraction of lines of 30 characters or less, at most.
    repeated: fraction of characters in repeated lines, at most (paper 0.1, their code 0.01).
    newlines: newlines per word, at most.
  """
  lines = [line.strip() for line in document.text.split("\n") if line.strip()]
  if not lines:
    return "fineweb: empty"
  if sum(line.endswith(_TERMINAL) for line in lines) < terminal * len(lines):
    return "fineweb: few lines end a sentence"
  if sum(len(line) <= 30 for line in lines) > short * len(lines):
    return "fineweb: short lines"
  if _repeated(lines)[1] > repeated * sum(map(len, lines)):
    return "fineweb: characters in repeated lines"
  if len(lines) - 1 > newlines * len(document.text.split()):
    return "fineweb: many lines"
  return None


def _repeated(parts: Sequence[str]) -> tuple[int, int]:
  """Returns (number, characters) of parts that stood before."""
  again = Counter(parts)
  return len(parts) - len(again), sum((n - 1) * len(part) for part, n in again.items())


def _top_gram(words: Sequence[str], n: int) -> int:
  """Returns the characters that the most frequent n-gram covers; 0 if none repeats."""
  counts = Counter(zip(*(words[i:] for i in range(n)), strict=False))
  if not counts:
    return 0
  most = max(counts.values())
  if most < 2:
    return 0
  return most * max(sum(map(len, gram)) for gram, c in counts.items() if c == most)


def _in_repeated_grams(words: Sequence[str], n: int) -> int:
  """Returns the characters in n-grams that stood before, none counted twice."""
  seen: set[int] = set()
  covered = end = 0
  for i, gram in enumerate(zip(*(words[j:] for j in range(n)), strict=False)):
    key = hash(gram)
    if key in seen:
      covered += sum(map(len, gram[max(end - i, 0) :]))
      end = i + n
    seen.add(key)
  return covered
