"""Which rows of a batch a process reads: those that its devices hold, whatever the mesh."""

import types
from typing import NamedTuple

import jax
import numpy as np
import pytest

from llm_jax import config
from llm_jax.data import packing, rows
from llm_jax.train import parallel

BATCH = 16
MESHES = ("data=8", "fsdp=8", "data=2 fsdp=4", "fsdp=4 tensor=2", "data=2 tensor=4", "tensor=8")


class Device(NamedTuple):
  """One of the devices here, as if it was another process's."""

  id: int
  process_index: int


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """Packed rows of toy documents, each id in one place."""
  path = tmp_path_factory.mktemp("rows")
  documents = [np.arange(9 * i, 9 * i + 9) for i in range(300)]
  packing.write_tokens(path / "tokens", documents, 5000)
  rows.write_rows(path / "packed", packing.TokenSource(path / "tokens"), 24)
  return rows.RowSource(path / "packed")


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
@pytest.mark.parametrize("mesh", MESHES)
def test_a_process_reads_the_rows_of_its_devices(mesh, processes, source, monkeypatch):
  sizes = {"data": 1} | {k: int(v) for k, v in (part.split("=") for part in mesh.split())}
  place = parallel.make(config.Mesh(**sizes))
  real = place._rows

  def owners(shape):
    found = real.devices_indices_map(shape).items()
    return {Device(d.id, d.id * processes // 8): index for d, index in found}

  apart = types.SimpleNamespace(devices_indices_map=owners)
  monkeypatch.setattr(parallel.MeshJit, "_rows", apart)
  whole, read = rows.RowStream(source, BATCH, seed=3), set()
  for process in range(processes):
    monkeypatch.setattr(jax, "process_index", lambda process=process: process)
    mine = [part for d, (part,) in owners((BATCH,)).items() if d.process_index == process]
    held = sorted({i for part in mine for i in range(BATCH)[part]})
    which, count = place.share()
    stream = rows.RowStream(source, BATCH, 3, None, which, count)
    for step in (0, 1, 40):
      wanted = whole.at(step)["tokens"][held]
      np.testing.assert_array_equal(stream.at(step)["tokens"], wanted)
    read |= set(held)
  assert read == set(range(BATCH))
