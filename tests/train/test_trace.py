"""Traces of CPUs, GPUs and TPUs: what an operation is, and that the time adds up."""

import json

import numpy as np
import pytest

from llm_jax.train import hlo, trace
from llm_jax.train.proto import Message


def message(fields):
  """Encodes {field number: value, or list of values} as a protocol buffer."""
  out = b""
  for number, values in fields.items():
    for value in values if isinstance(values, list) else [values]:
      if isinstance(value, int):
        out += varint(number << 3) + varint(value)
      else:
        data = value.encode() if isinstance(value, str) else value
        data = message(data) if isinstance(data, dict) else data
        out += varint(number << 3 | 2) + varint(len(data)) + data
  return out


def varint(value):
  out = b""
  while value > 127:
    out, value = out + bytes([value & 127 | 128]), value >> 7
  return out + bytes([value])


def array(*shape, kind=16):
  """A ShapeProto, of bfloat16 if nothing else is said."""
  return {2: kind, 3: b"".join(map(varint, shape))}


def instruction(number, name, opcode, shape, operands=(), where="", **more):
  fields = {1: name, 2: opcode, 3: shape, 35: number, 36: b"".join(map(varint, operands))}
  return fields | {7: {2: where}} | {int(key[1:]): value for key, value in more.items()}


def module(name, *computations):
  """An HloProto; a computation is (number, root, instructions)."""
  return {1: {1: name, 3: [{5: n, 6: root, 2: body} for n, root, body in computations]}}


def plane(name, lines, stats=()):
  """An XPlane: line -> [(event, start, length, {stat: text or integer})], in microseconds."""
  texts = sorted({e[0] for events in lines.values() for e in events})
  keys = sorted({key for events in lines.values() for e in events for key in e[3]})

  def event(kernel, start, length, about):
    found = [
      {1: keys.index(key) + 1, (4 if isinstance(value, int) else 5): value}
      for key, value in about.items()
    ]
    return {1: texts.index(kernel) + 1, 2: start * 10**6, 3: length * 10**6, 4: found}

  return {
    2: name,
    3: [{2: line, 3: 0, 4: [event(*e) for e in events]} for line, events in lines.items()],
    4: [{1: i + 1, 2: {1: i + 1, 2: text}} for i, text in enumerate(texts)],
    5: [{1: i + 1, 2: {1: i + 1, 2: key}} for i, key in enumerate(keys)],
  }


def programs_plane(**protos):
  entries = [{1: i, 2: {2: f"{n}(7)", 5: {1: 1, 6: p}}} for i, (n, p) in enumerate(protos.items())]
  return {2: "/host:metadata", 4: entries}


STEP = "jit(step)/transpose(jvp(Transformer))/Transformer._run_blocks/blocks_3/"
GEMM = json.dumps(
  {"gemm_backend_config": {"dot_dimension_numbers": {"lhs_contracting_dimensions": ["1"]}}}
)
PROGRAM = module(
  "jit_step",
  (
    1,
    5,
    [
      instruction(1, "x", "parameter", array(64, 32)),
      instruction(2, "w", "parameter", array(32, 16)),
      instruction(
        3, "cublas.1", "custom-call", {2: 13, 4: [array(64, 16), array(256, kind=6)]}, (1, 2),
        f"{STEP}mlp/up/up/dot_general", f28="__cublas$gemm", f43=GEMM,
      ),
      instruction(4, "all-reduce-start.1", "all-reduce-start", array(64, 16), (3,), f"{STEP}mlp"),
      instruction(5, "fusion.2", "fusion", array(64, 16), (3,), f"{STEP}mlp/mul", f38=varint(2)),
    ],
  ),
  (
    2,
    12,
    [
      instruction(10, "p", "parameter", array(64, 16)),
      instruction(11, "c", "constant", array()),
      instruction(12, "m", "multiply", array(64, 16), (10, 10)),
    ],
  ),
)  # fmt: skip


def about(op):
  return {"hlo_op": op, "hlo_module": "jit_step", "program_id": 7}


def gpu_trace():
  """100 us of two streams: a product of two kernels, a fusion under a collective, a copy, idle."""
  compute = [
    ("void cutlass::Kernel2<gemm>", 0, 20, about("cublas.1")),
    ("splitKreduce_kernel", 20, 10, about("cublas.1")),
    ("loop_multiply_fusion_2", 30, 20, about("fusion.2")),
    ("sm90_fmha_flash_fprop", 70, 10, {}),
  ]
  beside = [("ncclDevKernel_AllReduce_Sum_bf16_RING_LL", 40, 20, about("all-reduce-start.1"))]
  host = [("llm_jax.window", 0, 400, {}), ("llm_jax.feed", 100, 200, {})]
  return message(
    {
      1: [
        programs_plane(jit_step=PROGRAM),
        plane(
          "/device:GPU:0",
          {
            "Stream #7(Kernel)": compute,
            "Stream #9(Kernel)": beside,
            "Stream #11(MemcpyH2D)": [("MemcpyH2D", 80, 5, {})],
            "XLA Ops": [("derived", 0, 60, {})],
          },
        ),
        plane("/host:CPU", {"python": host}),
      ]
    }
  )


def test_a_gpus_streams_are_shared_out():
  shares = trace.share(trace.read(gpu_trace()))
  spent = {op.name: (op.kind, round(time / 1e3), runs) for op, (time, runs) in
           shares.operations.items()}  # fmt: skip
  assert spent == {
    "cublas.1": ("matmul", 30, 1),  # Two kernels, one product.
    "fusion.2": ("elementwise", 20, 1),
    "all-reduce-start.1": ("collective", 10, 1),  # Of 20 us half is beside the fusion.
    "sm90_fmha_flash_fprop": ("attention", 10, 1),
    "MemcpyH2D": ("transfer", 5, 1),
  }
  assert shares.hidden == {"collective": pytest.approx(10e3)}
  idle = {why: round(time / 1e3) for why, time in shares.idle.items()}
  assert idle == {"gaps": 10, "feed": 200, "host": 115}
  total = sum(time for time, _ in shares.operations.values()) + sum(shares.idle.values())
  assert total == pytest.approx(shares.window) and shares.devices == 1


def test_a_program_says_what_its_operations_are():
  ops = {op.name: op for op in trace.share(trace.read(gpu_trace())).operations}
  product = ops["cublas.1"]
  assert (product.where, product.phase) == ("blocks/mlp/up", "backward")
  assert product.flops == 2 * 64 * 16 * 32
  assert product.bytes == 2 * (64 * 32 + 32 * 16 + 64 * 16) + 256
  assert ops["fusion.2"].bytes == 2 * 2 * 64 * 16 and ops["fusion.2"].where == "blocks/mlp"


def test_a_tpus_loop_has_only_the_time_that_its_body_leaves():
  lines = {
    "XLA Ops": [
      ("%while.1 = (bf16[8]) while(...)", 0, 100, {"hlo_module": "jit_step"}),
      ("%fusion.2 = bf16[64,16] fusion(...)", 10, 40, {"hlo_module": "jit_step"}),
      ("%convolution.9 = bf16[8,8] convolution(...)", 50, 50, {"hlo_module": "jit_step"}),
    ],
    "XLA Modules": [("jit_step(7)", 0, 100, {})],
    "Async XLA Ops": [("%all-gather.4", 60, 30, {"hlo_module": "jit_step"})],
  }
  space = message({1: [programs_plane(jit_step=PROGRAM), plane("/device:TPU:0", lines)]})
  shares = trace.share(trace.read(space))
  spent = {op.name: round(time / 1e3) for op, (time, _) in shares.operations.items()}
  assert spent == {"while.1": 10, "fusion.2": 40, "convolution.9": 50}
  assert {op.name: op.kind for op in shares.operations}["convolution.9"] == "matmul"
  assert shares.hidden == {"collective": pytest.approx(30e3)}


def test_threads_share_an_instant_and_evaluations_are_left_out():
  first, second = hlo.Op("a", kind="copy"), hlo.Op("b", kind="matmul")
  lanes = {"/host:CPU": [
    [trace.Span(0, 100, first), trace.Span(20, 60, second)], [trace.Span(50, 150, second)],
  ]}  # fmt: skip
  shares = trace.share(trace.Trace(lanes, {}, [(0, 70), (90, 200)]))
  # a: 0 to 20, then half of 60 to 70 and 90 to 100. b: 20 to 60, the other half, 100 to 150.
  assert {op.name: time for op, (time, _) in shares.operations.items()} == {"a": 30, "b": 100}
  assert shares.window == 180 and shares.idle == {"gaps": 50}


def test_the_time_of_random_traces_adds_up():
  rng = np.random.default_rng(0)
  kinds = list(hlo.KINDS)
  for _ in range(20):
    lanes = []
    for lane in range(3):
      ends = np.sort(rng.integers(0, 10**6, 20).astype(float)).reshape(-1, 2)
      ops = [hlo.Op(f"{lane}.{i}", kind=kinds[rng.integers(len(kinds))]) for i in range(10)]
      lanes.append([trace.Span(a, b, op) for (a, b), op in zip(ends, ops, strict=True)])
    marks = {"feed": [(2e5, 4e5)]}
    shares = trace.share(trace.Trace({"x": lanes}, marks, [(1e5, 9e5)]))
    spent = sum(time for time, _ in shares.operations.values())
    assert spent + sum(shares.idle.values()) == pytest.approx(8e5)


@pytest.mark.parametrize(
  ("name", "place"),
  [
    (f"{STEP}mlp/up/up/dot_general", ("blocks/mlp/up", "backward")),
    ("jit(step)/jvp(Transformer)/final_norm/mul", ("final_norm", "forward")),
    ("jit(step)/jvp(Transformer)/jit(_take)/gather", ("Transformer", "forward")),
    ("jit(step)/transpose(jvp())/while/body/brv,dv->brd/dot_general", ("loss", "backward")),
    (
      "jit(step)/transpose(jvp(Transformer))/checkpoint/rematted_computation/blocks_0/mlp/mul",
      ("blocks/mlp", "recompute"),
    ),
    ("jit(roll)/while/body/closed_call/Transformer/blocks_1/mlp/mul", ("blocks/mlp", "")),
    ("jit(step)/jit(clip)/min", ("", "")),
    ("jit(step)/jvp(Critic)/decoder/blocks/mlp/a:mlp/b", ("decoder/blocks/mlp", "forward")),
  ],
)
def test_names_of_jax_say_where_an_operation_is_from(name, place):
  assert hlo.place_of(name) == place


@pytest.mark.parametrize(
  ("opcode", "inside", "where", "kind"),
  [
    ("fusion", {"dot", "add"}, "blocks/mlp", "matmul"),
    ("fusion", {"dot", "add"}, "blocks/attention", "attention"),
    ("fusion", {"exponential"}, "blocks/attention", "attention"),
    ("fusion", {"transpose", "convert"}, "blocks/attention", "copy"),
    ("fusion", {"multiply", "gather"}, "loss", "gather"),
    ("reduce", set(), "final_norm", "elementwise"),
    ("fusion", {"add"}, "attention_norm", "elementwise"),
    ("all-gather-start", set(), "", "collective"),
    ("while", set(), "", "control"),
  ],
)
def test_kinds(opcode, inside, where, kind):
  assert hlo.kind_of(opcode, inside, "", where) == kind


def test_a_fusion_reads_and_writes_of_slices_what_they_touch():
  layers, one = array(12, 8, 8, kind=11), array(1, 8, 8, kind=11)
  body = [
    instruction(20, "stack", "parameter", layers),
    instruction(21, "i", "parameter", array(kind=4)),
    instruction(22, "slice", "dynamic-slice", one, (20, 21)),
    instruction(23, "into", "parameter", layers),
    instruction(24, "sum", "add", one, (22, 22)),
    instruction(25, "update", "dynamic-update-slice", layers, (23, 24, 21)),
  ]
  outer = [
    instruction(1, "a", "parameter", layers),
    instruction(2, "f", "fusion", layers, (1, 1, 1), f38=varint(2)),
  ]
  programs = hlo.Programs(message({1: programs_plane(p=module("p", (1, 2, outer), (2, 25, body)))}))
  programs.match([("f", "p", 7)])
  assert programs.find("f", "p", 7, "").bytes == 2 * 4 * 64 + 4


def test_what_is_no_protocol_buffer_is_refused():
  for broken in (b"\xff", b"\x07"):
    with pytest.raises(ValueError, match="no protocol buffer"):
      Message(broken)


@pytest.mark.parametrize("number", [2, 3, 99, None])
def test_a_program_is_known_by_its_operations_where_its_number_is_not_its_own(number):
  """As that of one which a cache of compiled programs holds: 3 is the larger program's here."""
  step, body = "jit(step)/jvp(Transformer)/mlp/up/dot_general", []
  for width, names in ((8, ("dot.1", "sine.1")), (32, ("dot.1", "sine.1", "dot.2", "cosine.1"))):
    product = {"f30": {1: varint(1)}}
    inputs = [instruction(1, "x", "parameter", array(width, width))]
    made = [
      instruction(2 + n, each, each[:-2], array(width, width), (1, 1), step, **product)
      for n, each in enumerate(names)
    ]
    body.append(module("jit_step", (1, 2, inputs + made)))
  entries = [{1: n, 2: {2: f"jit_step({n})", 5: {1: 1, 6: b}}} for n, b in enumerate(body, 2)]
  programs = hlo.Programs(message({1: {2: "/host:metadata", 4: entries}}))
  ran = [(name, "jit_step", number) for name in ("dot.1", "sine.1")]
  programs.match(ran)
  # Where both have what ran, the number counts; one that is of neither is no reason for the larger.
  width = 32 if number == 3 else 8
  assert programs.find("dot.1", "jit_step", number, "").flops == 2 * width**3
  programs.match([*ran, ("cosine.1", "jit_step", number)])
  assert programs.find("dot.1", "jit_step", number, "").flops == 2 * 32**3
  assert programs.find("gemm", "jit_step", number, "").where == "unnamed"
