"""The loop that every stage runs: feed, step, log, evaluate, checkpoint, resume, stop."""

import collections
import contextlib
import math
import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax import rundir
from llm_jax.errors import UserError
from llm_jax.train import feeds, monitor, processes, profile, retention, rewind
from llm_jax.train import metrics as metrics_lib
from llm_jax.train.checkpoint import Checkpoints
from llm_jax.train.faults import Faults
from llm_jax.train.feeds import Feed
from llm_jax.train.parallel import Placement
from llm_jax.types import Batch, Mean, TrainState

# What must be finite for the run to go on; other metrics may be anything.
_VITAL = ("loss", "grad_norm", "param_norm", "skipped")
_WORSE = 0.1  # By this part of the lowest loss a healthy evaluation may be above it.
_RECENT = 16  # Batches whose documents are named when a run diverges.


class TrainingDiverged(UserError):
  """The loss, the gradient or a parameter is no longer finite."""


class Care(NamedTuple):
  """What is kept of a run, and how long it may seem dead.

  Attributes:
    keep: the newest checkpoints, so many.
    keep_every: those of steps that it divides, too; 0: none.
    hang_after: seconds without a finished update, evaluations apart, after which the stacks of all
      threads go to stderr and the process ends with code 1; 0: never.
  """

  keep: int = 2
  keep_every: int = 0
  hang_after: float = 0.0


class Health(NamedTuple):
  """What the last evaluation says of a state.

  Attributes:
    lowest: eval/loss so far.
    good: whether all of its numbers were finite, and eval/loss at most a tenth above the lowest, or
      0.01 where that is near zero.
  """

  lowest: float = math.inf
  good: bool = False

  def after(self, values: dict[str, float]) -> "Health":
    """Returns what the numbers of the next evaluation make of it."""
    finite, loss = all(map(math.isfinite, values.values())), values.get("eval/loss")
    if loss is None or not finite:
      return Health(self.lowest, finite)
    lowest = min(self.lowest, loss)
    return Health(lowest, loss <= lowest + _WORSE * max(abs(lowest), 0.1))


_USUAL = Care()


def fit(
  step_fn: Callable[[TrainState, Batch], tuple[TrainState, dict[str, Mean]]],
  state: TrainState,
  feed: Feed,
  *,
  place: Placement,
  workdir: str | os.PathLike,
  steps: int,
  log_every: int = 10,
  eval_every: int = 0,
  evaluate: Callable[[TrainState], dict[str, float]] | None = None,
  checkpoint_every: int = 200,
  care: Care = _USUAL,
  tokens_per_step: int = 0,
  name: str = "pretrain",
  schedule: Callable[[int], Any] | None = None,
  rows: int | None = None,
) -> TrainState:
  """Trains until `steps` updates are made; returns the final state, as placed.

  A stopped run goes on from the newest checkpoint of `workdir`, with the same metrics and
  parameters, bit for bit, as if it had not stopped; a finished one returns at once. SIGTERM and
  SIGINT save, then exit with 128 + their number; a second one exits at once, unsaved. Many
  processes stop after the same step when one gets a signal, and the first writes and prints.

  Args:
    step_fn, state: as `place.compile` and `place.init` make them; the state is used up.
    feed, place, workdir: where batches come from, arrays live, and metrics.jsonl and others go.
    steps, log_every: updates in all, and per row of metrics, each the average over them.
    eval_every, evaluate: updates between evaluations (0: none; one at the end); state -> numbers.
    checkpoint_every, care: updates between checkpoints (one at the end, too), and what stays.
    tokens_per_step, name: for the throughput (0: it is not logged), and for people.
    schedule, rows: step -> learning rate, logged as "lr"; of a batch of which each feed has a part.

  Raises:
    TrainingDiverged: if what is not finite may not be skipped (guard.py). It is never saved.
    SystemExit: after a signal.
  """
  run = _Run(place, feed, pathlib.Path(workdir), name, log_every, tokens_per_step, schedule, rows)
  checkpoints = Checkpoints(run.workdir / "checkpoints", *care[:2], run.faults)
  with contextlib.closing(checkpoints), _Signals() as signals:
    state, start, saved = run.resume(state, checkpoints)
    if start >= steps:
      return state
    with contextlib.closing(run.open(start)) as writer:
      run.begin(writer, start, steps, saved)
      with contextlib.closing(run.progress), run.watch, monitor.Watchdog(care.hang_after) as dog:
        for step in range(start + 1, steps + 1):
          dog.arm()
          state = run.advance(step_fn, state, step)
          checkpoints.check()
          stop, last = run.agreed(signals.received), step == steps
          if evaluate and eval_every and (step % eval_every == 0 or last):
            with dog.paused():
              run.evaluate(step, evaluate, state)
          if step % checkpoint_every == 0 or last or stop:
            run.save(step, state, checkpoints, wait=bool(stop or last))
          if stop:
            run.leave(stop, step, steps)
  return state


class _Run:
  """The moving parts of one `fit`: sums since the last row, the step in flight, clocks."""

  def __init__(self, place, feed, workdir, name, log_every, tokens_per_step, schedule, rows):
    self.place, self.feed, self.workdir, self.name, self.rows = place, feed, workdir, name, rows
    self.log_every, self.tokens_per_step, self.schedule = log_every, tokens_per_step, schedule
    self.sums: dict[str, Mean] | None = None  # Metrics since the last row, on the devices.
    self.flight: tuple | None = None  # The step whose metrics were not read yet.
    self.clock, self.waited, self.counted, self.warm = time.monotonic(), 0.0, 0, False
    self.recompilations, self.watch = monitor.Recompilations(name), profile.Watch(workdir, name)
    self.faults = Faults()
    self.flag: jax.Array | None = None  # The highest signal of all processes, on its way.
    self.recent: collections.deque = collections.deque(maxlen=_RECENT)  # Steps, with their names.
    self.health, self.judged = Health(), 0  # And the step of the last evaluation.

  def resume(self, state: TrainState, checkpoints: Checkpoints) -> tuple[TrainState, int, dict]:
    if checkpoints.latest_step() is None:
      return state, int(self.place.fetch(state.step)), {}
    restored = checkpoints.restore(_changing(self.place.unreplicate(state)))
    if restored is None:
      return state, int(self.place.fetch(state.step)), {}
    state = state.replace(**dict.fromkeys(_changing(state)))  # Frees their memory.
    state, extra = state.replace(**self.place.replicate(restored[0])), restored[1]
    start = int(self.place.fetch(state.step))
    checkpoints.finish(start, extra.get("healthy", False))
    processes.say(f"{self.name}: goes on from step {start}")
    self.watch.begin(start)
    return state, start, extra

  def open(self, start: int) -> metrics_lib.MetricsWriter | metrics_lib.Silent:
    primary = processes.primary()
    return metrics_lib.MetricsWriter(self.workdir, start) if primary else metrics_lib.Silent()

  def begin(self, writer, start: int, steps: int, saved: dict) -> None:
    primary = processes.primary()
    progress = metrics_lib.Progress(self.name, start, steps) if primary else metrics_lib.Silent()
    self.writer, self.progress = writer, progress
    if numbers := rewind.skipped(self.workdir):
      self.feed.skip(numbers)
    if saved:
      self.feed.set_state(processes.own(saved["feed"]))
      sums = {k: Mean(*(np.asarray(x, np.float32) for x in v)) for k, v in saved["sums"].items()}
      self.sums = sums or None
      self.health = Health(*saved.get("health", ()))  # Older checkpoints have none.

  def advance(self, step_fn: Callable, state: TrainState, step: int) -> TrainState:
    self.watch.before(step, state)
    before = time.monotonic()
    with profile.mark("feed"):
      batch, names = feeds.named(self.faults.at_step(step, self.feed.next(state)))
      self.recent.append((step, names))
      batch = self.place.batch(batch, self.rows)
    self.waited += time.monotonic() - before
    with self.recompilations.watch(step, batch):
      state, metrics = step_fn(state, batch)
    # On the devices: the host learns of a sum only when it is logged.
    self.sums, alive = _add(self.sums or metrics, metrics, self.sums is not None)
    self.land()
    if self.feed.wants_metrics:
      self.check(step, metrics, alive)
      self.feed.observe(step, _values(self.place.fetch(metrics)))
    row = step % self.log_every == 0
    # The feed's numbers are taken now: its next batch is drawn before this row is written.
    extra = self.feed.metrics() if row else None
    self.flight = (step, metrics, alive, self.sums if row else None, extra)
    self.sums = None if row else self.sums
    self.counted += 1
    if not self.warm:  # The first step compiles: it is no measure of the others.
      jax.block_until_ready(alive)
      self.clock, self.waited, self.counted, self.warm = time.monotonic(), 0.0, 0, True
    self.clock += self.watch.after(step, state)  # Not the steps' time.
    return state

  def land(self) -> None:
    """Waits for the step in flight, checks it, and writes its row if it ends an interval.

    It is called when the next step is on its way: the device is never idle for the host.
    """
    if self.flight is None:
      return
    (step, metrics, alive, sums, extra), self.flight = self.flight, None
    self.check(step, metrics, alive)
    if sums is not None:
      self.write(step, _values(self.place.fetch(sums)), extra)
    self.progress.update(step)

  def check(self, step: int, metrics: dict[str, Mean], alive: jax.Array) -> None:
    if np.all(jax.device_get(alive)):
      return
    values = _values(self.place.fetch(metrics))
    bad = [k for k in _VITAL if not np.isfinite(values.get(k, 0.0))]
    what = ", ".join(f"{k}={values[k]}" for k in bad)
    if "skipped" in bad:  # By train/guard.py, whose metrics are otherwise finite.
      what = f"loss={values['loss']}, grad_norm={values['grad_norm']}, one more update in a row "
      what += "than may be skipped (config.optimizer.skip_limit, skip_sigma)"
    record = self.workdir / "diverged.json"
    batches = [{"step": n} | feeds.describe(names) for n, names in self.recent if n <= step]
    batches = processes.joint(batches)  # Each may have read its own part of the rows.
    if processes.primary():
      rundir.write_json(record, {"step": step, "metrics": values, "batches": batches})
    raise TrainingDiverged(
      f"{self.name} diverged at step {step}: {what}; no such state was saved. Lower "
      f"config.optimizer.lr, lengthen its warmup or look at the data ({record} names the documents "
      "of its batch), then start again"
    )

  def write(self, step: int, row: dict[str, float], extra: dict[str, float]) -> None:
    if row.get("skipped") == 1:
      row = {"skipped": 1.0}  # The others are means over no update.
    if self.schedule is not None:
      row["lr"] = float(self.schedule(step - 1))  # Update n uses the rate of step n - 1.
    row |= extra
    now = time.monotonic()
    note = f"loss {row['loss']:.4f}" if "loss" in row else "all updates skipped"
    if self.counted:
      elapsed = now - self.clock
      row["time/step"] = elapsed / self.counted
      row["time/data_share"] = min(self.waited / elapsed, 1.0)
      if self.tokens_per_step:
        row["time/tokens_per_second"] = self.tokens_per_step * self.counted / elapsed
        note += f", {row['time/tokens_per_second']:,.0f} tokens/s"
    if self.recompilations.count:
      row["time/recompilations"] = self.recompilations.count
    row |= monitor.memory()
    row["time/unix"] = self.faults.now()
    self.writer.write(step, row)
    self.progress.note(note)
    self.clock, self.waited, self.counted = now, 0.0, 0

  def evaluate(self, step: int, evaluate: Callable, state: TrainState) -> None:
    self.land()
    began = time.monotonic()
    with profile.mark("evaluate"):
      values = {f"eval/{k}": float(v) for k, v in evaluate(state).items()}
    self.health, self.judged = self.health.after(values), step
    self.writer.write(step, values | {"time/eval": time.monotonic() - began})
    self.clock += time.monotonic() - began  # Not the steps' time.

  def agreed(self, received: int) -> int:
    """The signal after which all processes stop now, 0: none.

    Of many, it is what one had received a step ago: nobody waits for the devices to know it.
    """
    if jax.process_count() == 1:
      return received
    before, self.flag = self.flag, processes.highest(received)
    return 0 if before is None else int(before)

  def healthy(self, step: int, checkpoints: Checkpoints) -> bool:
    """Whether a checkpoint replaces the last healthy one: what an evaluation has not seen may not.

    The loss may rise before the next evaluation, and a signal save in between.
    """
    last = retention.last_healthy(checkpoints.directory)
    return self.health.good and (self.judged == step or last is None)

  def leave(self, number: int, step: int, steps: int) -> None:
    self.progress.close()
    message = f"{self.name}: stopped at step {step} of {steps} and saved"
    processes.say(f"{message}; run the same command to go on")
    sys.exit(128 + number)

  def save(self, step: int, state: TrainState, checkpoints: Checkpoints, wait: bool) -> None:
    self.land()  # Raises if the state is not finite.
    began = time.monotonic()
    sums = {} if self.sums is None else self.place.fetch(self.sums)
    sums = {k: [np.asarray(x).tolist() for x in v] for k, v in sums.items()}
    checkpoints.wait()  # Which one is the last healthy one is known when the save before is over.
    extra = {"feed": processes.joint(self.feed.get_state()), "sums": sums, "health": self.health}
    extra["healthy"] = self.healthy(step, checkpoints)
    with profile.mark("save"):
      state = _changing(self.place.unreplicate(state))
      checkpoints.save(step, state, extra, healthy=extra["healthy"])
      if wait:
        checkpoints.wait()
    self.clock += time.monotonic() - began


def _changing(state: TrainState) -> dict[str, Any]:
  """What a checkpoint holds of a state: all but the frozen parameters."""
  names = ("step", "params", "opt_state", "rng", *(["reference"] if state.reference else []))
  return {name: getattr(state, name) for name in names}


@jax.jit
def _add(sums: dict[str, Mean], metrics: dict[str, Mean], keep: bool) -> tuple[dict, jax.Array]:
  """Adds the metrics to the sums (to nothing if not `keep`); also says if the vital are finite."""
  vital = [metrics[k] for k in _VITAL if k in metrics]
  alive = jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(vital)]).all()
  return jax.tree.map(lambda s, m: jnp.where(keep, s, 0) + m, sums, metrics), alive


def _values(means: dict[str, Mean]) -> dict[str, float]:
  """`Mean.value` of fetched means, on the host alone."""
  return {k: float(np.sum(m.total / np.maximum(m.weight, 1e-8))) for k, m in means.items()}


class _Signals:
  """Notes the first SIGTERM or SIGINT; the second one ends the process at once."""

  def __init__(self):
    self.received = 0
    self._old: dict[int, Any] = {}

  def __enter__(self) -> "_Signals":
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._old[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *exc: object) -> None:
    for number, handler in self._old.items():
      signal.signal(number, handler)

  def _note(self, number: int, frame: Any) -> None:
    del frame
    if self.received:
      os._exit(128 + number)
    self.received = number
    # No print: it may not be called again while it runs.
    os.write(2, b"\nstopping after this step; once more to stop at once, unsaved\n")
