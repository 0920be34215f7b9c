"""Presets have the published numbers of parameters."""

import jax
import jax.numpy as jnp
import pytest

from llm_jax.models import presets
from llm_jax.models.transformer import Transformer, count_parameters


@pytest.mark.parametrize(
  ("preset", "count"),
  [
    (presets.quickstart, 1_328_512),
    (presets.gpt2_124m, 124_439_808),
    (presets.llama_1b, 1_100_048_384),
    (presets.llama2_7b, 6_738_415_616),
  ],
)
def test_the_number_of_parameters(preset, count):
  model = Transformer.from_config(preset())
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
  assert count_parameters(shapes["params"]) == count
