"""Where the time of a training step goes: `--profile` of an experiment, and its summary.

A trace of a few steps (for Perfetto, or TensorBoard with xprof) is written, read again and summed
up by kind of operation, by part of the model and by operation.
"""

import collections
import contextlib
import contextvars
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

from llm_jax import rundir
from llm_jax.train import hlo, trace

TOP = 12  # Operations that are printed.
_IDLE = {
  "gaps": "idle: gaps between operations",
  "feed": "idle: waiting for data",
  "host": "idle: waiting for the host",
}
_STEPS: contextvars.ContextVar[range | None] = contextvars.ContextVar("profiled", default=None)


@contextlib.contextmanager
def steps(chosen: range) -> Iterator[None]:
  """In the block, `loop.fit` traces these updates (from 1) of each run that it makes.

  Results and the run's config stay what they are: it only waits for the device before and after.
  """
  token = _STEPS.set(chosen)
  try:
    yield
  finally:
    _STEPS.reset(token)


def mark(name: str) -> jax.profiler.TraceAnnotation:
  """Marks what the host does in a `with` block; it costs a microsecond where nothing is traced."""
  return jax.profiler.TraceAnnotation(trace.MARK + name)


class Watch:
  """Traces the chosen updates of one run; without any it does nothing."""

  def __init__(self, workdir: str | os.PathLike, name: str):
    """Takes where profile/ goes, and the name of the run, shown to people."""
    self._directory, self._name = pathlib.Path(workdir) / "profile", name
    self._chosen = _STEPS.get() if jax.process_index() == 0 else None
    self._left: range | None = None
    self._open: contextlib.ExitStack | None = None
    self._step: jax.profiler.StepTraceAnnotation | None = None

  def begin(self, start: int) -> None:
    """Says which updates are traced of a run that made `start` before. The next one compiles."""
    chosen = self._chosen or range(0)
    self._left = range(max(chosen.start, start + 2), chosen.stop)
    if len(self._left) < len(chosen):
      left = self._left
      rest = f"steps {left.start} to {left[-1]} are" if left else "nothing is"
      self._say(f"the run goes on from step {start} and compiles once: {rest} traced")

  def __enter__(self) -> None:
    """Nothing is open yet: `before` starts the trace."""

  def __exit__(self, *exc: object) -> None:
    """Ends a trace that the run's end cut short; it stays, without a summary."""
    if self._open is not None:
      self._open.close()
      self._say(f"the run ended in between; the trace in {self._directory} has no summary")

  def before(self, number: int, state: Any) -> None:
    """Is called before update `number` of a state; the first one to be traced starts the trace."""
    if self._left is None:
      self.begin(number - 1)
    if number not in self._left:
      return
    if self._open is None:
      jax.block_until_ready(state)
      self._open = recording(self._directory)
    self._step = jax.profiler.StepTraceAnnotation("train", step_num=number)
    self._step.__enter__()

  def after(self, number: int, state: Any) -> float:
    """Is called after it; the last one ends the trace. Returns the seconds that summing up took."""
    if self._open is None or number not in self._left:
      return 0.0
    if number != self._left[-1]:
      self._step.__exit__(None, None, None)
      return 0.0
    jax.block_until_ready(state)
    self._step.__exit__(None, None, None)
    began = time.monotonic()
    self._open.close()
    self._open = None
    path = trace.newest(self._directory)
    try:
      found = summarize(path, self._left)
    except Exception as error:  # A trace of another form is no reason to end a run of days.
      self._say(f"no summary of {path}, it cannot be read: {type(error).__name__}: {error}")
    else:
      rundir.write_json(self._directory / "summary.json", found)
      print(f"\n{table(found)}\n\ntrace: {path}\n", flush=True)
    return time.monotonic() - began

  def _say(self, text: str) -> None:
    print(f"{self._name}: --profile: {text}", file=sys.stderr, flush=True)


def recording(directory: str | os.PathLike) -> contextlib.ExitStack:
  """Starts a trace into a directory; closing what it returns ends and writes it."""
  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0  # It makes a step several times slower.
  stack = contextlib.ExitStack()
  jax.profiler.start_trace(str(directory), profiler_options=options)
  stack.callback(jax.profiler.stop_trace)
  stack.enter_context(mark(trace.WINDOW))
  return stack


def summarize(path: str | os.PathLike, chosen: range) -> dict[str, Any]:
  """Returns where the time of the updates `chosen` went, from an .xplane.pb; for summary.json.

  All figures are those of one update on one device, shares those of its time. What a device did at
  once (threads, streams) shares it, so that kinds and idle time add up to the update. FLOPs are
  those of matrix products, bytes what operations read and write.
  """
  shares = trace.share(trace.read(pathlib.Path(path).read_bytes()))
  count, whole = len(chosen) * shares.devices, max(shares.window, 1.0)

  def entry(members: Iterable[tuple[hlo.Op, float, int]]) -> dict[str, float]:
    members = list(members)
    time = sum(spent for _, spent, _ in members)
    return _time(time / count, time / whole) | {
      "flops": sum(op.flops * runs for op, _, runs in members) / count,
      "bytes": sum(op.bytes * runs for op, _, runs in members) / count,
      "runs": sum(runs for _, _, runs in members) / count,
    }

  ran = [(op, spent, runs) for op, (spent, runs) in shares.operations.items()]
  kinds = _grouped(ran, lambda op: op.kind)
  operations = _grouped(ran, lambda op: (op.program, op.where, op.phase, op.kind))
  return {
    "steps": [chosen.start, chosen[-1]],
    "devices": f"{shares.devices} x {jax.devices()[0].device_kind}",
    "trace": str(path),
    **entry(ran),
    **_time(shares.window / count, 1.0),
    "kinds": [
      {"kind": kind, "what": what} | entry(kinds[kind])
      for kind, what in hlo.KINDS.items()
      if kind in kinds
    ],
    "idle": [
      {"why": why, "what": what} | _time(shares.idle[why] / count, shares.idle[why] / whole)
      for why, what in _IDLE.items()
      if shares.idle.get(why)
    ],
    "hidden": {k: _time(spent / count, spent / whole) for k, spent in shares.hidden.items()},
    "parts": [
      {"part": part, "phase": phase} | entry(members)
      for (part, phase), members in _grouped(ran, lambda op: (_part(op.where), op.phase)).items()
    ],
    "programs": [
      {"program": name} | entry(members)
      for name, members in _grouped(ran, lambda op: op.program).items()
    ],
    "operations": [
      {"where": where, "phase": phase, "kind": kind, "program": program}
      | entry(members)
      | {"longest": max(members, key=lambda member: member[1])[0].name}
      for (program, where, phase, kind), members in operations.items()
    ],
  }


def table(found: dict[str, Any]) -> str:
  """Returns what `summarize` found, for a terminal."""
  first, last = found["steps"]
  title = f"profile of steps {first} to {last}: {_ms(found['seconds'])} ms a step"
  rows = [("where the time goes", "ms", "share", "GFLOP/s", "GB/s")]
  rows += [(entry["what"], *_cells(entry)) for entry in found["kinds"] + found["idle"]]
  rows += [(f"({kind}, hidden)", *_cells(each)) for kind, each in found["hidden"].items()]
  blocks = [f"{title} on {found['devices']}", columns(rows)]
  programs = [entry for entry in found["programs"] if entry["share"] > 0.01]
  if len(programs) > 1:
    rows = [("program", "ms", "share", "GFLOP/s", "GB/s")]
    blocks.append(columns(rows + [(entry["program"], *_cells(entry)) for entry in programs]))
  blocks.append(columns(_part_rows(found["parts"])))
  rows = [("operation, all layers", "phase", "kind", "runs")]
  rows[0] += ("ms", "share", "GFLOP/s", "GB/s", "longest")
  for entry in found["operations"][:TOP]:
    names = entry["where"][:40], (entry["phase"] or entry["program"])[:20], entry["kind"]
    rows.append((*names, f"{entry['runs']:,.0f}", *_cells(entry), entry["longest"][:40]))
  return "\n\n".join([*blocks, columns(rows)])


def columns(rows: list[tuple[str, ...]]) -> str:
  """Returns rows in columns, the first one to the left."""
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  return "\n".join(
    "  ".join(
      cell.rjust(width) if i else cell.ljust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  )


def _grouped(
  ran: Iterable[tuple[hlo.Op, float, int]], key: Callable[[hlo.Op], Any]
) -> dict[Any, list[tuple[hlo.Op, float, int]]]:
  """What ran by a key, what took longest first."""
  groups: dict[Any, list] = collections.defaultdict(list)
  for member in ran:
    groups[key(member[0])].append(member)
  return dict(sorted(groups.items(), key=lambda group: -sum(spent for _, spent, _ in group[1])))


def _part(where: str) -> str:
  """The larger part of the model in which an operation is."""
  found = re.match(r".*?blocks/[^/]+|[^/]+(/[^/]+)?", where)
  return found[0] if found else where


def _time(nanoseconds: float, share: float) -> dict[str, float]:
  return {"seconds": nanoseconds / 1e9, "share": share}


def _part_rows(parts: Iterable[dict[str, Any]]) -> list[tuple[str, ...]]:
  phases = ("forward", "backward", "recompute", "")
  cells: dict[str, dict[str, float]] = collections.defaultdict(dict)
  shares: collections.Counter = collections.Counter()
  for entry in parts:
    cells[entry["part"]][entry["phase"]] = entry["seconds"]
    shares[entry["part"]] += entry["share"]
  used = [phase for phase in phases if any(phase in found for found in cells.values())]
  rows = [("part of the model, ms", *(phase or "no gradient" for phase in used), "share")]
  for part, found in shares.most_common(TOP):
    times = (_ms(cells[part][phase]) if phase in cells[part] else "" for phase in used)
    rows.append((part, *times, _percent(found)))
  return rows


def _cells(entry: dict[str, Any]) -> tuple[str, ...]:
  """Milliseconds, share, and the rates where there are any."""
  rates = (entry.get(name, 0.0) / max(entry["seconds"], 1e-12) / 1e9 for name in ("flops", "bytes"))
  rates = (f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}" if rate else "" for rate in rates)
  return (_ms(entry["seconds"]), _percent(entry["share"]), *rates)


def _ms(seconds: float) -> str:
  return f"{1e3 * seconds:,.2f}" if seconds < 0.1 else f"{1e3 * seconds:,.0f}"


def _percent(share: float) -> str:
  return f"{100 * share:.1f} %"
