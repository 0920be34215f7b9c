"""Parts of a source: together they are the source, each record once, whatever its kind."""

import gzip
import json

import pytest

from llm_jax.data import crawl, jsonl
from llm_jax.data.pipeline import inputs
from llm_jax.errors import UserError


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
  monkeypatch.setattr(inputs, "_PLAIN", 2000)
  monkeypatch.setattr(inputs, "_PACKED", 500)


def lines(count):
  return "".join(
    json.dumps({"id": f"é{i}", "text": "word " * (i % 30)}) + "\n" for i in range(count)
  )


@pytest.fixture
def source(tmp_path):
  (tmp_path / "a.jsonl").write_text(lines(300))
  (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines(300).encode()))
  (tmp_path / "c").mkdir()
  for i in range(20):
    (tmp_path / "c" / f"{i:02d}.txt").write_text(f"Text {i}. " * 40)
  return tmp_path


def test_parts_together_are_the_source(source):
  plan = inputs.plan(source)
  assert len([p for p in plan if p.lines]) > 10  # The large plain file, by its lines.
  assert any(p.parts > 1 for p in plan)  # The compressed one, by blocks of records.
  assert any(len(p.files) > 1 for p in plan)  # Small ones go together.
  found = [raw for part in plan for raw in inputs.read(part)]
  key = lambda raw: (raw.source, raw.id)  # noqa: E731
  assert sorted(found, key=key) == sorted(crawl.read(source), key=key)
  assert plan == inputs.plan(source)


@pytest.mark.parametrize("size", [2000, 1_000_000])
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_columns_reach_every_kind_of_part(tmp_path, monkeypatch, compress, size):
  monkeypatch.setattr(inputs, "_PLAIN", size)
  monkeypatch.setattr(inputs, "_PACKED", size // 4)
  path = tmp_path / ("a.jsonl" if compress is bytes else "a.jsonl.gz")
  data = lines(300).replace('"id"', '"key"').replace('"text"', '"body"').encode()
  path.write_bytes(compress(data))
  plan = inputs.plan(path)
  assert (len(plan) > 1) == (size == 2000)
  options = crawl.Options("body", "key")
  found = [raw for part in plan for raw in inputs.read(part, options=options)]
  assert {raw.id for raw in found} == {f"é{i}" for i in range(300)}
  assert sum(len(raw.body) for raw in found) == 5 * sum(i % 30 for i in range(300))
  with pytest.raises(UserError, match=r'no column "text" \(config\.reader\.text\)'):
    list(inputs.read(plan[0]))


def test_a_bad_line_is_lost_once_or_an_error(tmp_path):
  rows = lines(200).split("\n")
  rows[150] = '{"text": 3}'
  (tmp_path / "a.jsonl").write_text("\n".join(rows))
  plan = inputs.plan(tmp_path / "a.jsonl")
  lost = []
  found = [raw for part in plan for raw in inputs.read(part, lost.append)]
  assert (len(found), len(lost)) == (199, 1)
  assert lost[0].where.startswith("byte ") and '"text" must be a string' in lost[0].reason
  assert [x.where for x in inputs.numbered(plan, lost)] == ["line 151"] and len(plan) > 1
  with pytest.raises(UserError, match=r'a\.jsonl:151: "text" must be a string'):
    list(raw for part in plan for raw in inputs.read(part))


def test_a_broken_gzip_is_lost_once(tmp_path):
  data = gzip.compress(lines(2000).encode(), 0)
  (tmp_path / "a.jsonl.gz").write_bytes(data[:-2000])
  plan = inputs.plan(tmp_path / "a.jsonl.gz")
  assert len(plan) > 4
  lost = []
  found = [raw for part in plan for raw in inputs.read(part, lost.append)]
  assert len(lost) == 1 and lost[0].reason.endswith("the rest of the file is lost")
  assert 1900 < len(found) == len({raw.id for raw in found}) < 2000


def test_a_line_over_the_cap_is_passed_over_and_not_held_in_memory(tmp_path):
  path = tmp_path / "a.jsonl"
  short = [json.dumps({"id": str(i), "text": f"t{i}"}) + "\n" for i in range(3)]
  long = json.dumps({"text": "x" * 5_000_000}) + "\n"
  path.write_text(short[0] + long + short[1] + short[2].rstrip())
  lost = []
  options = crawl.Options(max_bytes=1000)
  found = crawl.read_lines(jsonl.Range(str(path)), "a.jsonl", lost=lost.append, options=options)
  assert [raw.body for raw in found] == ["t0", "t1", "t2"]
  assert [(row.where, row.reason) for row in lost] == [
    (f"byte {len(short[0])}", "the line is over the cap of 1,000 bytes")
  ]
  assert max(len(line) for _, line in jsonl.lines(jsonl.Range(str(path)), 1000)) == 1001


def test_columns_that_hold_pages(tmp_path):
  row = {"html": "<html><p>a page</p></html>", "url": "u"}
  (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
  options = crawl.Options(text="html", html=True)
  (raw,) = crawl.read(tmp_path, options=options)
  assert raw.html and raw.body == row["html"] and raw.url == "u"
