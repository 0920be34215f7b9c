"""Edits of text: repair, whitespace, rulers, captions of documentation."""

import re
import unicodedata
from collections.abc import Iterator

import ftfy
from ftfy.badness import is_bad

from llm_jax.data.docstrings import fields, unmark

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u2028-\u202e\u2060\ufeff]")
# What ftfy always has to look at: control characters, line separators, surrogates, ligatures, wide
# and narrow forms, and the letters that alone, among ASCII, may be a mis-decoded character.
_ALWAYS = (
  "\x00-\x08\x0b\x0d-\x1f\x7f-\x9f\xc2\xc3\u0132\u0133\u0149\u0152\u0153\u01c4-\u01cc\u01f1-\u01f3"
  "\u2028\u2029\u206a-\u206f\u3000\ud800-\udfff\ufb00-\ufb06\ufeff\uff01-\uffef\ufff9-\ufffc"
)
_PLAIN = "\xa0\u2013\u2014\u2018\u2019\u201c\u201d\u2026"  # Between themselves they are no mistake.
# Every other mis-decoded character is at least two that are not ASCII, side by side.
_SUSPECT = re.compile(
  f"[\x00-\x08\x0b\x0d-\x1f\x7f-\U0010ffff]"
  f"(?:(?<=[{_ALWAYS}])|(?<=[^{_PLAIN}])[^\x00-\x7f]|(?<=[{_PLAIN}])[^\x00-\x7f{_PLAIN}])"
)
_CERTAIN = re.compile(f"[{_ALWAYS}]")
_ENTITY = re.compile("&#?[0-9A-Za-z]{1,24};")
_SINGLE, _DOUBLE = "\u02bc\u2018\u2019\u201a\u201b", "\u201c\u201d\u201e\u201f"
_BLANKS = re.compile(r"\n{3,}")
_WIDE = re.compile(r"(?<=\S) {2,}")
_EXAMPLE = re.compile(r"^ *(>>>|\.\.\. )")  # There, spaces are indentation.
# Lines without a letter or digit in which a mark stands three times: rulers, borders of tables.
_RULER = re.compile(
  r"^(?:(?=[^\w\n]*+$).*?([-=*~#+^.|\u2500-\u257f])\1\1.*|[^\w\n]*+_{3,}+[^\w\n]*+)$",
  re.MULTILINE,
)
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
    text = unicodedata.normalize("NFC", mend(text).replace("\xa0", " "))
  return _CONTROL.sub("", text)


def mend(text: str) -> str:
  """Returns what `ftfy.fix_text` with straight quotes and NFC does, 20 times faster on web pages.

  ftfy works line by line, and what it can change has marks: this finds the lines that have one and
  hands only those on. In the others it would straighten curly quotes and nothing else.
  """
  tag = text.find("<")
  entities_end = text.rfind("\n", 0, tag) + 1 if tag >= 0 else len(text)
  spans = {*_lines_with(_SUSPECT, text, len(text)), *_lines_with(_ENTITY, text, entities_end)}
  if not unicodedata.is_normalized("NFC", text):
    spans |= {(a, b) for a, b in _lines(text) if not unicodedata.is_normalized("NFC", text[a:b])}
  pieces, last = [], 0
  for start, stop in sorted(spans):
    line = text[start:stop]
    entities = "auto" if start < entities_end else False  # After a "<", ftfy leaves entities alone.
    pieces.append(_uncurled(text[last:start]))
    pieces.append(_mended(line, entities))
    last = stop
  return "".join((*pieces, _uncurled(text[last:])))


def whitespace(text: str) -> str:
  """Tabs become spaces, runs inside a line one space, more than one blank line one."""
  text = text.expandtabs(4)
  if " \n" in text or text.endswith(" "):
    text = "\n".join([line.rstrip(" ") for line in text.split("\n")])
  if ">>>" in text or "... " in text:
    lines = [line if _EXAMPLE.match(line) else _WIDE.sub(" ", line) for line in text.split("\n")]
    text = "\n".join(lines)
  elif "  " in text:
    text = _WIDE.sub(" ", text)
  return _BLANKS.sub("\n\n", text).strip("\n")


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


def _lines(text: str) -> Iterator[tuple[int, int]]:
  """Yields where each line starts and ends, with its newline."""
  start = 0
  while start < len(text):
    stop = text.find("\n", start) + 1 or len(text)
    yield start, stop
    start = stop


def _lines_with(pattern: re.Pattern[str], text: str, end: int) -> Iterator[tuple[int, int]]:
  """Yields the lines before `end` that have a match of a pattern, which crosses no newline."""
  at = 0
  while match := pattern.search(text, at, end):
    at = text.find("\n", match.start()) + 1 or len(text)
    yield text.rfind("\n", 0, match.start()) + 1, at


def _mended(line: str, entities: str | bool) -> str:
  straight = _uncurled(line)
  certain = _CERTAIN.search(line) or (entities and _ENTITY.search(line))
  if not certain and unicodedata.is_normalized("NFC", line):
    if not is_bad(line) and not is_bad(straight):
      return straight
  return ftfy.fix_text(line, unescape_html=entities, uncurl_quotes=True, normalization="NFC")


def _uncurled(text: str) -> str:
  for quote, curly in (("'", _SINGLE), ('"', _DOUBLE)):
    for mark in curly:
      text = text.replace(mark, quote)
  return text


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
