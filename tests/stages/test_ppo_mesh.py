"""PPO over a mesh: its rollout, its roles and its update are those of one device."""

import jax
import numpy as np
import pytest

from llm_jax import config
from llm_jax.stages import ppo
from llm_jax.train import parallel
from llm_jax.train.metrics import read
from tests.stages.conftest import ppo_config

SPLIT = config.Mesh(data=2, fsdp=2, tensor=2)


def test_a_mesh_measures_what_one_device_measures(prepared, root, tmp_path):
  rows = []
  for name, mesh in (("one", config.Mesh(data=1)), ("split", SPLIT)):
    ppo.run(ppo_config(prepared, root, mesh=mesh), tmp_path / name)
    rows.append([row for row in read(tmp_path / name) if "loss" in row])
  names = ["loss", "objective/scores", "objective/kl", "gold/mean", "policy/approxkl", "eos_rate"]
  for alone, over in zip(*rows, strict=True):
    for metric in set(names) & set(alone):
      np.testing.assert_allclose(over[metric], alone[metric], atol=2e-3, err_msg=metric)
  assert len(set(names) & set(rows[0][0])) >= 5


@pytest.mark.parametrize("mesh", [SPLIT, config.Mesh(kind="pmap")], ids=["mesh", "pmap"])
def test_what_is_frozen_lies_where_what_is_trained_does(mesh, prepared, root, tmp_path):
  place = parallel.make(mesh)
  collect, _ = ppo.load(ppo_config(prepared, root, mesh=mesh), place, None, str(tmp_path))
  judge = next(iter(collect.actor.scores.models.values())).params
  for frozen in (collect.reference, judge["decoder"]):
    kernel = frozen["blocks_0"]["mlp"]["up"]["kernel"]
    sizes = {shard.data.size * mesh.fsdp * mesh.tensor for shard in kernel.addressable_shards}
    assert sizes == {kernel.size}
  assert len(jax.tree.leaves(judge)[0].sharding.device_set) == (8 if mesh is SPLIT else 1)
