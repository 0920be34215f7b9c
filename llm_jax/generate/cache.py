"""What decoding makes of a model: an unrolled decoder, a cache, the places of a padded prompt."""

import dataclasses

import jax
import jax.numpy as jnp

from llm_jax.models.transformer import Transformer, unstack
from llm_jax.types import Params


def decoding_model(model: Transformer, params: Params) -> tuple[Transformer, Params]:
  """The same function with unrolled layers: a scan would copy its whole cache at every token."""
  cfg = model.cfg
  plain = model.clone(cfg=dataclasses.replace(cfg, scan=False, remat="none"), parent=None)
  return plain, unstack(params, cfg.layers) if cfg.scan else params


def prompt_places(prompt_mask: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Positions (0 at the first real token) and segments of left-padded prompts, [B, P] int32."""
  segments_BP = (prompt_mask > 0).astype(jnp.int32)
  return jnp.maximum(jnp.cumsum(segments_BP, axis=1) - 1, 0), segments_BP
