"""Rematerialisation and the loop over layers: equal gradients, and what is kept and made again."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import config
from llm_jax.errors import UserError
from llm_jax.models import flash, remat
from llm_jax.models.transformer import Transformer
from llm_jax.scaling import budget

# Few operations: what is compared compiles often.
TINY = config.Model(
  vocab_size=31, dim=16, layers=2, heads=4, kv_heads=2, hidden=32, qk_norm=False, position="none"
)
ROWS, LENGTH = 2, 12
slow = pytest.mark.slow


def shape(**fields):
  return dataclasses.replace(TINY, **fields)


def abstract(cfg, length=LENGTH):
  """A model, and the shapes of its parameters and tokens."""
  model = Transformer.from_config(cfg)
  tokens = jax.ShapeDtypeStruct((ROWS, length), jnp.int32)
  boxed = jax.eval_shape(model.init, jax.random.key(0), tokens)
  return model, nn.unbox(boxed)["params"], tokens


def concrete(cfg):
  """A model, large random parameters, and tokens."""
  model, shapes, tokens = abstract(cfg)
  random = np.random.default_rng(0)
  draw = lambda x: jnp.asarray(0.3 * random.standard_normal(x.shape), x.dtype)  # noqa: E731
  ids = jnp.asarray(random.integers(0, cfg.vocab_size, tokens.shape), jnp.int32)
  return model, jax.tree.map(draw, shapes), ids


@functools.cache
def gradient(**fields):
  model, params, ids = concrete(shape(**fields))
  return jax.jit(jax.grad(lambda p: jnp.square(model.apply(p, ids)).sum()))(params)


def close(ours, theirs):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, theirs)


@pytest.mark.long
@pytest.mark.parametrize(
  ("policy", "scan"),
  [
    ("full", False),
    ("offload", False),
    ("save_dots", True),
    pytest.param("full", True, marks=slow),
    pytest.param("save_attention", True, marks=slow),
    pytest.param("offload", True, marks=slow),
    pytest.param("save_attention", False, marks=slow),
    pytest.param("save_dots", False, marks=slow),
  ],
)
def test_no_policy_changes_a_gradient(policy, scan):
  form = {"scan": True} if scan else {"layers": 1}
  close(gradient(remat=policy, **form), gradient(**form))


@slow
@pytest.mark.parametrize("remat", ["none", "save_dots"])
@pytest.mark.parametrize("unroll", [2, 3, 4])
def test_the_gradient_is_the_same_for_any_number_of_layers_a_round(unroll, remat):
  form = {"layers": 4, "scan": True, "remat": remat}
  close(gradient(scan_unroll=unroll, **form), gradient(**form))


def test_several_layers_a_round_are_the_same_layers():
  """Three layers, of which rounds of two leave one."""
  model, params, ids = concrete(shape(layers=3, scan=True))
  several = Transformer.from_config(dataclasses.replace(model.cfg, scan_unroll=2))
  close(*(jax.jit(m.apply)(params, ids) for m in (several, model)))


@pytest.mark.parametrize(
  ("scan", "unroll", "loops"),
  [(True, 2, True), (True, 3, False), (True, 4, False), (False, 1, False)],
)
def test_outside_of_loops_what_is_made_again_is_no_common_subexpression(scan, unroll, loops):
  """Else the compiler would see that it exists, and keep it."""
  found = equations(backward(shape(layers=4, scan=scan, scan_unroll=unroll, remat="full")))
  kinds = {eqn.params["prevent_cse"] for eqn, _ in found if "prevent_cse" in eqn.params}
  assert kinds == {not loops}


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"remat": "dots"}, 'config.model.remat="dots" is unknown; did you mean "save_dots"'),
    ({"scan_unroll": 2}, "config.model.scan_unroll=2 is of a loop over layers"),
    ({"scan": True, "scan_unroll": 0}, "config.model.scan_unroll must be at least 1"),
  ],
)
def test_a_bad_field_is_one_clear_line(fields, message):
  with pytest.raises(UserError, match=message):
    Transformer.from_config(shape(**fields))


def test_a_device_that_cannot_reach_the_host_is_one_clear_line(monkeypatch):
  monkeypatch.setattr(remat, "_HOST", "no_such_memory")
  with pytest.raises(UserError, match='remat="offload" cannot be used: .*"no_such_memory"'):
    abstract(shape(remat="offload"))


def equations(jaxpr):
  """Yields (an equation at any depth, how often it runs)."""
  for eqn in jaxpr.eqns:
    yield eqn, 1
    times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
    for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
      inner = getattr(inner, "jaxpr", inner)
      if hasattr(inner, "eqns"):
        yield from ((e, n * times) for e, n in equations(inner))


def backward(cfg, length=LENGTH):
  model, shapes, tokens = abstract(cfg, length)
  loss = lambda p, t: model.apply(p, t).astype(jnp.float32).sum()  # noqa: E731
  return jax.make_jaxpr(jax.grad(loss))(shapes, tokens).jaxpr


def count(cfg, name, length=LENGTH):
  return sum(n for eqn, n in equations(backward(cfg, length)) if eqn.primitive.name == name)


# Of the nine products of a layer (q, k, v, scores, values, o, up, gate, down), those made again:
# nothing reads the last one, and the gradient of attention reads its scores.
@pytest.mark.parametrize(
  ("policy", "again", "scan"),
  [
    ("none", 0, False),
    ("full", 8, False),
    ("full", 8, True),
    ("save_attention", 7, True),
    ("save_dots", 1, False),
    ("save_dots", 1, True),
    ("offload", 1, True),
  ],
)
def test_the_products_that_are_made_again(policy, again, scan):
  layers = 2 if scan else 1
  cfg = shape(attention="xla", remat=policy, scan=scan, layers=layers)
  assert count(cfg, "dot_general") == layers * (3 * 9 + again)


def kept(cfg, length=LENGTH):
  """Bytes of all arrays that the backward pass gets from the forward pass."""
  model, shapes, tokens = abstract(cfg, length)
  back = jax.eval_shape(lambda p, t: jax.vjp(lambda p: model.apply(p, t), p)[1], shapes, tokens)
  own = {x.shape for x in jax.tree.leaves(shapes)}
  found = [x for x in jax.tree.leaves(back) if x.shape not in own]
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in found)


def to_host(cfg):
  """Bytes that the forward pass sends there."""
  sent = 0
  for eqn, times in equations(backward(cfg)):
    if eqn.primitive.name == "device_put":
      spaces = zip(eqn.invars, eqn.outvars, strict=True)
      moved = [y.aval for x, y in spaces if x.aval.memory_space != y.aval.memory_space]
      sent += times * sum(
        y.size * y.dtype.itemsize for y in moved if "host" in str(y.memory_space).lower()
      )
  return sent


@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
def test_offload_sends_to_the_host_what_save_dots_keeps(scan):
  form = {"scan": scan, "attention": "xla"}
  full, dots, host = (planned(shape(remat=p, **form)) for p in ("full", "save_dots", "offload"))
  assert to_host(shape(remat="offload", **form)) == dots - full
  assert host == full  # Of the device's memory.


def planned(cfg, length=LENGTH):
  return budget.memory(cfg, config.Mesh(), 1, rows=ROWS, length=length).kept


@pytest.mark.parametrize(
  ("policy", "fields"),
  [
    ("full", {}),
    ("save_attention", {"attention": "xla_chunked"}),
    ("save_dots", {"scan": True, "dtype": "bfloat16", "post_norm": True, "heads": 8}),
    ("save_dots", {"mlp": "plain", "position": "rope"}),
    ("save_dots", {"parallel": "two", "norm": "layernorm"}),
  ],
  ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_the_plan_counts_what_a_layer_keeps_to_the_byte(policy, fields):
  one, two = (shape(**fields, remat=policy, layers=n) for n in (1, 2))
  assert planned(two) - planned(one) == kept(two) - kept(one)


@pytest.mark.parametrize(
  ("policy", "runs"), [("full", 2), ("save_attention", 1), ("save_dots", 1), ("offload", 1)]
)
def test_a_fused_kernel_runs_once_where_attention_is_kept(policy, runs, monkeypatch):
  """What its gradient reads, outputs and log-denominators, is kept though it has no name."""
  monkeypatch.setattr(flash, "absent", lambda width, several: "")
  for name, value in (("check_cudnn_version", 91900), ("check_compute_capability", True)):
    monkeypatch.setattr(flash.fused, name, lambda *_, value=value: value)
  cfg = shape(attention="cudnn", dtype="bfloat16", dim=32, remat=policy, layers=1)
  assert count(cfg, "dot_product_attention_fwd_wrapper") == runs
  assert count(cfg, "dot_product_attention_bwd_wrapper") == 1
