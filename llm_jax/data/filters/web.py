"""Rules for web pages: FineWeb's, RefinedWeb's line-wise corrections, NeMo Curator's defaults.

Sources: Penedo et al. 2024, arXiv:2406.17557, sec. 3.4 (FineWeb) and its code, datatrove; Penedo et
al. 2023, arXiv:2306.01116, app. G.2 (RefinedWeb) and DCLM's reimplementation (Li et al. 2024,
arXiv:2406.11794); NeMo Curator's heuristic filters for English.
"""

import re

from llm_jax.data.documents import Document
from llm_jax.data.filters.gopher import repeated as count_repeated

_COUNTER = re.compile(
  r"\W*\d[\d,.]*\s?[kmb]?\s+(?:likes?|shares?|comments?|retweets?|reposts?|quotes?|bookmarks?"
  r"|upvotes?|downvotes?|downloads?|views?|followers?)\W*"
)
_MARKS = '.?!"'
_QUIET = bytes(range(ord("a"), ord("z") + 1)) + b" ,.\t"  # What is certainly not upper case.


def fineweb(
  document: Document,
  terminal: float = 0.12,
  short: float = 0.67,
  repeated: float = 0.1,
  newlines: float = 0.3,
  marks: str = _MARKS,
) -> str | None:
  """FineWeb's own rules, found by comparing statistics of good and bad dumps.

  Blank lines do not count. A page at a bound stays, where the published code drops it.

  Args:
    document: to judge.
    terminal: fraction of lines that end in terminal punctuation, at least.
    short: fraction of lines of 30 characters or less, at most.
    repeated: fraction of characters in repeated lines, at most (paper 0.1, their code 0.01).
    newlines: newlines per word, at most (in their code, not in the paper).
    marks: terminal punctuation. Their code adds the apostrophe.
  """
  lines = [line.strip() for line in document.text.split("\n") if line.strip()]
  if not lines:
    return "fineweb: empty"
  ends = tuple(marks)
  if sum(line.endswith(ends) for line in lines) < terminal * len(lines):
    return "fineweb: few lines end a sentence"
  if sum(len(line) <= 30 for line in lines) > short * len(lines):
    return "fineweb: short lines"
  if count_repeated(lines)[1] > repeated * sum(map(len, lines)):
    return "fineweb: characters in repeated lines"
  if len(lines) - 1 > newlines * len(document.text.split()):
    return "fineweb: many lines"
  return None


def refinedweb_lines(
  text: str,
  uppercase: float = 0.5,
  least_words: int = 2,
  short: int = 10,
  starts: tuple[str, ...] = ("sign-in",),
  ends: tuple[str, ...] = ("read more...",),
  anywhere: tuple[str, ...] = ("items in cart",),
) -> str:
  """RefinedWeb's line-wise corrections: returns the lines that are no furniture of a page.

  Lines that are mostly upper case, only numbers, a counter ("3 likes") or one word go; from short
  lines, the given phrases. Blank lines stay. The paper names the three phrases as examples of a
  list that it does not print.

  Args:
    text: a page.
    uppercase: fraction of upper case letters among all characters of a line, at most.
    least_words: words a line has at least.
    short: words of a line in which phrases are looked for, at most.
    starts: phrases taken from the start of a short line, in any case.
    ends: phrases taken from its end.
    anywhere: phrases taken from anywhere in it.
  """
  kept = []
  for line in text.split("\n"):
    words = len(line.split())
    if words and (words < least_words or _shouts(line, uppercase)):
      continue
    if 0 < words <= short:
      low = line.lower()
      if _COUNTER.fullmatch(low) or "".join(low.split()).isdigit():
        continue
      if any(phrase in low for phrase in starts + ends + anywhere):
        line = _without(line.strip(), starts, ends, anywhere)
        if not line:
          continue
    kept.append(line)
  return "\n".join(kept).strip("\n")


def refinedweb_page(
  document: Document,
  removed: float = 0.05,
  uppercase: float = 0.5,
  least_words: int = 2,
  short: int = 10,
  starts: tuple[str, ...] = ("sign-in",),
  ends: tuple[str, ...] = ("read more...",),
  anywhere: tuple[str, ...] = ("items in cart",),
) -> str | None:
  """Drops a page of which `refinedweb_lines`, to be run after this, would take too many words.

  Args:
    document: to judge.
    removed: fraction of the words that the corrections take, at most.
    uppercase: as for `refinedweb_lines`, like all that follow.
    least_words: see there.
    short: see there.
    starts: see there.
    ends: see there.
    anywhere: see there.
  """
  before = len(document.text.split())
  text = refinedweb_lines(document.text, uppercase, least_words, short, starts, ends, anywhere)
  if before - len(text.split()) > removed * before:
    return "refinedweb: lines to be removed"
  return None


def nemo(
  document: Document,
  lines: float = 0.7,
  paragraphs: float = 0.7,
  characters: float = 0.8,
  unfinished: float = 0.85,
  marks: str = _MARKS,
) -> str | None:
  """NeMo Curator's defaults where they are not Gopher's or C4's.

  Here a line stands for a sentence, which NeMo finds with a trained splitter.

  Args:
    document: to judge.
    lines: fraction of different ones among the lines, at least.
    paragraphs: the same of paragraphs.
    characters: the same of the characters in lines and in paragraphs.
    unfinished: fraction of lines without terminal punctuation, at most.
    marks: terminal punctuation.
  """
  text = document.text
  parts = [line.strip() for line in text.split("\n") if line.strip()]
  if not parts:
    return "nemo: empty"
  for name, least, found in (
    ("lines", lines, parts),
    ("paragraphs", paragraphs, [p.strip() for p in text.split("\n\n") if p.strip()]),
  ):
    count, chars = count_repeated(found)
    if len(found) - count < least * len(found):
      return f"nemo: repeated {name}"
    size = sum(map(len, found))
    if size - chars < characters * size:
      return f"nemo: characters in repeated {name}"
  ends = tuple(marks)
  if sum(not line.endswith(ends) for line in parts) > unfinished * len(parts):
    return "nemo: few lines end a sentence"
  return None


def _shouts(line: str, most: float) -> bool:
  """Tells whether more than `most` of a line's characters are upper case letters."""
  data = line.encode("utf-8", "surrogatepass")
  quiet = len(data) - len(data.translate(None, _QUIET))
  if len(line) - quiet <= most * len(line):
    return False
  return sum(map(str.isupper, line)) > most * len(line)


def _without(
  line: str, starts: tuple[str, ...], ends: tuple[str, ...], anywhere: tuple[str, ...]
) -> str:
  """Takes the phrases out of a line."""
  for phrases, pattern in (
    (starts, r"^(?:{})\s*"), (ends, r"\s*(?:{})$"), (anywhere, r"\s*(?:{})"),
  ):  # fmt: skip
    if phrases:
      either = "|".join(map(re.escape, phrases))
      line = re.sub(pattern.format(either), "", line, flags=re.IGNORECASE)
  return line.strip()
