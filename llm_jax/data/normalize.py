"""Edits of text: repair, whitespace, captions of documentation, what repeats in the corpus."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

import ftfy

from llm_jax.data.docstrings import fields, unmark
from llm_jax.data.documents import identity

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u2028-\u202e\u2060\ufeff]")
_BLANKS = re.compile(r"\n{3,}")
_TRAILING = re.compile(r"[ \t]+$", re.MULTILINE)
_WIDE = re.compile(r"(?<=\S) {2,}")
_EXAMPLE = re.compile(r"^ *(>>>|\.\.\. )")  # There, spaces are indentation.
# Lines without a letter or digit: rulers, borders of tables and boxes.
_RULER = re.compile(r"^[^\w\n]*([-=*_~#+^.|\u2500-\u257f])\1{2,}[^\w\n]*$", re.MULTILINE)
_SIGNATURE = re.compile(
  r"^(?:(?:class |async )?[A-Za-z_][\w.]*\(.*\)(?: -> \S.*)?|class [A-Za-z_][\w.]*)$"
)
_RETURNS = re.compile(r"^\w+\(.*\) +-+> +\S.*$")
_SELF = re.compile(r"^((?:async )?\w+\()(?:self|cls|type|mcs)(?:, /)?(?:, |(?=\)))", re.MULTILINE)
_BOUND = re.compile(r"^(\w+\(.*\)) method of \S+ instance$", re.MULTILINE)
_CONSTANT = re.compile(r"^\w+ = \S.*$")
_CAPTION = re.compile(
  r"^(Modules|Classes|Functions|Data|Package Contents|Submodules|Author|Credits|Module Reference"
  r"|(Class |Static )?[Mm]ethods (defined here|inherited from .*):"
  r"|(Readonly properties|Data descriptors|Data and other attributes)"
  r" (defined here|inherited from .*):|Method resolution order:"
  r"|# (Proxy|classmethod|staticmethod).*|__\w+__( = .*)?|\w+ = (<.*>|\.\.\.)"
  r"|dictionary for instance variables|list of weak references to the object"
  r"|exception (cause|context|traceback)|args"
  r"|See help\(type\(self\)\) for accurate signature\.|index)$"
)
# Double-underscore methods say the same for every class: "Return repr(self)."
_DUNDER = re.compile(r"^(?:async )?__\w+__\(.*$")
_CODE_LINE = re.compile(
  r"^\s*(>>>|\.\.\.|\$ |[-*+] |\d+[.)] |\S+ *:( |$)|@|def |class |import |from )"
)
_FULL = 55  # Characters from which a line was broken because it was full.
_COMMENT = re.compile(r"^(#|Copyright|:copyright:|:license:|Licensed under|SPDX-).*", re.I)


def repair(text: str) -> str:
  """Mends mis-decoded characters (ftfy), composes (NFC), and drops control characters."""
  text = text.replace("\r\n", "\n").replace("\r", "\n")
  if not text.isascii():
    text = ftfy.fix_text(text, uncurl_quotes=True, normalization="NFC")
    text = unicodedata.normalize("NFC", text.replace("\xa0", " "))
  return _CONTROL.sub("", text)


def whitespace(text: str) -> str:
  """Tabs become spaces, runs inside a line one space, more than one blank line one."""
  text = _TRAILING.sub("", text.expandtabs(4))
  lines = [line if _EXAMPLE.match(line) else _WIDE.sub(" ", line) for line in text.split("\n")]
  return _BLANKS.sub("\n\n", "\n".join(lines)).strip("\n")


def rulers(text: str) -> str:
  """Drops lines that only draw: rulers, underlines of headings, borders of tables."""
  return _BLANKS.sub("\n\n", _RULER.sub("", text))


def documentation(text: str) -> str:
  """Edits pages of API documentation: what is left are signatures with what is said about them.

  Roles of reStructuredText become plain words, methods lose `self`, captions such as "Data
  descriptors defined here:", constants and methods with double underscores go, paragraphs become
  one line, and a signature stands directly above its text.
  """
  text = _SELF.sub(r"\1", _BOUND.sub(r"\1", fields(unmark(text))))
  blocks = [_strip(block.split("\n")) for block in text.split("\n\n")]
  kept: list[list[str]] = []
  in_dunder = False
  for lines in blocks:
    if not lines:
      continue
    if _DUNDER.match(lines[0]):
      in_dunder = True
      continue
    if is_signature(lines[0]) or (len(lines) == 1 and len(lines[0].split()) == 1):
      in_dunder = False
    if in_dunder:
      continue  # The later paragraphs of its text.
    kept.append(lines)
  return "\n\n".join("\n".join(lines) for lines in _glued([_unwrap(b) for b in kept]))


def without_bare_signatures(text: str) -> str:
  """Drops blocks that say nothing about their signatures: what stood there was a repeat."""
  blocks = text.split("\n\n")
  return "\n\n".join(b for b in blocks if not all(map(is_signature, b.split("\n"))))


def is_signature(line: str) -> bool:
  """Tells whether a line is how a function or class is called, such as `f(x, *, y=1)`."""
  return bool(_SIGNATURE.match(line)) and not line.endswith("().")


def boilerplate(texts: Iterable[str], fraction: float, min_words: int = 3) -> set[str]:
  """Returns the lines that stand on more than `fraction` of the pages, stripped.

  After C4's line deduplication (Raffel et al. 2020, arXiv:1910.10683, sec. 2.2), by pages instead
  of occurrences: a phrase that one page repeats is none.

  Args:
    texts: pages.
    fraction: of the pages, in (0, 1]; at least three pages.
    min_words: shorter lines stay: "Returns:" is frequent and means something.
  """
  pages = 0
  counts: Counter[str] = Counter()
  for text in texts:
    pages += 1
    counts.update({line.strip() for line in text.split("\n")})
  least = max(fraction * pages, 2)
  return {line for line, n in counts.items() if n > least and len(line.split()) >= min_words}


def without_lines(text: str, lines: set[str]) -> str:
  """Returns `text` without the given lines."""
  kept = [line for line in text.split("\n") if line.strip() not in lines]
  return _BLANKS.sub("\n\n", "\n".join(kept)).strip("\n")


def unique_paragraphs(texts: Sequence[str], min_chars: int = 40) -> tuple[list[str], int, int]:
  """Drops every paragraph that stood before, in an earlier text or the same one.

  Args:
    texts: in order of importance, since the first copy stays.
    min_chars: shorter paragraphs stay.

  Returns:
    (texts, number of paragraphs dropped, their UTF-8 bytes).
  """
  seen: set[str] = set()
  out, count, size = [], 0, 0
  for text in texts:
    kept = []
    for paragraph in text.split("\n\n"):
      key = identity(" ".join(paragraph.lower().split()))
      if len(paragraph) >= min_chars and key in seen:
        count += 1
        size += len(paragraph.encode())
        continue
      seen.add(key)
      kept.append(paragraph)
    out.append("\n\n".join(kept))
  return out, count, size


def _strip(lines: list[str]) -> list[str]:
  """Drops captions, constants and repeats of the line before."""
  return [
    line
    for i, line in enumerate(lines)
    if line.strip()
    and line not in lines[max(i - 1, 0) : i]
    and not _CAPTION.match(line.strip())
    and not _CONSTANT.match(line)
    and not _COMMENT.match(line)
    and not line.startswith("Initialize self.")
  ]


def _unwrap(lines: list[str]) -> list[str]:
  """Joins lines of a paragraph that were broken because they were full."""
  out: list[str] = []
  last = ""  # The line as it was, since what is joined is always long.
  for line in lines:
    indent = len(line) - len(line.lstrip())
    same = last and len(last) - len(last.lstrip()) == indent
    code = is_signature(last) or _CODE_LINE.match(line) or _EXAMPLE.match(last)
    if same and not code and len(last) >= _FULL and _wordy(last):
      out[-1] += " " + line.strip()
    elif out and _RETURNS.match(line) and is_signature(out[-1]):
      continue  # `fill(text : string) -> string` below `fill(text)`.
    else:
      out.append(line)
    last = line
  return out


def _wordy(line: str) -> bool:
  letters = sum(c.isalpha() or c == " " for c in line)
  return letters >= 0.8 * len(line) and len(line.split()) >= 5


def _glued(blocks: list[list[str]]) -> list[list[str]]:
  """Puts signatures and headings such as "Returns:" on their text; drops bare signatures."""
  out: list[list[str]] = []
  for lines in blocks:
    if out and _opens(out[-1][-1]) and not is_signature(lines[0]):
      out[-1] = [*out[-1], *lines]
    elif out and all(is_signature(line) for line in out[-1]):
      out[-1] = lines  # Nothing was said about it.
    else:
      out.append(lines)
  if out and all(is_signature(line) for line in out[-1]):
    out.pop()
  return out


def _opens(line: str) -> bool:
  return is_signature(line) or (line.endswith(":") and len(line.split()) <= 2)
