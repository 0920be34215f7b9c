"""Every metric that a stage logs is explained; nothing else is."""

import re

import pytest

from llm_jax.stages import glossary
from llm_jax.stages.glossary import explain

LOOP = (
  "step loss grad_norm param_norm lr skipped time/unix time/step time/data_share "
  "time/tokens_per_second time/eval time/recompilations memory/host memory/device "
  "memory/device_peak"
)
ONLINE = (
  "objective/scores objective/kl objective/entropy rollout/end_rate rollout/length eval/score "
  "eval/scores/exact scores/ended scores/constant scores/reward_model scores/judge"
)
POLICY = (
  "loss/policy policy/approxkl policy/clipfrac policy/entropy val/ratio objective/rlhf_reward "
  "objective/non_score_reward rollout/logp_gap loss/kl"
)
PAIRS = (
  "rewards/chosen rewards/rejected rewards/accuracies rewards/margins logps/chosen logps/rejected"
)
# The names in the metrics.jsonl of tiny runs of each stage.
LOGGED = {
  "loop": LOOP,
  "pretrain": "nll eval/loss eval/bits_per_byte",
  "sft": "nll eval/loss eval/loss/rows eval/loss/files",
  "reward": "accuracy margin chosen_score rejected_score eval/accuracy eval/accuracy/cut_off "
  "eval/accuracy/ranked eval/margin eval/calibration_error eval/length_correlation",
  "dpo": f"{PAIRS} eval/loss eval/rewards/margins eval/logps/chosen kl eval/kl",
  "ppo": f"{ONLINE} {POLICY} objective/raw_scores kl_coef gold/mean loss/value val/clipfrac "
  "val/error val/return val/return_squared val/explained_variance ptx/nll",
  "grpo": f"{ONLINE} {POLICY} groups/tied",
  "online_dpo": f"{ONLINE} {PAIRS} objective/score_gap pairs/tied",
  "rejection": "objective/scores rollout/length rollout/end_rate chosen/scores chosen/length "
  "chosen/answers chosen/prompts best_of/4/score best_of/4/measure",
}


@pytest.mark.parametrize("stage", LOGGED)
def test_every_metric_of_a_stage_is_explained(stage):
  unknown = [name for name in LOGGED[stage].split() if not explain(name)]
  assert not unknown


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
