"""Parts of a source: together they are the source, each record once, whatever its kind."""

import gzip
import json

import pytest

from llm_jax.data import crawl
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


def test_a_bad_line_is_lost_once_or_an_error(tmp_path):
  rows = lines(200).split("\n")
  rows[150] = '{"text": 3}'
  (tmp_path / "a.jsonl").write_text("\n".join(rows))
  plan = inputs.plan(tmp_path / "a.jsonl")
  lost = []
  found = [raw for part in plan for raw in inputs.read(part, lost.append)]
  assert (len(found), len(lost)) == (199, 1)
  assert lost[0].where.startswith("byte ") and '"text" must be a string' in lost[0].reason
  with pytest.raises(UserError, match=r'a\.jsonl: byte \d+: "text" must be a string'):
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
