"""token_stats against the naive softmax: values, gradients, memory, work, sharding."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from llm_jax.losses.stats import TokenStats, token_stats


def problem(batch, time, dim=8, vocab=33, dtype=jnp.float32, scale=1.0):
  keys = jax.random.split(jax.random.key(batch * 100 + time), 3)
  hidden = scale * jax.random.normal(keys[0], (batch, time, dim), dtype)
  head = jax.random.normal(keys[1], (dim, vocab), dtype)
  return hidden, head, jax.random.randint(keys[2], (batch, time), 0, vocab)


def naive(hidden, head, targets, temperature=1.0):
  logits = hidden.astype(jnp.float32) @ head.astype(jnp.float32) / temperature
  logp = jax.nn.log_softmax(logits)
  picked = jnp.take_along_axis(logp, targets[..., None], axis=-1)[..., 0]
  entropy = -jnp.sum(jnp.exp(logp) * logp, axis=-1)
  return TokenStats(picked, jax.nn.logsumexp(logits, axis=-1), entropy)


def mixed(stats_fn, fields, targets, **kwargs):
  """A scalar that gives each used field its own cotangent at each token."""
  weights = np.random.default_rng(0).normal(size=(3, *targets.shape))

  def scalar(hidden, head):
    stats = stats_fn(hidden, head, targets, **kwargs)
    return sum(jnp.sum(weights[i] * stats[i]) for i in fields)

  return jax.jit(jax.grad(scalar, argnums=(0, 1)))


@pytest.mark.parametrize(
  ("shape", "chunk", "temperature"),
  [((3, 37), 16, 0.7), ((1, 7), 1024, 1.0), ((7, 3), 4, 0.7), ((5, 1), 2, 1.0)],
)
def test_values_are_those_of_the_softmax(shape, chunk, temperature):
  args = problem(*shape)
  fast = jax.jit(functools.partial(token_stats, temperature=temperature, chunk=chunk))
  for ours, theirs in zip(fast(*args), jax.jit(naive)(*args, temperature), strict=True):
    assert ours.shape == shape and ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ("fields", "shape", "chunk"),
  [((0,), (3, 5), 6), ((1, 2), (3, 5), 6), ((0, 1, 2), (7, 3), 4)],
)
def test_gradients_of_every_field_are_those_of_the_softmax(fields, shape, chunk):
  hidden, head, targets = problem(*shape)
  kwargs = {"temperature": 0.7}
  got = mixed(token_stats, fields, targets, chunk=chunk, **kwargs)(hidden, head)
  want = mixed(naive, fields, targets, **kwargs)(hidden, head)
  for ours, theirs in zip(got, want, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize(("shape", "chunk"), [((4, 37), 16), ((7, 3), 4), ((1, 7), 1024)])
def test_a_mask_leaves_counted_tokens_as_they_are_and_the_rest_zero(shape, chunk):
  hidden, head, targets = problem(*shape)
  mask = jnp.asarray(np.random.default_rng(0).integers(0, 2, shape), jnp.float32).at[0].set(0)
  masked = jax.jit(functools.partial(token_stats, chunk=chunk, mask=mask))
  for ours, theirs in zip(masked(hidden, head, targets), naive(hidden, head, targets), strict=True):
    np.testing.assert_allclose(ours, theirs * mask, rtol=1e-5, atol=1e-5)
  only = lambda *args: TokenStats(*(x * mask for x in naive(*args)))  # noqa: E731
  got = mixed(token_stats, (0, 1, 2), targets, chunk=chunk, mask=mask)(hidden, head)
  for ours, theirs in zip(got, mixed(only, (0, 1, 2), targets)(hidden, head), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_what_a_mask_leaves_out_may_be_anything():
  hidden, head, targets = problem(2, 8)
  mask = jnp.zeros((2, 8)).at[:, :2].set(1)
  broken = hidden.at[:, 2:].set(jnp.nan)
  stats = token_stats(broken, head, targets, mask=mask, chunk=4)
  grads = mixed(token_stats, (0, 1, 2), targets, mask=mask, chunk=4)(broken, head)
  assert all(np.isfinite(x).all() for x in (*stats, *grads))
  empty = token_stats(broken, head, targets, mask=jnp.zeros((2, 8)))
  assert all((x == 0).all() for x in empty)


@pytest.mark.long
@pytest.mark.parametrize("head_dtype", [jnp.bfloat16, jnp.float32])
def test_bfloat16_products_accumulate_in_float32(head_dtype):
  hidden, head, targets = problem(2, 16, dim=256, vocab=64, dtype=jnp.bfloat16, scale=0.1)
  head = head.astype(head_dtype)
  got = jax.jit(functools.partial(token_stats, chunk=8))(hidden, head, targets)
  want = jax.jit(naive)(hidden, head, targets)
  for ours, theirs in zip(got, want, strict=True):
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
  grads = mixed(token_stats, (0, 1, 2), targets, chunk=8)(hidden, head)
  exact = mixed(naive, (0, 1, 2), targets)(hidden, head)
  assert [g.dtype for g in grads] == [jnp.bfloat16, head_dtype]
  for ours, theirs in zip(grads, exact, strict=True):
    scale = float(jnp.abs(theirs).max())
    np.testing.assert_allclose(
      ours.astype(jnp.float32), theirs.astype(jnp.float32), atol=0.02 * scale
    )


def test_finite_at_extreme_logits():
  hidden, head, targets = problem(2, 4, scale=1e4)
  stats = jax.jit(token_stats)(hidden, head, targets)
  grads = mixed(token_stats, (0, 1, 2), targets)(hidden, head)
  assert all(np.isfinite(x).all() for x in (*stats, *grads))
  assert (stats.entropy >= -1e-3).all()


def test_no_array_is_as_large_as_the_logits():
  shape, vocab, chunk = (4, 64), 128, 32
  hidden, head, targets = problem(*shape, vocab=vocab)
  text = mixed(token_stats, (0, 1, 2), targets, chunk=chunk).lower(hidden, head).compile().as_text()
  sizes = [
    np.prod([int(n) for n in dims.split(",")]) for dims in re.findall(r"\w\d+\[([\d,]+)\]", text)
  ]
  assert chunk * vocab in sizes  # The search sees the chunk's logits ...
  assert max(sizes) < shape[0] * shape[1] * vocab // 2  # ... and nothing near the batch's.


def test_an_unused_field_costs_nothing():
  hidden, head, targets = problem(4, 64, vocab=512)

  def work(fields):
    compiled = mixed(token_stats, fields, targets, chunk=64).lower(hidden, head).compile()
    return compiled.cost_analysis()["flops"], compiled.as_text().count("exponential(")

  assert work((0,)) < work((0, 2))
  assert work((1,)) < work((0, 1))

  def with_metric(hidden, head, used):
    stats = token_stats(hidden, head, targets, chunk=64)
    return stats.logps.sum(), stats.entropy.sum() if used else 0.0

  def flops(used):
    fn = jax.grad(functools.partial(with_metric, used=used), argnums=(0, 1), has_aux=True)
    return jax.jit(fn).lower(hidden, head).compile().cost_analysis()["flops"]

  assert flops(False) < flops(True)  # Forward code of a field that nobody reads is dead.


@pytest.mark.long
@pytest.mark.parametrize("masked", [False, True])
def test_a_batch_sharded_over_devices_gives_the_same_and_stays_put(masked):
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  hidden, head, targets = problem(16, 12)
  rows = NamedSharding(mesh, P("data"))
  placed = jax.device_put((hidden, targets), rows)

  def scalar(hidden, head, targets):
    mask = (targets % 3 == 0).astype(jnp.float32) if masked else None
    return token_stats(hidden, head, targets, mask=mask, chunk=48).logps.sum()

  grad = jax.jit(jax.grad(scalar, argnums=(0, 1)))
  lowered = grad.lower(placed[0], jax.device_put(head, NamedSharding(mesh, P())), placed[1])
  compiled = lowered.compile()
  got = compiled(placed[0], jax.device_put(head, NamedSharding(mesh, P())), placed[1])
  for ours, theirs in zip(got, grad(hidden, head, targets), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
  moved = re.findall(r"(all-gather|all-to-all|collective-permute)\(", compiled.as_text())
  assert not moved


def test_a_vocabulary_sharded_over_devices_gives_the_same():
  mesh = jax.make_mesh((8,), ("tensor",), axis_types=(AxisType.Auto,))
  hidden, head, targets = problem(2, 12, vocab=64)
  placed = jax.device_put(head, NamedSharding(mesh, P(None, "tensor")))
  grad = mixed(token_stats, (0, 1, 2), targets, chunk=8)
  for ours, theirs in zip(grad(hidden, placed), grad(hidden, head), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_pmap_gives_the_same():
  hidden, head, targets = problem(16, 6)
  grad = jax.grad(lambda h, w, y: token_stats(h, w, y, chunk=4).entropy.sum(), argnums=(0, 1))
  split = lambda x: x.reshape(8, 2, *x.shape[1:])  # noqa: E731
  got = jax.pmap(grad, in_axes=(0, None, 0))(split(hidden), head, split(targets))
  want = jax.jit(grad)(hidden, head, targets)
  np.testing.assert_allclose(got[0].reshape(hidden.shape), want[0], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(got[1].sum(0), want[1], rtol=1e-4, atol=1e-5)


def test_works_under_vmap_and_remat():
  hidden, head, targets = problem(4, 6)
  one = lambda h, y: token_stats(h[None], head, y[None], chunk=2).entropy[0]  # noqa: E731
  np.testing.assert_allclose(
    jax.jit(jax.vmap(one))(hidden, targets),
    jax.jit(token_stats)(hidden, head, targets).entropy,
    rtol=1e-5,
  )
  loss = lambda h: token_stats(h, head, targets, chunk=4).logps.sum()  # noqa: E731
  np.testing.assert_allclose(
    jax.jit(jax.grad(jax.checkpoint(loss)))(hidden), jax.jit(jax.grad(loss))(hidden), rtol=1e-5
  )


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"targets": jnp.zeros((2, 3), int)}, r"hidden \(2, 4, 8\) must be targets \(2, 3\)"),
    ({"head": jnp.zeros((7, 9))}, r"hidden \(2, 4, 8\) and head \(7, 9\)"),
    ({"mask": jnp.ones((2, 3))}, r"mask \(2, 3\) and targets \(2, 4\) must match"),
    ({"temperature": 0.0}, "temperature 0.0 and chunk 512 must be positive"),
    ({"chunk": 0}, "chunk 0"),
  ],
)
def test_bad_input_is_named(change, message):
  hidden, head, targets = problem(2, 4)
  with pytest.raises(ValueError, match=message):
    token_stats(**({"hidden": hidden, "head": head, "targets": targets} | change))
