"""A model's shape, and an adapter on it."""

import dataclasses

from llm_jax.errors import UserError, nearest


@dataclasses.dataclass(unsafe_hash=True)  # A static argument of compiled functions.
class Model:
  """A decoder's shape and its few switches. 0 means "the usual value", worked out by the model."""

  vocab_size: int = 0  # 0: the tokenizer's.
  dim: int = 128
  layers: int = 4
  heads: int = 4
  kv_heads: int = 0  # 0: heads. Fewer is grouped-query attention.
  head_dim: int = 0  # 0: dim / heads.
  hidden: int = 0  # 0: 8/3 dim if gated, 4 dim if plain, rounded up to a multiple of 32.
  max_length: int = 256  # Rows of a learned position table; the other positions have no limit.
  norm: str = "rmsnorm"  # rmsnorm | layernorm
  norm_eps: float = 0.0  # 0: 1e-6 of an RMSNorm, 1e-5 of a LayerNorm.
  norm_bias: bool = False  # Of LayerNorms.
  norm_offset: bool = False  # The scale is 1 + weight (Gemma).
  post_norm: bool = False  # What attention and MLP return is normed too (Gemma 2 and 3).
  parallel: str = ""  # "" | one | two: attention and MLP side by side, after one norm or one each.
  position: str = "rope"  # rope | learned | alibi | relative | none
  rope_theta: float = 10_000.0
  rope_local_theta: float = 0.0  # Of layers with a window; 0: rope_theta.
  rope_fraction: float = 1.0  # Of a head's width that turns.
  rope_scaling: str = ""  # "llama3(factor=8, low=1, high=4, length=8192)" | "linear(factor=8)"
  alibi: str = "mpt"  # mpt | falcon: whose slopes.
  relative_buckets: int = 32  # Of relative distances, up to relative_distance.
  relative_distance: int = 128
  windows: tuple[int, ...] = ()  # Tokens that a layer sees, repeated over the layers; 0: all.
  attention_scale: float = 0.0  # Of scores; 0: 1 / sqrt(head_dim).
  attention_cap: float = 0.0  # cap tanh(score / cap); 0: none.
  logit_cap: float = 0.0  # The same of logits.
  qkv_clip: float = 0.0  # Queries, keys and values stay within; 0: none.
  qkv_bias: bool = False  # Of these three alone (Qwen 2).
  qk_norm: bool = True
  mlp: str = "gated"  # gated | plain
  activation: str = ""  # silu | gelu | gelu_tanh | relu; "": silu if gated, else gelu_tanh.
  bias: bool = False  # Of attention and MLP.
  embedding_scale: float = 1.0
  tied: bool = True
  tied_scale: float = 0.0  # Of the states before a tied head (T5); 0: 1.
  encoder_layers: int = 0  # Of an encoder-decoder; 0: a decoder alone.
  attention: str = "auto"  # auto | xla | xla_chunked | cudnn: what computes it (docs/models.md).
  attention_segments: int = 64  # Most texts of a row under cudnn; 1: rows are not packed.
  dropout: float = 0.0
  scan: bool = False  # lax.scan over layers: flat compile time, stacked parameters.
  scan_unroll: int = 1  # Layers a round of this loop.
  remat: str = "none"  # none | full | save_attention | save_dots | offload (docs/models.md)
  dtype: str = "float32"  # Compute dtype; parameters are float32.
  matmul_precision: str = ""  # "bfloat16": what float32 products multiply is rounded to it.


@dataclasses.dataclass
class Lora:
  """A low-rank adapter on a frozen model (models/lora.py)."""

  rank: int = 0  # 0: no adapter, all parameters are trained.
  alpha: float = 16.0  # What it adds is multiplied by alpha / rank.
  rank_stabilized: bool = False  # By alpha / sqrt(rank) (arXiv:2312.03732).
  dora: bool = False  # The lengths of the columns are learned apart (arXiv:2402.09353).
  targets: tuple[str, ...] = ()  # Of q, k, v, o, gate, up, down; (): all that there are.

  def validate(self) -> None:
    """Raises UserError, in one line that names the field, for what cannot be."""
    if self.rank < 0 or not self.alpha > 0:
      raise UserError(
        f"config.rank must not be negative and config.alpha above 0, got {self.rank} and "
        f"{self.alpha}"
      )
    known = ("q", "k", "v", "o", "gate", "up", "down")
    for name in self.targets:
      if name not in known:
        raise UserError(f'config.targets: there is no layer "{name}"{nearest(name, known)}')
    if not self.rank and self != Lora():
      raise UserError(
        "config.rank is 0, which trains no adapter: set it, or leave the other fields"
      )
