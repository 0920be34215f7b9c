"""Tables as CSV and charts as SVG, as a page shows them."""

import csv
import io
import json
import xml.etree.ElementTree

import pytest

from llm_jax import report
from llm_jax.report import tables
from llm_jax.report.markup import Html, bar, count, el, percent, table

SVG = "{http://www.w3.org/2000/svg}"


def read(rows):
  return list(csv.reader(io.StringIO(tables.as_csv(rows))))


def test_tables_are_named_after_section_and_heading():
  one = table(("a", "b"), [(1, 2)])
  inside = el("section", el("h2", "Two"), one, el("h3", "Less & more"), one, one, id="data")
  names = list(tables.tables(tables.named_tables(inside)))
  assert names == ["data", "data-less-more", "data-less-more-2"]


def test_a_cell_is_the_number_that_it_was_written_from():
  body = [("x", count(1_234_567), percent(-0.25), bar(0.5, count(12.5)), "–", "−3")]
  page = tables.named_tables(table(tuple("abcdef"), body))
  assert tables.tables(page)["table"][1] == ["x", "1234567", "-0.25", "12.5", "", "-3"]


def test_standard_errors_have_a_column_of_their_own():
  cell = el("span", "0.5", data_value="0.51") + el("small", "± 0.1", data_error="0.12")
  page = tables.named_tables(table(("a", "b", "c"), [("x", Html(cell), 7), ("y", "–", 8)]))
  head, first, last = tables.tables(page)["table"]
  assert head == ["a", "b", "b standard error", "c"]
  assert first == ["x", "0.51", "0.12", "7"] and last == ["y", "", "", "8"]


@pytest.mark.parametrize("text", ["=1+1", "@sum(a)", "+x", "-x", "\tx"])
def test_no_text_is_a_formula(text):
  assert read([[text]]) == [[f"'{text}"]]


@pytest.mark.parametrize("text", ["-1.5", "+2", "a,b", 'say "x"', "two\nlines", "<b>"])
def test_all_else_is_read_back_as_it_was(text):
  assert read([[text, "z"]]) == [[text, "z"]]


def test_every_chart_of_a_page_is_a_file(workdir, tmp_path):
  paths = report.export(workdir, tmp_path / "files")
  assert sorted(paths) == sorted((tmp_path / "files").iterdir())
  names = {path.name for path in paths}
  assert {"pretrain-loss.svg", "ppo-kl-to-sft.svg", "calibration.svg", "scores.svg",
          "gold-score-for-kl.svg", "policies.csv", "data.csv", "cost.csv"} <= names  # fmt: skip
  for path in paths:
    if path.suffix == ".svg":
      text = path.read_text()
      root = xml.etree.ElementTree.fromstring(text)
      assert root.tag == f"{SVG}svg" and root.find(f"{SVG}rect") is not None
      assert "var(--" not in text and "color-mix" not in text and "href" not in text


def test_a_hostile_metric_is_text_in_its_files(tmp_path):
  (tmp_path / "metrics.jsonl").write_text(
    "".join(json.dumps({"step": i, "</svg>\x01<script>&": i}) + "\n" for i in range(3))
  )
  (path,) = report.export(tmp_path, tmp_path / "files")
  root = xml.etree.ElementTree.parse(path).getroot()
  assert "</svg><script>&" in [text.text for text in root.iter(f"{SVG}text")]
  assert not list(root.iter(f"{SVG}script")) and ".." not in path.name


def test_a_file_of_measurements_has_what_the_summary_has(workdir, tmp_path):
  report.export(workdir, tmp_path)
  with (tmp_path / "policies.csv").open(newline="") as file:
    rows = list(csv.DictReader(file))
  gold = next(row for row in rows if row["Measurement"].startswith("Gold score"))
  assert float(gold["DPO"]) == 0.331 and float(gold["DPO standard error"]) == 0.008
  with (tmp_path / "policies-win-rates-against-sft.csv").open(newline="") as file:
    rates = {row["Policies"]: float(row["Win rate"]) for row in csv.DictReader(file)}
  assert rates == {"SFT vs SFT": 0.503, "DPO vs SFT": 0.641, "PPO vs SFT": 0.588}
