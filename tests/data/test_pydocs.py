"""The embedded corpus: entries from sources, pages, and a crawl that is the same every time."""

import html
import os
import sys

import pytest

from llm_jax.data import docsite, docstrings, pydocs

SOURCE = '''
"""A module."""
import os
os.abort()  # Would end the process if it were imported.

def shorten(text: str, width: int = 70, *, fill="x" * 100, **kwargs) -> str:
  """Collapse :func:`~a.text` to ``width``.

  More.
  """

class Box(object):
  """Holds things."""
  def __init__(self, size, /, *rest): pass
  def get(self, key=None): "Returns a thing."
  @property
  def size(self): "How many."
  def _private(self): "No."

if True:
  async def later(): "Waits."
'''


def test_entries_of_a_source_without_running_it():
  found = docstrings.from_source(SOURCE, "m", "pkg", "u")
  assert [(e.qualname, e.kind, e.signature) for e in found] == [
    ("", "module", "m"),
    ("shorten", "function", "shorten(text, width=70, *, fill='x' * 100, **kwargs)"),
    ("Box", "class", "Box(size, /, *rest)"),
    ("Box.get", "method", "get(key=None)"),
    ("Box.size", "method", "size"),
    ("later", "function", "later()"),
  ]
  assert found[1].doc == "Collapse text to `width`.\n\nMore."


def test_broken_source_has_no_entries():
  assert docstrings.from_source("def f(:", "m", "p", "u") == []


def test_modules_in_c_are_inspected():
  import math

  found = {e.qualname: e for e in docstrings.from_module(math, "stdlib", lambda n: n)}
  assert found["gcd"].signature == "gcd(*integers)"
  assert found["gcd"].doc == "Greatest Common Divisor."


@pytest.mark.long
def test_listing_covers_the_installation():
  listed = pydocs.modules()
  names = {m.name for m in listed}
  assert {"textwrap", "itertools", "json.decoder", "numpy", "assignment"} <= names
  assert not {n for n in names if n.startswith(("llm_jax", "idlelib", "test."))}
  assert len({m.url for m in listed}) == len(listed)
  assert [m.name for m in pydocs.modules(1)] != [m.name for m in listed]
  assert sorted(m.url for m in pydocs.modules(1)) == sorted(m.url for m in listed)


def test_pydoc_pages_have_nothing_of_this_machine(monkeypatch):
  monkeypatch.setenv("A_SECRET_OF_MINE", "hunter2hunter2")
  page = docsite.pydoc_page("os")
  assert "Return a string representing the type" not in page
  assert "hunter2" not in page and "0x7f" not in page and "file:" not in page
  assert docsite.pydoc_page("no_such_module") == ""
  page = docsite.pydoc_page("platform")
  assert "/usr/bin/python3" in page and sys.executable not in page
  page = docsite.pydoc_page("xmlrpc.server")
  assert "basedir='/usr/lib/python3" in page and sys.base_prefix not in page


def test_a_default_value_that_is_the_environment_is_shown_by_its_name(monkeypatch, tmp_path):
  monkeypatch.setenv("A_SECRET_OF_MINE", "hunter2hunter2")
  source = "import os\ndef parse(environ=os.environ):\n  'Reads.'\n"
  (tmp_path / "has_environ.py").write_text(source)
  monkeypatch.syspath_prepend(tmp_path)
  page = docsite.pydoc_page("has_environ")
  assert "environ=os.environ" in page and "hunter2" not in page
  assert "hunter2" in repr(os.environ)


def test_a_docstring_becomes_markup():
  doc = "First line\nof text.\n\nArgs:\n  x: a\n    thing.\n\n>>> f(1)\n<2>\n\n- one\n- two"
  made = docsite.blocks(doc)
  assert "<p>First line of text.</p>" in made
  assert "<li>x: a thing.</li>" in made
  assert f"<pre>{html.escape('>>> f(1)')}" in made
  assert made.count("<ul>") == 2 and "<li>two</li>" in made


def test_a_crawl_is_the_same_every_time_and_stops_at_its_budget(tmp_path, monkeypatch):
  listed = [m for m in pydocs.modules() if m.name in ("textwrap", "assignment", "math", "bisect")]
  monkeypatch.setattr(pydocs, "modules", lambda seed: listed)
  found = pydocs.crawl(tmp_path / "a.warc.gz")
  pydocs.crawl(tmp_path / "b.warc.gz", workers=2)
  assert (tmp_path / "a.warc.gz").read_bytes() == (tmp_path / "b.warc.gz").read_bytes()
  assert {"shorten", "gcd", "insort_right"} <= {e.qualname for e in found}
  assert all(e.doc for e in found)
  assert {e.url for e in pydocs.crawl(tmp_path / "c.warc.gz", max_bytes=1)} == {listed[0].url}
