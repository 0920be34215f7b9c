"""The page that compares runs."""

import dataclasses
import json
import shutil

import pytest

from llm_jax import config
from llm_jax.errors import UserError
from llm_jax.report import compare, load, tables
from llm_jax.report.markup import Html
from llm_jax.report.page import DRAWING, LIMIT
from tests.report.test_report_page import HOSTILE, Tags


def payload(text):
  return json.loads(next(t for t in Tags(text).text if t.startswith('{"stages"')))


def test_names_are_short_and_different(tmp_path):
  paths = [tmp_path / "a" / "x", tmp_path / "b" / "x", tmp_path / "y"]
  assert compare.names(paths) == ["a/x", "b/x", "y"]


def test_a_run_twice_or_alone_is_no_comparison(tmp_path):
  with pytest.raises(UserError, match="at least two"):
    compare.names([tmp_path])
  with pytest.raises(UserError, match="named twice"):
    compare.names([tmp_path, tmp_path / "a" / ".."])
  with pytest.raises(UserError, match="at most"):
    compare.names([tmp_path / str(i) for i in range(compare.MOST + 1)])


def test_it_shows_what_differs_and_only_that(workdir, second):
  runs = dict(zip("ab", map(load.load, (workdir, second)), strict=True))
  section = compare.differences(runs)
  assert "<code>seed</code>" in section and "kl_estimator" not in section
  assert "No field differs" in compare.differences({"a": runs["a"], "b": runs["a"]})


def test_the_best_is_marked_where_a_direction_is_known():
  better = {side: compare._row("x", side, [2.0, None, 1.0], compare.real) for side in
            ("higher", "lower", "")}  # fmt: skip
  marked = {side: [isinstance(cell, Html) for cell in row[2:]] for side, row in better.items()}
  assert marked == {
    "higher": [True, False, False],
    "lower": [False, False, True],
    "": [False] * 3,
  }
  assert compare._row("x", "lower", [None, None], compare.real) is None
  assert not any(isinstance(c, Html) for c in compare._row("x", "lower", [1.0, 1.0], compare.real))


def test_losses_of_two_kinds_are_not_ranked(workdir, second):
  settings = json.loads((second / "config.json").read_text())
  settings["dpo"]["loss"] = "ipo(beta=0.2)"
  (second / "config.json").write_text(json.dumps(settings))
  text = compare.render([workdir, second])
  assert text.count("not comparable: loss differs") == 1  # DPO logs no held-out loss here.


def test_the_curves_of_a_metric_share_a_chart(workdir, second):
  found = payload(compare.render([workdir, second]))
  panel = next(p for p in found["panels"] if p["about"] == "sft" and p["title"] == "Loss")
  assert [one["label"] for one in panel["series"]] == [
    f"{workdir.parent.name}/quickstart",
    "other/quickstart",
  ]
  assert len({one["color"] for one in panel["series"]}) == 2
  lengths = [len(found["stages"][one["from"]]["x"]) for one in panel["series"]]
  assert lengths == [60, 40]


def test_a_stage_can_be_compared_with_that_of_a_whole_run(workdir, tmp_path):
  alone = tmp_path / "dpo_2"
  shutil.copytree(workdir / "dpo", alone)
  (alone / "config.json").write_text(json.dumps({"seed": 3, "loss": "ipo(beta=0.1)"}))
  text = compare.render([workdir, alone])
  assert {panel["about"] for panel in payload(text)["panels"]} == {"dpo"}
  assert "Only in one run, and not drawn: pretrain (quickstart)" in "".join(Tags(text).text)
  assert "ipo(beta=0.1)" in text


def test_stages_alone_are_compared_field_by_field_and_online_methods_with_each_other(
  workdir, stage, tmp_path
):
  other = tmp_path / "grpo"
  shutil.copytree(workdir / "ppo", other)
  (other / "config.json").write_text(json.dumps(dataclasses.asdict(config.Grpo(steps=600))))
  text = compare.render([stage, other])
  rows = tables.tables(text)["differences"]
  assert rows[1] == ["stage", "ppo", "grpo"] and ["seed", "5", "0"] in rows
  assert not [row for row in rows if row[0] == "steps"]
  assert {panel["about"] for panel in payload(text)["panels"]} == {"ppo and grpo"}
  assert "Online methods" in text and "not comparable: score and reward differ" in text


def test_paths_of_reward_and_kl_need_two_runs(workdir, second):
  assert 'id="frontier"' in compare.render([workdir, second])
  shutil.rmtree(second / "ppo")
  assert 'id="frontier"' not in compare.render([workdir, second])


def test_it_is_self_contained_and_hostile_strings_stay_text(workdir, second, tmp_path):
  hostile = tmp_path / "<img src=x>"
  second.rename(hostile)
  (hostile / "config.json").write_text(json.dumps({HOSTILE: HOSTILE, "dpo": {"loss": HOSTILE}}))
  row = json.dumps({"step": 1, HOSTILE: 2.0})
  for run in (workdir, hostile):
    (run / "sft" / "metrics.jsonl").write_text(row)
  page = compare.build([workdir, hostile], tmp_path / "comparison.html")
  text = page.read_text()
  tags = Tags(text)
  assert len([tag for tag, _ in tags.tags if tag == "script"]) == len(DRAWING) + 1
  assert not [tag for tag, _ in tags.tags if tag in ("img", "iframe", "object", "form")]
  assert not [attrs for _, attrs in tags.tags if any(name.startswith("on") for name in attrs)]
  assert sum(HOSTILE in part for part in tags.text) >= 3
  assert "default-src 'none'" in text


def test_many_long_runs_stay_small(workdir, tmp_path):
  row = {f"layer{i}/norm": 1.23456 + i for i in range(20)}
  lines = [json.dumps({"step": s, "loss": 1 / s} | row) for s in range(1, 1501)]
  runs = []
  for i in range(10):
    runs.append(tmp_path / f"run{i}")
    (runs[-1] / "pretrain").mkdir(parents=True)
    (runs[-1] / "pretrain" / "metrics.jsonl").write_text("\n".join(lines))
  page = compare.build(runs, tmp_path / "comparison.html")
  assert page.stat().st_size <= LIMIT
  assert any(one.get("dash") for p in payload(page.read_text())["panels"] for one in p["series"])
