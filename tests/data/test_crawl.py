"""Sources: what is read from each kind, and that broken ones say so."""

import bz2
import gzip
import io
import json
import lzma
import os

import pytest
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from llm_jax.data import crawl, jsonl
from llm_jax.data.readers import responses
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


def test_what_is_lost_is_handed_out_and_the_rest_is_read(tmp_path):
  (tmp_path / "a.txt").write_bytes(b"fine")
  (tmp_path / "b.txt").write_bytes(b"ab\xffc")
  (tmp_path / "c.html.gz").write_bytes(gzip.compress(PAGE.encode())[:-9])
  (tmp_path / "d.html").write_bytes(b"<p>" + b"x" * 500)
  (tmp_path / "e.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n' * 50)[:-4] + b"oops")
  lost = []
  options = crawl.Options(max_bytes=400)
  found = [r.source for r in crawl.read(tmp_path, lost=lost.append, options=options)]
  assert found == ["a.txt"] + ["e.jsonl.gz"] * 50
  size = [(tmp_path / name).stat().st_size for name in ("c.html.gz", "e.jsonl.gz")]
  assert [(x.source, x.where) for x in lost] == [
    ("b.txt", "byte 2"),
    ("c.html.gz", f"byte {size[0]}"),
    ("d.html", "byte 0"),
    ("e.jsonl.gz", lost[3].where),
  ]
  assert int(lost[3].where.split()[1]) <= size[1]
  assert "not UTF-8" in lost[0].reason and "over the cap of 400" in lost[2].reason
  assert lost[1].reason.endswith(lost[3].reason[-29:]) and "rest of the file" in lost[1].reason
  with pytest.raises(UserError, match=r"b\.txt: byte 2: not UTF-8; convert the file"):
    list(crawl.read(tmp_path))


def test_every_way_of_reading_takes_the_same_options(tmp_path):
  path = tmp_path / "a.jsonl"
  rows = [{"body": "short", "key": 7, "link": "u", "text": "not this"}, {"body": "x" * 500}]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  options = crawl.Options("body", "key", "link", max_bytes=400)
  ways = (
    lambda lost: crawl.read(path, lost=lost, options=options),
    lambda lost: crawl.read_file(path, "a.jsonl", lost=lost, options=options),
    lambda lost: crawl.read_lines(jsonl.Range(str(path)), "a.jsonl", lost=lost, options=options),
  )
  for way in ways:
    lost = []
    assert list(way(lost.append)) == [crawl.Raw("7", "u", "short", False, "a.jsonl")]
    assert [x.reason for x in lost] == ["the line is over the cap of 400 bytes"]
    with pytest.raises(UserError, match=r"cap of 400 bytes; raise config\.reader\.max_bytes"):
      list(way(None))


def test_one_file_at_a_time_gives_the_same(tmp_path):
  (tmp_path / "b").mkdir()
  (tmp_path / "b" / "x.html").write_text(PAGE)
  (tmp_path / "a.jsonl").write_text('{"text": "t"}\n{"text": "u"}\n')
  archive(tmp_path / "c.warc.gz", [("http://a", PAGE.encode())])
  names = [f.relative_to(tmp_path).as_posix() for f in crawl.files(tmp_path)]
  assert names == ["a.jsonl", "b/x.html", "c.warc.gz"]
  parts = [r for name in names for r in crawl.read_file(tmp_path / name, name)]
  assert parts == list(crawl.read(tmp_path)) == list(crawl.read(str(tmp_path)))


@pytest.mark.parametrize(
  ("suffix", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
def test_compressed_files_of_every_kind(tmp_path, suffix, compress):
  line = b'{"text": "t"}\n'
  for name, data in (("a.jsonl", line), ("b.json", line), ("c.html", b"<p>x"), ("d.txt", b"x")):
    (tmp_path / f"{name}{suffix}").write_bytes(compress(data))
  (tmp_path / "settings.json").write_text("{}")  # Without a compression it may be anything.
  assert [r.body for r in crawl.read(tmp_path)] == ["t", "t", "<p>x", "x"]


def test_a_file_whose_name_hides_its_compression_is_told_apart(tmp_path):
  (tmp_path / "a.jsonl").write_bytes(gzip.compress(b'{"text": "t"}'))
  with pytest.raises(UserError, match=r"gzip data, which its name .* rename it to end in \.gz"):
    list(crawl.read(tmp_path))
  (tmp_path / "a.jsonl").rename(tmp_path / "a.txt.zst")
  pytest.importorskip("zstandard")
  with pytest.raises(UserError, match="no zstd data begins here"):
    list(crawl.read(tmp_path))


def test_metadata_archives_say_where_the_text_is(tmp_path):
  (tmp_path / "a.warc.wat.gz").write_bytes(b"")
  with pytest.raises(UserError, match="it holds metadata, the text is in the .warc or .wet"):
    crawl.files(tmp_path / "a.warc.wat.gz")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_a_file_that_may_not_be_read_is_an_error(tmp_path):
  (tmp_path / "a.txt").write_text("x")
  (tmp_path / "a.txt").chmod(0)
  with pytest.raises(UserError, match="a.txt: Permission denied"):
    list(crawl.read(tmp_path))


@pytest.mark.parametrize(
  ("body", "kind", "text"),
  [
    ("“ü”".encode("cp1252"), "text/html; charset=iso-8859-1", "“ü”"),  # As browsers read it.
    ("Ł".encode("iso8859-2"), "text/html; charset=ISO-8859-2", "Ł"),
    ("汉字".encode("gb18030"), "text/html; charset=gb2312", "汉字"),
    ("①".encode("cp932"), "text/html; charset=Shift_JIS", "①"),
    ("ü".encode(), "text/html; charset=no-such", "ü"),
    ("ü".encode(), "text/html; charset=idna", "ü"),
    (b"\xef\xbb\xbfx", "text/html; charset=latin-1", "x"),
    ("ü".encode("utf-16"), "text/html", "ü"),
    ("ü".encode("utf-16-be"), "text/html; charset=utf-16be", "ü"),
    (b"\xfc", "text/html", "ü"),
    ("ü".encode() * 9 + b"\xff", "text/html", "ü" * 9 + "\ufffd"),
    (b"<meta charset='windows-1251'>\xc6", "text/html", "<meta charset='windows-1251'>Ж"),
  ],
)
def test_pages_are_decoded_as_browsers_do(body, kind, text):
  assert responses.decode(body, kind) == text


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
