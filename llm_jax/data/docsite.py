"""Web pages of documentation, as a crawler would find them: navigation, text and a footer."""

import contextlib
import html
import importlib
import io
import os
import pydoc
import re
import sys
from collections.abc import Iterator, Sequence

from llm_jax.data.docstrings import Entry, fields

_FOOTER = "Generated from the sources. Permission is granted to copy this page unchanged."
_ITEM = re.compile(r"^(\s*)([-*+]|\d+[.)])\s+(\S.*)$")
# `  name: text` or NumPy's `name : type`; at the margin, a colon alone makes a sentence.
_FIELD = re.compile(
  r"^(\s+(?=\S+ *:|\S.*\) *:|\S+, )|(?=[^:]* : ))"
  r"(\*{0,2}[\w.]+(?:, ?\*{0,2}\w+)*(?: *\([^()]*\))?) *: +(\S.*)$"
)
_CODE = re.compile(
  r"^\s*(>>>|\.\.\. |[$%#@(\[{<] ?|(import|from|def|class|for|with|if|try)\b|[\w.\[\]]+ *:{0,2}=)"
)
_PROSE = re.compile(r"^\s*[\"'`*(]*[A-Z][\w'`.]* [\w'`\"]+")
_ADDRESS = re.compile("(?: |&nbsp;)at(?: |&nbsp;)0x[0-9a-fA-F]+")
_FENCED = re.compile(r"(^ *```[\w-]*\n.*?^ *``` *$)", re.MULTILINE | re.DOTALL)
_FULL = 60  # Characters from which a line was broken because it was full.
_TABLE = re.compile(r"^\s*(=+( +=+)+|\+-[-+]*\+)\s*$")
_UNDERLINE = re.compile(r"^([=\-~^*\"'`#+.])\1{2,}$")


class _Pydoc(pydoc.HTMLDoc):
  """pydoc's own rendering, without what differs between two runs or two machines."""

  def filelink(self, url, path):  # noqa: D102
    return ""

  def docother(self, object, name=None, mod=None, *ignored):  # noqa: D102
    # Other values would be the environment, the command line, addresses of objects ...
    value = repr(object) if isinstance(object, int | float) else "..."
    return f"<strong>{name}</strong> = {html.escape(value)}" if name else ""


def pydoc_page(name: str) -> str:
  """Returns the page that `pydoc` makes of an importable module; "" if it cannot.

  The module is imported: call it in a process of its own, and not for modules that act on import.
  """
  silence = io.StringIO()
  try:
    with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
      module = importlib.import_module(name)
      vars(module).pop("__warningregistry__", None)  # There or not, as chance has it.
      site = _Pydoc()
      with _unnamed_environment():
        body = site.document(module, name)
  except (Exception, SystemExit):
    return ""  # The caller has the source to fall back on.
  text = _ADDRESS.sub("", site.page(pydoc.describe(module), body))
  # Default values are this interpreter (`platform.architecture`), its folder (`xmlrpc.server`).
  text = text.replace(sys.executable, "/usr/bin/python3") if sys.executable else text
  for here in (sys.prefix, sys.base_prefix):
    text = text.replace(here, "/usr")
  return text


@contextlib.contextmanager
def _unnamed_environment() -> Iterator[None]:
  """Shows the environment, a default value in `cgi`, by its name: it may hold secrets."""
  kind = type(os.environ)
  shown = kind.__repr__
  kind.__repr__ = lambda self: "os.environ"
  try:
    yield
  finally:
    kind.__repr__ = shown


def page(title: str, package: str, entries: Sequence[Entry], siblings: Sequence[str]) -> str:
  """Returns the page of a module.

  Args:
    title: the module's name.
    package: the site's name.
    entries: the module and its objects, in order.
    siblings: names of neighbouring modules, for the sidebar.
  """
  parts = []
  for entry in entries:
    if entry.kind == "module":
      parts.append(f"<h1>{_text(title)}</h1>{blocks(entry.doc)}")
    elif entry.doc:
      level = "h3" if entry.kind == "method" else "h2"
      label = "class " if entry.kind == "class" else ""
      anchor = html.escape(entry.qualname)
      parts.append(f'<section id="{anchor}"><{level} class="{entry.kind}">{label}')
      parts.append(f"{_text(entry.signature)}</{level}>\n{blocks(entry.doc)}</section>")
  names = [entry.qualname for entry in entries if entry.qualname]
  index = "".join(f'<li><a href="#{n}">{n}</a></li>' for n in map(html.escape, names))
  return _frame(title, package, "\n".join(parts), siblings, index)


def topic(title: str, text: str, siblings: Sequence[str]) -> str:
  """Returns the page of a chapter of the language reference."""
  return _frame(title, "Python language", blocks(text), siblings, "")


def blocks(doc: str) -> str:
  """Returns a docstring as HTML: paragraphs, lists, fields and preformatted code."""
  out = []
  for i, part in enumerate(_FENCED.split(fields(doc).strip("\n"))):
    if i % 2:
      out.append(f"<pre>{_text(chr(10).join(part.split(chr(10))[1:-1]))}</pre>")
      continue
    for block in re.split(r"\n\s*\n", part.strip("\n")):
      lines = block.split("\n")
      while lines:
        used, rendered = _block(lines)
        out.append(rendered)
        lines = lines[used:]
  # Neighbours of a kind are one list, and an example with blank lines is one example.
  text = "\n".join(part for part in out if part)
  return text.replace("</pre>\n<pre>", "\n\n").replace("</ul>\n<ul>", "\n")


def _block(lines: list[str]) -> tuple[int, str]:
  """Renders the beginning of `lines` (no blank ones); returns how many it took and its HTML."""
  first = lines[0]
  if _UNDERLINE.match(first.strip()):
    return 1, ""
  if len(lines) > 1 and _UNDERLINE.match(lines[1].strip()) and len(lines[1].strip()) > 3:
    return 2, f"<h4>{_text(first.strip())}</h4>"
  if (
    any(map(_TABLE.match, lines))
    or first.startswith(">>>")
    or (first[:1] == " " and _is_code(lines))
  ):
    return len(lines), f"<pre>{_text(chr(10).join(lines))}</pre>"
  for pattern in (_ITEM, _FIELD):
    match = pattern.match(first)
    if match:
      used = 1
      while used < len(lines) and _continues(lines, used, len(match[1])):
        used += 1
      rest = " ".join([match[3], *(line.strip() for line in lines[1:used])])
      name = f"{match[2]} " if pattern is _ITEM else f"{match[2]}: "
      return used, f"<ul><li>{_text(name.lstrip('-*+ ') + rest)}</li></ul>"
  used = 1
  while used < len(lines) and not _UNDERLINE.match(lines[used].strip()):
    flush = _indent(lines[used]) == _indent(first) and not _ITEM.match(lines[used])
    if not (flush or _continues(lines, used, _indent(first))):
      break
    if used + 1 < len(lines) and _UNDERLINE.match(lines[used + 1].strip()):
      break
    used += 1
  return used, f"<p>{_text(' '.join(line.strip() for line in lines[:used]))}</p>"


def _continues(lines: list[str], i: int, indent: int) -> bool:
  """Tells whether line `i` goes on with an item that started at column `indent`."""
  if _ITEM.match(lines[i]) or _FIELD.match(lines[i]):
    return _indent(lines[i]) > indent + 4
  hanging = _indent(lines[i]) > indent
  # Some hang nothing: then a full line before it tells.
  full = len(lines[i - 1]) >= _FULL
  return (hanging and not lines[i - 1].endswith(":")) or (full and _indent(lines[i]) == indent)


def _is_code(lines: list[str]) -> bool:
  """Tells code from an indented paragraph or a list of fields."""
  if _ITEM.match(lines[0]) or _FIELD.match(lines[0]) or _PROSE.match(lines[0]):
    return False
  letters = sum(c.isalpha() or c == " " for line in lines for c in line.strip())
  return bool(_CODE.match(lines[0])) or letters < 0.8 * sum(len(line.strip()) for line in lines)


def _indent(line: str) -> int:
  return len(line) - len(line.lstrip())


def _text(text: str) -> str:
  return html.escape(text, quote=False)


def _frame(title: str, site: str, body: str, siblings: Sequence[str], index: str) -> str:
  links = "".join(
    f'<li><a href="{html.escape(n)}.html">{html.escape(n)}</a></li>' for n in siblings
  )
  heading = f"<h2>On this page</h2><ul>{index}</ul>" if index else ""
  return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{_text(title)} - {_text(site)}</title></head>
<body>
<header><nav><a href="/">Documentation</a> &raquo; <a href="/{html.escape(site)}/">{_text(site)}</a>
&raquo; {_text(title)} <a href="#">Previous</a> <a href="#">Next</a></nav></header>
<aside class="sidebar"><h2>Modules</h2><ul>{links}</ul>{heading}</aside>
<main><article>
{body}
</article></main>
<footer><p>{_FOOTER}</p><p><a href="/terms">Terms of use</a> | <a href="/privacy">Privacy policy</a>
| <a href="#">Back to top</a></p></footer>
</body></html>
"""
