"""Products whose factors are rounded: values, gradients, and sizes of every kind."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import products

SPECS = ("MD,DF->MF", "BTD,DF->BTF", "BNQK,BNSK->BNQS", "BNQS,BNSK->BNQK", "LIJ,LJK->LIK")
SIZES = (1, 2, 3, 7, 8, 16, 24, 31, 40, 64, 96)


def rounded(x):
  return np.asarray(jnp.asarray(x, jnp.bfloat16).astype(jnp.float32))


def arrays(spec, rng):
  """Two factors and what the gradient comes from, of random sizes."""
  size = {letter: rng.choice(SIZES) for letter in "MDFTQKSIJ"}
  size |= {letter: rng.choice((1, 2, 3)) for letter in "BNL"}
  numbers = np.random.default_rng(rng.randrange(2**32))
  terms = spec.replace("->", ",").split(",")
  return [numbers.standard_normal([size[x] for x in term], np.float32) for term in terms]


def with_gradients(spec, precision, a, b, slope):
  def function(a, b, slope):
    # As in a model: what is multiplied was just worked out, and XLA may fuse the two.
    product = lambda a, b: products.einsum(spec, jnp.tanh(a), 2 * b, precision)  # noqa: E731
    y, pull = jax.vjp(product, a, b)
    return y, *pull(3 * slope)

  return jax.jit(function)(a, b, slope)


@pytest.mark.parametrize("spec", SPECS)
def test_factors_are_rounded_and_sums_are_not(spec):
  rng = random.Random(spec)
  for _ in range(6):
    a, b, slope = arrays(spec, rng)
    first, second, out = spec.replace("->", ",").split(",")
    ra, rb, rs = rounded(np.tanh(a)), rounded(2 * b), rounded(3 * slope)
    wanted = (
      np.einsum(spec, ra, rb),
      np.einsum(f"{out},{second}->{first}", rs, rb) * (1 - np.tanh(a) ** 2),
      2 * np.einsum(f"{first},{out}->{second}", ra, rs),
    )
    for found, known in zip(with_gradients(spec, "bfloat16", a, b, slope), wanted, strict=True):
      assert found.dtype == jnp.float32
      scale = np.abs(known).max()
      np.testing.assert_allclose(found, known, atol=3e-3 * scale, err_msg=str((a.shape, b.shape)))


@pytest.mark.parametrize("spec", SPECS)
def test_without_a_precision_it_is_einsum(spec):
  a, b, slope = arrays(spec, random.Random(spec))
  found, grad_a, grad_b = with_gradients(spec, "", a, b, slope)
  np.testing.assert_allclose(found, np.einsum(spec, np.tanh(a), 2 * b), rtol=1e-4, atol=1e-4)
  rough = with_gradients(spec, "bfloat16", a, b, slope)
  assert np.abs(rough[0] - found).max() > 0  # It does round.
  assert (grad_a.shape, grad_b.shape) == (a.shape, b.shape)


@pytest.mark.parametrize("rows", [8, 12, 64])
def test_the_sum_over_rows_is_right_where_rows_are_turned_round(rows):
  """What the gradient of a kernel sums over: XLA would take it as it lies, in float32."""
  a, b = (np.random.default_rng(i).standard_normal((rows, 40), np.float32) for i in range(2))
  a, b = jnp.asarray(a, jnp.bfloat16), jnp.asarray(b, jnp.bfloat16)
  found = jax.jit(lambda a, b: products.product("MD,MF->DF", a, b))(a, b)
  np.testing.assert_allclose(found, rounded(a).T @ rounded(b), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1])
def test_rows_or_columns_may_be_split_over_devices(axis):
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*[None] * axis, "data"))
  a, b = (np.random.default_rng(i).standard_normal((64, 32), np.float32) for i in range(2))
  wanted = rounded(a).T @ rounded(b)
  a, b = (jax.device_put(jnp.asarray(x, jnp.bfloat16), split) for x in (a, b))
  found = jax.jit(lambda a, b: products.product("MD,MF->DF", a, b))(a, b)
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
