"""cuDNN's attention on a CPU: all around its two calls, and these as far as their lowering."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import config
from llm_jax.errors import UserError
from llm_jax.models import backends, flash
from llm_jax.models.dot_product import attention
from llm_jax.models.transformer import Transformer
from llm_jax.train import parallel
from tests.models import fake_cudnn

T, H, N, K, M = 150, 4, 2, 8, 4  # T is no multiple of a tile.


def texts(*sizes, before=0):
  """Segments [T] of texts of these sizes behind so much padding, and padding behind."""
  row = np.zeros(T, np.int32)
  ends = before + np.cumsum(sizes)
  for i, (size, end) in enumerate(zip(sizes, ends, strict=True)):
    row[end - size : end] = i + 1
  return row


PACKED = jnp.asarray([texts(70, 1, 40, 30), texts(150), texts(90, 20, before=9), texts()])
WHOLE = jnp.asarray([texts(120), texts(150), texts(1), texts()])


def arrays(kv_heads=N, rows=4, dtype=jnp.float32):
  shapes = [(rows, T, H, K), (rows, kv_heads, T, K), (rows, kv_heads, T, K), (rows, T, H, K)]
  draw = np.random.default_rng(0)
  return [jnp.asarray(draw.standard_normal(shape), dtype) for shape in shapes]


def outcome(segments, kv_heads=N, **fields):
  """(output, gradients) of cuDNN's way and of "xla", with weights that count padding too."""
  q, k, v, weights = arrays(kv_heads)
  how = {"scale": 0.4, "window": backends.NO_WINDOW} | fields

  def both(ours):
    def total(q, k, v):
      if ours:
        out = flash.attention(q, k, v, segments, max_segments=how.get("most", M), **plain)
      else:
        out = attention(q, k, v, segments=segments, **plain)
        out = out if segments is None else jnp.where((segments > 0)[..., None, None], out, 0)
      return (out * weights).sum(), out

    plain = {name: how[name] for name in ("scale", "window")}
    grads, out = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(q, k, v)
    return out, grads

  return both(True), both(False)


@pytest.mark.long
@pytest.mark.parametrize(
  ("segments", "fields"),
  [
    (PACKED, {}),
    (PACKED, {"window": 13, "kv_heads": H}),
    (WHOLE, {"most": 1, "window": 31}),
    (None, {"window": 31}),
  ],
  ids=["packed", "packed-window", "whole", "unsegmented"],
)
def test_values_and_gradients_are_those_of_xla_and_padding_is_zero(segments, fields, monkeypatch):
  fake_cudnn.install(monkeypatch)
  (own, own_grads), (out, grads) = outcome(segments, **fields)
  np.testing.assert_allclose(own, out, atol=2e-6)
  for one, other in zip(own_grads, grads, strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_row_that_does_not_fit_is_nan_and_no_other_is(monkeypatch):
  fake_cudnn.install(monkeypatch)
  again = np.where(texts(40, 40, 40) == 3, 1, texts(40, 40, 40))  # Text 1 in two pieces.
  segments = jnp.asarray([texts(9, 9, 9, 9, 9), texts(9, 9, 9, 9), again, texts(5)])
  run = jax.jit(flash.attention, static_argnames=("scale", "window", "max_segments"))
  out = run(*arrays()[:3], segments, scale=1.0, window=backends.NO_WINDOW, max_segments=M)
  assert [bool(np.isnan(row).all()) for row in out] == [True, False, True, False]
  assert np.isfinite(out[1]).all() and np.isfinite(out[3]).all()
  whole = jnp.asarray([texts(50), texts(50, before=1), texts(5, 5), texts()])
  out = run(*arrays()[:3], whole, scale=1.0, window=backends.NO_WINDOW, max_segments=1)
  assert [bool(np.isnan(row).all()) for row in out] == [False, True, True, False]


def test_runs_of_a_row():
  row = jnp.asarray([[0, 1, 1, 2, 0, 3, 3, 3], [0] * 8])
  runs = jax.jit(flash.runs, static_argnums=1)
  starts, sizes, fits = runs(row, 4)
  assert starts.tolist() == [[1, 3, 5, -1], [-1] * 4]
  assert sizes.tolist() == [[2, 1, 3, -1], [-1] * 4]
  assert fits.tolist() == [True, True]
  assert runs(row, 2)[2].tolist() == [False, True]


@pytest.mark.parametrize("wrong", [True, False])
def test_key_value_heads_are_repeated_where_jax_reads_the_wrong_ones(wrong, monkeypatch):
  fake = fake_cudnn.install(monkeypatch)
  monkeypatch.setattr(flash, "_JAX_GROUPED", (999,) if wrong else (0,))
  how = {"scale": 1.0, "window": T, "max_segments": M}
  jax.eval_shape(lambda *a: flash.attention(*a, **how), *arrays()[:3], PACKED)
  assert fake.grouped == [(H, H if wrong else N)]


def test_the_installed_jax_is_judged_rightly():
  @jax.jit
  def places(segments):
    starts, sizes, _ = flash.runs(segments, M)
    offsets = jnp.pad(starts, ((0, 0), (0, 1)), constant_values=-1)
    q, k = jnp.zeros((4, T, H, K)), jnp.zeros((4, T, N, K))
    return flash.fused._fix_seqlen_offsets(sizes, sizes, offsets, offsets, q, k)

  lengths, _, queries, keys = (np.asarray(x).ravel() for x in places(PACKED))
  spans = [(int(b) // (H * K), int(n)) for b, n in zip(queries, lengths, strict=False) if n]
  rows = [(0, 70), (70, 1), (71, 40), (111, 30), (T, 150), (2 * T + 9, 90), (2 * T + 99, 20)]
  assert spans == rows
  right = np.array_equal(queries * N, keys * H)
  assert right != flash._grouped_is_wrong()


@pytest.mark.parametrize(("segments", "most"), [(PACKED, M), (WHOLE, 1), (None, M)])
def test_jax_lowers_the_real_calls_for_cuda(segments, most, monkeypatch):
  monkeypatch.setattr(flash.fused, "check_cudnn_version", lambda: 92000)
  monkeypatch.setattr(flash.fused, "check_compute_capability", lambda capability: True)

  def total(q, k, v):
    out = flash.attention(q, k, v, segments, scale=0.5, window=40, max_segments=most)
    return out.astype(jnp.float32).sum()

  traced = jax.jit(jax.grad(total, (0, 1, 2))).trace(*arrays(dtype=jnp.bfloat16)[:3])
  text = traced.lower(lowering_platforms=("cuda",)).as_text()
  assert set(re.findall(r"@(__cudnn\$\w+)", text)) == {
    "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward",
  }  # fmt: skip
  kind = "PADDING_CAUSAL" if segments is not None and most > 1 else "CAUSAL"
  assert set(re.findall(r"mask_type\\22: \\22(\w+)", text)) == {kind}
  assert set(re.findall(r"sliding_window_length\\22: (\d+)", text)) == {"40"}
  assert not re.search(r"256x256x(f32|bf16|i1)", text)  # All scores, of whole tiles.


def test_the_fake_has_the_real_signature():
  own = fake_cudnn.inspect.signature(fake_cudnn.Fake().dot_product_attention)
  assert set(flash._KEYWORDS) <= set(own.parameters) <= set(fake_cudnn.REAL.parameters)


ASKED = backends.Request("cudnn", 4, 300, 300, 4, 2, 64, "bfloat16")
UNFIT = {
  "no position biases": {"bias": True},
  "no cap of scores": {"cap": 5.0},
  "causal here": {"causal": False},
  "no cache": {"own": False},
  "scanned layers have several": {"window": None},
  "not in float32": {"dtype": "float32"},
  "multiple of 8 wide and at most 256, not 20": {"width": 20},
  "not 264": {"width": 264},
  "more than it can count": {"batch": 1 << 16},
}


@pytest.mark.parametrize("reason", UNFIT)
def test_what_it_cannot_do_is_refused_and_auto_takes_another(reason, monkeypatch):
  fake_cudnn.install(monkeypatch)
  request = dataclasses.replace(ASKED, **UNFIT[reason])
  with pytest.raises(UserError, match=f'attention="cudnn" .*{reason}.*"xla_chunked"'):
    backends.choose(request)
  with backends.recorded() as chosen:
    assert backends.choose(dataclasses.replace(request, backend="auto")) == "xla"
  assert reason in next(iter(chosen.values())).why


@pytest.mark.parametrize(
  ("reason", "fields", "machine"),
  [
    ("no NVIDIA GPU", {}, {"capability": None}),
    ("Ampere .* 7.5", {}, {"capability": (7, 5)}),
    ("packed rows need a Hopper .* 8.0 .*attention_segments=1", {}, {"capability": (8, 0)}),
    ("", {"max_segments": 1}, {"capability": (8, 0)}),
    ("", {"packed": False}, {"capability": (8, 0)}),
    ("wider than 128", {"max_segments": 1, "width": 256}, {"capability": (8, 6)}),
    ("", {"width": 256}, {"capability": (9, 0)}),
    ("packed rows need cuDNN 9.18 or newer, this is 9.12", {}, {"version": 91200}),
    ("", {"packed": False}, {"version": 91200}),
    ("", {}, {}),
  ],
)
def test_what_a_machine_can_do(reason, fields, machine, monkeypatch):
  fake_cudnn.install(monkeypatch, **machine)
  request = dataclasses.replace(ASKED, **fields)
  if not reason:
    assert backends.choose(dataclasses.replace(request, backend="auto")) == "cudnn"
    return
  with pytest.raises(UserError, match=reason):
    backends.choose(request)


def test_a_jax_without_the_call_or_without_cudnn(monkeypatch):
  fake = fake_cudnn.install(monkeypatch)

  def missing():
    raise RuntimeError("cuDNN is not detected.")

  fake.check_cudnn_version = missing
  assert flash.absent(64, True) == "cuDNN is not installed"
  fake.dot_product_attention = lambda query, key, value: None
  assert "another interface" in flash.absent(64, True)
  monkeypatch.setattr(flash, "fused", None)
  assert "another interface" in flash.absent(64, True)


def test_there_is_no_gpu_here():
  assert flash.capability() is None


@pytest.mark.parametrize(
  ("fields", "reason"),
  [
    ({"position": "alibi"}, "position biases"),
    ({"attention_cap": 30.0}, "attention_cap"),
    ({"dtype": "float32"}, "config.model.dtype"),
    ({"windows": (4, 0), "scan": True}, "config.model.scan"),
    ({"head_dim": 12}, "config.model.head_dim"),
    ({"attention_segments": 0}, "attention_segments must be at least 1"),
  ],
)
def test_a_shape_that_no_machine_can_run_is_refused_before_anything_is_built(fields, reason):
  shape = {"vocab_size": 9, "dim": 32, "heads": 2, "dtype": "bfloat16", "attention": "cudnn"}
  Transformer.from_config(config.Model(**shape))
  with pytest.raises(UserError, match=reason):
    Transformer.from_config(config.Model(**(shape | fields)))


@pytest.mark.parametrize("scan", [False, True])
def test_a_rematted_or_scanned_decoder_asks_for_what_cudnn_can_do(scan):
  shape = config.Model(
    vocab_size=9, dim=32, layers=2, heads=2, windows=(5,), scan=scan, remat="full", dtype="bfloat16"
  )
  model, ids = Transformer.from_config(shape), jnp.ones((2, 8), jnp.int32)
  params = jax.eval_shape(model.init, jax.random.key(0), ids)
  total = lambda p: model.apply(p, ids, segments=ids).astype(jnp.float32).sum()  # noqa: E731
  with backends.recorded() as chosen:
    jax.eval_shape(jax.grad(total), params)
  (request,) = chosen
  assert (request.own, request.window, request.packed) == (True, 5, True)
  backends.refuse(request)


def test_auto_on_a_cpu_is_xla_and_for_long_rows_xla_chunked():
  q, k, v, _ = arrays()
  run = jax.jit(attention, static_argnames=("backend", "window"))
  own, plain = (run(q, k, v, segments=PACKED, window=20, backend=b) for b in ("auto", "xla"))
  np.testing.assert_array_equal(own, plain)
  long = dataclasses.replace(ASKED, backend="auto", keys=1025, length=1025)
  with backends.recorded() as chosen:
    assert backends.choose(long) == "xla_chunked"
  assert chosen[long].why == "rows of more than 1024 tokens; not cudnn: there is no NVIDIA GPU"
  assert backends.at_once("auto", 1024) and not backends.at_once("auto", 1025)


def test_bfloat16_through_the_one_function_on_a_mesh(monkeypatch):
  fake = fake_cudnn.install(monkeypatch)
  q, k, v, _ = arrays(dtype=jnp.bfloat16)
  expected = jax.jit(attention)(q, k, v, segments=PACKED)
  place = parallel.make(config.Mesh(data=2, tensor=4))  # Two key-value heads on four devices.
  run = lambda q, k, v, s: attention(q, k, v, segments=s, backend="auto", max_segments=M)  # noqa: E731
  out = place.compile(run, donate=False)(q, k, v, PACKED)
  assert fake.grouped == [(H, H)]
  real = np.asarray(PACKED) > 0
  np.testing.assert_allclose(
    np.float32(np.asarray(out))[real], np.float32(np.asarray(expected))[real], atol=0.03
  )
