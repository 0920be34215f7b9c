"""AI feedback: traces of revisions, soft labels that later stages read, parts that are kept."""

import json

import numpy as np
import pytest

from configs import rlaif as recipe
from llm_jax import config, rundir
from llm_jax.data import formats, principles
from llm_jax.data.intake import Intake
from llm_jax.errors import UserError
from llm_jax.stages import pairs, rlaif, runs
from tests.stages.conftest import SAMPLING, tiny
from tests.stages.test_judge import KEY, failing_once, reply, server, shorter
from tests.stages.test_rejection import lines


def made(prepared, start, part, **fields):
  given = {"part": part, "prepared": str(prepared), "init": start, "sampling": SAMPLING}
  given |= {"judge": config.Judge(run=start), "questions": 20, "prompts": 8, "length": 64}
  return config.Rlaif(**(given | {"ended_only": False} | fields))


@pytest.fixture(scope="module")
def preferred(prepared, start, tmp_path_factory):
  path = tmp_path_factory.mktemp("rlaif")
  counts = rlaif.run(made(prepared, start, "prefer"), path, judge=shorter)
  return path, counts


def test_pairs_have_the_judges_label_and_the_whole_verdict(preferred):
  path, counts = preferred
  rows = lines(path / "train.jsonl")
  assert counts == json.loads((path / "counts.json").read_text())
  assert counts["prompts"] == 20
  assert counts["written"] == len(rows) == 20 - counts["ties"] - counts["same_or_empty"]
  assert counts["written"] > 10
  for row in rows:
    assert len(row["chosen"]) < len(row["rejected"]) and 0.5 < row["probability"] < 1
    assert len(set(row["verdict"]["principles"])) == 4
  changed = np.mean([row["verdict"]["order_changed"] for row in rows])
  assert counts["order_changed"] >= changed * len(rows) / 20
  assert counts["letter_a"] > 0.5


def test_reward_models_and_dpo_read_them_with_their_labels(preferred, prepared, tmp_path):
  path, counts = preferred
  for make in (config.Reward, config.Dpo):
    cfg = tiny(make, prepared, preferences=str(path), validation=0.2)
    train, held_out = pairs.splits(cfg, Intake(tmp_path), runs.tokenizer(str(prepared)))
    assert len(train) + len(held_out) <= counts["written"] and held_out
    rows = pairs.numbered(train)
    assert all(0.5 < row["probability"] < 1 for row in rows)


def test_what_is_there_is_not_asked_again(prepared, start, preferred, tmp_path):
  cfg, calls = made(prepared, start, "prefer"), []
  broken = failing_once(calls)
  with pytest.raises(UserError, match="gone"):
    rlaif.run(cfg, tmp_path, judge=broken)
  assert not (tmp_path / "train.jsonl").exists()
  rlaif.run(cfg, tmp_path, judge=broken)
  assert len(calls) == 4  # Three parts, one of them twice.
  assert (tmp_path / "train.jsonl").read_bytes() == (preferred[0] / "train.jsonl").read_bytes()


def test_a_judge_without_an_opinion_gives_nothing_and_says_so(prepared, start, tmp_path):
  with pytest.raises(UserError, match="nothing is left to write, of 20 prompts: ties 20; raise"):
    rlaif.run(
      made(prepared, start, "prefer"),
      tmp_path,
      judge=lambda questions: [[1.0, 0.0]] * len(questions),
    )


def test_an_endpoint_judges_and_its_key_is_written_nowhere(
  prepared, start, tmp_path, monkeypatch, capfd
):
  monkeypatch.setenv("no_proxy", "127.0.0.1")
  monkeypatch.setenv("OWN_KEY", KEY)
  replies = [(200, reply("A")), (200, reply("B"))] * 2 + [(200, reply("A", {"A": -0.3, "B": -1.4}))]
  with server(replies) as (url, asked):
    own = config.Judge(endpoint=url, model="m", key_variable="OWN_KEY", parallel=1)
    cfg = made(prepared, start, "prefer", judge=own, questions=8, drawn=1)
    with rundir.launch(cfg, tmp_path / "run", argv=["rlaif"]):
      counts = rlaif.run(cfg, tmp_path / "run")
  assert len(asked) == 16 and {headers["Authorization"] for _, headers, _ in asked} == {
    f"Bearer {KEY}"
  }
  assert counts["written"] == 2 and counts["ties"] == 6  # The others are of the place alone.
  assert [row["probability"] for row in lines(tmp_path / "run" / "train.jsonl")] == [1.0, 1.0]
  texts = [path.read_text() for path in (tmp_path / "run").rglob("*.json*")]
  assert len(texts) > 4 and not any(KEY in text for text in [*texts, *capfd.readouterr()])


@pytest.mark.parametrize(
  ("first", "clamp", "chosen", "probability"),
  [(0.9, 0.0, "x", 0.9), (0.2, 0.0, "y", 0.8), (0.9, 0.4, "x", 0.6), (0.45, 0.4, "y", 0.55)],
)
def test_a_label_is_turned_and_clamped(first, clamp, chosen, probability):
  row = {"prompt": [], "answers": ["x", "y"], "verdict": {"first": first}}
  found = rlaif.preference(row, clamp)
  assert found["chosen"] == chosen and found["probability"] == pytest.approx(probability)
  assert rlaif.preference(row | {"verdict": {"first": 0.5}}, clamp) is None


@pytest.mark.long
def test_revisions_keep_their_whole_trace(prepared, start, tmp_path):
  counts = rlaif.run(made(prepared, start, "revise"), tmp_path)
  rows = lines(tmp_path / "revised.jsonl")
  table = formats.read(tmp_path / "revised.jsonl", "conversations")
  assert counts["written"] == len(rows) == len(table.items)
  names = {p.name for p in principles.read("configs/data/principles.json")}
  for row in rows:
    trace = row["trace"]
    assert [step.keys() for step in trace["rounds"]] == [{"principle", "critique", "revision"}] * 2
    assert trace["rounds"][-1]["revision"] == row["messages"][-1]["content"]
    assert len({step["principle"] for step in trace["rounds"]}) == 2
    assert {step["principle"] for step in trace["rounds"]} <= names
  used = {step["principle"] for row in rows for step in row["trace"]["rounds"]}
  assert len(used) > 6


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"part": "prefers"}, 'did you mean "prefer"'),
    ({"clamp": 0.5}, "config.clamp"),
    ({"drawn": 0}, "config.drawn"),
    ({"judge": config.Judge()}, "config.judge.run or config.judge.endpoint"),
    ({"sampling": config.Sampling(temperature=0.0)}, "temperature must be above 0"),
  ],
)
def test_configs_that_cannot_be(fields, message):
  cfg = recipe.get_config()
  for name, value in fields.items():
    setattr(cfg, name, value)
  with pytest.raises(UserError, match=message):
    cfg.validate()


def test_the_recipes_are_valid():
  for variant in recipe.VARIANTS:
    recipe.get_config(variant).validate()
  with pytest.raises(UserError, match='did you mean "revise"'):
    recipe.get_config("revised")
