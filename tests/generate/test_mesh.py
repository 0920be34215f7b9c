"""The sampler over a mesh is the sampler on one device, and no device has another's cache."""

import dataclasses

import jax
import numpy as np
import pytest

from llm_jax import config
from llm_jax.generate import sample, sampler
from llm_jax.models.transformer import Transformer
from llm_jax.stages import training
from llm_jax.train import collectives, layout, parallel

SHAPE = config.Model(vocab_size=24, dim=16, layers=1, heads=4, kv_heads=2, max_length=64)
NEW, NEVER = 7, -1
ROWS, SLOTS = 32, 6  # As many rows as one device hands over in parts.
IDS = np.random.default_rng(0).integers(1, 24, (ROWS, SLOTS)).astype(np.int32)
MASK = (np.arange(SLOTS) >= np.arange(ROWS)[:, None] % SLOTS).astype(np.int32)
KEYS = jax.random.split(jax.random.key(0), ROWS)
MESHES = {
  "all": config.Mesh(data=2, fsdp=2, tensor=2),
  "rows": config.Mesh(data=8),
  "sequence": config.Mesh(data=2, sequence=2, tensor=2),
}


def placed(mesh, shape=SHAPE):
  model, place = Transformer.from_config(shape), parallel.make(mesh)
  params = jax.tree.map(
    lambda x: 5 * x, jax.device_get(training.initializer(model)(jax.random.key(1)))
  )
  return model, place, training.placed(place, model, params)


def drawn(mesh, rows=slice(None), **fields):
  model, place, params = placed(mesh)
  given = place.rows((IDS[rows], MASK[rows], KEYS[rows]))
  settings = {"max_new": NEW, "end_id": 3, **fields}
  return jax.device_get(place.under(sample)(model, params, *given, **settings))


@pytest.mark.long
@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES)
@pytest.mark.parametrize("fields", [{}, {"temperature": 0.0}, {"top_k": 5, "top_p": 0.9}])
def test_a_mesh_draws_what_one_device_draws(mesh, fields):
  alone, over = drawn(config.Mesh(data=1), **fields), drawn(mesh, **fields)
  assert 0 < alone.ended.sum() < ROWS or "temperature" in fields
  np.testing.assert_array_equal(over.tokens, alone.tokens)
  np.testing.assert_array_equal(over.lengths, alone.lengths)
  np.testing.assert_allclose(over.logps, alone.logps, atol=1e-4)
  np.testing.assert_allclose(over.sampled_logps, alone.sampled_logps, atol=1e-4)


@pytest.mark.long
def test_rows_that_do_not_divide_are_drawn_all_the_same():
  alone, over = drawn(config.Mesh(data=1), slice(5)), drawn(MESHES["rows"], slice(5))
  np.testing.assert_array_equal(over.tokens, alone.tokens)


@pytest.mark.long
@pytest.mark.parametrize("mesh", [*MESHES.values(), config.Mesh(data=1)], ids=[*MESHES, "alone"])
def test_each_device_has_its_own_rows_and_heads_of_the_cache(mesh, monkeypatch):
  model, place, params = placed(mesh)
  jitted, texts = sampler._sample, []
  monkeypatch.setattr(
    sampler, "_sample", lambda *args: texts.append(jitted.lower(*args).compile().as_text())
  )
  place.under(sample)(model, params, *place.rows((IDS, MASK, KEYS)), max_new=NEW, end_id=NEVER)
  rows, heads = ROWS // (mesh.data * mesh.fsdp), 2 // mesh.tensor
  assert f"f32[{rows},{heads},{SLOTS + NEW},4]" in texts[0]
  whole = f"f32[{ROWS},2,{SLOTS + NEW},4]" in texts[0]
  assert whole == (place.mesh.size == 1)  # Alone is the negative control.


@pytest.mark.long
@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES)
def test_answers_take_turns_over_a_mesh(mesh):
  alone = drawn(config.Mesh(data=1))
  model, place, params = placed(mesh)
  given = place.rows((IDS, MASK, KEYS))
  over = place.under(sample)(model, params, *given, max_new=NEW, end_id=3, rows=8)
  np.testing.assert_array_equal(over.tokens, alone.tokens)
  np.testing.assert_allclose(over.logps, alone.logps, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("mesh", [config.Mesh(fsdp=8), MESHES["all"]], ids=["fsdp", "all"])
def test_the_layout_that_decodes_needs_no_more_gathering(mesh, monkeypatch):
  shape = dataclasses.replace(SHAPE, dim=64, heads=8, kv_heads=8)
  model, place, params = placed(mesh, shape)
  jitted, texts = sampler._sample, []
  monkeypatch.setattr(
    sampler, "_sample", lambda *args: texts.append(jitted.lower(*args).compile().as_text())
  )
  given = place.rows((IDS, MASK, KEYS))
  for weights in (params, layout.gathered(params)):
    place.under(sample)(model, weights, *given, max_new=NEW, end_id=NEVER)
  least = 64 * 64 * 4 // mesh.tensor  # Bytes of a device's part of the smallest matrix, gathered.
  split, whole = (
    [x for x in collectives.collectives_of(text) if x.kind == "all-gather" and x.bytes >= least]
    for text in texts
  )
  over = {x.group for x in split if x.where.endswith("dot_general")}  # Not activations.
  assert over and not [x for x in whole if x.group in over]
