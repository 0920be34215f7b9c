"""Optimizers and schedules: closed forms, who is decayed, what Muon does to whom."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm_jax.config import Model, Optimizer
from llm_jax.errors import UserError
from llm_jax.models.transformer import Transformer
from llm_jax.train import optim

PARAMS = {
  "embedding": jnp.ones((32, 8)),
  "position_embedding": jnp.ones((16, 8)),
  "layers": {
    "attention": {"query": {"kernel": jnp.ones((3, 8, 12)), "bias": jnp.ones((3, 12))}},
    "norm": {"scale": jnp.ones((3, 8))},
  },
  "mlp": {"down": {"kernel": jnp.ones((12, 8))}},
  "lm_head": jnp.ones((8, 32)),
  "head": {"kernel": jnp.ones(8), "bias": jnp.ones(())},
}
HIDDEN = {"layers/attention/query/kernel", "mlp/down/kernel"}


def flat(tree, is_leaf=None):
  leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
  return {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in leaves}


def gradients(seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), PARAMS)


def moved(tx, params, grads):
  """The first update."""
  return jax.jit(lambda p, g: tx.update(g, tx.init(p), p)[0])(params, grads)


def rates(steps, **kwargs):
  rate = optim.schedule(Optimizer(lr=1.0, **kwargs), steps)
  return np.array([rate(n) for n in range(steps + 1)])


def test_schedules_have_their_closed_forms():
  np.testing.assert_allclose(rates(4, schedule="constant", warmup=2), [0.5, 1, 1, 1, 1])
  np.testing.assert_allclose(rates(4, schedule="linear", warmup=0), [1, 0.75, 0.5, 0.25, 0])
  half = 0.5 * (1 + np.cos(np.pi * np.arange(5) / 4))
  np.testing.assert_allclose(rates(4, schedule="cosine", warmup=0), half, atol=1e-7)
  wsd = rates(10, schedule="wsd", warmup=2, decay=0.4, final=0.2)
  np.testing.assert_allclose(wsd, [0.5, 1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2], rtol=1e-6)
  inverse = rates(15, schedule="inverse_sqrt", warmup=4)
  np.testing.assert_allclose(inverse[[0, 3, 15]], [0.25, 1, 0.5], rtol=1e-6)


@pytest.mark.parametrize("name", optim.SCHEDULES)
def test_schedules_agree_on_host_and_device_and_stay_in_range(name):
  rate = optim.schedule(Optimizer(lr=3e-4, schedule=name, warmup=5, final=0.1), 40)
  host = np.array([rate(n) for n in range(60)])
  np.testing.assert_allclose(jax.vmap(rate)(jnp.arange(60)), host, rtol=1e-5, atol=1e-9)
  assert (host > 0).all() and host.max() == pytest.approx(3e-4)
  assert (
    optim.learning_rate(Optimizer(lr=3e-4, schedule=name, warmup=5, final=0.1), 40)(7) == host[7]
  )


def test_weight_decay_takes_matrices_only():
  decayed = {path for path, yes in flat(optim.matrices(PARAMS)).items() if yes}
  assert decayed == HIDDEN | {"embedding", "position_embedding", "lm_head"}
  tx = optim.make(Optimizer(weight_decay=0.1, lr=1.0, schedule="constant", warmup=0), 10)
  updates = moved(tx, PARAMS, jax.tree.map(jnp.zeros_like, PARAMS))
  for path, x in flat(updates).items():
    np.testing.assert_allclose(x, -0.1 if path in decayed else 0.0, rtol=1e-6)


@pytest.mark.parametrize("name", ["lion", "adafactor"])
def test_weight_decay_is_decoupled_in_the_others_too(name):
  cfg = Optimizer(name=name, weight_decay=0.1, lr=0.5, schedule="constant", warmup=0, clip=0)
  tx, plain = optim.make(cfg, 10), optim.make(dataclasses.replace(cfg, weight_decay=0.0), 10)
  grads = gradients()
  decayed, bare = moved(tx, PARAMS, grads), moved(plain, PARAMS, grads)
  for path, x in flat(jax.tree.map(lambda a, b: a - b, decayed, bare)).items():
    matrix = path in HIDDEN | {"embedding", "position_embedding", "lm_head"}
    np.testing.assert_allclose(x, -0.05 if matrix else 0.0, atol=1e-6)


def test_lion_moves_by_signs():
  tx = optim.make(Optimizer(name="lion", lr=0.01, schedule="constant", warmup=0), 10)
  grads = gradients()
  updates = moved(tx, PARAMS, grads)
  jax.tree.map(
    lambda u, g: np.testing.assert_allclose(u, -0.01 * np.sign(g), rtol=1e-5), updates, grads
  )


def test_adafactor_keeps_a_row_and_a_column_of_a_matrix():
  params = {"kernel": jnp.full((256, 384), 2.0)}
  tx = optim.make(Optimizer(name="adafactor", lr=0.1, schedule="constant", warmup=0, clip=0), 10)
  state = jax.eval_shape(tx.init, params)
  assert sum(x.size for x in jax.tree.leaves(state)) < 2 * (256 + 384)
  grads = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(256, 384)), jnp.float32)}
  updates = moved(tx, params, grads)
  # At most the rate times the parameter's root mean square, that is .2.
  assert float(jnp.sqrt(jnp.mean(updates["kernel"] ** 2))) == pytest.approx(0.2, rel=0.05)


def test_adamw_is_optax_adamw_after_the_clip():
  grads = gradients()
  cfg = Optimizer(clip=0.5, lr=0.01, schedule="constant", warmup=0)
  tx, plain = optim.make(cfg, 10), optax.adam(0.01, 0.9, 0.95, 1e-8)
  norm = optax.tree.norm(grads)
  clipped = jax.tree.map(lambda g: g * 0.5 / norm, grads)
  ours, theirs = moved(tx, PARAMS, grads), moved(plain, PARAMS, clipped)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), ours, theirs)


def test_schedule_free_is_the_papers_algorithm():
  lr, beta1, beta2, decay, eps = 0.1, 0.8, 0.9, 0.5, 1e-8
  cfg = Optimizer(
    "schedule_free", lr, schedule="constant", warmup=3, beta1=beta1, beta2=beta2, clip=0
  )
  tx = optim.make(dataclasses.replace(cfg, weight_decay=decay), 10)
  rng = np.random.default_rng(0)
  y = {"kernel": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32), "bias": jnp.ones(3)}
  state, update = tx.init(y), jax.jit(tx.update)
  z = {k: np.asarray(v, np.float64) for k, v in y.items()}
  x, v, total = dict(z), {k: 0.0 * a for k, a in z.items()}, 0.0
  for t in range(1, 6):
    grads = {k: rng.normal(size=a.shape) for k, a in z.items()}
    gamma = lr * np.sqrt(1 - beta2**t) * min(1, t / 3)
    total += gamma**2
    for k, g in grads.items():
      at = (1 - beta1) * z[k] + beta1 * x[k]
      np.testing.assert_allclose(y[k], at, rtol=1e-5, atol=1e-6)
      v[k] = beta2 * v[k] + (1 - beta2) * g**2
      z[k] = z[k] - gamma * g / (np.sqrt(v[k]) + eps) - gamma * decay * (k == "kernel") * at
      x[k] = (1 - gamma**2 / total) * x[k] + gamma**2 / total * z[k]
    updates, state = update(jax.tree.map(jnp.float32, grads), state, y)
    y = optax.apply_updates(y, updates)
    for k, a in optim.averaged(y, state).items():
      np.testing.assert_allclose(a, x[k], rtol=1e-5, atol=1e-6)
  assert np.abs(y["kernel"] - x["kernel"]).max() > 1e-3  # Negative control.


def test_other_runs_are_evaluated_as_they_are_and_guards_hide_nothing():
  params = {"kernel": jnp.ones((4, 3))}
  plain = optim.make(Optimizer(skip_limit=1), 10)
  assert optim.averaged(params, plain.init(params)) is params
  free = optim.make(Optimizer("schedule_free", schedule="constant", beta1=0.5, skip_limit=1), 10)
  x = optim.averaged(jax.tree.map(lambda p: 3 * p, params), free.init(params))
  np.testing.assert_allclose(x["kernel"], 5.0)  # (y - (1 - beta1) z) / beta1.


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_a_stack_of_layers_is_its_layers_one_by_one(name):
  # Large enough for Adafactor's rows and columns; the layers differ in scale.
  rng = np.random.default_rng(0)
  shapes = {"kernel": (128, 130), "norm_scale": (128,)}
  layers = [
    {k: 4.0**n * rng.normal(size=shape).astype(np.float32) for k, shape in shapes.items()}
    for n in range(4)
  ]
  params, grads = layers[:2], [layers[3], layers[2]]
  tx = optim.make(Optimizer(name, schedule="constant", warmup=0, weight_decay=0.1), 10)
  apart = moved(tx, params, grads)
  stacked = moved(tx, *(jax.tree.map(lambda *x: np.stack(x), *tree) for tree in (params, grads)))
  for k in shapes:
    together = np.stack([layer[k] for layer in apart])
    np.testing.assert_allclose(stacked[k], together, rtol=2e-4, atol=1e-6)


def test_a_scanned_decoder_is_decayed_and_orthogonalised_like_an_unrolled_one():
  def masks(scan):
    shape = Model(vocab_size=64, dim=32, layers=2, heads=2, norm="layernorm", bias=True, scan=scan)
    ids = jnp.zeros((1, 8), jnp.int32)
    params = jax.eval_shape(Transformer.from_config(shape).init, jax.random.key(0), ids)
    params = nn.unbox(params)["params"]
    dims = optim.muon_dimensions(params)
    hidden = jax.tree.map(lambda d: d is not None, dims, is_leaf=lambda d: not isinstance(d, dict))
    return flat(optim.matrices(params)), flat(hidden)

  for unrolled, scanned in zip(masks(False), masks(True), strict=True):
    assert {path.replace("blocks_0", "blocks"): yes for path, yes in unrolled.items()} == (
      scanned | {path: yes for path, yes in unrolled.items() if "blocks_1" in path}
    )
    assert sum(unrolled.values()) > 6


def test_muon_takes_hidden_matrices_only():
  dims = flat(optim.muon_dimensions(PARAMS), is_leaf=lambda x: hasattr(x, "output_axis"))
  assert {path for path, d in dims.items() if d is not None} == HIDDEN


def test_muon_orthogonalises_hidden_matrices_and_leaves_the_rest_to_adam():
  cfg = Optimizer(name="muon", lr=1.0, adam_lr=0.5, schedule="constant", warmup=0, clip=0.0)
  tx, grads = optim.make(cfg, 10), gradients()
  updates = moved(tx, PARAMS, grads)
  adam = optax.adamw(0.5, cfg.beta1, cfg.beta2, cfg.eps, weight_decay=0.0, nesterov=True)
  expected = flat(moved(adam, PARAMS, grads))
  for path, x in flat(updates).items():
    if path in HIDDEN:
      values = np.linalg.svd(np.asarray(x), compute_uv=False)  # Per layer, where stacked.
      before = np.linalg.svd(np.asarray(flat(grads)[path]), compute_uv=False)
      assert (values.max(-1) / values.min(-1) < 2.0).all()
      assert (before.max(-1) / before.min(-1) > 2.0).all()  # Negative control.
    else:
      np.testing.assert_allclose(x, expected[path], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["", "bfloat16"])
def test_muon_is_optax_muon_with_products_rounded_or_not(precision):
  cfg = Optimizer(name="muon", lr=0.1, adam_lr=0.2, weight_decay=0.1, clip=0.0, warmup=1)
  cfg = dataclasses.replace(cfg, matmul_precision=precision)
  rate, adam_rate = optim.schedule(cfg, 9), optim.schedule(cfg, 9, peak=0.2)
  known = optax.contrib.muon(
    rate,
    weight_decay=0.1,
    adam_b1=cfg.beta1,
    adam_b2=cfg.beta2,
    adam_learning_rate=adam_rate,
    muon_weight_dimension_numbers=optim.muon_dimensions,
    consistent_rms=0.2,
  )

  @functools.partial(jax.jit, static_argnums=0)
  def after(tx):
    params, state = PARAMS, tx.init(PARAMS)
    for seed in range(3):
      updates, state = tx.update(gradients(seed), state, params)
      params = optax.apply_updates(params, updates)
    return flat(params)

  expected, found = after(known), after(optim.make(cfg, 9))
  for name, value in found.items():
    off = np.abs(value - expected[name]).max()
    assert off < (2e-2 if precision and name in HIDDEN else 1e-5), name
    assert (off > 1e-4) == (bool(precision) and name in HIDDEN), name


@pytest.mark.parametrize(
  ("cfg", "match"),
  [
    (Optimizer(name="adam"), 'did you mean "adamw"'),
    (Optimizer(schedule="cosin"), 'did you mean "cosine"'),
    (Optimizer(decay=1.5), "fractions in"),
    (Optimizer(warmup=-1), "must not be negative"),
    (Optimizer(clip=-1.0), "optimizer.clip must not be negative"),
    (Optimizer(skip_sigma=-1.0), "optimizer.skip_sigma must not be negative"),
    (Optimizer("schedule_free"), "set config.optimizer.schedule=constant, not wsd"),
    (Optimizer("schedule_free", schedule="constant", beta1=0.0), r"beta1 .* in \(0, 1\], got 0"),
  ],
)
def test_bad_settings_say_what_to_do(cfg, match):
  with pytest.raises(UserError, match=match):
    optim.make(cfg, 10)
