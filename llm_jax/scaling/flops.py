"""Parameters and FLOPs of a model, in closed form from its configuration."""

import math

from llm_jax.config import Lora, Model

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def parameters(cfg: Model) -> int:
  """The number of scalars in the parameters of a decoder, or of an encoder-decoder.

  Raises:
    ValueError: if `cfg.vocab_size` is 0.
  """
  width = head_width(cfg)
  per_norm = cfg.dim * (2 if cfg.norm == "layernorm" and cfg.norm_bias else 1)
  norms = (1 if cfg.parallel == "one" else 2) + (2 if cfg.post_norm else 0)
  biases = 0
  if cfg.bias or cfg.qkv_bias:
    biases += (cfg.heads + 2 * kv_heads(cfg)) * width
  if cfg.bias:
    biases += mlp_width(cfg) * (2 if cfg.mlp == "gated" else 1) + 2 * cfg.dim
  per_layer = layer_matmuls(cfg) + biases + norms * per_norm + (2 * width if cfg.qk_norm else 0)
  embeddings = _vocabulary(cfg) * cfg.dim * (1 if cfg.tied else 2)
  positions = {"learned": cfg.max_length * cfg.dim, "relative": cfg.relative_buckets * cfg.heads}
  whole = embeddings + positions.get(cfg.position, 0) + cfg.layers * per_layer + per_norm
  if cfg.encoder_layers:  # Its layers, its norm, its distances, and what the decoder sees it by.
    crossed = 2 * cfg.dim * (cfg.heads + kv_heads(cfg)) * width + per_norm
    whole += cfg.encoder_layers * per_layer + per_norm + cfg.layers * crossed
    whole += positions.get(cfg.position, 0)
  return whole


def matmul_parameters(cfg: Model) -> int:
  """The scalars that multiply every token: no table look-ups, norms or biases; the head counts."""
  return cfg.layers * layer_matmuls(cfg) + _vocabulary(cfg) * cfg.dim


def forward_flops_per_token(cfg: Model, length: int) -> int:
  """FLOPs of a forward pass per token in rows of `length`, a multiply-add being two.

  2 N + 4 L H K T: N `matmul_parameters`, and scores and their use over all T keys of L layers of
  H heads of width K. The causal half is counted too, as is usual (Chowdhery et al. 2022,
  arXiv:2204.02311, appendix B) and as this decoder computes it.
  """
  attention = 4 * cfg.layers * cfg.heads * head_width(cfg) * length
  return 2 * matmul_parameters(cfg) + attention


def seq2seq_forward_flops(cfg: Model, inputs: int, targets: int) -> int:
  """FLOPs of a forward pass of an encoder-decoder for one row, counted in the same way.

  Args:
    cfg: with encoder layers.
    inputs: tokens that the encoder reads.
    targets: tokens that the decoder reads.
  """
  layer, score = layer_matmuls(cfg), 4 * cfg.heads * head_width(cfg)
  query = 2 * cfg.dim * cfg.heads * head_width(cfg)  # Of cross-attention: queries and outputs.
  key = 2 * cfg.dim * kv_heads(cfg) * head_width(cfg)
  encoder = inputs * cfg.encoder_layers * (2 * layer + score * inputs)
  per_target = cfg.layers * (2 * (layer + query) + score * (targets + inputs))
  decoder = targets * (per_target + 2 * _vocabulary(cfg) * cfg.dim)
  return encoder + decoder + inputs * cfg.layers * 2 * key


def adapter_parameters(cfg: Model, adapter: Lora) -> int:
  """The trained scalars of an adapter (models/lora.py)."""
  width, hidden, dim = head_width(cfg), mlp_width(cfg), cfg.dim
  heads, kv = cfg.heads * width, kv_heads(cfg) * width
  attention = {"q": (dim, heads), "k": (dim, kv), "v": (dim, kv), "o": (heads, dim)}
  feed = {"up": (dim, hidden), "down": (hidden, dim)}
  feed |= {"gate": (dim, hidden)} if cfg.mlp == "gated" else {}

  def count(layers: dict[str, tuple[int, int]]) -> int:
    chosen = [s for name, s in layers.items() if not adapter.targets or name in adapter.targets]
    return sum(adapter.rank * (a + b) + (b if adapter.dora else 0) for a, b in chosen)

  blocks = cfg.layers * (2 if cfg.encoder_layers else 1) + cfg.encoder_layers
  return blocks * count(attention) + (cfg.layers + cfg.encoder_layers) * count(feed)


def train_flops_per_token(cfg: Model, length: int) -> int:
  """Model FLOPs of forward and backward per token: three forwards; recomputation is not counted."""
  return 3 * forward_flops_per_token(cfg, length)


def exact_train_flops_per_token(cfg: Model, length: int) -> int:
  """The same with embedding and softmax, as in appendix F of arXiv:2203.15556 (Chinchilla).

  There the embedding is a product, as if tokens were one-hot, and a score costs 3 more. 6 N leaves
  out what depends on the length, and counts a table once.
  """
  embedding = 2 * cfg.vocab_size * cfg.dim
  softmax = 3 * cfg.layers * cfg.heads * length
  return 3 * (forward_flops_per_token(cfg, length) + embedding + softmax)


def head_width(cfg: Model) -> int:
  """K, the width of an attention head."""
  return cfg.head_dim if cfg.head_dim else cfg.dim // cfg.heads


def kv_heads(cfg: Model) -> int:
  """The number of key-value heads."""
  return cfg.kv_heads if cfg.kv_heads else cfg.heads


def mlp_width(cfg: Model) -> int:
  """F, the inner width of the feed-forward block."""
  usual = 8 * cfg.dim / 3 if cfg.mlp == "gated" else 4 * cfg.dim
  return cfg.hidden if cfg.hidden else math.ceil(usual / 32) * 32


def layer_matmuls(cfg: Model) -> int:
  """The scalars that multiply a token in one decoder layer."""
  attention = 2 * cfg.dim * (cfg.heads + kv_heads(cfg)) * head_width(cfg)
  return attention + cfg.dim * mlp_width(cfg) * (3 if cfg.mlp == "gated" else 2)


def _vocabulary(cfg: Model) -> int:
  if cfg.vocab_size < 1:
    raise ValueError(f"vocab_size must be set, got {cfg.vocab_size}")
  return cfg.vocab_size
