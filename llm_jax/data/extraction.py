"""Main-text extraction: from the HTML of a page to its text."""

import re
from collections.abc import Callable

import lxml.etree
import lxml.html

from llm_jax.data.readers.deadline import limited
from llm_jax.errors import UserError, nearest

SECONDS = 10.0  # A page takes about 0.015, one of a megabyte about 1.
MAX_CHARS = 10_000_000
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
# A text shorter than this, that is less than this share of what the page shows, is too little; both
# are the figures by which trafilatura looks again on its own ...
_SHORT = 3000
_SHARE = 0.2
_LONGER = 2.0  # ... and another text must be so many times longer to be taken for it.
# What a call into C would need minutes for, and nothing can end: parsers search all attributes of
# an element for each new one, and resiliparse walks up from each element.
_LONG_TAG = re.compile(r"<[A-Za-z][^<>]{4000,}")
_QUOTED = re.compile(r"""=\s*(?:"[^"]*"|'[^']*')""")
_ATTRIBUTES = 1000
_NESTED = 5000
_TAG = re.compile(r"<(/?)([A-Za-z][^\s/>]*)")
# Elements that are not closed, or need not be.
_OPEN = frozenset(
  "area base br col embed hr img input link meta param source track wbr p li td th tr dt dd option"
  " thead tbody tfoot colgroup".split()
)


class PageTooLarge(ValueError):
  """A page that no extractor is given; the message says why."""


def get(name: str) -> Callable[[str], str]:
  """Returns the extractor called `name`.

  Raises:
    UserError: if there is none, or its package is not installed.
  """
  if name not in _EXTRACTORS:
    raise UserError(f'there is no extractor "{name}"{nearest(name, _EXTRACTORS)}')
  return _EXTRACTORS[name]


def run(
  extractor: Callable[[str], str],
  html: str,
  seconds: float = SECONDS,
  max_chars: int = MAX_CHARS,
) -> str:
  """Returns what `extractor` makes of a page, within limits.

  Raises:
    TimeoutError: after `seconds`; see `deadline.limited` for what it can end.
    PageTooLarge: if the page has more than `max_chars` characters, or an element with thousands of
      attributes or ancestors, for which parsers need quadratic time.
  """
  if len(html) > max_chars:
    raise PageTooLarge(f"a page of {len(html):,} characters, over the cap of {max_chars:,}")
  for tag in _LONG_TAG.finditer(html):
    names, quoted = _QUOTED.subn("=", tag[0])
    if max(len(names.split()), quoted) > _ATTRIBUTES:
      raise PageTooLarge(f"an element with more than {_ATTRIBUTES:,} attributes")
  if html.count("<") > 2 * _NESTED and _depth(html) > _NESTED:
    raise PageTooLarge(f"elements nested more than {_NESTED:,} deep")
  return limited(extractor, html, seconds=seconds)


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
  """Precise first; where that finds a crumb of a page full of text, once more with less doubt.

  Both without the second opinions of readability and jusText, which cost more time than they gain.
  """
  import trafilatura  # Slow to import, and not needed for text sources.

  tree = trafilatura.load_html(html)
  if tree is None:
    return ""

  def look(**focus) -> str:
    return trafilatura.extract(tree, include_comments=False, fast=True, **focus) or ""

  text = look(favor_precision=True)
  if len(text) < _SHORT and len(text) < _SHARE * _shown(tree):
    more = look(favor_recall=True)
    if len(more) > _LONGER * len(text):
      return more
  return text


def _shown(tree: lxml.html.HtmlElement) -> int:
  """Returns the number of characters that a page shows."""
  return sum(len(" ".join(text.split())) for text in _SHOWN(tree))


_SHOWN = lxml.etree.XPath(
  "//body//text()[not(parent::script or parent::style or parent::noscript or parent::template"
  " or parent::textarea)]"
)


def _resiliparse(html: str) -> str:
  try:
    from resiliparse.extract.html2text import extract_plain_text
  except ImportError as e:
    raise UserError('extractor "resiliparse" is not installed; pip install resiliparse') from e
  html = html.encode("utf-8", "replace").decode()  # It takes no lone surrogates.
  return extract_plain_text(html, main_content=True, alt_texts=False)


def _depth(html: str) -> int:
  """Returns how deep the elements of a page are nested at most, if all are closed."""
  depth = deepest = 0
  for tag in _TAG.finditer(html):
    if tag[1]:
      depth -= 1
    elif tag[2].lower() not in _OPEN:
      depth += 1
      deepest = max(deepest, depth)
  return deepest


_EXTRACTORS = {"trafilatura": _trafilatura, "resiliparse": _resiliparse, "blocks": blocks}
