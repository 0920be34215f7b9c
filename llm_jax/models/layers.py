"""The small parts of a decoder: norms, dense layers, feed-forward blocks.

Shape letters: B batch, T time, M = B T rows, D model width, F hidden width.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llm_jax import products, sharding
from llm_jax.models.lora import Dense

Axes = tuple[str, ...]


def kernel_init(scale: float = 1.0) -> nn.initializers.Initializer:
  """Normal of standard deviation scale / sqrt(fan_in): unit-variance features stay so.

  LeCun et al. 1998, "Efficient BackProp", eq. 16. At width 2500 it is GPT-2's 0.02, and it
  grows as models get narrower, which 0.02 does not. Projections back into the residual stream pass
  scale = 1/sqrt(2 L), L layers, so that the stream's variance does not grow with depth
  (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", sec. 2.3).
  """
  return nn.initializers.variance_scaling(scale**2, "fan_in", "normal")


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "silu": nn.silu,
  "gelu": functools.partial(nn.gelu, approximate=False),
  "gelu_tanh": functools.partial(nn.gelu, approximate=True),
  "relu": nn.relu,
}


class Norm(nn.Module):
  """RMSNorm or LayerNorm over the last axis, computed in float32.

  RMSNorm: x / sqrt(mean(x^2) + eps) * scale  (Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4).
  LayerNorm also removes the mean and may add a bias (Ba et al. 2016, arXiv:1607.06450, eq. 4).

  Attributes:
    kind: "rmsnorm" or "layernorm".
    bias: whether a LayerNorm has a bias; an RMSNorm has none.
    axis: logical axis of the parameters.
    eps: what is added to the variance; 0: 1e-6 of an RMSNorm, 1e-5 of a LayerNorm.
    offset: whether the scale is 1 + weight, the weight starting at 0 (Gemma, arXiv:2403.08295).
  """

  kind: str = "rmsnorm"
  bias: bool = False
  axis: str = "norm"
  eps: float = 0.0
  offset: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., D] -> [..., D] of the input's dtype."""
    y = x.astype(jnp.float32)
    if self.kind == "layernorm":
      y = y - jnp.mean(y, axis=-1, keepdims=True)
    usual = 1e-5 if self.kind == "layernorm" else 1e-6
    eps = self.eps if self.eps else usual
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    start = nn.initializers.zeros if self.offset else nn.initializers.ones
    named = nn.with_logical_partitioning(start, (self.axis,))
    scale_D = self.param("scale", named, (x.shape[-1],), jnp.float32)
    y = y * (1.0 + scale_D if self.offset else scale_D)
    if self.kind == "layernorm" and self.bias:
      zeros = nn.with_logical_partitioning(nn.initializers.zeros, (self.axis,))
      y = y + self.param("bias", zeros, (x.shape[-1],), jnp.float32)
    return y.astype(x.dtype)


def dense(
  features: int,
  axes: Axes,
  *,
  bias: bool,
  dtype: str,
  precision: str = "",
  scale: float = 1.0,
  name: str | None = None,
) -> Dense:
  """A dense layer with a float32 kernel [in, features] named by `axes`, computing in `dtype`."""
  return Dense(
    features,
    use_bias=bias,
    dtype=jnp.dtype(dtype),
    kernel_init=nn.with_logical_partitioning(kernel_init(scale), axes),
    bias_init=nn.with_logical_partitioning(nn.initializers.zeros, axes[-1:]),
    dot_general=functools.partial(_times_kernel, factors=precision) if precision else None,
    name=name,
  )


def _times_kernel(x: jax.Array, kernel: jax.Array, *_: Any, factors: str, **__: Any) -> jax.Array:
  """[M, in] or [B, T, in] times [in, out], in the place of the dot_general of linen's Dense."""
  rows = "BT"[: x.ndim - 1]
  return products.einsum(f"{rows}D,DF->{rows}F", x, kernel, factors)


def look_up(table_VD: jax.Array, ids: jax.Array, dtype: str) -> jax.Array:
  """Returns the rows [B, T, D] of a table [V, D] float32 in a compute dtype, for ids [B, T].

  Over a mesh each device looks up what its own part of the vocabulary has. What moves is the width
  of that part, in the compute dtype, and [B, T, D] to be added up.
  """
  if sharding.ways("vocab") * sharding.ways("embed") == 1:
    return jnp.take(table_VD, ids, axis=0).astype(dtype)
  return _look_up(table_VD, ids, dtype)


_TABLE, _IDS = ("vocab", "embed"), ("batch", "length")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _look_up(table_VD, ids_BT, dtype):
  def local(split, table_VD, ids_BT):
    rows_VD = sharding.gather(table_VD.astype(dtype), split("embed"), axis=1)
    own_BT = ids_BT - sharding.offset(table_VD.shape[0], split("vocab"))
    found_BTD = jnp.take(rows_VD, own_BT, axis=0, mode="fill", fill_value=0)
    mine_BT = (own_BT >= 0) & (own_BT < len(rows_VD))  # A negative index counts from the end.
    return sharding.add(jnp.where(mine_BT[..., None], found_BTD, 0), split("vocab"))

  return sharding.spread(local, (table_VD, ids_BT), (_TABLE, _IDS), (*_IDS, None))


def _look_up_forward(table_VD, ids_BT, dtype):
  return _look_up(table_VD, ids_BT, dtype), (table_VD, ids_BT)


def _look_up_backward(dtype, residuals, grad_BTD):
  del dtype

  def local(split, table_VD, ids_BT, grad_BTD):
    own_BT = ids_BT - sharding.offset(table_VD.shape[0], split("vocab"))
    own_BT = jnp.where(own_BT >= 0, own_BT, len(table_VD))  # Out of range: dropped.
    zeros_VD = jnp.zeros((len(table_VD), grad_BTD.shape[-1]), jnp.float32)
    sums_VD = zeros_VD.at[own_BT].add(grad_BTD.astype(jnp.float32), mode="drop")
    over = (*split("batch"), *split("length"))
    return sharding.add(sums_VD, over, keep=split("embed"), axis=1).astype(table_VD.dtype)

  names = (_TABLE, _IDS, (*_IDS, None))
  return sharding.spread(local, (*residuals, grad_BTD), names, _TABLE), None


_look_up.defvjp(_look_up_forward, _look_up_backward)


def rows_of(x_BTD: jax.Array) -> jax.Array:
  """Returns [M, D], whose backward matmul needs no transposition; over a split T [B, T, D].

  There, what a tensor axis holds by time between layers is gathered.
  """
  if sharding.ways("stream") > 1:
    # Named on both sides, or a norm's float32 would be gathered in the place of what it becomes.
    return within(sharding.constrain(x_BTD, ("batch", "stream", None)), None)
  return x_BTD.reshape(-1, x_BTD.shape[-1])


def within(x: jax.Array, name: str | None) -> jax.Array:
  """Returns `x` laid out as inside a layer, [B, T, ...] or [M, ...]; `name` is of its last axis.

  So is its gradient: without this the compiler may rather gather whole kernels.
  """
  return sharding.constrain(x, ("batch", "length", name)) if x.ndim == 3 else x


def stream_of(y: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Returns what a layer gives, [B, T, D] or [M, D], as [B, T, D] between layers."""
  y_BTD = within(y.reshape(shape), None)
  return sharding.constrain(y_BTD, ("batch", "stream", None))


class Mlp(nn.Module):
  """The position-wise feed-forward block.

  gated: (act(x W_gate) * x W_up) W_down  (SwiGLU; Shazeer 2020, arXiv:2002.05202, eq. 6).
  plain: act(x W_up) W_down.

  Attributes:
    hidden: F, the inner width.
    kind: "gated" or "plain".
    activation: one of ACTIVATIONS; "": silu if gated, else GPT-2's tanh form of GELU.
    bias: whether the dense layers have biases.
    out_scale: factor on the initial standard deviation of W_down.
    dtype: compute dtype.
    precision: of matrix products, as in `products.einsum`.
  """

  hidden: int
  kind: str = "gated"
  activation: str = ""
  bias: bool = False
  out_scale: float = 1.0
  dtype: str = "float32"
  precision: str = ""

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    """[B, T, D] -> [B, T, D]."""
    layer = functools.partial(dense, bias=self.bias, dtype=self.dtype, precision=self.precision)
    x_MD = rows_of(x_BTD)
    usual = "silu" if self.kind == "gated" else "gelu_tanh"
    act = ACTIVATIONS[self.activation or usual]
    up_MF = checkpoint_name(layer(self.hidden, ("embed", "mlp"), name="up")(x_MD), "up")
    if self.kind == "gated":
      gate_MF = checkpoint_name(layer(self.hidden, ("embed", "mlp"), name="gate")(x_MD), "gate")
      up_MF = act(gate_MF) * up_MF
    else:
      up_MF = act(up_MF)
    down = layer(x_BTD.shape[-1], ("mlp", "embed"), scale=self.out_scale, name="down")
    return checkpoint_name(stream_of(down(within(up_MF, "mlp")), x_BTD.shape), "down")
