"""Muon, whose matrix products may be rounded to bfloat16.

Momentum and weight decay are optax's; the iteration is here, for optax's stays in the gradient's
dtype.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import optax

from llm_jax import products
from llm_jax.types import Params

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5
_RMS = 0.2  # Of an update's entries, as AdamW's have it.


def make(
  rate: optax.Schedule,
  others: optax.GradientTransformation,
  dimensions: Callable[[Params], Any],
  *,
  eps: float,
  weight_decay: float,
  precision: str,
) -> optax.GradientTransformation:
  """Returns Muon for hidden matrices, and another optimizer for what is none.

  Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; scaled to AdamW's
  root mean square (Liu et al. 2025, arXiv:2502.16982, section 2.2).

  Args:
    rate: of the matrices.
    others: the optimizer of the rest.
    dimensions: params -> a tree of optax.contrib.MuonDimensionNumbers of the last two axes, None
      where a parameter is none of Muon's.
    eps: added to norms.
    weight_decay: of the matrices.
    precision: of the products, as in `products.einsum`; Jordan et al. have "bfloat16".
  """
  is_leaf = lambda x: x is None or isinstance(x, optax.contrib.MuonDimensionNumbers)  # noqa: E731

  def labels(params: Params) -> Any:
    return jax.tree.map(lambda d: "muon" if d else "others", dimensions(params), is_leaf=is_leaf)

  def own(params: Params) -> Any:
    masked = lambda d: d if d else optax.MaskedNode()  # noqa: E731
    return jax.tree.map(masked, dimensions(params), is_leaf=is_leaf)

  chain = optax.chain(
    # Momentum, over its Frobenius norm.
    optax.contrib.scale_by_muon(ns_steps=0, eps=eps, weight_dimension_numbers=own),
    optax.stateless_with_tree_map(
      lambda x, _: _RMS * math.sqrt(max(x.shape[-2:])) * orthogonalised(x, precision)
    ),
    optax.add_decayed_weights(weight_decay),
    optax.scale_by_learning_rate(rate),
  )
  return optax.partition({"muon": chain, "others": others}, labels)


def orthogonalised(x: jax.Array, precision: str = "") -> jax.Array:
  """Brings the singular values of matrices [..., m, n] of norm 1 near 1, by five iterations.

  X <- a X + (b A + c A A) X with A = X X^T (the quintic of Jordan et al.): it lifts small singular
  values fast. Most end between 0.7 and 1.2; the smallest, of a square matrix for one, stay below.

  Args:
    x: float32, each of Frobenius norm at most 1.
    precision: of the products, as in `products.einsum`.

  Returns:
    x's shape and dtype.
  """
  a, b, c = _COEFFICIENTS
  tall = x.shape[-2] > x.shape[-1]
  x_LIK = x.reshape(-1, *x.shape[-2:])
  x_LIK = x_LIK.swapaxes(1, 2) if tall else x_LIK
  for _ in range(_STEPS):
    square_LIJ = products.einsum("LIK,LJK->LIJ", x_LIK, x_LIK, precision)
    mixed_LIJ = b * square_LIJ + c * products.einsum(
      "LIJ,LJK->LIK", square_LIJ, square_LIJ, precision
    )
    x_LIK = a * x_LIK + products.einsum("LIJ,LJK->LIK", mixed_LIJ, x_LIK, precision)
  return (x_LIK.swapaxes(1, 2) if tall else x_LIK).reshape(x.shape)
