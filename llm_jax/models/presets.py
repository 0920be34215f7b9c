"""Named decoder shapes: functions that return a fresh `config.Model`.

Sizes are those of the published config.json where there is one, else of the paper. What they leave
open is said in the docstring. All compute in bfloat16, with scanned layers and rematerialisation.
"""

import dataclasses
from typing import Any

from llm_jax import config
from llm_jax.errors import UserError, nearest

_LARGE: dict[str, Any] = {"scan": True, "remat": "full", "dtype": "bfloat16", "qk_norm": False}
_LLAMA3 = "llama3(factor=8.0, low=1.0, high=4.0, length=8192.0)"


def quickstart(vocab_size: int = 4096) -> config.Model:
  """1.3M parameters at 4096 tokens of vocabulary; trains in minutes on a laptop's CPU."""
  return config.Model(vocab_size=vocab_size, dim=128, layers=4, heads=4, max_length=256)


def small(vocab_size: int = 8192) -> config.Model:
  """15M parameters at 8192 tokens of vocabulary; for one GPU."""
  return config.Model(vocab_size=vocab_size, dim=384, layers=7, heads=6, max_length=512)


def gpt2(size: str = "124m") -> config.Model:
  """GPT-2 (Radford et al. 2019): learned positions, LayerNorm, GELU."""
  sizes = {
    "124m": (12, 768, 12), "355m": (24, 1024, 16), "774m": (36, 1280, 20), "1558m": (48, 1600, 25),
  }  # fmt: skip
  return _gpt(*_of("gpt2", sizes, size), max_length=1024, dropout=0.1, scan=False, remat="none")


def gpt3(size: str = "175b") -> config.Model:
  """GPT-3 (Brown et al. 2020, arXiv:2005.14165, table 2.1).

  Every second layer is locally banded; the paper gives no width, 256 tokens are taken here. Of the
  1.3B the table has 24 heads of 128 at a width of 2048; 16 give its parameters. The 13B has a width
  of 5140 with 40 heads of 128, as printed.
  """
  sizes = {
    "125m": (12, 768, 12), "350m": (24, 1024, 16), "760m": (24, 1536, 16), "1.3b": (24, 2048, 16),
    "2.7b": (32, 2560, 32), "6.7b": (32, 4096, 32), "13b": (40, 5140, 40), "175b": (96, 12288, 96),
  }  # fmt: skip
  layers, dim, heads = _of("gpt3", sizes, size)
  head_dim = 128 if size == "13b" else 0
  return _gpt(layers, dim, heads, max_length=2048, windows=(0, 256), head_dim=head_dim)


def gopher(size: str = "280b") -> config.Model:
  """Gopher and Chinchilla (arXiv:2112.11446, table 1; arXiv:2203.15556, table 4).

  Their weights are not public, and their relative positions are Transformer-XL's. A learned bias on
  relative distances stands in, so the [D, D] projections of positions, one a layer, are missing
  here: 21.5B parameters of Gopher's, 5.4B of Chinchilla's.
  """
  sizes = {"280b": (80, 16_384, 128), "70b": (80, 8192, 64)}
  layers, dim, heads = _of("gopher", sizes, size)
  return config.Model(
    vocab_size=32_000, dim=dim, layers=layers, heads=heads, head_dim=128, hidden=4 * dim,
    max_length=2048, position="relative", mlp="plain", **_LARGE,
  )  # fmt: skip


def llama1(size: str = "7b") -> config.Model:
  """LLaMA (arXiv:2302.13971, table 2): Llama 2's shape with rows of 2,048 tokens."""
  sizes = {
    "7b": (32, 4096, 32, 32, 11_008), "13b": (40, 5120, 40, 40, 13_824),
    "33b": (60, 6656, 52, 52, 17_920), "65b": (80, 8192, 64, 64, 22_016),
  }  # fmt: skip
  return _llama(*_of("llama1", sizes, size), max_length=2048)


def llama2(size: str = "7b") -> config.Model:
  """Llama 2 (Touvron et al. 2023, arXiv:2307.09288)."""
  sizes = {
    "7b": (32, 4096, 32, 32, 11_008), "13b": (40, 5120, 40, 40, 13_824),
    "70b": (80, 8192, 64, 8, 28_672),
  }  # fmt: skip
  return _llama(*_of("llama2", sizes, size), max_length=4096, norm_eps=1e-5)


def tinyllama() -> config.Model:
  """TinyLlama's 1.1B: Llama 2's layers with 4 key-value heads (arXiv:2401.02385, table 2)."""
  return _llama(22, 2048, 32, 4, 5632, max_length=2048, norm_eps=1e-5, remat="save_dots")


def llama3(size: str = "8b") -> config.Model:
  """Llama 3.1 (arXiv:2407.21783, table 3)."""
  sizes = {"8b": (32, 4096, 32, 8, 14_336), "70b": (80, 8192, 64, 8, 28_672)}
  shape = _llama(*_of("llama3", sizes, size), max_length=131_072, norm_eps=1e-5)
  return dataclasses.replace(shape, vocab_size=128_256, rope_theta=500_000.0, rope_scaling=_LLAMA3)


def mistral_7b() -> config.Model:
  """Mistral 7B v0.1 (Jiang et al. 2023, arXiv:2310.06825): a window of 4,096 tokens."""
  shape = _llama(32, 4096, 32, 8, 14_336, max_length=32_768, norm_eps=1e-5)
  return dataclasses.replace(shape, windows=(4096,))


def falcon(size: str = "7b") -> config.Model:
  """Falcon (Almazrouei et al. 2023, arXiv:2311.16867): attention and MLP side by side."""
  sizes = {"7b": (32, 4544, 71, 1, "one"), "40b": (60, 8192, 128, 8, "two")}
  layers, dim, heads, kv_heads, parallel = _of("falcon", sizes, size)
  return config.Model(
    vocab_size=65_024, dim=dim, layers=layers, heads=heads, kv_heads=kv_heads, hidden=4 * dim,
    max_length=2048, norm="layernorm", norm_bias=True, parallel=parallel, mlp="plain",
    activation="gelu", **_LARGE,
  )  # fmt: skip


def mpt_7b() -> config.Model:
  """MPT-7B (MosaicML, 2023): ALiBi, no biases at all."""
  return config.Model(
    vocab_size=50_432, dim=4096, layers=32, heads=32, max_length=2048, norm="layernorm",
    position="alibi", mlp="plain", activation="gelu", **_LARGE,
  )  # fmt: skip


def pythia(size: str = "70m") -> config.Model:
  """Pythia (Biderman et al. 2023, arXiv:2304.01373, table 1): GPT-NeoX's layers."""
  sizes = {
    "70m": (6, 512, 8, 50_304), "160m": (12, 768, 12, 50_304), "410m": (24, 1024, 16, 50_304),
    "1b": (16, 2048, 8, 50_304), "1.4b": (24, 2048, 16, 50_304), "2.8b": (32, 2560, 32, 50_304),
    "6.9b": (32, 4096, 32, 50_432), "12b": (36, 5120, 40, 50_688),
  }  # fmt: skip
  layers, dim, heads, vocab_size = _of("pythia", sizes, size)
  return config.Model(
    vocab_size=vocab_size, dim=dim, layers=layers, heads=heads, max_length=2048, norm="layernorm",
    norm_bias=True, parallel="two", rope_fraction=0.25, mlp="plain", activation="gelu", bias=True,
    tied=False, **_LARGE,
  )  # fmt: skip


def qwen2(size: str = "0.5b") -> config.Model:
  """Qwen 2 (arXiv:2407.10671, table 1): biases on queries, keys and values."""
  sizes = {
    "0.5b": (24, 896, 14, 2, 4864, 151_936), "1.5b": (28, 1536, 12, 2, 8960, 151_936),
    "7b": (28, 3584, 28, 4, 18_944, 152_064),
  }  # fmt: skip
  *own, vocab_size = _of("qwen2", sizes, size)
  return dataclasses.replace(
    _llama(*own, max_length=131_072), vocab_size=vocab_size, rope_theta=1e6, qkv_bias=True,
    tied=size != "7b",
  )  # fmt: skip


def qwen3(size: str = "0.6b") -> config.Model:
  """Qwen 3 (arXiv:2505.09388, table 1): normed queries and keys, heads of 128."""
  sizes = {
    "0.6b": (28, 1024, 16, 8, 3072), "1.7b": (28, 2048, 16, 8, 6144), "4b": (36, 2560, 32, 8, 9728),
    "8b": (36, 4096, 32, 8, 12_288),
  }  # fmt: skip
  return dataclasses.replace(
    _llama(*_of("qwen3", sizes, size), max_length=40_960), vocab_size=151_936, rope_theta=1e6,
    head_dim=128, qk_norm=True, tied=size != "8b",
  )  # fmt: skip


def gemma1(size: str = "2b") -> config.Model:
  """Gemma (arXiv:2403.08295, table 1): heads of 256, a GELU gate, tied and scaled embeddings."""
  sizes = {"2b": (18, 2048, 8, 1, 16_384), "7b": (28, 3072, 16, 16, 24_576)}
  return _gemma(*_of("gemma1", sizes, size), head_dim=256, max_length=8192)


def gemma2(size: str = "2b") -> config.Model:
  """Gemma 2 (arXiv:2408.00118, table 1): every second layer local, caps, four norms a layer."""
  sizes = {
    "2b": (26, 2304, 8, 4, 9216, 256, 256), "9b": (42, 3584, 16, 8, 14_336, 256, 256),
    "27b": (46, 4608, 32, 16, 36_864, 128, 144),
  }  # fmt: skip
  *own, head_dim, scalar = _of("gemma2", sizes, size)
  return _gemma(
    *own, head_dim=head_dim, max_length=8192, post_norm=True, windows=(4096, 0),
    attention_scale=scalar**-0.5, attention_cap=50.0, logit_cap=30.0,
  )  # fmt: skip


def gemma3_1b() -> config.Model:
  """Gemma 3's 1B (arXiv:2503.19786, table 1): five local layers, then one that sees all."""
  shape = _gemma(
    26, 1152, 4, 1, 6912, head_dim=256, max_length=32_768, post_norm=True,
    windows=(512, 512, 512, 512, 512, 0), attention_scale=256**-0.5, rope_theta=1e6,
    rope_local_theta=1e4,
  )  # fmt: skip
  return dataclasses.replace(shape, vocab_size=262_144, qk_norm=True)


def flan_t5(size: str = "small") -> config.Model:
  """FLAN-T5 (arXiv:2210.11416; T5 1.1): an encoder-decoder, gated, its head not tied."""
  sizes = {
    "small": (8, 512, 6, 1024), "base": (12, 768, 12, 2048), "large": (24, 1024, 16, 2816),
    "xl": (24, 2048, 32, 5120), "xxl": (24, 4096, 64, 10_240),
  }  # fmt: skip
  layers, dim, heads, hidden = _of("flan_t5", sizes, size)
  own = _LARGE | {"scan": False}
  return config.Model(
    vocab_size=32_128, dim=dim, layers=layers, encoder_layers=layers, heads=heads, head_dim=64,
    hidden=hidden, max_length=512, position="relative", attention_scale=1.0, norm_eps=1e-6,
    activation="gelu_tanh", tied=False, **own,
  )  # fmt: skip


def _of(name: str, sizes: dict[str, Any], size: str) -> Any:
  if size not in sizes:
    raise UserError(f'{name} has no size "{size}"{nearest(size, sizes)}')
  return sizes[size]


def _gpt(layers: int, dim: int, heads: int, **fields: Any) -> config.Model:
  own: dict[str, Any] = {
    "vocab_size": 50_257, "dim": dim, "layers": layers, "heads": heads, "hidden": 4 * dim,
    "norm": "layernorm", "norm_bias": True, "position": "learned", "mlp": "plain", "bias": True,
  }  # fmt: skip
  return config.Model(**(own | _LARGE | fields))


def _llama(
  layers: int, dim: int, heads: int, kv_heads: int, hidden: int, **fields: Any
) -> config.Model:
  own: dict[str, Any] = {
    "vocab_size": 32_000, "dim": dim, "layers": layers, "heads": heads, "kv_heads": kv_heads,
    "hidden": hidden, "tied": False,
  }  # fmt: skip
  return config.Model(**(own | _LARGE | fields))


def _gemma(
  layers: int, dim: int, heads: int, kv_heads: int, hidden: int, **fields: Any
) -> config.Model:
  own: dict[str, Any] = {
    "vocab_size": 256_000, "norm_offset": True, "activation": "gelu_tanh", "tied": True,
    "embedding_scale": float(dim) ** 0.5,
  }  # fmt: skip
  return _llama(layers, dim, heads, kv_heads, hidden, **(own | fields))
