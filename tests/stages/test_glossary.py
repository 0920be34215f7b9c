"""Every metric that a stage logs is explained; nothing else is."""

import re

import pytest

from llm_jax.stages import glossary
from llm_jax.stages.glossary import explain

# All names in the metrics.jsonl of the tiny runs that the tests of the stages make.
LOGGED = """
  accuracy best_of/1/measure best_of/1/score best_of/2/measure best_of/2/score best_of/4/measure
  best_of/4/score best_of/8/measure best_of/8/score chosen/answers chosen/length chosen/prompts
  chosen/scores chosen_score eval/accuracy eval/accuracy/any_samples eval/accuracy/cut_off
  eval/accuracy/other_object eval/accuracy/ranked eval/accuracy/rankings eval/accuracy/repetitive
  eval/accuracy/sft_sample eval/accuracy/train eval/accuracy/ultrafeedback eval/bits_per_byte
  eval/calibration_error eval/kl eval/length_correlation eval/logps/chosen eval/logps/rejected
  eval/loss eval/loss/files eval/loss/hh eval/loss/revised eval/loss/rows eval/margin
  eval/rewards/accuracies eval/rewards/chosen eval/rewards/margins eval/rewards/rejected
  eval/score eval/scores/ended eval/scores/exact gold/mean grad_norm groups/tied kl kl_coef
  logps/chosen logps/rejected loss loss/policy loss/value lr margin memory/host nll
  objective/entropy objective/kl objective/non_score_reward objective/raw_scores
  objective/rlhf_reward objective/score_gap objective/scores pairs/tied param_norm policy/approxkl
  policy/clipfrac policy/entropy ptx/nll rejected_score rewards/accuracies rewards/chosen
  rewards/margins rewards/rejected rollout/end_rate rollout/length rollout/logp_gap scores/brief
  scores/ended scores/exact scores/reward_model skipped time/data_share time/eval time/step
  time/tokens_per_second time/unix val/clipfrac val/error val/explained_variance val/ratio
  val/return val/return_squared
"""
# Of other machines, configs and mishaps.
RARE = "step skipped time/recompilations memory/device memory/device_peak loss/kl scores/judge"


def test_every_metric_of_a_stage_is_explained():
  assert not [name for name in f"{LOGGED} {RARE}".split() if not explain(name)]


def test_an_explanation_is_one_or_two_short_sentences():
  for text in glossary._MEANINGS.values():
    assert text.endswith(".") and text[0].isupper() and len(text) <= 240
    assert len(re.findall(r"[.!?](?: |$)", text)) <= 3


def test_the_longest_beginning_counts():
  assert explain("eval/loss/rows") == glossary._MEANINGS["eval/loss/"].format("rows")
  assert explain("loss/policy") != explain("loss")
  assert "exact" in explain("scores/exact")


def test_a_held_out_metric_is_its_twin_on_other_data():
  text = explain("eval/rewards/margins")
  assert text.startswith("On held-out data: implicit reward") and text.endswith("should grow.")


@pytest.mark.parametrize(
  "name", ["", "lossy", "eval/", "scores/", "eval/strange", "my/own", "eval"]
)
def test_an_unknown_name_has_no_explanation(name):
  assert explain(name) == ""
