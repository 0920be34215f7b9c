"""GRPO and its relatives as a stage: labels in closed form, scores by name, runs that go on."""

import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import grpo as recipes
from llm_jax import config
from llm_jax.data import formats
from llm_jax.data.preferences import Answer
from llm_jax.errors import UserError
from llm_jax.stages import grpo, labels, rewards
from llm_jax.train import checkpoint, parallel
from tests.stages.conftest import SAMPLING, tiny

RNG = np.random.default_rng(0)
N, G, T = 3, 4, 5
MASK = (np.arange(T) < RNG.integers(2, T + 1, (N * G, 1))).astype(np.float32)
OLD, REF = (RNG.normal(size=(N * G, T)).astype(np.float32) for _ in range(2))
SCORES = RNG.normal(size=N * G).astype(np.float32)
ENDED = np.ones(N * G, np.float32)
PLACE = parallel.make(config.Mesh())
SHARED = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data"
GSM8K = pathlib.Path(os.environ.get("LLM_JAX_DATA", SHARED)) / "gsm8k"


def labelled(scores=SCORES, **fields):
  cfg = config.Grpo(prompts=N, samples=G, **fields)
  batch = {"mask": MASK, "old_logps": OLD, "ref_logps": REF}
  return jax.device_get(labels.group(cfg)(batch, scores, ENDED))


def test_an_answer_is_measured_against_the_others_of_its_prompt():
  batch, _ = labelled(advantage="group_advantage(scale=False)")
  centred = SCORES.reshape(N, G) - SCORES.reshape(N, G).mean(1, keepdims=True)
  np.testing.assert_allclose(batch["advantages"], centred.reshape(-1, 1) * MASK, atol=1e-6)


def test_the_divergence_in_the_reward_is_that_of_the_whole_answer():
  batch, metrics = labelled(advantage="group_advantage(scale=False)", reward_kl=0.5)
  worth = (SCORES - 0.5 * ((OLD - REF) * MASK).sum(1)).reshape(N, G)
  centred = (worth - worth.mean(1, keepdims=True)).reshape(-1, 1) * MASK
  np.testing.assert_allclose(batch["advantages"], centred, atol=1e-5)
  np.testing.assert_allclose(metrics["objective/kl"], ((OLD - REF) * MASK).sum(1).mean(), rtol=1e-5)


def test_reinforce_pp_takes_the_batch_as_its_baseline():
  batch, _ = labelled(advantage="batch_advantage()", reward_kl=0.5)
  rewards_BT = -0.5 * (OLD - REF) * MASK
  rewards_BT[np.arange(N * G), MASK.sum(1).astype(int) - 1] += SCORES
  to_go = np.cumsum(rewards_BT[:, ::-1], 1)[:, ::-1][MASK > 0]
  want = (to_go - to_go.mean()) / to_go.std(ddof=1)
  np.testing.assert_allclose(batch["advantages"][MASK > 0], want, atol=1e-5)
  assert not batch["advantages"][MASK == 0].any()


@pytest.mark.parametrize("drop", [True, False])
def test_groups_that_tie_teach_nothing_and_may_be_left_out(drop):
  scores = SCORES.copy()
  scores[:G] = 1.0
  batch, metrics = labelled(scores, drop_ties=drop)
  assert metrics["groups/tied"] == pytest.approx(1 / N)
  assert not batch["advantages"][:G].any()
  assert batch["mask"][:G].any() != drop
  np.testing.assert_array_equal(batch["mask"][G:], MASK[G:])


@pytest.mark.parametrize("advantage", ["gae()", "whiten()", "kl()"])
def test_an_advantage_that_takes_something_else_is_refused(advantage):
  with pytest.raises(UserError, match="advantage"):
    labelled(advantage=advantage)


def answered(*texts, truth="Twenty two.", ended=True, tokens=3):
  count = len(texts)
  return rewards.Answered(
    [[{"role": "user", "content": "?"}]] * count,
    [Answer(text, ended) for text in texts],
    [truth] * count,
    {"mask": np.ones((count, tokens))},
    {},
  )


def test_scores_of_rules():
  given = answered("twenty  two", "twenty", "twenty-two.")
  np.testing.assert_array_equal(rewards.exact(given), [1, 0, 1])
  np.testing.assert_array_equal(
    rewards.exact(given._replace(answers=[Answer("Twenty two.", False)] * 3)), 0
  )
  given = answered(
    "So 1,080 it is", "#### 1080.0", "12 then 13", "none", truth="9 * 120\n#### 1,080"
  )
  np.testing.assert_array_equal(rewards.number(given), [1, 1, 0, 0])
  for tokens, want in ((50, 0.0), (90, -0.5), (110, -1.0)):  # TRL's own figures.
    given = answered("x", tokens=tokens)
    assert rewards.overlong(given, most=100, soft=20) == pytest.approx(want)


def test_no_number_is_not_the_right_number():
  np.testing.assert_array_equal(rewards.number(answered("none", truth="none either")), [0])


@pytest.mark.parametrize("split", [pytest.param("train", marks=pytest.mark.long), "test"])
def test_answers_of_gsm8k_are_right_and_those_to_other_questions_are_not(split):
  path = GSM8K / f"{split}.jsonl.gz"
  if not path.exists():
    pytest.skip("needs gsm8k in the folder shared/data beside the repository")
  rows = formats.read(path, "conversations").items
  truths = [row.messages[-1]["content"] for row in rows]

  def score(texts):
    said = [Answer(text, True) for text in texts]
    return rewards.number(rewards.Answered([[]] * len(said), said, truths, {}, {}))

  assert score(truths).all() and len(truths) > 1000
  assert score(truths[1:] + truths[:1]).mean() < 0.02


def test_scores_add_up_with_their_weights():
  scores = rewards.Scores.load("ended + 0.5*constant(value=3.0) - exact", PLACE, 0)
  given = answered("Twenty two.", "no")
  total, means = scores(given.prompts, given.answers, given.truths, given.batch)
  np.testing.assert_allclose(total, [1.5, 2.5])
  assert means == {"scores/ended": 1.0, "scores/constant": 3.0, "scores/exact": 0.5}


@pytest.mark.parametrize("bad", ["exac", "overlong(most=3)", "reward_model", "spec()", "ended +"])
def test_an_unknown_score_is_refused(bad):
  with pytest.raises(UserError, match="score"):
    rewards.Scores.load(bad, PLACE, 0)


def test_a_score_must_be_a_finite_number_an_answer():
  scores = rewards.Scores.load(lambda answered: np.array([np.nan]), PLACE, 0)
  given = answered("a")
  with pytest.raises(UserError, match="config.score: .* 1 finite numbers.* 1 of them not finite"):
    scores(given.prompts, given.answers, given.truths, given.batch)


@pytest.mark.parametrize(
  ("fields", "reason"),
  [
    ({"prompts": 3, "samples": 5}, "multiple"),
    ({"samples": 0}, "samples"),
    ({"aggregate": "tokens"}, 'did you mean "token"'),
    ({"sampling": config.Sampling(top_k=3)}, "top_k"),
    ({"kl_coef": -1.0}, "kl_coef"),
  ],
)
def test_configs_that_cannot_be(fields, reason):
  with pytest.raises(UserError, match=reason):
    config.Grpo(**fields).validate()


@pytest.mark.parametrize("variant", recipes.VARIANTS)
def test_every_recipe_is_valid(variant):
  cfg = recipes.get_config(variant)
  cfg.validate()
  labels.group(cfg)


def grpo_config(prepared, root, **fields):
  given = {"score": f"reward_model(run='{root / 'reward'}') + ended", "prompts": 4, "samples": 4}
  given |= {"init": str(root / "sft"), "sampling": SAMPLING, "reward_kl": 0.1} | fields
  return tiny(config.Grpo, prepared, **given)


def read(path):
  return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.long
def test_an_interrupted_run_goes_on_to_the_same_end(prepared, root, tmp_path, monkeypatch):
  cfg = grpo_config(prepared, root)
  grpo.run(cfg, tmp_path / "whole")
  collect = grpo.Collector.__call__

  def broken(self, state, iteration, carried):
    if iteration == 1:
      raise KeyboardInterrupt
    return collect(self, state, iteration, carried)

  with monkeypatch.context() as patch:
    patch.setattr(grpo.Collector, "__call__", broken)
    with pytest.raises(KeyboardInterrupt):
      grpo.run(cfg, tmp_path / "cut")
  grpo.run(cfg, tmp_path / "cut")
  whole, cut = (
    checkpoint.load_params(tmp_path / name / "checkpoints") for name in ("whole", "cut")
  )
  assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), whole, cut)))
  rows = read(tmp_path / "whole")
  assert {"objective/kl", "scores/ended", "scores/reward_model", "groups/tied"} <= rows[0].keys()
  assert rows[0]["objective/kl"] == pytest.approx(0.0, abs=1e-5)
  assert all(row.get("rollout/logp_gap", 0) < 1e-4 for row in rows)


@pytest.mark.long
def test_held_out_prompts_of_a_file_are_scored(prepared, root, tmp_path):
  rows = [{"prompt": f"What does sort {n} do?", "response": "Sort."} for n in ("rows", "files")]
  path = tmp_path / "held.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows * 3))
  cfg = grpo_config(
    prepared, root, data=(str(path),), eval_data=(str(path),), score="exact + ended"
  )
  grpo.run(cfg, tmp_path / "run")
  found = [row for row in read(tmp_path / "run") if "eval/score" in row]
  assert found and all(0 <= row["eval/scores/exact"] <= 1 for row in found)


def test_a_constant_score_gives_no_advantage():
  batch, metrics = labelled(np.full(N * G, 7.0, np.float32))
  assert not batch["advantages"].any() and metrics["groups/tied"] == 1
  assert jnp.isfinite(batch["advantages"]).all()
