"""Streams: every compression, and that what is broken is found, told and survived."""

import bz2
import gzip
import lzma
import re
import tracemalloc

import pytest

from llm_jax.data.readers import streams
from llm_jax.data.readers.streams import Limits, Stream
from llm_jax.errors import UserError

TEXT = b"".join(b"line %d of a text\n" % i for i in range(30_000))


def zstd(data):
  return pytest.importorskip("zstandard").ZstdCompressor(write_checksum=True).compress(data)


COMPRESS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
COMPRESS[".zst"] = zstd
PACKED = [s for s in COMPRESS if s]


def opened(tmp_path, data, suffix="", **limits):
  path = tmp_path / f"a.txt{suffix}"
  path.write_bytes(data)
  return Stream(path, Limits(**limits))


@pytest.mark.parametrize("suffix", COMPRESS)
def test_what_was_written_is_read(tmp_path, suffix):
  with opened(tmp_path, COMPRESS[suffix](TEXT), suffix) as stream:
    assert stream.peek(4, ahead=5) == TEXT[5:9]
    assert stream.read(100) == TEXT[:100]
    assert stream.skip(400_000) == 400_000
    assert stream.read(len(TEXT)) == TEXT[400_100:]
    assert stream.read(1) == b"" and stream.failure is None


@pytest.mark.parametrize("suffix", PACKED)
def test_members_follow_each_other(tmp_path, suffix):
  parts = [TEXT[:1000], b"", TEXT[1000:]]
  data = b"".join(COMPRESS[suffix](part) for part in parts)
  with opened(tmp_path, data, suffix) as stream:
    first = len(COMPRESS[suffix](parts[0]))
    assert stream.at() == 0
    stream.read(1000)
    stream.peek(1)
    assert stream.at() == first + len(COMPRESS[suffix](b""))  # Where the third one begins.
    assert stream.read(len(TEXT)) == TEXT[1000:] and stream.failure is None


@pytest.mark.parametrize("suffix", PACKED)
def test_of_a_cut_file_all_lines_before_the_cut_are_read(tmp_path, suffix):
  data = COMPRESS[suffix](TEXT)
  with opened(tmp_path, data[:-3], suffix) as stream:
    lines = []
    while line := stream.line(1000):
      lines.append(line)
    assert b"".join(lines) == TEXT[: len(b"".join(lines))]
    assert stream.failure and stream.failure.byte == len(data) - 3
    assert stream.rest().reason.endswith(streams.REST)
    if suffix in (".gz", ".xz"):  # The others decode whole blocks.
      assert len(lines) >= 29_000


def test_a_wrong_checksum_costs_nothing_but_itself(tmp_path):
  with opened(tmp_path, gzip.compress(TEXT)[:-4] + b"oops", ".gz") as stream:
    assert stream.read(len(TEXT) + 1) == TEXT
    assert stream.failure and "broken gzip data" in stream.failure.reason


def test_settling_compares_the_checksum_of_what_was_read(tmp_path):
  data = bytearray(gzip.compress(b"one") + gzip.compress(b"two"))
  data[-5] ^= 1
  with opened(tmp_path, bytes(data), ".gz") as stream:
    assert stream.read(3) == b"one"
    stream.settle()
    assert stream.failure is None
    assert stream.read(3) == b"two"
    stream.settle()
    assert stream.failure and stream.failure.member == len(data) // 2


@pytest.mark.parametrize("suffix", PACKED)
def test_the_next_whole_member_is_found(tmp_path, suffix):
  compress = COMPRESS[suffix]
  broken = bytearray(compress(b"second " * 50))
  broken[len(broken) // 2] ^= 0xFF
  broken[-1] ^= 0xFF
  data = compress(b"first") + bytes(broken) + compress(b"third") + b"garbage" + compress(b"last")
  with opened(tmp_path, data, suffix) as stream:
    assert stream.read(5) == b"first" and not stream.failure
    stream.skip(1000)
    assert stream.failure
    assert stream.recover(lambda head: head.startswith(b"third"))
    assert stream.read(5) == b"third"
    assert stream.read(1) == b"" and stream.failure
    assert stream.recover(lambda head: head == b"last") and stream.read(9) == b"last"
    assert not stream.failure and not stream.recover(lambda head: True)


def test_zeros_may_pad_and_garbage_may_not(tmp_path):
  data = gzip.compress(b"one")
  with opened(tmp_path, data + bytes(1000), ".gz") as stream:
    assert stream.read(9) == b"one" and stream.failure is None
  with opened(tmp_path, data + b"rest", ".gz") as stream:
    assert stream.read(9) == b"one"
    assert stream.failure == (len(data), "no gzip data begins here", len(data))
  for suffix in PACKED:
    with opened(tmp_path, b"", suffix) as stream:
      assert stream.read(9) == b"" and stream.failure


@pytest.mark.parametrize("suffix", PACKED)
def test_a_bomb_is_refused_without_being_held(tmp_path, suffix):
  data = COMPRESS[suffix](bytes(1 << 22)) * 18  # 75 MB of zeros.
  tracemalloc.start()
  with opened(tmp_path, data, suffix) as stream:
    assert 64 << 20 <= stream.skip(1 << 30) < 75_000_000
    assert stream.failure and "decompression bomb" in stream.failure.reason
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 20_000_000
  with opened(tmp_path, data, suffix, max_ratio=1e9) as stream:
    assert stream.skip(1 << 30) == 18 << 22 and not stream.failure


def test_small_files_may_repeat_themselves(tmp_path):
  data = gzip.compress(b"the same line\n" * 2_000_000)
  with opened(tmp_path, data, ".gz") as stream:
    assert stream.skip(1 << 30) == 28_000_000 > 200 * len(data) and not stream.failure


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_long_lines_are_passed_over(tmp_path, suffix):
  data = b"a\n" + b"b" * 1_000_000 + b"\n\nlast"
  with opened(tmp_path, COMPRESS[suffix](data), suffix) as stream:
    assert [stream.line(10) for _ in range(5)] == [b"a\n", None, b"\n", b"last", b""]
  with opened(tmp_path, b"12345678\n" * 2) as stream:
    assert [stream.line(9), stream.line(8), stream.line(8)] == [b"12345678\n", None, b""]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_memory_does_not_grow_with_the_file(tmp_path, suffix):
  data = COMPRESS[suffix]((b"word " * 800 + b"\n") * 3000)  # 12 MB
  tracemalloc.start()
  with opened(tmp_path, data, suffix) as stream:
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    lines = 0
    while stream.line(5000):
      lines += 1
    peak = tracemalloc.get_traced_memory()[1] - before
  tracemalloc.stop()
  assert lines == 3000 and peak < 1_500_000


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_scanning_finds_what_lies_across_pieces(tmp_path, suffix):
  pattern = re.compile(rb"needle \d+!")
  places = [65_530, 262_140, 700_000]
  data = bytearray(b"." * 800_000)
  for i in places:
    data[i : i + 10] = b"needle 12!"
  with opened(tmp_path, COMPRESS[suffix](bytes(data)), suffix) as stream:
    for place in places:
      assert stream.scan(pattern) and stream.tell() == place
      stream.skip(1)
    assert not stream.scan(pattern) and stream.tell() == len(data)


def test_going_back(tmp_path):
  with opened(tmp_path, TEXT) as stream:
    stream.skip(500_000)
    assert stream.back(7) and stream.at() == 7 and stream.read(5) == TEXT[7:12]
  with opened(tmp_path, gzip.compress(TEXT), ".gz") as stream:
    stream.read(300)
    assert stream.back(7) and stream.read(5) == TEXT[7:12]
    stream.skip(500_000)
    assert not stream.back(7)


def test_limits_must_be_positive():
  with pytest.raises(UserError, match="max_bytes=0"):
    Limits(max_bytes=0).check()
  with pytest.raises(UserError, match="must be positive"):
    Limits(max_ratio=float("nan")).check()


def test_a_missing_package_says_what_to_install(tmp_path, monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
  with pytest.raises(UserError, match="pip install zstandard"):
    opened(tmp_path, b"", ".zst")
