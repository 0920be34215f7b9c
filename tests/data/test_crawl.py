"""Sources: what is read from each kind, and that broken ones say so."""

import gzip
import io
import json

import pytest
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from llm_jax.data import crawl
from llm_jax.errors import UserError

PAGE = """<html><head><title>T</title></head><body><nav><a href=x>Home</a></nav><main>
<h1>Title</h1><p>One <b>two</b>
three.</p><pre>  a
    b</pre><ul><li>x<li>y</ul><p><a href=y>all of it is a link</a></p></main>
<footer>Terms</footer></body></html>"""


def archive(path, pages, kind="text/html", status="200 OK"):
  with open(path, "wb") as f:
    writer = WARCWriter(f, gzip=str(path).endswith(".gz"))
    for url, body in pages:
      headers = StatusAndHeaders(status, [("Content-Type", kind)], protocol="HTTP/1.1")
      record = writer.create_warc_record(
        url, "response", io.BytesIO(body), length=len(body), http_headers=headers
      )
      writer.write_record(record)
  return path


def test_responses_are_decoded_by_what_they_declare(tmp_path):
  pages = [("http://a/1", "é".encode()), ("http://a/2", b"<meta charset=latin-1>\xe9")]
  path = archive(tmp_path / "a.warc.gz", pages)
  found = list(crawl.read(path))
  assert [r.url for r in found] == ["http://a/1", "http://a/2"]
  assert [r.body[-1] for r in found] == ["é", "é"]
  assert all(r.html for r in found) and found[0].id != found[1].id


def test_only_successful_pages_are_read(tmp_path):
  assert not list(crawl.read(archive(tmp_path / "a.warc", [("http://a", b"x")], status="404 No")))
  assert not list(crawl.read(archive(tmp_path / "b.warc", [("http://a", b"x")], kind="image/png")))


@pytest.mark.parametrize("name", ["a.warc.gz", "a.warc"])
def test_a_cut_archive_names_the_file_and_the_place(tmp_path, name):
  path = archive(tmp_path / name, [(f"http://a/{i}", bytes(range(256)) * 40) for i in range(3)])
  size = path.stat().st_size - 100
  path.write_bytes(path.read_bytes()[:size])
  with pytest.raises(UserError, match=rf"{name}: broken at or before byte {size}"):
    list(crawl.read(path))


def test_a_damaged_gzip_is_an_error(tmp_path):
  path = tmp_path / "a.jsonl.gz"
  path.write_bytes(gzip.compress(b'{"text": "x"}' * 50)[:-4] + b"oops")
  with pytest.raises(UserError, match="a.jsonl.gz: broken"):
    list(crawl.read(path))


def test_lines_and_folders(tmp_path):
  (tmp_path / "b").mkdir()
  (tmp_path / "b" / "x.html").write_text(PAGE)
  (tmp_path / "a.jsonl").write_text(json.dumps({"id": "7", "text": "t", "url": "u"}) + "\n\n")
  (tmp_path / "c.txt.gz").write_bytes(gzip.compress("ü".encode()))
  (tmp_path / "ignored.bin").write_bytes(b"")
  found = list(crawl.read(tmp_path))
  assert [(r.source, r.html) for r in found] == [
    ("a.jsonl", False),
    ("b/x.html", True),
    ("c.txt.gz", False),
  ]
  assert (found[0].id, found[0].url, found[2].body) == ("7", "u", "ü")


@pytest.mark.parametrize("line", ["{", "[]", '{"txt": 1}', '{"text": 1}'])
def test_a_bad_line_is_named(tmp_path, line):
  path = tmp_path / "a.jsonl"
  path.write_text(f'{{"text": "fine"}}\n{line}\n')
  with pytest.raises(UserError, match="a.jsonl:2"):
    list(crawl.read(path))


def test_nothing_to_read_is_an_error(tmp_path):
  with pytest.raises(UserError, match="there is no"):
    list(crawl.read(tmp_path / "missing"))
  with pytest.raises(UserError, match="no file that ends in"):
    list(crawl.read(tmp_path))


def test_blocks_keep_all_text_outside_navigation():
  text = crawl.extract(PAGE, "blocks")
  assert text == "Title\nOne two three.\n\n  a\n    b\n\n- x\n- y"


def test_the_default_extractor_finds_the_main_text():
  body = "".join(f"<p>{'A sentence about the matter at hand, of some length. ' * 4}</p>" * 3)
  text = crawl.extract(f"<html><body><nav>menu</nav><article>{body}</article></body></html>")
  assert "matter at hand" in text and "menu" not in text


def test_broken_pages_give_no_text():
  assert crawl.extract("", "blocks") == ""
  assert crawl.extract("<" * 50 + "\0", "blocks") is not None
  with pytest.raises(UserError, match='did you mean "blocks"'):
    crawl.extract("<p>x", "block")
