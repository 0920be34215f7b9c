"""Rejection sampling: what is chosen, what it is worth, and runs that go on."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from llm_jax import config
from llm_jax.data import formats
from llm_jax.errors import UserError
from llm_jax.stages import asking, rejection
from llm_jax.train import checkpoint, parallel
from tests.stages.conftest import SAMPLING, tiny

PLACE = parallel.make(config.Mesh())


def brief(answered):
  """Prefers short answers."""
  return np.array([-len(answer.text) for answer in answered.answers], np.float32)


def made(prepared, start, **fields):
  given = {"init": start, "sampling": SAMPLING, "prompts": 8, "samples": 4, "questions": 20}
  given |= {"prompt_length": 32, "ended_only": False, "measure": "ended"}
  return tiny(config.Rejection, prepared, **(given | fields))


@pytest.fixture(scope="module")
def asked(prepared, start, tmp_path_factory):
  cfg = made(prepared, start)
  return asking.Asker.load(cfg, tmp_path_factory.mktemp("asked"), PLACE, brief)


def chooser(asked, tmp_path, **fields):
  asker, params = asked
  cfg = made(asker.cfg.prepared, asker.cfg.init, **fields)
  gold = asking.scores_of(cfg, cfg.measure, PLACE, asker.tokenizer, "config.measure")
  return rejection.Chooser(cfg, tmp_path, asker, gold), params


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_best_answer_of_each_prompt_is_chosen(asked, tmp_path):
  choose, params = chooser(asked, tmp_path)
  metrics = choose(params, 0)
  rows = [row for part in sorted(tmp_path.glob("round-0/samples/*.jsonl")) for row in lines(part)]
  selected = lines(tmp_path / "round-0" / "selected.jsonl")
  assert len(rows) == len(selected) == 20
  for row in selected:
    others = rows[row["prompt_number"]]
    assert row["score"] == max(answer["score"] for answer in others["answers"])
    assert row["messages"][:-1] == others["messages"]
    assert row["score"] == -len(row["messages"][-1]["content"])
  every = np.array([[answer["score"] for answer in row["answers"]] for row in rows])
  assert metrics["objective/scores"] == pytest.approx(every.mean())
  assert metrics["best_of/1/score"] == pytest.approx(every.mean())
  assert metrics["best_of/4/score"] == pytest.approx(every.max(1).mean())
  assert metrics["best_of/2/score"] < metrics["chosen/scores"]
  assert metrics["best_of/1/measure"] == pytest.approx(metrics["rollout/end_rate"])
  table = formats.read(tmp_path / "round-0" / "selected.jsonl", "conversations")
  assert len(table.items) == 20 and not table.drops
  assert len(choose.rows(0)) == 20


def test_answers_that_take_turns_are_the_same_answers(asked, tmp_path):
  """Over the mesh, two prompts' worth of rows for the answers to eight."""
  few = dataclasses.replace(SAMPLING, rows=8)
  for name, fields in (("turns", {"sampling": few}), ("once", {})):
    choose, params = chooser(asked, tmp_path / name, **fields)
    asker = dataclasses.replace(choose.asker, cfg=choose.cfg)
    dataclasses.replace(choose, asker=asker)(params, 0)
  turns, once = (lines(tmp_path / x / "round-0" / "selected.jsonl") for x in ("turns", "once"))
  assert turns == once


def test_several_answers_are_kept_above_a_threshold(asked, tmp_path):
  choose, params = chooser(asked, tmp_path / "all", keep=3)
  choose(params, 0)
  every = lines(tmp_path / "all" / "round-0" / "selected.jsonl")
  least = float(np.median([row["score"] for row in every]))
  choose, _ = chooser(asked, tmp_path / "some", keep=3, least=least)
  choose(params, 0)
  some = lines(tmp_path / "some" / "round-0" / "selected.jsonl")
  assert [row["messages"] for row in some] == [
    row["messages"] for row in every if row["score"] >= least
  ]
  texts = [(row["prompt_number"], row["messages"][-1]["content"]) for row in every]
  assert len(set(texts)) == len(texts)


def test_nothing_to_choose_is_one_clear_line(asked, tmp_path):
  choose, params = chooser(asked, tmp_path, least=1.0)
  with pytest.raises(UserError, match="none of 80 answers is chosen, 1% of them end"):
    choose(params, 0)


def test_what_ends_in_the_middle_is_not_learned_unless_it_may_be():
  row = {"messages": [{"role": "user", "content": "?"}]}
  row["answers"] = [
    {"text": text, "ended": ended, "score": score}
    for text, ended, score in [("cut", False, 3.0), ("worse", True, 1.0), ("good", True, 2.0),
                               ("good", True, 2.0), (" ", True, 9.0)]
  ]  # fmt: skip
  for ended_only, want in ((True, ["good", "worse"]), (False, ["cut", "good"])):
    cfg = config.Rejection(ended_only=ended_only, keep=2)
    found = rejection.Chooser(cfg, None, None, None)._best(0, row)
    assert [x["messages"][-1]["content"] for x in found] == want


def test_parts_that_are_there_are_not_drawn_again(asked, tmp_path, monkeypatch):
  whole, params = chooser(asked, tmp_path / "whole")
  whole(params, 0)
  cut, _ = chooser(asked, tmp_path / "cut")
  ask, calls = asking.Asker.ask, []

  def broken(self, params, rows, seeds, **how):
    calls.append(how["first"])
    if len(calls) == 2:
      raise KeyboardInterrupt
    return ask(self, params, rows, seeds, **how)

  monkeypatch.setattr(asking.Asker, "ask", broken)
  with pytest.raises(KeyboardInterrupt):
    cut(params, 0)
  cut(params, 0)
  assert calls == [0, 8, 8, 16]
  for name in ("selected.jsonl", "best_of.json"):
    files = [(tmp_path / run / "round-0" / name).read_bytes() for run in ("whole", "cut")]
    assert files[0] == files[1]
  # Of other parameters nothing is kept.
  cut(jax.tree.map(lambda x: x * 1.01, params), 0)
  assert calls[4:] == [0, 8, 16]


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"keep": 5}, "config.keep=5"),
    ({"rounds": 3}, "must be a multiple of config.rounds=3"),
    ({"samples": 1}, "config.samples must be at least 2"),
    ({"prompts": 0}, "config.prompts"),
    ({"questions": -1}, "config.questions"),
    ({"sampling": config.Sampling(temperature=0.0)}, "temperature must be above 0"),
  ],
)
def test_configs_that_cannot_be(prepared, start, fields, message):
  with pytest.raises(UserError, match=message):
    made(prepared, start, **fields).validate()


@pytest.mark.long
def test_an_interrupted_run_goes_on_to_the_same_end(prepared, start, tmp_path, monkeypatch):
  cfg = made(prepared, start, rounds=2, steps=6, earlier=True)
  rejection.run(cfg, tmp_path / "whole", score=brief)
  following = rejection.RoundFeed.next

  def broken(self, state):
    if self._round == 1 and self._used == 2:
      raise KeyboardInterrupt
    return following(self, state)

  with monkeypatch.context() as patch:
    patch.setattr(rejection.RoundFeed, "next", broken)
    with pytest.raises(KeyboardInterrupt):
      rejection.run(cfg, tmp_path / "cut", score=brief)
  rejection.run(cfg, tmp_path / "cut", score=brief)
  whole, cut = (checkpoint.load_params(tmp_path / name) for name in ("whole", "cut"))
  assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), whole, cut)))


@pytest.mark.long
def test_a_score_that_likes_short_answers_makes_them_shorter(prepared, start, tmp_path):
  cfg = made(prepared, start, rounds=3, steps=30, questions=24, samples=8)
  cfg.log_every, cfg.eval_every, cfg.checkpoint_every, cfg.optimizer.lr = 10, 30, 30, 1e-2
  cfg.optimizer.warmup = 2
  rejection.run(cfg, tmp_path, score=brief)
  scores = [
    json.loads((tmp_path / f"round-{i}" / "best_of.json").read_text())["metrics"] for i in range(3)
  ]
  first, second, third = (found["objective/scores"] for found in scores)
  assert first < second < third and third > 0.75 * first
