"""Named decoder shapes: functions that return a fresh `config.Model`."""

from llm_jax import config


def quickstart(vocab_size: int = 4096) -> config.Model:
  """1.3M parameters at 4096 tokens of vocabulary; trains in minutes on a laptop's CPU."""
  return config.Model(vocab_size=vocab_size, dim=128, layers=4, heads=4, max_length=256)


def small(vocab_size: int = 8192) -> config.Model:
  """15M parameters at 8192 tokens of vocabulary; for one GPU."""
  return config.Model(vocab_size=vocab_size, dim=384, layers=7, heads=6, max_length=512)


def gpt2_124m() -> config.Model:
  """GPT-2's smallest model, 124M (Radford et al. 2019): learned positions, LayerNorm, GELU."""
  return config.Model(
    vocab_size=50257,
    dim=768,
    layers=12,
    heads=12,
    max_length=1024,
    norm="layernorm",
    norm_bias=True,
    position="learned",
    mlp="plain",
    bias=True,
    qk_norm=False,
    dropout=0.1,
    dtype="bfloat16",
  )


def llama_1b(vocab_size: int = 32_000) -> config.Model:
  """TinyLlama's 1.1B: Llama 2's layers with 4 key-value heads (arXiv:2401.02385, table 2)."""
  return config.Model(
    vocab_size=vocab_size,
    dim=2048,
    layers=22,
    heads=32,
    kv_heads=4,
    hidden=5632,
    max_length=2048,
    qk_norm=False,
    tied=False,
    scan=True,
    remat="dots",
    dtype="bfloat16",
  )


def llama2_7b() -> config.Model:
  """Llama 2 7B (Touvron et al. 2023, arXiv:2307.09288)."""
  return config.Model(
    vocab_size=32_000,
    dim=4096,
    layers=32,
    heads=32,
    hidden=11_008,
    max_length=4096,
    qk_norm=False,
    tied=False,
    scan=True,
    remat="full",
    dtype="bfloat16",
  )
