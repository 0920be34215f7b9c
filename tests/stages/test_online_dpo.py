"""Online DPO: pairs of the best and the worst, references, ties, and runs that go on."""

import types

import jax
import numpy as np
import pytest

from llm_jax import config
from llm_jax.errors import UserError
from llm_jax.stages import asking, online_dpo
from llm_jax.train import checkpoint, parallel
from tests.stages.conftest import SAMPLING, tiny
from tests.stages.test_rejection import brief, lines

PLACE = parallel.make(config.Mesh())


def made(prepared, start, **fields):
  given = {"init": start, "sampling": SAMPLING, "prompts": 8, "samples": 4, "prompt_length": 32}
  return tiny(config.OnlineDpo, prepared, **(given | fields))


@pytest.fixture(scope="module")
def asked(prepared, start, tmp_path_factory):
  return asking.Asker.load(made(prepared, start), tmp_path_factory.mktemp("asked"), PLACE, brief)


def collected(asked, score=None, moved=0.0, **fields):
  asker, reference = asked
  cfg = made(asker.cfg.prepared, asker.cfg.init, **fields)
  if score:
    scores = asking.scores_of(cfg, score, PLACE, asker.tokenizer, "config.score")
    asker = asking.Asker(**(vars(asker) | {"scores": scores}))
  params = jax.tree.map(lambda x: x * (1 + moved), reference)
  state = types.SimpleNamespace(params=params)
  return online_dpo.Collector(cfg, asker, reference)(state, 0, {})


def test_a_pair_is_the_best_against_the_worst_and_ties_give_none():
  scores = np.array([[1.0, 3.0, 2.0], [5.0, 5.0, 5.0], [0.0, -1.0, 0.0]])
  best, worst = online_dpo.extremes(scores)
  np.testing.assert_array_equal(best, [1, 6])
  np.testing.assert_array_equal(worst, [0, 7])
  assert not online_dpo.extremes(np.zeros((3, 2)))[0].size


def test_pairs_are_what_was_sampled(asked):
  batch, metrics = collected(asked)
  asker = asked[0]
  texts = [
    [asker.tokenizer.decode(row[mask > 0].tolist()).strip() for row, mask in zip(
      batch[side]["targets"], batch[side]["mask"], strict=True)]
    for side in ("chosen", "rejected")
  ]  # fmt: skip
  pairs = [pair for pair in zip(*texts, strict=True) if any(pair)]  # Others fill the batch.
  gaps = [len(worst) - len(best) for best, worst in pairs]
  assert min(gaps) > 0 and metrics["objective/score_gap"] == pytest.approx(np.mean(gaps))
  assert metrics["pairs/tied"] == pytest.approx(1 - len(pairs) / 8)
  assert metrics["objective/scores"] == pytest.approx(metrics["scores/brief"])
  assert metrics["objective/kl"] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("reference", ["fixed", "iteration"])
def test_the_reference_is_the_start_or_the_policy_as_the_iteration_begins(asked, reference):
  batch, metrics = collected(asked, moved=0.05, reference=reference)
  asker, start = asked
  params = start if reference == "fixed" else jax.tree.map(lambda x: x * 1.05, start)
  apply = online_dpo.training.decoder_apply(asker.model)
  logps = jax.jit(online_dpo.objectives.sequence_logps(apply))
  for side in ("chosen", "rejected"):
    want = logps(jax.device_get(params), batch[side], jax.random.key(0))
    np.testing.assert_allclose(batch[f"ref_{side}"], want, rtol=1e-4)
  assert abs(metrics["objective/kl"]) > 1e-3  # To the start, whatever the reference.


def test_places_that_ties_leave_are_filled_with_pairs_that_weigh_nothing(asked):
  def some(answered):  # The first four prompts tie.
    found = brief(answered)
    found += np.arange(len(found)) * 0.01  # No other ties.
    found[:16] = 0.0
    return found

  batch, metrics = collected(asked, score=some)
  assert metrics["pairs/tied"] == 0.5
  weights = batch["chosen"]["mask"].sum(1) * batch["rejected"]["mask"].sum(1)
  assert len(weights) == 8 and (weights > 0).sum() == 4
  assert np.isfinite(batch["ref_chosen"]).all()


def test_a_constant_score_gives_no_pairs_and_says_so(asked, capfd):
  with pytest.raises(UserError, match="gives no pairs: the 4 answers to each of 4 times 8 prompts"):
    collected(asked, score="constant(value=2.0)")
  assert capfd.readouterr().err.count("all answers are ties") == 4


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"prompts": 12}, "must be a multiple of config.batch=8"),
    ({"epochs": 0}, "config.epochs"),
    ({"reference": "iterations"}, 'did you mean "iteration"'),
    ({"samples": 1}, "config.samples must be at least 2"),
  ],
)
def test_configs_that_cannot_be(prepared, start, fields, message):
  with pytest.raises(UserError, match=message):
    made(prepared, start, **fields).validate()


@pytest.mark.long
def test_an_interrupted_run_goes_on_to_the_same_end(prepared, start, tmp_path, monkeypatch):
  cfg = made(prepared, start, epochs=2, steps=6)
  cfg.checkpoint_every = 1
  online_dpo.run(cfg, tmp_path / "whole", score=brief)
  collect = online_dpo.Collector.__call__

  def broken(self, state, iteration, carried):
    if iteration == 1:
      raise KeyboardInterrupt
    return collect(self, state, iteration, carried)

  with monkeypatch.context() as patch:
    patch.setattr(online_dpo.Collector, "__call__", broken)
    with pytest.raises(KeyboardInterrupt):
      online_dpo.run(cfg, tmp_path / "cut", score=brief)
  online_dpo.run(cfg, tmp_path / "cut", score=brief)
  whole, cut = (checkpoint.load_params(tmp_path / name) for name in ("whole", "cut"))
  assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), whole, cut)))


@pytest.mark.long
def test_a_score_that_likes_short_answers_makes_them_shorter(prepared, start, tmp_path):
  cfg = made(prepared, start, steps=40)
  cfg.log_every, cfg.eval_every, cfg.checkpoint_every, cfg.optimizer.lr = 10, 40, 40, 1e-2
  cfg.optimizer.warmup = 2
  online_dpo.run(cfg, tmp_path, score=brief)
  rows = [row for row in lines(tmp_path / "metrics.jsonl") if "objective/scores" in row]
  assert rows[-1]["objective/scores"] > 0.75 * rows[0]["objective/scores"]
  assert rows[-1]["objective/kl"] > 0.1
