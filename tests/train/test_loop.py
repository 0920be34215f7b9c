"""The loop: resume = uninterrupted bit for bit, kills, signals, divergence, feeds."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import grain
import jax
import numpy as np
import pytest

from llm_jax import rundir
from llm_jax.errors import UserError
from llm_jax.train import checkpoint, feeds, loop, metrics, monitor, processes, retention
from tests.train import toy_run

ROOT = pathlib.Path(__file__).parents[2]


def rows(workdir):
  """The rows of a run without wall times and memory."""
  return [
    {k: v for k, v in row.items() if not k.startswith(("time/", "memory/"))}
    for row in metrics.read(workdir)
  ]


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole")
  return workdir, toy_run.run(workdir, 17)


def start(workdir, steps):
  """Starts the toy run as a program; returns it when its first checkpoint is there."""
  command = [sys.executable, "-m", "tests.train.toy_run", str(workdir), str(steps)]
  process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
  deadline = time.monotonic() + 120
  while checkpoint.latest_step(workdir / "checkpoints") is None:
    assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
    time.sleep(0.01)
  return process


@pytest.mark.long
@pytest.mark.parametrize("kind", ["mesh", "pmap"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(kind, whole, tmp_path):
  if kind == "pmap":
    whole = (tmp_path / "whole", toy_run.run(tmp_path / "whole", 17, kind=kind))
  # It stops at a step that ends no interval of metrics, so the sums must survive too.
  toy_run.run(tmp_path / "parts", 6, kind=kind)
  toy_run.run(tmp_path / "parts", 13, kind=kind)
  assert_equal(toy_run.run(tmp_path / "parts", 17, kind=kind), whole[1])
  assert rows(tmp_path / "parts") == rows(whole[0])
  assert [row["step"] for row in rows(whole[0])] == [4, 8, 12, 16]


def test_a_checkpoint_that_says_nothing_of_its_health_is_gone_on_from(tmp_path, monkeypatch):
  save = checkpoint.Checkpoints.save

  def older(self, step, state, extra, healthy):
    return save(self, step, state, {k: v for k, v in extra.items() if k != "health"})

  monkeypatch.setattr(checkpoint.Checkpoints, "save", older)
  toy_run.run(tmp_path, 5)
  monkeypatch.setattr(checkpoint.Checkpoints, "save", save)
  toy_run.run(tmp_path, 6, eval_every=6, evaluate=lambda state: {"loss": 1.0})
  assert retention.last_healthy(tmp_path / "checkpoints") == 6


def test_what_no_evaluation_has_seen_replaces_no_healthy_checkpoint(tmp_path):
  folder, options = tmp_path / "checkpoints", {"evaluate": lambda state: {"loss": 1.0}}
  toy_run.run(tmp_path, 6, eval_every=4, checkpoint_every=4, **options)
  assert retention.last_healthy(folder) == 6  # At the end there is an evaluation.
  toy_run.run(tmp_path, 9, checkpoint_every=3)
  assert retention.steps(folder) == [6, 9] and retention.last_healthy(folder) == 6
  toy_run.run(tmp_path, 15, eval_every=12, checkpoint_every=3, care=loop.Care(keep=1))
  assert retention.steps(folder) == [6, 15]  # It was not asked to evaluate: nothing was good.
  toy_run.run(tmp_path, 20, eval_every=2, checkpoint_every=3, care=loop.Care(keep=1), **options)
  assert retention.steps(folder) == [20]
  retention.forget(folder, 0)
  toy_run.run(tmp_path, 21)
  assert (
    retention.last_healthy(folder) == 21
  )  # Better one whose last evaluation was good than none.


def saving(workdir):
  good = {"eval_every": 6, "evaluate": lambda state: {"loss": 1.0}}
  return toy_run.run(workdir, 12, checkpoint_every=3, care=loop.Care(keep=1), **good)


def killed_in_the_last_save(workdir, monkeypatch, done):
  """A run whose last save was committed and got so far: `done` gets the folder and the step."""
  settle = checkpoint.Checkpoints._settle

  def cut(self, step, healthy):
    if step < 12:
      settle(self, step, healthy)
    else:
      done(self.directory, step)

  with monkeypatch.context() as patch:
    patch.setattr(checkpoint.Checkpoints, "_settle", cut)
    saving(workdir)


def kept(workdir):
  """Checkpoints, and what is in them and beside them."""
  folder = workdir / "checkpoints"
  files = {p.relative_to(folder) for p in [*folder.glob("*"), *folder.glob("*/*")]}
  return files, retention.last_healthy(folder)


def half_removed(folder, step):
  """The new checkpoint is the healthy one, another one is on its way out."""
  rundir.write_json(folder / "healthy.json", {"step": step})
  (folder / "6").rename(folder / "6.removed")


@pytest.mark.parametrize("done", [lambda folder, step: None, half_removed], ids=["none", "half"])
def test_a_save_that_a_kill_cut_after_its_commit_is_ended_by_the_next_start(
  done, tmp_path, monkeypatch
):
  params = saving(tmp_path / "whole")
  assert retention.steps(tmp_path / "whole" / "checkpoints") == [12]
  killed_in_the_last_save(tmp_path / "killed", monkeypatch, done)
  assert kept(tmp_path / "killed") != kept(tmp_path / "whole")
  assert_equal(saving(tmp_path / "killed"), params)
  assert kept(tmp_path / "killed") == kept(tmp_path / "whole")


def test_which_checkpoint_is_healthy_does_not_depend_on_how_long_a_save_takes(
  tmp_path, monkeypatch
):
  settle = checkpoint.Checkpoints._settle

  def slow(*args):
    time.sleep(0.3)  # Three steps take less.
    settle(*args)

  monkeypatch.setattr(checkpoint.Checkpoints, "_settle", slow)
  evaluate = lambda state: {"loss": 1.0 + (int(state.step) == 12)}  # noqa: E731
  toy_run.run(tmp_path, 12, checkpoint_every=3, eval_every=6, evaluate=evaluate)
  assert retention.last_healthy(tmp_path / "checkpoints") == 6


@pytest.mark.long
def test_a_killed_run_goes_on_as_if_nothing_had_happened(whole, tmp_path):
  process = start(tmp_path, 1000)
  time.sleep(0.1)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  reached = checkpoint.latest_step(tmp_path / "checkpoints")
  # Rows beyond the newest checkpoint are there when it is killed late, and once they are dropped.
  with open(tmp_path / "metrics.jsonl", "a") as f:
    f.write('{"step": 90000, "loss": 1.0}\n{"step": 9')
  steps = max(17, reached + 3)
  expected = whole
  if steps > 17:
    expected = (tmp_path / "whole", toy_run.run(tmp_path / "whole", steps))
  assert_equal(toy_run.run(tmp_path, steps), expected[1])
  assert rows(tmp_path) == rows(expected[0])


@pytest.mark.long
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_exits(number, code, tmp_path):
  process = start(tmp_path, 100_000)
  process.send_signal(number)
  err = process.communicate(timeout=60)[1]
  assert process.returncode == code
  step = checkpoint.latest_step(tmp_path / "checkpoints")
  assert f"stopped at step {step} of 100000 and saved; run the same command to go on" in err
  assert "Traceback" not in err


def test_a_finished_run_returns_at_once(whole):
  workdir, params = whole

  class NoFeed(feeds.IteratorFeed):
    def next(self, state):
      raise AssertionError("no batch is needed")

  before = (workdir / "metrics.jsonl").read_bytes()
  assert_equal(toy_run.run(workdir, 17, feed=NoFeed([])), params)
  assert (workdir / "metrics.jsonl").read_bytes() == before


def test_rows_are_averages_over_their_interval(whole, tmp_path):
  toy_run.run(tmp_path, 8, log_every=1)
  single = rows(tmp_path)
  for last in (4, 8):
    row = next(r for r in rows(whole[0]) if r["step"] == last)
    norms = [r["grad_norm"] for r in single if last - 4 < r["step"] <= last]
    assert row["grad_norm"] == pytest.approx(np.mean(norms), rel=1e-5)


def test_divergence_stops_before_anything_is_saved(tmp_path):
  named = (
    batch | {"documents": np.array([[2 * n, 0], [2 * n + 1, 2 * n]])}
    for n, batch in enumerate(toy_run.batches(poison=10), 1)
  )
  with pytest.raises(
    loop.TrainingDiverged, match=r"toy diverged at step 10: loss=nan, grad_norm=nan"
  ):
    toy_run.run(tmp_path, 20, feed=feeds.IteratorFeed(named))
  record = json.loads((tmp_path / "diverged.json").read_text())
  assert record["step"] == 10 and [part["step"] for part in record["batches"]] == [*range(1, 11)]
  assert record["batches"][-1]["documents"] == [[20], [20, 21]]
  assert checkpoint.latest_step(tmp_path / "checkpoints") == 5
  params = checkpoint.load_params(tmp_path)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))
  assert issubclass(loop.TrainingDiverged, UserError)


def test_of_many_processes_the_first_names_the_documents_of_all(tmp_path, monkeypatch):
  # Two processes with halves of the rows; what one gathers is what both would.
  monkeypatch.setattr(processes, "agree", lambda value: value)
  monkeypatch.setattr(processes, "joint", lambda value: {"all": [value, "the other's"]})
  for number, primary in enumerate((False, True)):
    monkeypatch.setattr(processes, "primary", lambda primary=primary: primary)
    with pytest.raises(loop.TrainingDiverged):
      feed = feeds.IteratorFeed(toy_run.batches(poison=2))
      toy_run.run(tmp_path / str(number), 4, feed=feed, checkpoint_every=9)
  assert not (tmp_path / "0" / "diverged.json").exists()
  record = json.loads((tmp_path / "1" / "diverged.json").read_text())
  assert record["batches"] == {"all": [[{"step": 1}, {"step": 2}], "the other's"]}


def test_names_leave_a_batch_at_any_depth():
  inner = {"tokens": np.ones(2), "documents": np.array([[3, 3], [4, 0]]), "sources": ["a", "b"]}
  batch = {"tokens": np.ones(2), "documents": np.array([7, 9]), "ptx": inner, "pair": {"x": 1}}
  own, names = feeds.named(batch)
  assert set(own) == {"tokens", "ptx", "pair"} and set(own["ptx"]) == {"tokens"}
  assert own["pair"] == {"x": 1} and set(inner) == {"tokens", "documents", "sources"}
  expected = {"documents": [[7], [9]], "ptx": {"documents": [[3], [4]], "sources": ["a", "b"]}}
  assert json.loads(json.dumps(feeds.describe(names))) == expected


def test_evaluation_schedule_and_throughput_are_logged(tmp_path):
  seen = []

  def evaluate(state):
    seen.append(int(state.step))
    return {"loss": 0.5 * seen[-1]}

  toy_run.run(
    tmp_path, 7, eval_every=3, evaluate=evaluate, schedule=lambda n: 0.1 * n, tokens_per_step=128
  )
  assert seen == [3, 6, 7]
  table = metrics.read(tmp_path)
  assert [r["eval/loss"] for r in table if "eval/loss" in r] == [1.5, 3.0, 3.5]
  (row,) = [r for r in table if "loss" in r]
  assert row["lr"] == pytest.approx(0.3) and row["time/tokens_per_second"] > 0
  assert 0 <= row["time/data_share"] <= 1


@pytest.mark.parametrize(
  ("losses", "good"),
  [
    ([2.0, 2.19], True), ([2.0, 2.21], False), ([2.0, 1.0, 2.0], False), ([0.0, 0.009], True),
    ([0.0, 0.011], False), ([-1.0, -0.91], True), ([-1.0, -0.89], False),
    ([1.0, float("nan"), 1.0], True), ([1.0, float("inf")], False),
  ],
)  # fmt: skip
def test_a_loss_is_good_near_the_lowest_whatever_its_sign(losses, good):
  health = loop.Health()
  for loss in losses:
    health = health.after({"eval/loss": loss})
  assert health.good == good
  assert not health.after({"eval/loss": min(losses), "eval/x": float("nan")}).good


def test_a_save_is_watched_and_an_evaluation_is_not(tmp_path, monkeypatch):
  events = []
  for owner, name in ((monitor.Watchdog, "arm"), (monitor.Watchdog, "disarm")):
    monkeypatch.setattr(owner, name, lambda self, name=name: events.append(name))
  save = checkpoint.Checkpoints.save
  monkeypatch.setattr(
    checkpoint.Checkpoints, "save", lambda *args, **how: (events.append("save"), save(*args, **how))
  )
  options = {"eval_every": 2, "checkpoint_every": 2}
  toy_run.run(tmp_path, 2, evaluate=lambda state: events.append("evaluate") or {}, **options)
  assert events == ["arm", "arm", "disarm", "evaluate", "arm", "save", "disarm"]


def test_a_feed_may_watch_and_report(tmp_path):
  class Watcher(feeds.IteratorFeed):
    wants_metrics = True

    def __init__(self):
      super().__init__(toy_run.batches())
      self.seen, self.steps = {}, []

    def next(self, state):
      self.steps.append(int(state.step))
      return super().next(state)

    def observe(self, step, metrics):
      self.seen[step] = metrics["loss"]

    def metrics(self):
      return {"watched": float(len(self.seen))}

  feed = Watcher()
  toy_run.run(tmp_path, 5, feed=feed, log_every=1)
  assert feed.steps == [0, 1, 2, 3, 4]  # Each batch is asked for with the newest state.
  table = rows(tmp_path)
  assert [r["loss"] for r in table] == pytest.approx([feed.seen[n] for n in range(1, 6)])
  assert table[-1]["watched"] == 5


def test_grain_iterators_are_resumed_by_their_own_state(tmp_path):
  def make():
    dataset = grain.MapDataset.range(100).shuffle(seed=3).repeat().batch(4).to_iter_dataset()
    return feeds.IteratorFeed(dataset)

  feed = make()
  for _ in range(3):
    feed.next(None)
  state = json.loads(json.dumps(feed.get_state()))
  expected = feed.next(None)
  again = make()
  again.set_state(state)
  np.testing.assert_array_equal(again.next(None), expected)
  assert "iterator" in state and again.get_state()["used"] == 4


def test_data_that_runs_out_is_the_users_error(tmp_path):
  feed = feeds.IteratorFeed(toy_run.toys.make_batch(n) for n in range(2))
  with pytest.raises(UserError, match="the data ran out after 2 batches"):
    toy_run.run(tmp_path, 5, feed=feed)
