"""The sweep of a scaling law: which runs there are, what is held out, what the fit is worth."""

import dataclasses
import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from llm_jax import config
from llm_jax.errors import UserError
from llm_jax.report import scaling
from llm_jax.scaling import chinchilla
from llm_jax.stages import pretrain, scaling_law

LAW = chinchilla.Law(2.2, 60.0, 400.0, 0.3, 0.35)
SIZES, BUDGETS = ("8x1", "16x1", "32x1", "48x1"), ("5e8", "1e9")


def sweep(prepared, **fields):
  base = config.Pretrain(batch=8, length=32)
  given = {"sizes": SIZES, "budgets": BUDGETS, "head_dim": 8, "least_steps": 1, "most_epochs": 999}
  return config.ScalingLaw(prepared=str(prepared), pretrain=base, bootstrap=20, **(given | fields))


def measured(noise=0.0):
  random, rows = np.random.default_rng(0), []
  for budget in (5e11, 1e12, 2e12, 4e12):
    for params in (1.6e5, 2.6e5, 4e5, 8e5, 1.3e6, 2.4e6):
      tokens = budget / 6 / params
      loss = chinchilla.loss(LAW, params, tokens) * np.exp(noise * random.standard_normal())
      rows.append(
        {"name": f"{params:.0f}-{budget:.0e}", "params": params, "tokens": tokens,
         "budget": budget, "loss": float(loss)}
      )  # fmt: skip
  return rows


def test_a_run_has_the_tokens_that_its_budget_leaves(prepared):
  cfg = sweep(prepared)
  planned, left_out = scaling_law.plan(cfg)
  assert len(planned) == 8 and not left_out
  assert len({one.name for one in planned}) == 8
  for one in planned:
    assert 6 * one.params * one.tokens == pytest.approx(one.budget, rel=0.5 / one.cfg.steps)
    assert one.cfg.eval_every == one.cfg.steps and one.cfg.optimizer.warmup <= one.cfg.steps / 10
    assert one.cfg.model.vocab_size == 300 and one.cfg.seed == cfg.seed
  assert [one.budget for one in planned] == sorted(one.budget for one in planned)


def test_runs_that_are_too_short_or_read_the_corpus_too_often_are_left_out_and_named(prepared):
  planned, left_out = scaling_law.plan(sweep(prepared, least_steps=10**6))
  assert not planned and "fewer than config.least_steps" in left_out[0]
  planned, left_out = scaling_law.plan(sweep(prepared, most_epochs=0.01))
  assert not planned and "more than config.most_epochs" in left_out[0]


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
def test_the_dearest_run_is_held_out_and_none_twice(prepared, share):
  cfg = sweep(prepared, held_out=share)
  planned, _ = scaling_law.plan(cfg)
  judged = scaling_law.held_out(cfg, planned)
  assert len(set(judged)) == len(judged) == round(share * len(planned))
  dearest = max(range(len(planned)), key=lambda i: planned[i].params * planned[i].tokens)
  assert not share or dearest in judged


@pytest.mark.parametrize("noise", [0.0, 0.003])
def test_a_law_predicts_runs_that_it_has_not_seen(noise):
  found = scaling_law.fit(config.ScalingLaw(bootstrap=50), measured(noise), [3, 8, 13, 18, 23])
  assert found["r_squared"]["held_out"] > 0.99
  assert found["exponent"] == pytest.approx(LAW.beta / (LAW.alpha + LAW.beta), abs=0.1)
  low, high = found["exponent_interval"]
  assert low <= found["exponent"] <= high
  # Those that are judged by it have no part in it.
  rows = measured(noise)
  for i in (3, 8, 13, 18, 23):
    rows[i]["loss"] *= 2
  again = scaling_law.fit(config.ScalingLaw(bootstrap=0), rows, [3, 8, 13, 18, 23])
  assert again["law"] == found["law"] and again["r_squared"]["held_out"] < 0


def test_losses_that_follow_no_law_are_not_predicted():
  """The negative control: the same losses, of other runs."""
  rows = measured()
  losses = np.random.default_rng(1).permutation([row["loss"] for row in rows])
  shuffled = [row | {"loss": float(loss)} for row, loss in zip(rows, losses, strict=True)]
  found = scaling_law.fit(config.ScalingLaw(bootstrap=0), shuffled, [3, 8, 13, 18, 23])
  assert found["r_squared"]["held_out"] < 0.5


def test_the_plot_shows_every_run_and_those_that_are_known(tmp_path):
  found = scaling_law.fit(config.ScalingLaw(bootstrap=0), measured(), [3, 8, 13, 18, 23])
  (tmp_path / "scaling_law.json").write_text(json.dumps(found))
  text = scaling.build(tmp_path).read_text()
  tree = ET.fromstring(text)
  circles = tree.findall(".//{http://www.w3.org/2000/svg}circle")
  assert len(circles) == 3 * 24 + len(chinchilla.KNOWN)
  assert all(name in text for name in chinchilla.KNOWN) and "nan" not in text
  with pytest.raises(UserError, match="scaling_law.json is missing"):
    scaling.build(tmp_path / "elsewhere")


@pytest.mark.long
def test_a_sweep_is_run_once_and_goes_on_where_it_stopped(prepared, tmp_path, monkeypatch, capsys):
  cfg = sweep(prepared, held_out=0.25)
  real, calls = pretrain.run, []

  def counted(own, directory):
    calls.append(directory)
    if len(calls) == 3:
      raise KeyboardInterrupt
    return real(own, directory)

  monkeypatch.setattr(pretrain, "run", counted)
  with pytest.raises(KeyboardInterrupt):
    scaling_law.run(cfg, str(tmp_path))
  found = scaling_law.run(cfg, str(tmp_path))
  assert len(calls) == 9 and len(found["runs"]) == 8
  assert json.loads((tmp_path / "scaling_law.json").read_text()) == found
  assert all(0 < row["loss"] < 10 for row in found["runs"])
  assert "R2 of 2 held-out runs" in capsys.readouterr().out
  scaling_law.run(cfg, str(tmp_path))
  assert len(calls) == 9


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"sizes": ("8x1", "16x1", "32")}, '"32" must be width x layers'),
    ({"sizes": ("8x1", "16x1")}, "three sizes or more"),
    ({"sizes": ("8x1", "16x1", "33x1")}, "multiple of its heads"),
    ({"budgets": ("1e9",)}, "two numbers of FLOPs"),
    ({"budgets": ("1e9", "1.001e9")}, "differ in three digits"),
    ({"sizes": ("8x1", "16x1", "32x1", "8x1")}, "each once"),
    ({"budgets": ("1e9", "many")}, "two numbers of FLOPs"),
    ({"held_out": 1.0}, "held_out must be in"),
    ({"most_epochs": 0.0}, "most_epochs above 0"),
    ({"least_steps": 10**6}, "are too few for five numbers"),
  ],
)
def test_sweeps_that_cannot_be(prepared, tmp_path, fields, message):
  with pytest.raises(UserError, match=message):
    scaling_law.run(sweep(prepared, **fields), str(tmp_path))
  assert not list(tmp_path.iterdir())


def test_what_all_runs_share_is_set_once(prepared):
  cfg = sweep(prepared)
  cfg = dataclasses.replace(cfg, pretrain=dataclasses.replace(cfg.pretrain, seed=3))
  with pytest.raises(UserError, match=r"config\.pretrain\.seed is filled in"):
    cfg.validate()
