"""Matrix products whose factors are rounded to bfloat16 and whose sums are float32.

What TPUs do with float32 by default, and GPUs under torch.set_float32_matmul_precision("medium").
CPUs with AMX or bfloat16 units take it several times as fast as float32, where the product lies
as XLA's kernels want it: the axis that is summed up last in the first factor.
"""

import functools
import math

import jax
import jax.numpy as jnp

_FLOAT32 = {"preferred_element_type": jnp.float32}
_LEAST = 8  # Of each size of a product that a CPU gets in bfloat16.


def einsum(spec: str, a: jax.Array, b: jax.Array, precision: str = "") -> jax.Array:
  """`jnp.einsum` of two arrays, with sums in float32.

  Args:
    spec: such as "MD,DF->MF": each letter is in two of the three terms, or in all.
    a: the first factor.
    b: the second factor.
    precision: "": the arrays stay as they are; "bfloat16": both factors are rounded to it, and so
      are those of the products that give the gradients.

  Returns:
    The product, float32.
  """
  return _rounded(spec, a, b) if precision else jnp.einsum(spec, a, b, **_FLOAT32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rounded(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
  return product(spec, a.astype(jnp.bfloat16), b.astype(jnp.bfloat16))


def _forward(spec: str, a: jax.Array, b: jax.Array) -> tuple[jax.Array, tuple]:
  dtypes = jnp.zeros((0,), a.dtype), jnp.zeros((0,), b.dtype)
  a, b = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
  return product(spec, a, b), (a, b, *dtypes)


def _backward(spec: str, residuals: tuple, slope: jax.Array) -> tuple[jax.Array, jax.Array]:
  a, b, like_a, like_b = residuals
  first, second, out = _terms(spec)
  slope = slope.astype(jnp.bfloat16)
  grad_a = product(f"{out},{second}->{first}", slope, b)
  grad_b = product(f"{first},{out}->{second}", a, slope)
  return grad_a.astype(like_a.dtype), grad_b.astype(like_b.dtype)


_rounded.defvjp(_forward, _backward)


def product(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
  """The product of two arrays of one dtype, float32; without a gradient if that is bfloat16.

  On a CPU, XLA has fast kernels for bfloat16 only where the summed axes are the first factor's
  last. Elsewhere it takes float32, or fails (jaxlib 0.10.2: "Unsupported element type for
  DotThunk"), so that it gets nothing else in bfloat16 here.

  Args:
    spec: as in `einsum`.
    a: the first factor.
    b: the second factor.

  Returns:
    The product, float32.
  """
  if a.dtype != jnp.bfloat16 or jax.default_backend() != "cpu":
    return jnp.einsum(spec, a, b, **_FLOAT32)
  first, second, out = _terms(spec)
  size = dict(zip(first + second, (*a.shape, *b.shape), strict=True))
  summed = "".join(x for x in first if x in second and x not in out)
  left = math.prod(size[x] for x in first if x not in second)
  right = math.prod(size[x] for x in second if x not in first)
  if min(left, right, math.prod(size[x] for x in summed)) >= _LEAST:
    if first.endswith(summed):
      return jnp.einsum(spec, a, b, **_FLOAT32)
    if second.endswith(summed):
      return jnp.einsum(f"{second},{first}->{out}", b, a, **_FLOAT32)
    if size[summed[-1]] % _LEAST == 0:
      # The smaller one comes first, and is turned round.
      pairs = ((first, a), (second, b)) if left <= right else ((second, b), (first, a))
      return _turned(pairs, out, summed[-1])
  return jnp.einsum(spec, a.astype(jnp.float32), b.astype(jnp.float32), **_FLOAT32)


def _turned(pairs: tuple, out: str, summed: str) -> jax.Array:
  """A product that sums over the axis `summed`, which is in two parts so that XLA has to move it.

  Over one axis it would see through the transposition and take the product as it lay.
  """
  (first, a), (second, b) = pairs
  cut = lambda x, at: x.reshape(*x.shape[:at], -1, 2, *x.shape[at + 1 :])  # noqa: E731
  a, b = cut(a, first.index(summed)), cut(b, second.index(summed))
  both = summed + "z"
  terms = f"{first.replace(summed, both)},{second.replace(summed, both)}"
  return jnp.einsum(f"{terms}->{out}", a, b, **_FLOAT32)


def _terms(spec: str) -> tuple[str, str, str]:
  factors, out = spec.split("->")
  first, second = factors.split(",")
  return first, second, out
