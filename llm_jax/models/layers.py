"""The small parts of a decoder: norms, dense layers, feed-forward blocks.

Shape letters: B batch, T time, M = B T rows, D model width, F hidden width.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

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
  features: int, axes: Axes, *, bias: bool, dtype: str, scale: float = 1.0, name: str | None = None
) -> Dense:
  """A dense layer with a float32 kernel [in, features] named by `axes`, computing in `dtype`."""
  return Dense(
    features,
    use_bias=bias,
    dtype=jnp.dtype(dtype),
    kernel_init=nn.with_logical_partitioning(kernel_init(scale), axes),
    bias_init=nn.with_logical_partitioning(nn.initializers.zeros, axes[-1:]),
    name=name,
  )


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
  """

  hidden: int
  kind: str = "gated"
  activation: str = ""
  bias: bool = False
  out_scale: float = 1.0
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    """[B, T, D] -> [B, T, D]."""
    layer = functools.partial(dense, bias=self.bias, dtype=self.dtype)
    x_MD = x_BTD.reshape(-1, x_BTD.shape[-1])  # As in attention: a cheaper backward matmul.
    usual = "silu" if self.kind == "gated" else "gelu_tanh"
    act = ACTIVATIONS[self.activation or usual]
    up_MF = layer(self.hidden, ("embed", "mlp"), name="up")(x_MD)
    if self.kind == "gated":
      gate_MF = layer(self.hidden, ("embed", "mlp"), name="gate")(x_MD)
      up_MF = act(gate_MF) * up_MF
    else:
      up_MF = act(up_MF)
    down = layer(x_BTD.shape[-1], ("mlp", "embed"), scale=self.out_scale, name="down")
    return down(up_MF).reshape(x_BTD.shape)
