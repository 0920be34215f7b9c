"""The report: complete, self-contained, small, and indifferent to hostile or missing input."""

import copy
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from llm_jax import report
from llm_jax.errors import UserError
from llm_jax.report.frontier import frontier
from llm_jax.report.load import Run, load
from llm_jax.report.markup import seconds
from llm_jax.report.page import LIMIT, LINKS, SCRIPTS, render

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>'\"&"


class Tags(HTMLParser):
  """Collects the elements of a page and its text."""

  def __init__(self, text: str):
    super().__init__(convert_charrefs=True)
    self.tags: list[tuple[str, dict]] = []
    self.text: list[str] = []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_data(self, data):
    self.text.append(data)


def spoil(tree):
  """The same tree with a hostile end on every string and every free key."""
  if isinstance(tree, dict):
    return {key: spoil(value) for key, value in tree.items()}
  if isinstance(tree, list):
    return [spoil(value) for value in tree]
  return tree + HOSTILE if isinstance(tree, str) else tree


def paths(tree, at=()):
  """Every place in a tree; of a list only the first entry."""
  yield at
  if isinstance(tree, dict):
    for key in tree:
      yield from paths(tree[key], (*at, key))
  if isinstance(tree, list) and tree:
    yield from paths(tree[0], (*at, 0))


def test_every_section_is_there_and_linked(workdir):
  page = Tags(report.build(workdir).read_text())
  ids = {attrs["id"] for tag, attrs in page.tags if tag == "section"}
  assert ids == {name for name, _ in LINKS}
  assert "Not recorded" not in "".join(page.text)


def test_it_shows_the_figures_of_the_run(workdir):
  text = "".join(Tags(report.build(workdir).read_text()).text)
  for figure in ("64.1\u00a0%", "1.40", "11\u00a0492", "10\u00a0min 55\u00a0s", "2.31 GiB"):
    assert figure in text
  assert "4 of 5 checks pass; look at: PPO raises the gold score." in text
  assert "k1: the log-ratio" in text


def test_nothing_is_loaded_from_anywhere(workdir):
  text = report.build(workdir).read_text()
  for tag, attrs in Tags(text).tags:
    assert tag not in ("img", "iframe", "object", "embed", "base", "form")
    for name in ("src", "href", "action", "data", "srcset", "poster"):
      assert attrs.get(name, "#").startswith(("#", "data:")), (tag, attrs)
  style = "".join(re.findall(r"<style>(.*?)</style>", text, re.S))
  assert "url(" not in style and "@import" not in style
  assert "default-src 'none'" in text


def test_hostile_strings_stay_text(workdir):
  summary = spoil(json.loads((workdir / "summary.json").read_text()))
  summary["data"]["funnel"][0]["dropped"] = {HOSTILE: 3}
  summary["versions"] = summary["time"] = {HOSTILE: 1.0}
  summary["reward"]["accuracy"] = {HOSTILE: 0.5}
  summary["policies"][HOSTILE] = {"gold": 0.5}
  summary["win_rates"][HOSTILE] = {"rate": 0.5, "se": 0.1}
  (workdir / "summary.json").write_text(json.dumps(summary))
  (workdir / "config.json").write_text(json.dumps({"name": HOSTILE}))
  other = workdir / "other"
  other.mkdir()
  (other / "metrics.jsonl").write_text(json.dumps({"step": 1, HOSTILE: 2.0}))
  page = Tags(report.build(workdir).read_text())
  scripts = [attrs for tag, attrs in page.tags if tag == "script"]
  assert len(scripts) == len(SCRIPTS) + 1
  assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
  assert not [attrs for _, attrs in page.tags if HOSTILE in (attrs.get("style") or "")]
  payload = json.loads(next(t for t in page.text if t.startswith('{"stages"')))
  assert HOSTILE in payload["stages"]["other"]["y"]
  assert sum(HOSTILE in text for text in page.text) > 50


@pytest.mark.long
def test_any_part_may_be_missing_or_of_another_type(workdir):
  summary = json.loads((workdir / "summary.json").read_text())
  wrong = (None, "text", 7, [], {}, [1], {"a": "b"}, True, float("nan"), 10**400)
  for i, path in enumerate(paths(summary)):
    if not path:
      continue
    broken = copy.deepcopy(summary)
    place = broken
    for key in path[:-1]:
      place = place[key]
    place[path[-1]] = wrong[i % len(wrong)]
    assert "</html>" in render(Run(workdir, broken, None, {})), path


def test_a_run_in_progress_names_what_it_lacks(tmp_path, workdir):
  part = tmp_path / "partial"
  shutil.copytree(workdir / "pretrain", part / "pretrain")
  with (part / "pretrain" / "metrics.jsonl").open("a") as file:
    file.write('{"step": 700, "lo')  # Killed while writing.
  text = "".join(Tags(report.build(part).read_text()).text)
  for name in ("win_rates", "data.funnel", "answers", "ppo/metrics.jsonl", "reward.calibration"):
    assert name in text
  assert "unreadable lines left out: 1" in text


def test_an_empty_summary_renders(tmp_path):
  (tmp_path / "summary.json").write_text("{}")
  text = "".join(Tags(report.build(tmp_path).read_text()).text)
  assert "The run recorded no checks." in text and "nan" not in text.lower().split()


def test_without_a_run_one_line_says_so(tmp_path):
  with pytest.raises(UserError, match="no such run"):
    report.build(tmp_path / "nothing")
  with pytest.raises(UserError, match="neither summary.json nor"):
    report.build(tmp_path)
  (tmp_path / "summary.json").write_text("{")
  with pytest.raises(UserError, match="not JSON"):
    report.build(tmp_path)


def test_a_long_run_stays_small(workdir):
  row = {f"layer{i}/norm": 1.23456 + i for i in range(30)}
  lines = [
    json.dumps({"step": s, "time/unix": 1e9 + s, "loss": 1 / s} | row) for s in range(1, 4001)
  ]
  (workdir / "pretrain" / "metrics.jsonl").write_text("\n".join(lines))
  summary = json.loads((workdir / "summary.json").read_text())
  summary["answers"] *= 40
  for answer in summary["answers"]:
    answer["base"] = "word " * 4000
  (workdir / "summary.json").write_text(json.dumps(summary))
  path = report.build(workdir)
  assert path.stat().st_size <= LIMIT
  assert "each point is the mean of up to" in path.read_text()


def test_a_resumed_run_keeps_the_later_row_and_a_forward_clock(tmp_path):
  folder = tmp_path / "sft"
  folder.mkdir()
  rows = [(1, 5.0, 3.0), (2, 6.0, 2.0), (3, 7.0, 9.0), (3, 0.5, 1.0), (4, 1.5, 0.5)]
  lines = [json.dumps({"step": s, "time/unix": 1e9 + t, "loss": x}) for s, t, x in rows]
  (folder / "metrics.jsonl").write_text("\n".join(lines))
  curves = load(tmp_path).curves["sft"]
  assert curves.steps == [1, 2, 3, 4]
  assert curves.series["loss"] == [3.0, 2.0, 1.0, 0.5]
  assert curves.times == [0.0, 1.0, 1.0, 2.0]


def test_the_clock_starts_at_the_first_row_that_has_one(tmp_path):
  folder = tmp_path / "ppo"
  folder.mkdir()
  rows = [{"step": 0, "eval/loss": 2.0, "time/eval": 4.0}, {"step": 1, "time/unix": 1.7e9},
          {"step": 2, "time/unix": 1.7e9 + 3, "loss": 1.0},
          {"step": 3, "eval/loss": 1.0}]  # fmt: skip
  (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
  curves = load(tmp_path).curves["ppo"]
  assert curves.times == [0.0, 0.0, 3.0, 3.0]
  assert set(curves.series) == {"eval/loss", "time/eval", "loss"}


def test_the_path_of_ppo_is_in_the_unit_of_the_policies_rewards(workdir):
  run = load(workdir)
  run.curves["ppo"].series["objective/scores"] = [1e6] * len(run.curves["ppo"].steps)
  assert frontier(run) == frontier(load(workdir))
  del run.curves["ppo"].series["objective/raw_scores"]
  assert frontier(run).count("No PPO path was recorded") == 2


def test_rare_reasons_are_folded_and_edits_are_told(workdir):
  summary = json.loads((workdir / "summary.json").read_text())
  summary["data"]["funnel"][2]["dropped"] = {f"reason {i}": 100 - i for i in range(26)}
  text = "".join(Tags(render(Run(workdir, summary, None, {}))).text)
  assert "rarer reasons" in text and "reason 25" in text
  assert "16\u00a0252 paragraphs" in text
  assert "https://docs.invalid/posixpath.html" in text and "kept instead: 37004b416cb0" in text


def test_averaged_points_are_means_of_the_rows(tmp_path):
  folder = tmp_path / "sft"
  folder.mkdir()
  lines = [json.dumps({"step": s, "loss": s, "eval": 7} | ({} if s % 2 else {"odd": 1}))
           for s in range(10)]  # fmt: skip
  (folder / "metrics.jsonl").write_text("\n".join(lines))
  curves = load(tmp_path, points=5).curves["sft"]
  assert curves.series["loss"] == [0.5, 2.5, 4.5, 6.5, 8.5]
  assert curves.steps == [1, 3, 5, 7, 9]


def chromium() -> str | None:
  return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")


@pytest.mark.skipif(chromium() is None, reason="Chromium is not installed")
def test_the_page_runs_in_a_browser_without_errors(workdir, tmp_path):
  path: Path = report.build(workdir)
  flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
           "--disable-background-networking", "--disable-component-update", "--dump-dom",
           "--enable-logging=stderr", "--virtual-time-budget=2000",
           f"--user-data-dir={tmp_path / 'profile'}"]  # fmt: skip
  run = subprocess.run([chromium(), *flags, path.as_uri()], capture_output=True, text=True,
                       timeout=90)  # fmt: skip
  assert "CONSOLE" not in run.stderr
  page = Tags(run.stdout)
  assert sum(tag == "canvas" for tag, _ in page.tags) >= 25
  shown = [a for tag, a in page.tags if tag == "article" and "hidden" not in a]
  assert len(shown) == 1


def test_a_prepared_corpus_has_a_page_of_its_own(workdir, tmp_path):
  summary = json.loads((workdir / "summary.json").read_text())
  names = ("drop_samples", "splits", "statistics", "duplicates")
  manifest = {name: summary["data"][name] for name in names}
  manifest["funnel"] = [{"step": "read", "documents": 7, "bytes": 5_000_000, "dropped": {}}]
  (tmp_path / "manifest.json").write_text(json.dumps(manifest))
  (tmp_path / "timing.json").write_text('{"seconds": 9, "steps": {"read": 1.5}}')
  text = report.build(tmp_path).read_text()
  assert "the name of" in text and seconds(1.5) in text
  assert "31 clusters of 70 documents" in text and "posixpath stays" in text
  assert "&lt;Posix&gt; pathnames" in text
  assert 'id="corpus"' in text and 'href="#corpus"' in text
  assert 'id="policies"' not in text and 'href="#policies"' not in text
