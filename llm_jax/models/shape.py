"""A decoder's configuration, checked, and with what is usual worked out."""

import dataclasses
import math

from llm_jax import config
from llm_jax.errors import UserError, nearest
from llm_jax.models import backends, layers, positions, remat

_CHOICES = {
  "norm": ("rmsnorm", "layernorm"),
  "parallel": ("", "one", "two"),
  "position": ("rope", "learned", "alibi", "relative", "none"),
  "alibi": ("mpt", "falcon"),
  "mlp": ("gated", "plain"),
  "activation": ("", *layers.ACTIVATIONS),
  "attention": backends.BACKENDS,
  "remat": remat.POLICIES,
  "dtype": ("float32", "bfloat16", "float16"),
  "matmul_precision": ("", "bfloat16"),
}


def resolve(cfg: config.Model) -> config.Model:
  """Returns a copy in which `kv_heads`, `head_dim` and `hidden` are no longer 0.

  Raises:
    UserError: one line that names the field and the remedy.
  """
  _check(cfg)
  usual = 8 * cfg.dim / 3 if cfg.mlp == "gated" else 4 * cfg.dim
  return dataclasses.replace(
    cfg,
    kv_heads=cfg.kv_heads if cfg.kv_heads else cfg.heads,
    head_dim=cfg.head_dim if cfg.head_dim else cfg.dim // cfg.heads,
    hidden=cfg.hidden if cfg.hidden else math.ceil(usual / 32) * 32,
    windows=tuple(cfg.windows),  # A list where it was read from JSON.
  )


def turning(cfg: config.Model) -> int:
  """Returns how much of a head's width rotary positions turn, of a resolved shape; even."""
  return int(cfg.head_dim * cfg.rope_fraction)


def _check(cfg: config.Model) -> None:
  for name, allowed in _CHOICES.items():
    value = getattr(cfg, name)
    if value not in allowed:
      raise UserError(f'config.model.{name}="{value}" is unknown{nearest(str(value), allowed)}')
  for name in ("vocab_size", "dim", "layers", "heads", "max_length", "scan_unroll"):
    if getattr(cfg, name) < 1:
      raise UserError(f"config.model.{name} must be at least 1, got {getattr(cfg, name)}")
  for name in ("kv_heads", "head_dim", "hidden", "encoder_layers"):
    if getattr(cfg, name) < 0:
      raise UserError(f"config.model.{name} must not be negative, got {getattr(cfg, name)}")
  if not cfg.head_dim and cfg.dim % cfg.heads:
    raise UserError(
      f"config.model.dim={cfg.dim} must be a multiple of config.model.heads={cfg.heads},"
      " or set config.model.head_dim"
    )
  if cfg.kv_heads and cfg.heads % cfg.kv_heads:
    raise UserError(
      f"config.model.heads={cfg.heads} must be a multiple of config.model.kv_heads={cfg.kv_heads}"
    )
  if cfg.scan_unroll > 1 and not cfg.scan:
    raise UserError(
      f"config.model.scan_unroll={cfg.scan_unroll} is of a loop over layers: set config.model.scan"
    )
  if cfg.matmul_precision and cfg.dtype != "float32":
    raise UserError(
      f'config.model.matmul_precision="{cfg.matmul_precision}" is of float32 models:'
      f" config.model.dtype is {cfg.dtype}"
    )
  if not 0 <= cfg.dropout < 1:
    raise UserError(f"config.model.dropout must be in [0, 1), got {cfg.dropout}")
  if any(window < 0 for window in cfg.windows):
    raise UserError(f"config.model.windows={cfg.windows} must not be negative; 0 sees all tokens")
  if cfg.position == "rope":
    _check_rope(cfg)
  if cfg.position == "relative" and not 4 <= cfg.relative_buckets < 2 * cfg.relative_distance:
    raise UserError(
      f"config.model.relative_buckets={cfg.relative_buckets} must be at least 4, and less than "
      f"twice config.model.relative_distance={cfg.relative_distance}"
    )
  _check_attention(cfg)


def _check_attention(cfg: config.Model) -> None:
  """What no machine can do is found here; what this one cannot, where it is to be computed."""
  if cfg.attention_segments < 1:
    raise UserError(
      f"config.model.attention_segments must be at least 1, got {cfg.attention_segments}"
    )
  if cfg.attention != "cudnn":
    return
  backends.refuse(
    backends.Request(
      backend=cfg.attention,
      batch=1,
      length=1,
      keys=1,
      heads=cfg.heads,
      kv_heads=cfg.kv_heads or cfg.heads,
      width=cfg.head_dim or cfg.dim // cfg.heads,
      dtype=cfg.dtype,
      cap=cfg.attention_cap,
      bias=cfg.position in ("alibi", "relative"),
      window=None if cfg.scan and len(set(cfg.windows)) > 1 else backends.NO_WINDOW,
      causal=not cfg.encoder_layers,
    )
  )


def _check_rope(cfg: config.Model) -> None:
  width = cfg.head_dim if cfg.head_dim else cfg.dim // cfg.heads
  if not 0 < cfg.rope_fraction <= 1:
    raise UserError(f"config.model.rope_fraction must be in (0, 1], got {cfg.rope_fraction}")
  if width % 2 or int(width * cfg.rope_fraction) % 2:
    raise UserError(
      f"config.model.head_dim={width}, of which rotary positions turn {cfg.rope_fraction}: "
      "both must be even"
    )
  positions.parse_scaling(cfg.rope_scaling)
