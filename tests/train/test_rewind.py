"""A run taken back to a checkpoint, with batches left out: it is the run that never had them."""

import itertools
import json

import jax
import numpy as np
import pytest

from llm_jax.errors import UserError
from llm_jax.stages.online import OnlineFeed
from llm_jax.train import checkpoint, feeds, loop, metrics, retention, rewind
from tests.test_launch import launch
from tests.train import toy_run
from tests.train.test_loop import rows

KEPT = loop.Care(keep=5)


def without(numbers):
  """The batches of the toy run but for these."""
  return (batch for n, batch in enumerate(toy_run.batches(), 1) if n not in numbers)


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_run_is_the_one_whose_data_never_had_the_batches(tmp_path):
  poisoned = feeds.IteratorFeed(toy_run.batches(poison=9))
  with pytest.raises(loop.TrainingDiverged, match="step 9"):
    toy_run.run(tmp_path / "run", 17, feed=poisoned, care=KEPT)
  rewind.apply(tmp_path / "run", 5, range(8, 10))
  again = feeds.IteratorFeed(toy_run.batches(poison=9))
  found = toy_run.run(tmp_path / "run", 17, feed=again, care=KEPT)
  feed = feeds.IteratorFeed(without(range(8, 10)))
  assert_equal(found, toy_run.run(tmp_path / "other", 17, feed=feed, care=KEPT))
  assert rows(tmp_path / "run") == rows(tmp_path / "other")


@pytest.mark.long
def test_a_kill_after_it_loses_neither_the_way_back_nor_what_is_left_out(tmp_path):
  toy_run.run(tmp_path / "run", 13, care=KEPT)
  for _ in range(2):  # The same command again: it goes on, and not back once more.
    rewind.apply(tmp_path / "run", 5, range(7, 12))
    toy_run.run(tmp_path / "run", 10, care=KEPT)
  assert checkpoint.latest_step(tmp_path / "run" / "checkpoints") == 10
  assert (tmp_path / "run" / "checkpoints" / "13.rewound").is_dir()
  found = toy_run.run(tmp_path / "run", 17, care=KEPT)
  feed = feeds.IteratorFeed(without(range(7, 12)))
  assert_equal(found, toy_run.run(tmp_path / "other", 17, feed=feed, care=KEPT))
  steps = [row["step"] for row in metrics.read(tmp_path / "run")]
  assert steps == sorted(set(steps))


def test_the_last_healthy_checkpoint_is_gone_back_to_by_that_name(tmp_path):
  losses = iter([3.0, 1.0, 1.05, 4.0, float("nan")])

  def judged(state):
    return {"loss": next(losses)}

  options = {"eval_every": 5, "evaluate": judged, "checkpoint_every": 5, "care": KEPT}
  toy_run.run(tmp_path / "run", 25, **options)
  for _ in range(2):
    rewind.apply(tmp_path / "run", "healthy", range(0))
    assert checkpoint.latest_step(tmp_path / "run" / "checkpoints") == 15
  with pytest.raises(UserError, match="--rewind_to=healthy: no checkpoint of .* good evaluation"):
    rewind.apply(tmp_path / "other", "healthy", range(0))


def test_only_checkpoints_that_are_there_can_be_gone_back_to(tmp_path):
  for step in (5, 10):
    (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
  with pytest.raises(UserError, match=r"--rewind_to=7: .* no checkpoint of this step, only 5, 10"):
    rewind.apply(tmp_path, 7, range(0))
  with pytest.raises(UserError, match="only none"):
    rewind.apply(tmp_path / "nowhere", 7, range(0))
  rewind.apply(tmp_path, 5, range(0))
  assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["10.rewound", "5"]
  assert json.loads((tmp_path / "rewound.json").read_text()) == [{"to": "5", "skip": [], "step": 5}]
  assert rewind.skipped(tmp_path) == []


def test_a_record_of_before_healthy_could_be_asked_for_counts(tmp_path):
  for step in (5, 10):
    (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
  (tmp_path / "rewound.json").write_text('[{"to": 5, "skip": [7, 9]}]')
  rewind.apply(tmp_path, "5", range(7, 9))
  assert checkpoint.latest_step(tmp_path / "checkpoints") == 10  # It was done, and goes on.
  rewind.apply(tmp_path, "5", range(7, 8))
  assert checkpoint.latest_step(tmp_path / "checkpoints") == 5
  assert rewind.skipped(tmp_path) == [range(7, 9), range(7, 8)]
  (tmp_path / "rewound.json").write_text("")
  with pytest.raises(UserError, match="rewound.json cannot be read as JSON"):
    rewind.skipped(tmp_path)


@pytest.mark.parametrize("good", [True, False])
def test_what_was_healthy_before_a_way_back_says_nothing_of_the_step_after_it(good, tmp_path):
  folder = tmp_path / "checkpoints"
  for step, healthy in ((5, True), (10, True)):
    (folder / str(step)).mkdir(parents=True)
    retention.apply(folder, step, healthy, keep=2, every=0)
  rewind.apply(tmp_path, "5", range(7, 9))
  assert retention.last_healthy(folder) is None
  (folder / "10").mkdir()
  retention.apply(folder, 10, good, keep=2, every=0)
  assert retention.last_healthy(folder) == (10 if good else None)


@pytest.mark.parametrize("text", ["7", "9:7", "0:3", "a:b", "3:3"])
def test_numbers_of_batches_are_checked(text):
  with pytest.raises(UserError, match=f"--skip_batches={text}: two numbers"):
    rewind.parse(text)
  assert rewind.parse("") == range(0) and rewind.parse("3:5") == range(3, 5)


def test_who_draws_batches_cannot_leave_them_out():
  feed = OnlineFeed(lambda *_: None, rows=1, epochs=1, seed=0)
  with pytest.raises(UserError, match="this one draws answers"):
    feed.skip([range(1, 2)])
  iterator = feeds.IteratorFeed(itertools.count(1))
  iterator.skip([range(1, 3), range(4, 5)])
  assert [iterator.next(None) for _ in range(3)] == [3, 5, 6]


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["--skip_batches=3:5"], "needs --rewind_to"),
    (["--rewind_to=4", "--skip_batches=5"], "two numbers are needed"),
    (["--rewind_to=4"], "has no checkpoint of this step, only none"),
  ],
)
def test_the_command_line_says_what_is_wrong_and_leaves_no_trace(words, message, tmp_path):
  done = launch("pretrain", f"--workdir={tmp_path}/run", *words)
  assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
  assert not (tmp_path / "run").exists()


def test_a_pipeline_is_not_taken_back_as_a_whole(tmp_path):
  done = launch("pipeline", f"--workdir={tmp_path}/run", "--rewind_to=4")
  assert done.returncode == 2 and "give it to a stage's own experiment" in done.stderr
