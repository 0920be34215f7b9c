"""What a compiled program sends between devices: its collectives, from the text of its HLO."""

import collections
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_SIZES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s64": 8, "u64": 8}
_SIZES |= {"f64": 8, "s32": 4, "u32": 4, "f32": 4}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([\w-]+)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:body|condition|calls|to_apply)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"  # A range of numbers, shaped, its axes in another order.


class Collective(NamedTuple):
  """Collectives of a step that are alike.

  Attributes:
    kind: one of `KINDS`; an all-reduce of which every device then keeps its own part is a
      "reduce-scatter": a GPU's compiler makes it one, a CPU's does not.
    count: how often a step runs it, loops counted.
    bytes: of the whole array on a device: of what is gathered, or of what is added up.
    group: the devices that take part, such as (0, 8, 16).
    where: what JAX called the operation.
  """

  kind: str
  count: int
  bytes: int
  group: tuple[int, ...]
  where: str

  @property
  def sent(self) -> float:
    """Bytes that a device sends in all, by the best known algorithms for large arrays.

    (n - 1) / n of the array, twice that for an all-reduce (Thakur et al. 2005, "Optimization of
    collective communication operations in MPICH", sections 4 and 5).
    """
    share = (len(self.group) - 1) / max(len(self.group), 1)
    once = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)
    return self.count * self.bytes * once


def collectives_of(text: str) -> list[Collective]:
  """Returns the collectives in `compiled.as_text()`, the largest sum of bytes first.

  A loop whose number of rounds the compiler does not know counts once.

  Raises:
    ValueError: if a group of devices is written in a way that is not known here.
  """
  program = _Program(text)
  found: collections.Counter[Collective] = collections.Counter()
  for name, times in program.runs().items():
    for line in program.computations[name]:
      kind = line.opcode.removesuffix("-start")
      if kind in KINDS and times and len(group := _group(line)) > 1:
        size = _size(line) * (len(group) if kind == "reduce-scatter" else 1)
        if kind == "all-reduce" and program.is_cut(name, line.name):
          kind = "reduce-scatter"
        where = re.search(r'op_name="([^"]*)"', line.rest)
        found[Collective(kind, 0, size, group, where[1] if where else "")] += times
  merged = [one._replace(count=count) for one, count in found.items()]
  return sorted(merged, key=lambda one: -one.count * one.bytes)


class _Line(NamedTuple):
  """An instruction: %name = result opcode(rest."""

  name: str
  result: str
  opcode: str
  rest: str

  def calls(self) -> Iterator[tuple[str, int]]:
    """The computations that it runs, and how often."""
    trips = _TRIPS.search(self.rest) if self.opcode == "while" else None
    for name in _CALLED.findall(self.rest):
      yield name, int(trips[1]) if trips else 1
    for names in _BRANCHES.findall(self.rest):
      yield from ((name.strip().lstrip("%"), 1) for name in names.split(","))

  def reads(self) -> list[str]:
    """The names of its operands."""
    inside = self.rest.split(")", 1)[0]
    return re.findall(r"%([\w.-]+)", inside)


class _Program:
  """A module's computations, and who calls whom."""

  def __init__(self, text: str):
    self.computations: dict[str, list[_Line]] = {}
    self.entry, name = "", ""
    for line in text.splitlines():
      if head := _COMPUTATION.match(line):
        name = head[1]
        self.computations[name] = []
        self.entry = name if line.startswith("ENTRY") else self.entry
      elif name and (found := _INSTRUCTION.match(line)):
        self.computations[name].append(_Line(*found.groups()))

  def runs(self) -> dict[str, int]:
    """How often each computation runs in one run of the program."""
    times: collections.Counter[str] = collections.Counter()

    def visit(name: str, count: int) -> None:
      times[name] += count
      for line in self.computations.get(name, ()):
        for callee, rounds in line.calls():
          if callee in self.computations:
            visit(callee, count * rounds)

    visit(self.entry, 1)
    return times

  def is_cut(self, computation: str, name: str) -> bool:
    """Whether all that reads an array, or the parts of a tuple, takes a part of it by its place."""
    users = [line for line in self.computations[computation] if name in line.reads()]
    return bool(users) and all(self._takes_part(computation, line, name) for line in users)

  def _takes_part(self, computation: str, line: _Line, name: str) -> bool:
    if line.opcode in ("get-tuple-element", "bitcast", "reshape", "copy", "transpose", "convert"):
      return self.is_cut(computation, line.name)
    if line.opcode == "dynamic-slice":
      return line.reads()[0] == name
    callees = [callee for callee, _ in line.calls()]
    if line.opcode not in ("fusion", "call") or not callees:
      return False
    inside = self.computations[callees[0]]
    places = [i for i, operand in enumerate(line.reads()) if operand == name]
    parameters = {x.rest.split(")", 1)[0]: x.name for x in inside if x.opcode == "parameter"}
    return all(self.is_cut(callees[0], parameters[str(i)]) for i in places)


def _size(line: _Line) -> int:
  """Bytes of an instruction's result."""
  sizes = [
    _SIZES.get(dtype, 1) * math.prod(int(n) for n in dims.split(",") if n)
    for dtype, dims in _ARRAY.findall(line.result)
  ]
  # These begin with what goes in.
  if line.opcode in ("all-gather-start", "collective-permute-start"):
    return max(sizes)
  return sum(sizes)


def _group(line: _Line) -> tuple[int, ...]:
  """The first group of devices that take part."""
  text = line.rest
  if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", text):
    return int(pairs[1]), int(pairs[2])
  if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
    return tuple(int(n) for n in listed[1].split(",") if n)
  if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=" + _IOTA, text):
    devices = _ids(iota[3], iota[4])
    return tuple(devices.reshape(int(iota[1]), int(iota[2]))[0].tolist())
  named = re.search(
    rf"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({_IOTA}\))? \{{([^}}]*)\}}", text
  )
  if named and "(" not in named[4]:  # Not a part of an axis.
    axes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
    shape = list(axes.values())
    devices = _ids(named[2], named[3]) if named[2] else np.arange(math.prod(shape))
    chosen = re.findall(r"'(\w+)'", named[4])
    first = tuple(slice(None) if name in chosen else 0 for name in axes)
    return tuple(devices.reshape(shape)[first].ravel().tolist())
  raise ValueError(f"a group of devices in an unknown form: {text[:300]}")


def _ids(shape: str, order: str | None) -> np.ndarray:
  """The numbers of devices "64,8" in the order "1,0" of their axes."""
  sizes = [int(n) for n in shape.split(",")]
  ids = np.arange(math.prod(sizes)).reshape(sizes)
  return (ids.transpose([int(n) for n in order.split(",")]) if order else ids).ravel()
