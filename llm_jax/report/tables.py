"""What a page shows, as files: every table as CSV, every chart and figure as SVG."""

import csv
import io
import os
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from llm_jax.errors import UserError
from llm_jax.report.markup import DASH, Html, slug

_PIECE = re.compile(r'<section id="([^"]*)">|<(h[23])>(.*?)</\2>|<table\b')


def save(directory: Path | str, page: str, charts: dict[str, str]) -> list[Path]:
  """Writes the tables of a page and its charts; each file appears whole or not at all.

  Args:
    directory: made if missing; files of the same names are replaced.
    page: its HTML.
    charts: name -> SVG.

  Returns:
    The paths.

  Raises:
    UserError: if the directory cannot be written.
  """
  directory = Path(directory)
  found = {f"{name}.csv": as_csv(rows) for name, rows in tables(page).items()}
  found |= {f"{name}.svg": svg for name, svg in charts.items()}
  try:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in found.items():
      replace(directory / name, text)
  except OSError as error:
    raise UserError(f"--export={directory} cannot be written ({error.strerror})") from error
  return [directory / name for name in found]


def replace(target: Path, text: str) -> None:
  """Writes a file at once: a reader never sees half of it."""
  part = target.with_name(f"{target.name}.part")
  part.write_text(text, encoding="utf-8", newline="")
  os.replace(part, target)


def named_tables(page: Html) -> Html:
  """Returns a page whose tables have names, made of the section and the heading they are below."""
  where, taken = ["", ""], set()

  def name(found: re.Match) -> str:
    section, heading, text = found.groups()
    if section is not None:
      where[:] = [section, ""]
    elif heading == "h3":
      where[1] = slug(re.sub(r"<small>.*?</small>|<[^>]*>|&[^;]*;", " ", text))
    if section is not None or heading:
      return found[0]
    one = "-".join(filter(None, where)) or "table"
    chosen, n = one, 1
    while chosen in taken:
      n += 1
      chosen = f"{one}-{n}"
    taken.add(chosen)
    return f'<table data-name="{chosen}"'

  return Html(_PIECE.sub(name, page))


def tables(page: str) -> dict[str, list[list[str]]]:
  """Returns the rows of every named table of a page, the head first.

  A cell is the number that it was written from, or its text. A column whose cells have standard
  errors is followed by one with these.
  """
  reader = _Tables()
  reader.feed(page)
  reader.close()
  return {name: list(_plain(rows)) for name, rows in reader.found.items() if rows}


def as_csv(rows: list[list[str]]) -> str:
  """Returns CSV (RFC 4180) in which no text is a formula to a spreadsheet."""
  out = io.StringIO()
  csv.writer(out).writerows([_harmless(cell) for cell in row] for row in rows)
  return out.getvalue()


class _Cell:
  """The text of a cell, and the numbers that are in its attributes."""

  def __init__(self, value: str | None):
    self.own, self.inner, self.text = value, [], ""
    self.error: str | None = None

  def shown(self) -> str:
    if self.own is not None:
      return self.own
    if len(self.inner) == 1:
      return self.inner[0]
    text = " ".join(self.text.split())
    return "" if text == DASH else text.replace("−", "-")


class _Tables(HTMLParser):
  """Collects the cells of tables that have a name."""

  def __init__(self):
    super().__init__(convert_charrefs=True)
    self.found: dict[str, list[list[_Cell]]] = {}
    self.rows: list[list[_Cell]] | None = None
    self.cell: _Cell | None = None

  def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
    known = dict(attrs)
    if tag == "table" and known.get("data-name"):
      self.rows = self.found[known["data-name"] or ""] = []
    if self.rows is None:
      return
    if tag == "tr":
      self.rows.append([])
    elif tag in ("td", "th"):
      self.cell = _Cell(known.get("data-value"))
      self.rows[-1].append(self.cell)
    elif self.cell is not None:
      if known.get("data-value") is not None:
        self.cell.inner.append(known["data-value"])
      self.cell.error = known.get("data-error", self.cell.error)
      self.cell.text += " · " if tag == "small" else ""

  def handle_endtag(self, tag: str) -> None:
    if tag in ("td", "th"):
      self.cell = None
    elif tag == "table":
      self.rows = None

  def handle_data(self, data: str) -> None:
    if self.cell is not None:
      self.cell.text += data


def _plain(rows: list[list[_Cell]]) -> Iterator[list[str]]:
  twice = {i for row in rows for i, cell in enumerate(row) if cell.error is not None}
  for n, row in enumerate(rows):
    out = []
    for i, cell in enumerate(row):
      out.append(cell.shown())
      if i in twice:
        out.append(f"{cell.shown()} standard error" if n == 0 else cell.error or "")
    yield out


def _harmless(text: str) -> str:
  if text[:1] not in "=+-@\t\r" or not text:
    return text
  try:
    float(text)
  except ValueError:
    return f"'{text}"
  return text
