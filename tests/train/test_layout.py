"""Weights in the layout that decodes are the same weights."""

import jax
import numpy as np
import pytest

from llm_jax import config
from llm_jax.train import layout, parallel

WIDE = np.arange(64.0, dtype=np.float32).reshape(8, 8)


def put(mesh, names):
  return parallel.make(mesh).put("kernel", WIDE, names)


@pytest.mark.parametrize("mesh", [config.Mesh(fsdp=8), config.Mesh(data=2, fsdp=2, tensor=2)])
@pytest.mark.parametrize("names", [("embed", "mlp"), ("mlp", "embed"), (None, "embed")])
def test_whole_over_fsdp_and_still_split_over_tensor(mesh, names):
  x = put(mesh, names)
  found = layout.gathered({"a": x, "b": {"c": WIDE}})
  np.testing.assert_array_equal(found["a"], WIDE)
  ways = mesh.tensor if "mlp" in names else 1
  assert {s.data.size for s in found["a"].addressable_shards} == {64 // ways}
  assert {s.data.size for s in x.addressable_shards} == {64 // ways // mesh.fsdp}  # Kept as it was.
  assert found["b"]["c"] is WIDE


@pytest.mark.parametrize("mesh", [config.Mesh(data=8), config.Mesh(tensor=8)])
def test_what_is_not_split_over_fsdp_stays_the_same_array(mesh):
  x = put(mesh, ("embed", "mlp"))
  assert layout.gathered([x])[0] is x
  assert layout.gathered([jax.numpy.ones(3)])[0].shape == (3,)
