"""The small parts of a decoder: norms, dense layers, rotary positions, feed-forward blocks.

Shape letters: B batch, T time, M = B T rows, D model width, F hidden width, H heads, K head width.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

Axes = tuple[str, ...]


def kernel_init(scale: float = 1.0) -> nn.initializers.Initializer:
  """Normal of standard deviation scale / sqrt(fan_in): unit-variance features stay so.

  LeCun et al. 1998, "Efficient BackProp", eq. 16. At width 2500 it is GPT-2's 0.02, and it
  grows as models get narrower, which 0.02 does not. Projections back into the residual stream pass
  scale = 1/sqrt(2 L), L layers, so that the stream's variance does not grow with depth
  (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", sec. 2.3).
  """
  return nn.initializers.variance_scaling(scale**2, "fan_in", "normal")


class Norm(nn.Module):
  """RMSNorm or LayerNorm over the last axis, computed in float32.

  RMSNorm: x / sqrt(mean(x^2) + eps) * scale  (Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4).
  LayerNorm also removes the mean and may add a bias (Ba et al. 2016, arXiv:1607.06450, eq. 4).

  Attributes:
    kind: "rmsnorm" or "layernorm".
    bias: whether a LayerNorm has a bias; an RMSNorm has none.
    axis: logical axis of the parameters.
  """

  kind: str = "rmsnorm"
  bias: bool = False
  axis: str = "norm"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., D] -> [..., D] of the input's dtype."""
    y = x.astype(jnp.float32)
    if self.kind == "layernorm":
      y = y - jnp.mean(y, axis=-1, keepdims=True)
    eps = 1e-5 if self.kind == "layernorm" else 1e-6
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    ones = nn.with_logical_partitioning(nn.initializers.ones, (self.axis,))
    y = y * self.param("scale", ones, (x.shape[-1],), jnp.float32)
    if self.kind == "layernorm" and self.bias:
      zeros = nn.with_logical_partitioning(nn.initializers.zeros, (self.axis,))
      y = y + self.param("bias", zeros, (x.shape[-1],), jnp.float32)
    return y.astype(x.dtype)


def dense(
  features: int, axes: Axes, *, bias: bool, dtype: str, scale: float = 1.0, name: str | None = None
) -> nn.Dense:
  """A dense layer with a float32 kernel [in, features] named by `axes`, computing in `dtype`."""
  return nn.Dense(
    features,
    use_bias=bias,
    dtype=jnp.dtype(dtype),
    kernel_init=nn.with_logical_partitioning(kernel_init(scale), axes),
    bias_init=nn.with_logical_partitioning(nn.initializers.zeros, axes[-1:]),
    name=name,
  )


class Mlp(nn.Module):
  """The position-wise feed-forward block.

  gated: (silu(x W_gate) * x W_up) W_down  (SwiGLU; Shazeer 2020, arXiv:2002.05202, eq. 6).
  plain: gelu(x W_up) W_down, with GPT-2's tanh form of GELU.

  Attributes:
    hidden: F, the inner width.
    kind: "gated" or "plain".
    bias: whether the dense layers have biases.
    out_scale: factor on the initial standard deviation of W_down.
    dtype: compute dtype.
  """

  hidden: int
  kind: str = "gated"
  bias: bool = False
  out_scale: float = 1.0
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    """[B, T, D] -> [B, T, D]."""
    layer = functools.partial(dense, bias=self.bias, dtype=self.dtype)
    x_MD = x_BTD.reshape(-1, x_BTD.shape[-1])  # As in attention: a cheaper backward matmul.
    up_MF = layer(self.hidden, ("embed", "mlp"), name="up")(x_MD)
    if self.kind == "gated":
      gate_MF = layer(self.hidden, ("embed", "mlp"), name="gate")(x_MD)
      up_MF = nn.silu(gate_MF) * up_MF
    else:
      up_MF = nn.gelu(up_MF, approximate=True)
    down = layer(x_BTD.shape[-1], ("mlp", "embed"), scale=self.out_scale, name="down")
    return down(up_MF).reshape(x_BTD.shape)


def rope_table(positions_BT: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
  """Cosines and sines of the rotary angles p * theta^(-2i/K), float32 [B, T, 1, K/2] each.

  Su et al. 2021, arXiv:2104.09864, eq. 15.
  """
  exponents_K = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
  angles = positions_BT[..., None, None].astype(jnp.float32) * theta**-exponents_K
  return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BTHK: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
  """Turns the pairs (x_i, x_{i + K/2}) by the angles of `rope_table`.

  The half-split pairing of the public Llama weights; a permutation of the paper's neighbours.
  """
  x1, x2 = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1)
  return turned.astype(x_BTHK.dtype)
