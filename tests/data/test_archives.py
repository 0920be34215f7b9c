"""Archives: what is a page, how it is decoded, and that a broken record costs one record."""

import collections
import gzip
import pathlib
import tracemalloc
import zlib

import pytest
from warcio.archiveiterator import ArchiveIterator

from llm_jax.data import crawl
from llm_jax.errors import UserError

SAMPLES = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data" / "warc_samples"
PAGE = b"<html><p>a page</p></html>"


def warc(url, block, kind="response", content_type="application/http", **extra):
  fields = {"WARC-Type": kind, "WARC-Target-URI": url, "Content-Type": content_type} | extra
  head = "".join(f"{key.replace('_', '-')}: {value}\r\n" for key, value in fields.items())
  length = b"Content-Length: %d\r\n\r\n" % len(block)
  return b"WARC/1.1\r\n" + head.encode() + length + block + b"\r\n\r\n"


def http(body=PAGE, status="200 OK", content_type="text/html", **headers):
  fields = {"Content-Type": content_type} | headers
  head = "".join(f"{key.replace('_', '-')}: {value}\r\n" for key, value in fields.items())
  return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


def read(tmp_path, data, name="a.warc", **options):
  path = tmp_path / name
  path.write_bytes(data)
  lost, skipped = [], collections.Counter()
  count, caps = (lambda kind: skipped.update([kind])), crawl.Options(**options)
  raws = list(crawl.read(path, lost=lost.append, skipped=count, options=caps))
  return raws, lost, dict(skipped)


def body_of(tmp_path, block, **options):
  """The page in a response, or why it is lost."""
  raws, lost, _ = read(tmp_path, warc("http://a", block), **options)
  assert len(raws) + len(lost) == 1
  return raws[0].body if raws else lost[0].reason


def test_what_is_a_page_and_what_is_passed_over(tmp_path):
  records = [
    warc("http://a/1", http()),
    warc("http://a/2", http(status="404 Not Found")),
    warc("http://a/3", http(content_type="image/png")),
    warc("http://a/4", b"GET / HTTP/1.1\r\n\r\n", "request"),
    warc("http://a/5", PAGE, "resource", "text/html; charset=utf-8"),
    warc("http://a/6", b"x", "resource", "text/plain"),
    warc("http://a/7", "täxt".encode(), "conversion", "text/plain"),
    warc("<http://a/8 8>", http(content_type="application/xhtml+xml")),
    warc("dns:a", b"a. 1 IN A 10.0.0.1", content_type="text/dns"),
    warc("", b"software: x", "warcinfo"),
  ]
  raws, lost, skipped = read(tmp_path, b"".join(records))
  assert [(r.url, r.html) for r in raws] == [
    ("http://a/1", True), ("http://a/5", True), ("http://a/7", False), ("http://a/8%208", True),
  ]  # fmt: skip
  assert raws[2].body == "täxt" and not lost
  assert skipped == {
    "status 404": 1, "not HTML": 2, "request record": 1, "not HTTP": 1, "warcinfo record": 1,
  }  # fmt: skip
  assert len(raws) + sum(skipped.values()) == len(records)


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "deflate", "raw deflate", "br", "zstd"])
def test_content_codings(tmp_path, coding):
  page = PAGE * 100
  raw = zlib.compressobj(wbits=-15)
  if coding in ("br", "zstd"):
    module = pytest.importorskip({"br": "brotli", "zstd": "zstandard"}[coding])
    packed = module.compress(page)
  elif coding == "deflate":
    packed = zlib.compress(page)
  elif coding == "raw deflate":
    packed = raw.compress(page) + raw.flush()
  else:
    packed = gzip.compress(page)
  name = coding.split()[-1]
  assert body_of(tmp_path, http(packed, Content_Encoding=name)) == page.decode()
  # Crawlers keep the header when they store what they have decoded.
  assert body_of(tmp_path, http(page, Content_Encoding=name)) == page.decode()
  assert "cut" in body_of(tmp_path, http(packed[:-9], Content_Encoding=name))
  assert "over the cap" in body_of(tmp_path, http(packed, Content_Encoding=name), max_bytes=900)


def test_codings_on_top_of_each_other_and_unknown_ones(tmp_path):
  twice = gzip.compress(zlib.compress(PAGE))
  assert body_of(tmp_path, http(twice, Content_Encoding="deflate, gzip")) == PAGE.decode()
  assert 'coding "sdch"' in body_of(tmp_path, http(b"\x00\x01", Content_Encoding="sdch"))
  assert "5 content codings" in body_of(tmp_path, http(twice, Content_Encoding="gzip," * 5))


def test_a_body_that_grows_beyond_all_measure_is_lost(tmp_path):
  packed = gzip.compress(bytes(70 << 20))
  block = http(packed, Content_Encoding="gzip")
  assert "over the cap of 67,108,864" in body_of(tmp_path, block)
  assert "expands more than 200 times" in body_of(tmp_path, block, max_bytes=1 << 30)
  assert len(body_of(tmp_path, block, max_bytes=1 << 30, max_ratio=2000)) == 70 << 20


def test_chunks(tmp_path):
  chunked = b"5;x=y\r\n<html\r\n8\r\n>text</p\r\n1\r\n>\r\n0\r\n\r\n"

  def sent(body):
    return body_of(tmp_path, http(body, Transfer_Encoding="chunked"))

  assert sent(chunked) == "<html>text</p>"
  assert sent(PAGE) == PAGE.decode()  # The header stayed, the chunks went.
  assert "chunked body is cut" in sent(chunked[:-5])
  assert "broken chunk at its byte 14" in sent(chunked.replace(b"8\r\n", b"8z\r\n"))
  assert "cut" in sent(chunked.replace(b"8\r\n", b"7fffffff\r\n"))


def many(count=9):
  return [warc(f"http://a/{i}", http(b"<p>%d</p>" % i * 50)) for i in range(count)]


@pytest.mark.parametrize(
  ("old", "new", "reason"),
  [
    (b"WARC/1.1", b"WARX/1.1", "no WARC header"),
    (b"Content-Length: 4", b"Content-Length: 3", "its length is wrong"),
    (b"Content-Length: 4", b"Content-Length: 8", "its length is wrong"),
    (b"Content-Length: 4", b"Content-Length: 99999999994", "its length is wrong"),
    (b"Content-Length: 4", b"Content-Length: x", "without Content-Length"),
    (b"Content-Length: 4", b"Content-Lenth: 4", "without Content-Length"),
    (b"WARC-Type: r", b"WARC-Tipe: r", "without WARC-Type"),
    (b"HTTP/1.1", b"XTTP/1.1", "no HTTP status line"),
    (b"\r\n\r\nHTTP", b"HTTP", "without Content-Length"),
  ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_broken_record_costs_that_record(tmp_path, old, new, reason, packed):
  records = many()
  assert old in records[4]
  records[4] = records[4].replace(old, new)
  parts = [gzip.compress(r) if packed else r for r in records]
  name = "a.warc.gz" if packed else "a.warc"
  raws, lost, _ = read(tmp_path, b"".join(parts), name)
  assert [r.url[-1] for r in raws] == list("01235678")
  assert lost == [crawl.Lost(name, f"byte {sum(map(len, parts[:4]))}", lost[0].reason)]
  assert reason in lost[0].reason or "is cut" in lost[0].reason
  with pytest.raises(UserError, match=rf"{name}: byte \d+: .*; fetch the file again"):
    list(crawl.read(tmp_path / name))


def test_many_records_in_one_member_are_found_again(tmp_path):
  records = many()
  records[4] = records[4].replace(b"Content-Length: 4", b"Content-Length: 1")
  raws, lost, _ = read(tmp_path, gzip.compress(b"".join(records)), "a.warc.gz")
  assert [r.url[-1] for r in raws] == list("01235678") and len(lost) == 1


def test_a_flipped_byte_of_a_member_costs_its_record(tmp_path):
  parts = [gzip.compress(r) for r in many()]
  begin = sum(map(len, parts[:4]))
  whole = b"".join(parts)
  for i in range(begin, begin + len(parts[4]), 3):
    data = bytearray(whole)
    data[i] ^= 0x55
    raws, lost, _ = read(tmp_path, bytes(data), "a.warc.gz")
    assert len(raws) + len(lost) == 9, i
    assert {r.url[-1] for r in raws} >= set("01235678"), i
    if lost:
      assert int(lost[0].where.split()[1]) >= begin


@pytest.mark.parametrize("packed", [False, True])
def test_of_a_cut_file_everything_before_is_read(tmp_path, packed):
  parts = [gzip.compress(r) if packed else r for r in many()]
  data = b"".join(parts)[: -len(parts[-1]) // 2]
  raws, lost, _ = read(tmp_path, data, "a.warc.gz" if packed else "a.warc")
  assert [r.url[-1] for r in raws] == list("01234567")
  assert len(lost) == 1 and lost[0].reason.endswith("the rest of the file is lost")
  assert lost[0].where == f"byte {len(data)}"


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_a_record_over_the_cap_is_passed_over_without_being_held(tmp_path, name):
  big = warc("http://a/big", http(b"<p>" + bytes(20 << 20)))
  records = [*many(2), big, warc("", bytes(9 << 20), "metadata"), *many(1)]
  pack = gzip.compress if name.endswith("gz") else bytes
  data = b"".join(pack(r) for r in records)
  tracemalloc.start()
  raws, lost, skipped = read(tmp_path, data, name, max_bytes=1 << 20)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert len(raws) == 3 and skipped == {"metadata record": 1}
  assert len(lost) == 1 and "over the cap of 1,048,576 bytes" in lost[0].reason
  assert peak < 5_000_000
  with pytest.raises(UserError, match="raise config.reader.max_bytes"):
    list(crawl.read(tmp_path / name, options=crawl.Options(max_bytes=1 << 20)))


def test_memory_does_not_grow_with_the_archive(tmp_path):
  path = tmp_path / "a.warc.gz"
  record = gzip.compress(warc("http://a", http(b"<p>" + bytes(400_000))))
  path.write_bytes(record * 100)
  tracemalloc.start()
  assert sum(1 for _ in crawl.read(path)) == 100
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 6_000_000  # Of 40 MB.


def test_arc_of_both_versions(tmp_path):
  def arc(url, block, more=""):
    return f"{url} 10.0.0.1 20200101000000 text/html {more}{len(block)}\n".encode() + block + b"\n"

  head = b"1 0 somebody\nURL IP-address Archive-date Content-type Archive-length\n"
  first = b"filedesc://x.arc 0.0.0.0 20200101000000 text/plain %d\n" % len(head) + head + b"\n"
  ones = [arc(f"http://a/{i} b", http(b"<p>%d" % i)) for i in range(4)]
  twos = [arc(f"http://a/{i} b", http(b"<p>%d" % i), "200 - - 7 x.arc ") for i in range(4)]
  broken = [*ones[:2], ones[2].replace(b"text/html ", b"text/html -"), ones[3]]
  for records, expected in ((ones, "0123"), (twos, "0123"), (broken, "013")):
    for name, pack in (("a.arc", bytes), ("a.arc.gz", gzip.compress)):
      raws, lost, skipped = read(tmp_path, b"".join(map(pack, [first, *records])), name)
      assert "".join(r.body[-1] for r in raws) == expected
      assert raws[0].url == "http://a/0%20b" and skipped == {"not HTTP": 1}
      assert len(lost) == 4 - len(expected)


def test_segments_and_broken_text_are_lost(tmp_path):
  records = [warc("http://a", http(), WARC_Segment_Number=1)]
  records.append(warc("http://b", b"\xff\xfe\xfa", "conversion", "text/plain"))
  raws, lost, _ = read(tmp_path, b"".join(records))
  assert not raws
  assert [x.reason for x in lost] == ["the record is in segments", "its byte 0 is not UTF-8"]


def samples():
  if not SAMPLES.exists():
    pytest.skip("needs the folder warc_samples beside the repository (../shared/data)")
  return sorted(p for p in SAMPLES.iterdir() if p.name != "README.md")


def test_every_sample_is_read_or_refused_with_one_line():
  total = collections.Counter()
  for path in samples():
    lost, skipped = [], []
    try:
      raws = list(crawl.read(path, lost=lost.append, skipped=skipped.append))
    except UserError as e:
      assert path.name in str(e) and "\n" not in str(e)
      assert ".wat" in path.name or path.suffix == ".bad"
      total["refused"] += 1
      continue
    total.update(read=len(raws), lost=len(lost), skipped=len(skipped))
    if lost:
      with pytest.raises(UserError, match=path.name):
        list(crawl.read(path))
  assert total == {"read": 50, "lost": 6, "skipped": 96, "refused": 3}


def test_pages_are_those_that_another_reader_finds():
  for path in samples():
    if not path.name.endswith((".warc.gz", ".warc")) or "trunc" in path.name:
      continue
    found = []
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as f:
      for record in ArchiveIterator(f):
        http_headers = record.http_headers
        if record.rec_type == "response" and http_headers.get_statuscode() == "200":
          if "html" in (http_headers.get_header("Content-Type") or ""):
            found.append((record.rec_headers["WARC-Target-URI"], record.content_stream().read()))
    pages = [r for r in crawl.read(path) if "resource" not in path.name]
    assert [r.url for r in pages] == [url for url, _ in found]
    for raw, (_, body) in zip(pages, found, strict=True):
      assert raw.body == body.decode(errors="surrogateescape") or not body.isascii()
