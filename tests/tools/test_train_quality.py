"""The tool trains from files, says what it measured, and draws it."""

import json
import random
import xml.etree.ElementTree as ET

import pytest

from llm_jax.data import quality
from llm_jax.data.documents import Document
from tools import train_quality


@pytest.fixture
def sources(tmp_path):
  rng = random.Random(0)
  common = [f"{a}{b}" for a in "bdfgklm" for b in "aeiou"]
  for name, own in (("books", "whence"), ("papers", "whence"), ("crawl", "click")):
    rows = [
      {"id": f"{name}{i}", "text": " ".join(rng.choices([*common, *[own] * 9], k=60))}
      for i in range(200)
    ]
    path = tmp_path / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return tmp_path


def arguments(folder, *more):
  good = [f"--good={folder / name}.jsonl" for name in ("books", "papers")]
  return [*good, f"--raw={folder / 'crawl.jsonl'}", f"--out={folder / 'model'}", *more]


def test_the_tool_writes_a_model_a_table_and_a_plot(sources, capsys):
  assert train_quality.main(arguments(sources, "--leave_out")) == 0
  said = capsys.readouterr().out
  stored = quality.load(sources / "model")
  assert f"| auc | {stored.facts['test']['auc']:.4f} |" in said
  assert stored.facts["test"]["auc"] > 0.99
  # Both curated sources have the same planted word: one tells of the other.
  assert all(auc > 0.99 for auc in stored.facts["transfer"].values())
  assert stored.facts["provenance"]["raw"] == [str(sources / "crawl.jsonl")]
  document = Document("x", "whence " * 20)
  assert quality.quality(document, str(sources / "model"), keep="top") is None
  picture = ET.parse(sources / "model" / "calibration.svg").getroot()
  circles = picture.findall(".//{*}circle")
  assert len(circles) == len(stored.facts["test"]["calibration"])


def test_a_source_that_is_told_apart_too_well_is_remarked_on(sources, capsys):
  assert train_quality.main(arguments(sources)) == 0
  assert "--leave_out measures it" in capsys.readouterr().out


def test_a_bad_source_ends_in_one_line(sources, capsys):
  assert train_quality.main(arguments(sources, f"--raw={sources / 'none'}")) == 2
  said = capsys.readouterr().err
  assert said.startswith("error: ") and said.count("\n") == 1
