"""Main-text extraction: from the HTML of a page to its text."""

import re
from collections.abc import Callable

import lxml.etree
import lxml.html

from llm_jax.errors import UserError, nearest

_SKIP = frozenset(
  (
    "script style noscript template nav header footer aside form button select svg iframe head"
  ).split()
)
_PARAGRAPH = frozenset(
  (
    "p pre div section article main table ul ol dl blockquote body h1 h2 h3 h4 h5 h6 hr figure"
  ).split()
)
_LINE = frozenset("br tr td th dt dd li caption".split())
_HEADING = frozenset("h1 h2 h3 h4 h5 h6".split())
_SPACE = re.compile(r"[ \t\r\n\f]+")  # Not the no-break space: that one is meant.
_LINKED = 0.66  # Fraction of a line's characters in links from which it is navigation.


def get(name: str) -> Callable[[str], str]:
  """Returns the extractor called `name`.

  Raises:
    UserError: if there is none, or its package is not installed.
  """
  if name not in _EXTRACTORS:
    raise UserError(f'there is no extractor "{name}"{nearest(name, _EXTRACTORS)}')
  return _EXTRACTORS[name]


def blocks(html: str) -> str:
  """Returns all text outside navigation, one line per row, item or heading.

  For pages whose markup says what is navigation, and for those that are laid out in tables, where
  extractors that look for an article lose text. Lines that are mostly links are left out.
  """
  try:
    # Bytes: a string with an encoding declaration is refused.
    parser = lxml.html.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True)
    root = lxml.html.document_fromstring(html.encode("utf-8", "replace"), parser=parser)
  except (lxml.etree.ParserError, ValueError):
    return ""
  found = root.xpath("//main | //*[@role='main']") or root.xpath("//body") or [root]
  lines = _Lines()
  skipped = None
  for event, node in lxml.etree.iterwalk(found[0], events=("start", "end")):
    if skipped is not None:
      if node is skipped and event == "end":
        skipped = None
        lines.add(node.tail)
    elif node.tag in _SKIP:
      if event == "start":
        skipped = node
    elif event == "start":
      lines.open(node)
      lines.add(node.text)
    else:
      lines.close(node)
      if node is not found[0]:
        lines.add(node.tail)
  return lines.text()


class _Lines:
  """Collects lines; knows in what a piece of text stands."""

  def __init__(self):
    self._lines: list[str] = []
    self._parts: list[str] = []
    self._linked = 0
    self._in_link = 0
    self._in_pre = 0
    self._glue = False  # The next paragraph follows its heading without a blank line.

  def open(self, node) -> None:
    tag = node.tag
    if tag in _PARAGRAPH:
      self._break(blank=not self._glue)
    elif tag in _LINE:
      self._break()
    self._in_pre += tag == "pre"
    self._in_link += tag == "a" and "href" in node.attrib
    if tag == "li":
      self._parts.append("- ")

  def close(self, node) -> None:
    tag = node.tag
    self._in_pre -= tag == "pre"
    self._in_link -= tag == "a" and "href" in node.attrib
    if tag in _HEADING:
      self._break()
      self._glue = True
    elif tag in _PARAGRAPH:
      self._break(blank=not self._glue)
    elif tag in _LINE and tag != "br":
      self._break()

  def add(self, text: str | None) -> None:
    if not text:
      return
    if self._in_pre:
      for i, line in enumerate(text.expandtabs(8).split("\n")):
        if i:
          self._break()
        # Indentation is kept as no-break spaces until the line is complete.
        self._parts.append("\xa0" * (len(line) - len(line.lstrip())) + line.lstrip() or "\xa0")
      return
    text = _SPACE.sub(" ", text)
    if self._in_link:
      self._linked += len(text)
    self._parts.append(text)

  def text(self) -> str:
    self._break()
    return re.sub(r"\n{3,}", "\n\n", "\n".join(self._lines)).strip("\n")

  def _break(self, blank: bool = False) -> None:
    line = "".join(self._parts).strip(" \t")
    if line:
      line = line.replace("\xa0", " ").rstrip()  # Only no-break spaces: a blank line.
      content = line.strip(" -")
      if not content or self._linked < _LINKED * len(content):
        self._lines.append(line if content else "")
        self._glue = False
    self._parts, self._linked = [], 0
    if blank and self._lines and self._lines[-1]:
      self._lines.append("")


def _trafilatura(html: str) -> str:
  import trafilatura  # Slow to import, and not needed for text sources.

  return trafilatura.extract(html, include_comments=False, favor_precision=True) or ""


def _resiliparse(html: str) -> str:
  try:
    from resiliparse.extract.html2text import extract_plain_text
  except ImportError as e:
    raise UserError('extractor "resiliparse" is not installed; pip install resiliparse') from e
  return extract_plain_text(html, main_content=True, alt_texts=False)


_EXTRACTORS = {"trafilatura": _trafilatura, "resiliparse": _resiliparse, "blocks": blocks}
