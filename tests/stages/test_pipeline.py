"""The pipeline: early checks, connected directories, the clock, the checks of the summary."""

import json

import pytest

from configs import pipeline as default
from llm_jax import config
from llm_jax.errors import UserError
from llm_jax.stages import pipeline, summary


@pytest.mark.parametrize("variant", ["", "ci"])
def test_the_published_configurations_pass_their_own_checks(variant):
  cfg = default.get_config(variant)
  pipeline.check(cfg)
  for name in pipeline.ORDER:
    stage = getattr(cfg, name.removesuffix("_shuffled"))
    if hasattr(stage, "validate"):
      stage.validate()


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("dpo.loss", "ipoo()", r'config\.dpo\.loss: .*"ipo"'),
    ("ppo.value_loss", "value_clp()", r"config\.ppo\.value_loss"),
    ("prepare.source", "mine.warc.gz", "only the corpus pydocs"),
    ("pretrain.eval_every", 0, "at least 1"),
    ("dpo.seed", 3, r"config\.dpo\.seed is filled in"),
    ("ppo.reward", "elsewhere", r"config\.ppo\.reward is filled in"),
  ],
)
def test_what_a_late_stage_would_refuse_is_refused_at_once(field, value, message, tmp_path):
  cfg = default.get_config()
  stage, name = field.split(".")
  setattr(getattr(cfg, stage), name, value)
  with pytest.raises(UserError, match=message):
    pipeline.run(cfg, str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()


def test_every_stage_starts_from_the_one_before_it_with_the_same_seed(tmp_path):
  cfg = default.get_config()
  cfg.seed = 5
  stages = pipeline.connect(cfg, tmp_path)
  assert list(stages) == list(pipeline.ORDER)
  assert {stage.seed for stage in stages.values()} == {5}
  assert stages["sft"].init == str(tmp_path / "pretrain")
  assert stages["ppo"].init == stages["dpo"].init == str(tmp_path / "sft")
  assert stages["ppo"].reward == str(tmp_path / "reward")
  assert stages["reward_shuffled"].shuffle_labels and not stages["reward"].shuffle_labels
  assert cfg.sft == config.Pipeline(sft=cfg.sft).sft  # The caller's configuration is untouched.


def test_a_clock_adds_up_over_attempts_and_forgets_what_was_refused(tmp_path):
  path = tmp_path / "time.json"
  for _ in range(2):
    with pipeline.Clock(path).measure("sft"):
      pass
  first = json.loads(path.read_text())["seconds"]["sft"]
  clock = pipeline.Clock(path)
  with pytest.raises(KeyboardInterrupt), clock.measure("sft"):
    raise KeyboardInterrupt
  assert clock.seconds["sft"] >= first > 0
  assert clock.peak_gib > 0.01
  with pytest.raises(UserError), clock.measure("dpo"):
    raise UserError("no")
  assert "dpo" not in json.loads(path.read_text())["seconds"]


@pytest.mark.parametrize(
  ("figures", "value", "passes"),
  [
    ({"pretrain": {"reduction": 0.45}}, 0.45, True),
    ({"pretrain": {"reduction": 0.35}}, 0.35, False),
    ({"pretrain": {"reduction": float("nan")}}, None, False),
    ({}, None, False),
  ],
)
def test_a_check_that_could_not_be_measured_did_not_hold(figures, value, passes):
  row = summary.CHECKS[0](figures)
  assert (row["value"], row["pass"]) == (value, passes)
