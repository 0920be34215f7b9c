"""Agreement with people: judges that must reach 1, 1/2 and 0, and a reward model's own margins."""

import json

import numpy as np
import pytest

from configs import agreement as recipe
from llm_jax import config
from llm_jax.errors import UserError
from llm_jax.models import heads
from llm_jax.stages import agreement, pairs, reward, runs
from tests.stages.test_judge import failing_once, shorter
from tests.stages.test_rejection import lines

LONG, SHORT = "Sort all the rows of a table, twice.", "Sort rows."


def write(path, count=10, better=SHORT, worse=LONG):
  rows = [
    {"input": f"Which {i}?", "output_1": better if i % 2 else worse,
     "output_2": worse if i % 2 else better, "label": 1 if i % 2 else 2,
     "subset": "odd" if i % 3 else "third"}
    for i in range(count)
  ]  # fmt: skip
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def made(prepared, path, **fields):
  return config.Agreement(**({"prepared": str(prepared), "data": (path,), "rows": 4} | fields))


def judged(prepared, path, out, asks, **fields):
  cfg = made(prepared, path, judge=config.Judge(endpoint="http://127.0.0.1:1/v1", model="m"))
  for name, value in fields.items():
    setattr(cfg, name, value)
  return agreement.run(cfg, out, judge=asks)


def test_a_judge_that_agrees_disagrees_or_looks_at_the_place(prepared, tmp_path):
  path = write(tmp_path / "pairs.jsonl")
  found = judged(prepared, path, tmp_path / "a", shorter)
  assert found["all"]["accuracy"] == 1.0 and found["all"]["order_changed"] == 0.0
  assert found["all"]["pairs"] == 10 and found["all"]["longer"] == 0.0
  assert found["all"]["accuracy_shorter"] == 1.0 and "accuracy_longer" not in found["all"]
  turned = judged(prepared, path, tmp_path / "b", lambda asked: -shorter(asked))
  assert turned["all"]["accuracy"] == 0.0
  place = judged(prepared, path, tmp_path / "c", lambda asked: np.array([[2.0, 0.0]] * len(asked)))
  assert place["all"]["accuracy"] == 0.5 and place["all"]["order_changed"] == 1.0
  assert place["all"]["letter_a"] == pytest.approx(1 / (1 + np.exp(-2)))
  # Whatever a judge without an opinion says of its own certainty, it is right half the time.
  assert place["all"]["calibration_error"] == pytest.approx(0.0)


def test_sources_add_up_and_every_pair_is_explained(prepared, tmp_path):
  path = write(tmp_path / "pairs.jsonl")
  found = judged(prepared, path, tmp_path / "a", shorter)
  assert found == json.loads((tmp_path / "a" / "agreement.json").read_text())
  assert {name: row["pairs"] for name, row in found.items()} == {"all": 10, "odd": 6, "third": 4}
  rows = lines(tmp_path / "a" / "verdicts.jsonl")
  assert len(rows) == 10
  assert all(row["chosen"] == SHORT and row["margin"] > 0 for row in rows)


def test_several_files_have_a_line_each(prepared, tmp_path):
  paths = [write(tmp_path / f"{name}.jsonl", count=4) for name in ("one", "two")]
  found = judged(prepared, paths[0], tmp_path / "a", shorter, data=tuple(paths))
  assert {name: row["pairs"] for name, row in found.items()} == {
    "all": 8, "one": 4, "two": 4, "one/odd": 2, "one/third": 2, "two/odd": 2, "two/third": 2,
  }  # fmt: skip


def test_a_rule_that_says_nothing_is_right_half_the_time(prepared, tmp_path):
  path = write(tmp_path / "pairs.jsonl")
  cfg = made(prepared, path, score="constant")
  found = agreement.run(cfg, tmp_path / "a")["all"]
  assert found["accuracy"] == 0.5 and "calibration_error" not in found
  size = agreement.run(
    cfg, tmp_path / "b", score=lambda answered: [len(a.text) for a in answered.answers]
  )
  assert size["all"]["accuracy"] == size["all"]["longer"] == 0.0


def test_what_is_there_is_not_asked_again(prepared, tmp_path):
  path, calls = write(tmp_path / "pairs.jsonl"), []
  broken = failing_once(calls)
  with pytest.raises(UserError, match="gone"):
    judged(prepared, path, tmp_path / "a", broken)
  assert not (tmp_path / "a" / "agreement.json").exists()
  assert judged(prepared, path, tmp_path / "a", broken)["all"]["accuracy"] == 1.0
  assert len(calls) == 4  # Three parts, one of them twice.
  write(tmp_path / "pairs.jsonl", better=LONG, worse=SHORT)  # Other pairs are asked anew.
  assert judged(prepared, path, tmp_path / "a", broken)["all"]["accuracy"] == 0.0


def test_a_reward_model_has_the_margins_that_its_own_stage_measures(root, tmp_path):
  path, own = root / "preferences", root / "reward"
  held_out = pairs.load(str(path), "validation")
  cfg = made(root / "prepare", str(path / "validation.jsonl"), length=96,
             score=f"reward_model(run='{own}')")  # fmt: skip
  found = agreement.run(cfg, tmp_path)
  model = runs.load(str(own), "reward", reward=True)
  chosen_N, rejected_N = reward.scores_fn(heads.Scorer.from_config(model.shape))(
    model.params, runs.tokenizer(str(root / "prepare")), held_out, 96
  )
  margin_N = chosen_N - rejected_N
  rows = lines(tmp_path / "verdicts.jsonl")
  np.testing.assert_allclose(sorted(row["margin"] for row in rows), sorted(margin_N), atol=1e-4)
  assert found["all"]["accuracy"] == pytest.approx(np.mean(margin_N > 0), abs=1e-6)
  assert found["all"]["calibration_error"] >= 0
  cfg.score += " + ended"  # The difference of a sum is no log-odds.
  assert "calibration_error" not in agreement.run(cfg, tmp_path / "sum")["all"]


@pytest.mark.parametrize(
  ("share", "count", "low", "high"),
  [(0.5, 100, 0.4038, 0.5962), (1.0, 10, 0.7225, 1.0), (0.0, 1, 0.0, 0.7935)],
)
def test_the_interval_is_wilsons(share, count, low, high):
  assert agreement.interval(share, count) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"data": ()}, "config.data is empty"),
    ({"score": ""}, "set either config.score or one of"),
    ({"judge": config.Judge(run="x")}, "set either config.score or one of"),
    ({"score": "judge(run='x')"}, "config.score names a judge"),
    ({"score": "ended", "rows": 0}, "config.rows must be at least 1"),
    ({"data": ("no.jsonl",)}, "no.jsonl"),
  ],
)
def test_what_is_wrong_is_one_line(prepared, tmp_path, fields, message):
  path = write(tmp_path / "pairs.jsonl")
  with pytest.raises(UserError, match=message) as caught:
    agreement.run(made(prepared, path, **({"score": "ended"} | fields)), tmp_path / "out")
  assert "\n" not in str(caught.value)
  assert not (tmp_path / "out" / "agreement.json").exists()


def test_variants():
  for variant in recipe.VARIANTS:
    recipe.get_config(variant).validate()
  with pytest.raises(UserError, match='did you mean "judge"'):
    recipe.get_config("juge")
