"""The compiled programs in a trace of jax.profiler: what each operation is, and where it is from.

A trace holds every program that ran: in the plane "/host:metadata" of its XSpace (xplane.proto of
OpenXLA) as an HloProto (hlo.proto). The numbers of fields below are those of these two.
"""

import collections
import functools
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from llm_jax.train.proto import Message

# In this order they are printed.
KINDS = {
  "matmul": "matrix products",
  "attention": "attention: scores, softmax, values",
  "elementwise": "elementwise and reductions",
  "gather": "gathers, scatters, sorts",
  "copy": "copies, transposes, casts",
  "collective": "collectives, not hidden",
  "transfer": "transfers between host and device",
  "control": "loops and calls",
  "other": "not known",
}

_MATMUL = {"dot", "ragged-dot", "convolution"}
_GATHER = {"gather", "scatter", "sort", "topk"}
_COLLECTIVE = re.compile(
  r"all-reduce|all-gather|all-to-all|reduce-scatter|collective-|partition-id|replica-id"
)
_TRANSFER = re.compile(r"(send|recv|infeed|outfeed)(-done)?$")
_CONTROL = {"while", "conditional", "call", "tuple", "get-tuple-element", "parameter"}
# What moves, repeats or casts elements and computes none.
_MOVES = {
  "bitcast", "bitcast-convert", "broadcast", "concatenate", "constant", "convert", "copy",
  "copy-done", "copy-start", "dynamic-slice", "dynamic-update-slice", "get-tuple-element", "iota",
  "pad", "parameter", "reshape", "reverse", "slice", "transpose", "tuple",
}  # fmt: skip
_SLICES = {"slice", "dynamic-slice", "gather"}
_FREE = _CONTROL | {"bitcast", "constant", "iota", "partition-id", "replica-id"}
# PrimitiveType of xla_data.proto -> bytes; the others (8 bits and less) have one.
_SIZES = {3: 2, 4: 4, 5: 8, 7: 2, 8: 4, 9: 8, 10: 2, 11: 4, 12: 8, 15: 8, 16: 2, 18: 16}
# Parts of a name that JAX, Linen's methods and einsum put in.
_NO_PLACE = re.compile(
  r"[(>.]|^(while|body|cond|scan|closed_call|checkpoint|rematted_computation|shard_map|pjit|"
  r"custom_(jvp|vjp)_call\w*|branch_\d+_fun)$"
)
# Kernels and libraries by what they call themselves, for operations that no program explains.
_NAMES = (
  ("collective", re.compile(r"nccl|all.?reduce|all.?gather|reduce.?scatter|all.?to.?all", re.I)),
  ("transfer", re.compile(r"memcpy.?(h2d|d2h|p2p)", re.I)),
  ("attention", re.compile(r"fmha|flash|sdpa|splash|attention", re.I)),
  ("matmul", re.compile(r"gemm|nvjet|cutlass|cublas|matmul|xmma|\b(dot|convolution)", re.I)),
  ("gather", re.compile(r"gather|scatter|sort|top.?k", re.I)),
  ("copy", re.compile(r"memcpy|memset|copy|transpose|convert$", re.I)),
  ("elementwise", re.compile(r"fusion|reduce|add|multiply|select|exp|wrapped", re.I)),
)


class Op(NamedTuple):
  """An operation of a compiled program.

  Attributes:
    name: in the program, such as "fusion.3"; of an unknown one the kernel's.
    program: such as "jit_step".
    kind: a key of `KINDS`.
    where: the part of the model, such as "blocks/mlp/up" (layers have one name), "loss" (with the
      head), "update" (the optimizer and norms), a program without a gradient, or "unnamed".
    phase: forward | backward | recompute, or "" outside of a gradient.
    flops: of the matrix products in it, once.
    bytes: of what it reads and writes, once: arguments and results, of slices what they touch.
  """

  name: str
  program: str = ""
  kind: str = "other"
  where: str = ""
  phase: str = ""
  flops: int = 0
  bytes: int = 0


class Programs:
  """The operations of all programs in a trace."""

  def __init__(self, trace: bytes):
    """Reads the programs in a serialized XSpace."""
    self._all: dict[str, list[tuple[int | None, dict[str, Op]]]] = collections.defaultdict(list)
    self._found: dict[tuple[str, int | None], dict[str, Op]] = {}
    self._unknown: dict[tuple[str, str], Op] = {}
    for name, module in _modules(Message(trace)):
      program = module.text(1)
      number = re.search(r"\((\d+)\)$", name)
      found = int(number[1]) if number else None, _operations(program, module)
      self._all[program].append(found)

  def match(self, ran: Iterable[tuple[str, str, int | None]]) -> None:
    """Says which programs ran, before `find` is asked.

    The number alone does not tell: a program from a cache of compiled ones (JAX's persistent one)
    runs under the number that it had when it was compiled, which may be another program's here. So
    it is the one of this name that has most of the operations, of several that with the number,
    else the smallest.

    Args:
      ran: (operation, program, its number if there is one), as for `find`.
    """
    names: dict[tuple[str, int | None], set[str]] = collections.defaultdict(set)
    for name, program, number in ran:
      names[program, number].add(_plain(name))
    for (program, number), some in names.items():

      def rank(known, some=some, number=number):
        return len(some & known[1].keys()), known[0] == number, -len(known[1])

      self._found[program, number] = max(self._all.get(program, [(None, {})]), key=rank)[1]

  def find(self, name: str, program: str, number: int | None, kernel: str) -> Op:
    """Returns an operation, or the best guess from its names where no program has it.

    Args:
      name: of the operation; "" if the trace does not say.
      program: of the program.
      number: of the program, if there is one.
      kernel: what ran, such as "loop_add_fusion_3".
    """
    name = _plain(name)
    ops = self._found.get((program, number), {})
    if name in ops:
      return ops[name]
    key = (program, name or kernel)
    if key not in self._unknown:
      kind = next((k for k, names in _NAMES if names.search(f"{kernel} {name}")), "other")
      self._unknown[key] = Op(name or kernel, program, kind, "unnamed")
    return self._unknown[key]


def place_of(op_name: str) -> tuple[str, str]:
  """Returns (where, phase) of an operation from the name that JAX gave it.

  "jit(step)/transpose(jvp(Transformer))/blocks_3/mlp/up/dot_general" is ("blocks/mlp/up",
  "backward"). What no module claims is the loss where it has a gradient, and "" where it has none.
  Of several names, as of collectives that XLA put together, the first one counts.
  """
  parts = re.split("[;:]", op_name)[0].split("/")[1:]
  text = "/".join(parts)
  phase = "backward" if "transpose(" in text else "forward" if "jvp(" in text else ""
  phase = "recompute" if "rematted_computation" in text else phase
  module, path = "", []
  for part in parts[:-1]:
    model = re.fullmatch(r"(?:\w+\()*jvp\(([A-Z]\w*)\)+", part)
    if model:
      module, path = model[1], []
    if _NO_PLACE.search(part):
      continue
    if not path and part[0].isupper():  # The model itself, which a gradient puts in brackets.
      module = part
      continue
    part = re.sub(r"_\d+$", "", part)
    if not path or path[-1] != part:
      path.append(part)
  return "/".join(path) or module or ("loss" if phase else ""), phase


def kind_of(opcode: str, inside: set[str], target: str, where: str) -> str:
  """Returns the key of `KINDS` of an operation.

  Args:
    opcode: of the instruction.
    inside: opcodes of its fused computations that make arrays; empty without them.
    target: of a custom call.
    where: the part of the model; what attention computes itself is of its kind.
  """
  opcodes = {opcode} | inside
  if any(_COLLECTIVE.match(code) for code in opcodes):
    return "collective"
  if _TRANSFER.match(opcode):
    return "transfer"
  kind = "elementwise"
  if opcode == "custom-call":
    kind = next((k for k, names in _NAMES[2:] if names.search(target)), "other")
  elif opcodes & _MATMUL:
    kind = "matmul"
  elif opcodes & _GATHER:
    kind = "gather"
  elif opcode in _CONTROL and not inside:
    kind = "control"
  elif (inside or {opcode}) <= _MOVES:
    kind = "copy"
  of_attention = re.search(r"(^|/)(\w*attention|cross)$", where)
  return "attention" if of_attention and kind in ("matmul", "elementwise", "other") else kind


def _plain(name: str) -> str:
  """The name of an operation that a trace may give as a line of HLO."""
  return name.removeprefix("%").split(" ")[0]


class _Instruction(NamedTuple):
  name: str
  opcode: str
  op_name: str
  number: int
  shape: tuple[int, ...]  # Of the first array, if it gives several.
  size: int  # Bytes of all.
  operands: list[int]
  called: list[int]
  contracted: list[int]
  target: str


class _Computation(NamedTuple):
  body: dict[int, _Instruction]
  root: int


def _operations(program: str, module: Message) -> dict[str, Op]:
  """All instructions of a module by name."""
  computations: dict[int, _Computation] = {}
  for computation in module.messages(3):
    body = [_instruction(x) for x in computation.messages(2)]
    number = computation.integer(5)
    computations[number] = _Computation({x.number: x for x in body}, computation.integer(6))

  @functools.cache
  def inside(number: int) -> tuple[frozenset[str], int, str]:
    """Opcodes and FLOPs of a fused computation, and a name in it."""
    body = computations[number].body
    # Scalars are the indices of slices and loops, not what takes time.
    opcodes, flops = {x.opcode for x in body.values() if x.shape and x.opcode != "fusion"}, 0
    name = next((x.op_name for x in reversed(body.values()) if x.op_name), "")
    for x in body.values():
      flops += _dot_flops(x, body)
      for inner in x.called if x.opcode == "fusion" else ():
        opcodes, flops = opcodes | inside(inner)[0], flops + inside(inner)[1]
        name = name or inside(inner)[2]
    return frozenset(opcodes), flops, name

  ops = {}
  for body, _ in computations.values():
    for x in body.values():
      fused = x.called if x.opcode in ("fusion", "async-start") else []
      # What XLA made itself has no name: it gets that of what is in it, or of what it reads.
      read = (body[n] for n in x.operands if n in body and body[n].opcode != "parameter")
      names = (x.op_name, *(inside(n)[2] for n in fused), *(each.op_name for each in read))
      name = next((each for each in names if each), "")
      where, phase = place_of(name) if name else ("unnamed", "")
      kind = kind_of(x.opcode, set().union(*(inside(n)[0] for n in fused)), x.target, where)
      flops = _dot_flops(x, body) + sum(inside(n)[1] for n in fused)
      moved = _traffic(x, body, [computations[n] for n in fused])
      ops[x.name] = Op(x.name, program, kind, where, phase, flops, moved)
  # In a program with a gradient, what is outside of it applies it.
  rest = "update" if any(op.phase for op in ops.values()) else program
  return {name: op if op.where else op._replace(where=rest) for name, op in ops.items()}


def _instruction(proto: Message) -> _Instruction:
  target, contracted = proto.text(28), []
  if 30 in proto:
    contracted = proto.message(30).integers(1)
  elif "gemm" in target or "matmul" in target:
    contracted = _library_contraction(proto.data(43))
  shape, size = _array(proto.message(3))
  return _Instruction(
    proto.text(1),
    proto.text(2),
    proto.message(7).text(2),
    proto.integer(35),
    shape,
    size,
    proto.integers(36),
    proto.integers(38),
    contracted,
    target,
  )


def _dot_flops(x: _Instruction, body: dict[int, _Instruction]) -> int:
  """2 M N K of a matrix product, 0 of anything else."""
  left = body[x.operands[0]].shape if x.operands and x.operands[0] in body else ()
  if not x.contracted or max(x.contracted) >= len(left):
    return 0
  return 2 * math.prod(x.shape) * math.prod(left[axis] for axis in x.contracted)


def _traffic(x: _Instruction, body: dict[int, _Instruction], fused: Sequence[_Computation]) -> int:
  """Bytes that an instruction reads and writes."""
  operands = [body[n].size for n in x.operands if n in body]
  if x.opcode in _FREE:
    return 0
  if x.opcode in _SLICES:
    return 2 * x.size
  if x.opcode == "dynamic-update-slice":
    return 2 * operands[1]
  if x.opcode != "fusion":
    return x.size + sum(operands)
  return sum(_read(c, p) for c in fused for p in c.body.values() if p.opcode == "parameter") + sum(
    _written(c, c.root) for c in fused
  )


def _read(computation: _Computation, parameter: _Instruction) -> int:
  """Bytes of a fusion's argument that it reads: all, or what slices of it are."""
  touched = 0
  for x in computation.body.values():
    if parameter.number not in x.operands:
      continue
    if x.opcode == "bitcast":
      touched += min(_read(computation, x), parameter.size)
    elif x.opcode in _SLICES and x.operands[0] == parameter.number:
      touched += x.size
    elif x.opcode != "dynamic-update-slice" or x.operands[0] != parameter.number:
      return parameter.size  # Of what is updated in its place nothing is read.
  return min(touched, parameter.size)


def _written(computation: _Computation, number: int) -> int:
  """Bytes of a fusion's result that it writes: all, or what it updates in its place."""
  root = computation.body[number]
  if root.opcode == "tuple":
    return sum(_written(computation, n) for n in root.operands)
  if root.opcode == "bitcast":
    return _written(computation, root.operands[0])
  updates = root.opcode == "dynamic-update-slice"
  return computation.body[root.operands[1]].size if updates else root.size


def _library_contraction(config: bytes) -> list[int]:
  """The left operand's contracted axes in the configuration of a call of cuBLAS, which is JSON."""
  try:
    found = json.loads(config)["gemm_backend_config"]["dot_dimension_numbers"]
    return [int(axis) for axis in found["lhs_contracting_dimensions"]]
  except (ValueError, KeyError, TypeError):
    return []


def _array(proto: Message) -> tuple[tuple[int, ...], int]:
  """Dimensions of an array, or of a tuple's first one, and bytes, or those of all of them."""
  if 4 in proto:
    arrays = [_array(each) for each in proto.messages(4)]
    return arrays[0][0], sum(size for _, size in arrays)
  shape = tuple(proto.integers(3))
  return shape, math.prod(shape) * _SIZES.get(proto.integer(2), 1)


def _modules(space: Message) -> Iterator[tuple[str, Message]]:
  """(name, HloModuleProto) of each program of an XSpace."""
  for plane in space.messages(1):
    if plane.text(2) != "/host:metadata":
      continue
    for entry in plane.messages(4):
      metadata = entry.message(2)
      for stat in metadata.messages(5):
        if 6 in stat:
          yield metadata.text(2), stat.message(6).message(1)
