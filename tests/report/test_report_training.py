"""The charts of a stage: whose they are, what they are drawn against, what is marked in them."""

import dataclasses
import json

import pytest

from llm_jax import config, report
from llm_jax.report.load import FAMILIES, Run, kind, load, named
from llm_jax.report.panels import Panel, marks, panels, penalty_note, spikes
from llm_jax.report.training import columns, flops_per_token, training
from llm_jax.scaling import flops
from llm_jax.train.curves import Curves
from tests.report.test_report_page import Tags


def curves(**series):
  n = len(next(iter(series.values())))
  return Curves(list(range(1, n + 1)), [0.0] * n, series, n, 0)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_stage_is_known_by_the_fields_of_its_config(name):
  settings = dataclasses.asdict(FAMILIES[name]())
  assert kind(settings) == name
  assert kind(settings | {"a field": "of another version"}) == name
  assert kind({"seed": 0, "name": "x"}) == ""


@pytest.mark.parametrize(
  ("folder", "stage"),
  [("dpo", "dpo"), ("dpo_2", "dpo"), ("dpo1", "dpo"), ("online_dpo", "online_dpo"), ("mine", ""),
   ("rewarding", ""), ("reward_shuffled", "reward")],
)  # fmt: skip
def test_without_a_config_it_is_known_by_the_name_of_its_folder(folder, stage):
  assert named(folder) == stage


def test_the_folder_of_a_stage_has_a_page_of_its_own(stage):
  text = report.build(stage).read_text()
  page = Tags(text)
  said = "".join(page.text)
  sections = [attrs["id"] for tag, attrs in page.tags if tag == "section"]
  assert sections == ["training", "frontier", "cost"]
  assert "Proximal policy optimisation" in said and "seed 5" in said
  assert "python -m experiments.ppo --workdir=a b" not in said  # It would be two words.
  assert "python -m experiments.ppo '--workdir=a b'" in said
  assert "In the reward it is exp(−k1) − 1 + k1 (k3) of each token." in said


def test_a_chart_says_what_its_metrics_mean(workdir):
  page = Tags(report.build(workdir).read_text())
  terms = [attrs for _, attrs in page.tags if attrs.get("class") == "term"]
  told = {attrs["id"] for _, attrs in page.tags if attrs.get("role") == "tooltip"}
  assert terms and all(
    term["aria-describedby"] in told and term["tabindex"] == "0" for term in terms
  )
  assert any(term["title"].startswith("objective/kl: KL of the policy") for term in terms)


def test_tokens_are_those_that_the_rows_tell(workdir):
  run = load(workdir)
  made = columns(run, "sft")
  assert made["k"] == pytest.approx(4100, rel=0.02)  # 0.2 s a step, 20 500 tokens/s.
  assert "f" not in made  # There is no model.json.
  run.curves["sft"] = dataclasses.replace(run.curves["sft"], step_tokens=None)
  assert "k" not in columns(run, "sft")


def test_flops_are_those_of_the_model_that_was_trained():
  shape = config.Model(vocab_size=512)
  settings = dataclasses.asdict(config.Sft(length=64))
  run = Run(None, {}, None, {"sft": curves(loss=[1.0])}, settings={"sft": settings},
            shapes={"sft": dataclasses.asdict(shape)})  # fmt: skip
  assert flops_per_token(run, "sft") == flops.train_flops_per_token(shape, 64)
  run.settings["sft"] = settings | {"lora": settings["lora"] | {"rank": 4}}
  assert flops_per_token(run, "sft") is None
  run.settings["sft"], run.shapes["sft"] = settings, {"dim": "wide"}
  assert flops_per_token(run, "sft") is None
  run.settings["sft"] = dataclasses.asdict(config.Ppo())
  assert flops_per_token(run, "sft") is None


def test_spikes_stand_out_of_what_came_before():
  quiet = [2.0 + 0.01 * (i % 3) for i in range(40)]
  assert spikes(quiet) == []
  assert spikes([*quiet, 9.0, *quiet, None, 9.0]) == [40, 82]
  assert spikes([5.0] * 10 + [9.0]) == []  # Too few to know what is usual.
  assert spikes([1.0] * 20 + [1.0 + 1e-9]) == []


def test_skipped_updates_are_marked():
  panel = Panel("Loss", {"loss": ("train", "stage")}, marked=True)
  found = marks(curves(loss=[1.0, None, 1.0], skipped=[0.0, 1.0, 0.5]), panel)
  assert found == [(1, "skipped"), (2, "skipped")]
  assert marks(curves(loss=[1.0], skipped=[1.0]), Panel("x", {"loss": ("train", "stage")})) == []


def test_the_estimator_of_a_kl_is_named_where_it_counts():
  kl = {"objective/kl": [0.1]}
  run = Run(None, {}, None, {"ppo": curves(**kl), "sft": curves(loss=[1.0])},
            settings={"ppo": dataclasses.asdict(config.Ppo(kl_coef=0.0))})  # fmt: skip
  note = penalty_note(run, "ppo")
  assert note.startswith("The KL is drawn as k1:") and "In the reward it is" in note
  assert "In the loss" not in note and penalty_note(run, "sft") == ""


def test_every_panel_of_every_kind_of_stage_is_drawn_once(tmp_path):
  for name in FAMILIES:
    run = Run(tmp_path, {}, None, {name: curves(loss=[1.0, 2.0])}, single=name)
    every = [*panels(run, name)[0], *panels(run, name)[1]]
    series = {metric: [1.0, 2.0] for panel in every for metric in panel.metrics}
    run.curves[name] = curves(**series)
    _, payload = training(run)
    drawn = [one["key"] for panel in payload["panels"] for one in panel["series"]]
    assert sorted(set(drawn)) == sorted(series)
    assert len({panel["name"] for panel in payload["panels"]}) == len(payload["panels"])
    json.dumps(payload)
