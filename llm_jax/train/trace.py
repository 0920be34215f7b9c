"""A trace of jax.profiler as time: which operation had a device when, and why it was idle.

Shape of a trace: planes (a device, or the host) of lines (a stream, or a thread) of events. On GPUs
and TPUs a device has its own plane; on CPUs operations are events of the host's threads.
"""

import collections
import heapq
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from jax.profiler import ProfileData

from llm_jax.train import hlo

MARK = "llm_jax."  # Before the names that `train.profile` and the loop give to the host's work.
WINDOW = "window"
LEFT_OUT = ("evaluate", "save")
# Idle for less than this the device waits for its own next operation, not for the program. ns.
_GAP = 100_000
# What may run beside the computation: it has the time only where nothing else runs.
_BESIDE = ("collective", "transfer", "control")
# Lines of a TPU; those of a GPU begin with "Stream #".
_TPU_LINES = ("XLA Ops", "Async XLA Ops")

Times = tuple[float, float]  # Start and end in nanoseconds, from the start of the trace.
Piece = tuple[float, float, hlo.Op]  # Start, end, and what had this time to itself.


class Span(NamedTuple):
  """An event: an operation, or one of its kernels, and when it ran, in nanoseconds."""

  start: float
  end: float
  op: hlo.Op
  kernel: str = ""


class _Event(NamedTuple):
  """What a trace tells of a span; the last four fields are the arguments of `Programs.find`."""

  start: float
  end: float
  name: str
  program: str
  number: int | None
  kernel: str


class Trace(NamedTuple):
  """What ran.

  Attributes:
    lanes: device -> its streams or threads, each a list of spans, which may be nested but not
      overlap otherwise.
    marks: what the host did, by name: its marks without `MARK`.
    window: of the profiled steps, in order; evaluations and checkpoints between them are left out.
  """

  lanes: dict[str, list[list[Span]]]
  marks: dict[str, list[Times]]
  window: list[Times]


class Shares(NamedTuple):
  """Nanoseconds of the window, summed over devices.

  Attributes:
    window: their sum: that of the window, times devices.
    operations: operation -> (nanoseconds, times that it ran).
    hidden: kind of `hlo.KINDS` -> nanoseconds beside computation, not in `operations`.
    idle: why -> nanoseconds.
    devices: how many.
  """

  window: float
  operations: dict[hlo.Op, tuple[float, int]]
  hidden: dict[str, float]
  idle: dict[str, float]
  devices: int


def newest(directory: str | os.PathLike) -> pathlib.Path:
  """Returns the newest .xplane.pb that jax.profiler wrote under a directory.

  Raises:
    FileNotFoundError: if there is none.
  """
  found = pathlib.Path(directory).rglob("*.xplane.pb")
  path = max(found, key=lambda p: p.stat().st_mtime_ns, default=None)
  if path is None:
    raise FileNotFoundError(f"no .xplane.pb under {directory}")
  return path


def read(trace: bytes) -> Trace:
  """Reads a serialized XSpace, the content of an .xplane.pb."""
  events: dict[str, list[list[_Event]]] = {}
  on_host: list[list[_Event]] = []
  marks: dict[str, list[Times]] = collections.defaultdict(list)
  for plane in ProfileData.from_serialized_xspace(trace).planes:
    if plane.name == "/host:CPU":
      for line in plane.lines:
        on_host.append(_host_line(line, marks))
    elif plane.name.startswith(("/device:GPU:", "/device:TPU:")):
      lines = {line.name: line for line in plane.lines}
      streams = [name for name in lines if name.startswith("Stream #")]
      chosen = streams or [name for name in _TPU_LINES if name in lines]
      events[plane.name] = [_device_line(lines[name]) for name in chosen]
  events = {name: found for name, found in events.items() if any(found)} or {"/host:CPU": on_host}
  programs = hlo.Programs(trace)
  programs.match({e[2:5] for found in events.values() for lane in found for e in lane})

  def span(e: _Event) -> Span:
    return Span(e.start, e.end, programs.find(*e[2:]), e.kernel)

  lanes = {name: [list(map(span, lane)) for lane in found] for name, found in events.items()}
  spans = [span for found in lanes.values() for lane in found for span in lane]
  whole = min((s.start for s in spans), default=0.0), max((s.end for s in spans), default=0.0)
  window = marks.pop(WINDOW, [whole])
  for name in LEFT_OUT:
    for cut in marks.pop(name, ()):
      window = [piece for times in window for piece in _without(times, cut)]
  return Trace(lanes, dict(marks), window)


def share(trace: Trace) -> Shares:
  """Gives each instant of the window to what ran in it on each device.

  Operations that run at once (threads of a CPU, streams of a GPU) have equal parts of it. What is
  beside the computation, such as a collective that overlaps with it, is hidden and has none. So
  operations and idle time add up to the window.
  """
  time: dict[hlo.Op, float] = collections.defaultdict(float)
  count: dict[hlo.Op, collections.Counter] = collections.defaultdict(collections.Counter)
  hidden: dict[str, float] = collections.defaultdict(float)
  idle: dict[str, float] = collections.defaultdict(float)
  for lanes in trace.lanes.values():
    instants = list(_instants([list(exclusive(lane)) for lane in lanes]))
    for begin, end in trace.window:
      for lane in lanes:
        for span in lane:
          count[span.op][span.kernel] += begin <= span.start < end
      at = begin
      for start, stop, active in instants:
        start, stop = max(start, begin), min(stop, end)
        if stop <= start:
          continue
        _wait(idle, at, start, trace.marks)
        at = stop
        first = [op for op in active if op.kind not in _BESIDE]
        for op in first or active:
          time[op] += (stop - start) / len(first or active)
        for kind in {op.kind for op in active if op.kind in _BESIDE} if first else ():
          hidden[kind] += stop - start
      _wait(idle, at, end, trace.marks)
  # An operation of several kernels, such as a product and the sum of its parts, ran once.
  operations = {op: (spent, max(count[op].values())) for op, spent in time.items()}
  hidden.pop("control", None)
  window = sum(end - begin for begin, end in trace.window) * len(trace.lanes)
  return Shares(window, operations, dict(hidden), dict(idle), len(trace.lanes))


def exclusive(spans: Iterable[Span]) -> Iterator[Piece]:
  """Cuts nested spans of one lane into those in which an operation itself runs, in order."""
  stack: list[tuple[float, hlo.Op]] = []
  at = 0.0

  def close(until: float) -> Iterator[Piece]:
    nonlocal at
    while stack and stack[-1][0] <= until:
      end, op = stack.pop()
      if end > at:
        yield at, end, op
        at = end

  for span in sorted(spans, key=lambda span: (span.start, -span.end)):
    yield from close(span.start)
    if stack and span.start > at:
      yield at, span.start, stack[-1][1]
    at = span.start
    stack.append((span.end, span.op))
  yield from close(float("inf"))


def _instants(lanes: list[list[Piece]]) -> Iterator[tuple[float, float, list[hlo.Op]]]:
  """(start, end, what is active) of each piece of time in which something is."""
  starts = heapq.merge(*lanes, key=lambda span: span[0])
  active: list[tuple[float, int, hlo.Op]] = []  # A heap by the end; the number breaks ties.
  at = 0.0
  for number, (start, end, op) in enumerate([*starts, (float("inf"),) * 2 + (hlo.Op(""),)]):
    while active and at < start:
      until = min(active[0][0], start)
      if until > at:
        yield at, until, [entry[2] for entry in active]
      at = until
      while active and active[0][0] <= at:
        heapq.heappop(active)
    at = start
    if end > start:
      heapq.heappush(active, (end, number, op))


def _without(times: Times, cut: Times) -> list[Times]:
  """What is left of a time."""
  (start, end), (begin, until) = times, cut
  pieces = (start, min(end, begin)), (max(start, until), end)
  return [(a, b) for a, b in pieces if a < b]


def _wait(
  idle: dict[str, float], start: float, end: float, marks: Mapping[str, list[Times]]
) -> None:
  """Adds a time without operations to its reasons."""
  if end <= start:
    return
  if end - start < _GAP:
    idle["gaps"] += end - start
    return
  left = end - start
  for name, spans in marks.items():
    part = sum(max(0.0, min(end, b) - max(start, a)) for a, b in spans)
    if part > 0:
      idle[name] += part
      left -= part
  idle["host"] += max(left, 0.0)


def _device_line(line) -> list[_Event]:
  events = []
  for event in line.events:
    name = event.name if line.name in _TPU_LINES else ""
    events.append(_event(event, dict(event.stats), name))
  return events


def _host_line(line, marks: dict[str, list[Times]]) -> list[_Event]:
  """Operations of one thread; what the program marked goes to `marks`."""
  events = []
  for event in line.events:
    name = event.name
    if name.startswith(MARK):
      end = event.start_ns + event.duration_ns
      marks[name.removeprefix(MARK)].append((event.start_ns, end))
    # Each operation has a second event, of no length, at its end.
    elif event.duration_ns and not name.startswith(("end: ", "Threadpool", "Wait for")):
      stats = dict(event.stats)
      if "hlo_op" in stats:
        events.append(_event(event, stats, ""))
  return events


def _event(event, stats: dict[str, Any], otherwise: str) -> _Event:
  """Takes the name of an operation that the event does not tell."""
  name, program = stats.get("hlo_op", otherwise), stats.get("hlo_module", "")
  end = event.start_ns + event.duration_ns
  return _Event(event.start_ns, end, name, program, stats.get("program_id"), event.name)
