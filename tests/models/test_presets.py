"""Presets have the published numbers of parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from llm_jax.errors import UserError
from llm_jax.models import presets
from llm_jax.models.encoder_decoder import EncoderDecoder
from llm_jax.models.transformer import Transformer, count_parameters
from llm_jax.scaling import flops

# Exact: the public config.json fixes the number.
EXACT = [
  (presets.quickstart, (), 1_328_512),
  (presets.gpt2, ("124m",), 124_439_808),
  (presets.gpt2, ("355m",), 354_823_168),
  (presets.gpt2, ("774m",), 774_030_080),
  (presets.gpt2, ("1558m",), 1_557_611_200),
  (presets.llama2, ("7b",), 6_738_415_616),
  (presets.llama2, ("13b",), 13_015_864_320),
  (presets.llama2, ("70b",), 68_976_648_192),
  (presets.tinyllama, (), 1_100_048_384),
  (presets.llama3, ("8b",), 8_030_261_248),
  (presets.llama3, ("70b",), 70_553_706_496),
  (presets.mistral_7b, (), 7_241_732_096),
  (presets.falcon, ("7b",), 6_921_720_704),
  (presets.falcon, ("40b",), 41_303_293_952),
  (presets.mpt_7b, (), 6_649_286_656),
  (presets.pythia, ("70m",), 70_426_624),
  (presets.pythia, ("160m",), 162_322_944),
  (presets.pythia, ("410m",), 405_334_016),
  (presets.pythia, ("1b",), 1_011_781_632),
  (presets.pythia, ("1.4b",), 1_414_647_808),
  (presets.pythia, ("2.8b",), 2_775_208_960),
  (presets.pythia, ("6.9b",), 6_857_302_016),
  (presets.pythia, ("12b",), 11_846_072_320),
  (presets.qwen2, ("0.5b",), 494_032_768),
  (presets.qwen2, ("1.5b",), 1_543_714_304),
  (presets.qwen2, ("7b",), 7_615_616_512),
  (presets.qwen3, ("0.6b",), 596_049_920),
  (presets.qwen3, ("1.7b",), 1_720_574_976),
  (presets.qwen3, ("4b",), 4_022_468_096),
  (presets.qwen3, ("8b",), 8_190_735_360),
  (presets.gemma1, ("2b",), 2_506_172_416),
  (presets.gemma1, ("7b",), 8_537_680_896),
  (presets.gemma2, ("2b",), 2_614_341_888),
  (presets.gemma2, ("9b",), 9_241_705_984),
  (presets.gemma2, ("27b",), 27_227_128_320),
  (presets.gemma3_1b, (), 999_885_952),
  (presets.flan_t5, ("small",), 76_961_152),
  (presets.flan_t5, ("base",), 247_577_856),
  (presets.flan_t5, ("large",), 783_150_080),
  # All layers of these are traced.
  pytest.param(presets.flan_t5, ("xl",), 2_849_757_184, marks=pytest.mark.long),
  pytest.param(presets.flan_t5, ("xxl",), 11_135_332_352, marks=pytest.mark.long),
]
# As printed in the papers, and half of the last digit printed. GPT-3's "350M" is 356M.
PRINTED = [
  (presets.gpt3, ("125m",), 125e6, 0.5e6),
  (presets.gpt3, ("350m",), 350e6, 6e6),
  (presets.gpt3, ("760m",), 760e6, 0.5e6),
  (presets.gpt3, ("1.3b",), 1.3e9, 0.05e9),
  (presets.gpt3, ("2.7b",), 2.7e9, 0.05e9),
  (presets.gpt3, ("6.7b",), 6.7e9, 0.05e9),
  (presets.gpt3, ("13b",), 13.0e9, 0.1e9),
  (presets.gpt3, ("175b",), 175.0e9, 0.5e9),
  (presets.llama1, ("7b",), 6.7e9, 0.05e9),
  (presets.llama1, ("13b",), 13.0e9, 0.05e9),
  (presets.llama1, ("33b",), 32.5e9, 0.05e9),
  (presets.llama1, ("65b",), 65.2e9, 0.1e9),
]


def parameters(shape):
  """Counted in what the model declares; of a decoder's layers, one is traced for all."""
  kind = EncoderDecoder if shape.encoder_layers else Transformer
  shape = dataclasses.replace(shape, scan=not shape.encoder_layers)
  ids = [jnp.zeros((1, 2), jnp.int32)] * (2 if shape.encoder_layers else 1)
  made = jax.eval_shape(kind.from_config(shape).init, jax.random.key(0), *ids)
  return count_parameters(made["params"])


@pytest.mark.parametrize(("preset", "size", "count"), EXACT)
def test_the_number_of_parameters(preset, size, count):
  shape = preset(*size)
  assert parameters(shape) == flops.parameters(shape) == count


@pytest.mark.parametrize(("preset", "size", "printed", "digit"), PRINTED)
def test_the_number_of_parameters_of_the_paper(preset, size, printed, digit):
  shape = preset(*size)
  assert parameters(shape) == flops.parameters(shape)
  assert abs(parameters(shape) - printed) <= digit


@pytest.mark.parametrize(("size", "printed"), [("280b", 280e9), ("70b", 70e9)])
def test_gopher_has_the_papers_number_but_for_the_projections_of_positions(size, printed):
  shape = presets.gopher(size)
  whole = parameters(shape) + shape.layers * shape.dim**2
  assert abs(whole / printed - 1) < 0.005


def test_a_size_that_there_is_not_is_named():
  with pytest.raises(UserError, match='no size "7B"; there are: 13b, 70b, 7b'):
    presets.llama2("7B")
