"""Scalar heads on a decoder: a critic's value per token, a reward model's score per row.

Both have the parameters {"decoder": a Transformer's tree, "head": {"kernel", "bias"}}, so an SFT
model becomes a reward model, and a reward model a critic, by moving trees.
Shape letters: B batch, T time, D model width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax import config
from llm_jax.models.transformer import Transformer
from llm_jax.types import Params


class ScalarHead(nn.Module):
  """hidden . kernel + bias, in float32.

  Attributes:
    std: standard deviation of the initial kernel [D]; 0 is a head that says 0.
  """

  std: float = 0.0

  @nn.compact
  def __call__(self, hidden_BTD: jax.Array) -> jax.Array:
    """[B, T, D] -> [B, T] float32."""
    normal = nn.with_logical_partitioning(nn.initializers.normal(self.std), ("embed",))
    zeros = nn.with_logical_partitioning(nn.initializers.zeros, ())
    kernel_D = self.param("kernel", normal, hidden_BTD.shape[-1:], jnp.float32)
    bias = self.param("bias", zeros, (), jnp.float32)
    return hidden_BTD.astype(jnp.float32) @ kernel_D + bias


class Critic(nn.Module):
  """Values of the states before each target is drawn; zero at the start (Huang et al. 2024).

  The initial head follows "The N+ Implementation Details of RLHF with PPO", arXiv:2403.17031;
  start from a reward model where there is one: `critic_from_scorer`.

  Attributes:
    decoder: the decoder.
  """

  decoder: Transformer

  @nn.nowrap
  @classmethod
  def from_config(cls, cfg: config.Model) -> "Critic":
    """A critic on the decoder that `cfg` describes."""
    return cls(Transformer.from_config(cfg))

  @nn.compact
  def __call__(
    self,
    tokens: jax.Array,
    positions: jax.Array | None = None,
    segments: jax.Array | None = None,
  ) -> jax.Array:
    """[B, T] tokens (and the rest as in `Transformer`) -> values [B, T] float32."""
    return ScalarHead(name="head")(self.decoder(tokens, positions, segments))


class Scorer(nn.Module):
  """A reward model: the scalar at the last real token of each row.

  Give it whole sequences, the final token included, one segment per row.
  The head starts at N(0, 1/(D + 1)) (Stiennon et al. 2020, arXiv:2009.01325, appendix B).

  Attributes:
    decoder: the decoder.
  """

  decoder: Transformer

  @nn.nowrap
  @classmethod
  def from_config(cls, cfg: config.Model) -> "Scorer":
    """A reward model on the decoder that `cfg` describes."""
    return cls(Transformer.from_config(cfg))

  @nn.compact
  def __call__(
    self,
    tokens: jax.Array,
    positions: jax.Array | None = None,
    segments: jax.Array | None = None,
  ) -> jax.Array:
    """[B, T] tokens (and the rest as in `Transformer`) -> scores [B] float32."""
    head = ScalarHead((self.decoder.cfg.dim + 1) ** -0.5, name="head")
    values_BT = head(self.decoder(tokens, positions, segments))
    return last_token(values_BT, jnp.ones_like(tokens) if segments is None else segments)


def last_token(values: jax.Array, segments: jax.Array) -> jax.Array:
  """The value at the last real token of each row; 0 for a row that is all padding.

  Args:
    values: [B, T] float.
    segments: [B, T] int32; real tokens are > 0, padding may be on either side.

  Returns:
    [B] of values' dtype.

  Raises:
    ValueError: if the shapes differ.
  """
  if values.shape != segments.shape:
    raise ValueError(f"values {values.shape} and segments {segments.shape} must match")
  real_BT = segments > 0
  last_B = values.shape[1] - 1 - jnp.argmax(real_BT[:, ::-1], axis=1)
  picked_B = jnp.take_along_axis(values, last_B[:, None], axis=1)[:, 0]
  return jnp.where(jnp.any(real_BT, axis=1), picked_B, jnp.zeros_like(picked_B))


def scorer_from_decoder(params: Params, key: jax.Array) -> Params:
  """A reward model's parameters from a decoder's: a new head N(0, 1/(D + 1)), bias 0."""
  width = params["final_norm"]["scale"].shape[0]
  kernel_D = jax.random.normal(key, (width,), jnp.float32) * (width + 1) ** -0.5
  return {"decoder": params, "head": {"kernel": kernel_D, "bias": jnp.float32(0)}}


def critic_from_decoder(params: Params) -> Params:
  """A critic's parameters from a decoder's: a head that says 0."""
  width = params["final_norm"]["scale"].shape[0]
  head = {"kernel": jnp.zeros(width, jnp.float32), "bias": jnp.float32(0)}
  return {"decoder": params, "head": head}


def critic_from_scorer(params: Params) -> Params:
  """A critic's parameters from a reward model's: a copy, so that donating one spares the other.

  Ouyang et al. 2022, arXiv:2203.02155, appendix C.4.
  """
  return jax.tree.map(jnp.array, {"decoder": params["decoder"], "head": params["head"]})
