"""The cache of compiled programs: where it is, who may share it, and that it changes no bit."""

import logging
import os
import pathlib
import stat
import sys
import time

import jax
import numpy as np
import optax
import pytest
from jax._src import compilation_cache

from llm_jax import config
from llm_jax.train import compiling, parallel
from tests.train import toys

NAMES = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE", "XDG_CACHE_HOME")


@pytest.fixture
def start(monkeypatch):
  """Returns the environment of a program that has not started JAX, with these variables."""

  def of(**variables):
    rest = {k: v for k, v in os.environ.items() if k not in NAMES and "PERSISTENT" not in k}
    monkeypatch.setattr(os, "environ", rest | variables)
    monkeypatch.delitem(sys.modules, "jax")
    return os.environ

  return of


def test_a_user_has_a_private_folder_for_each_kind_of_cpu(start, tmp_path, monkeypatch, capsys):
  env = start(XDG_CACHE_HOME=str(tmp_path))
  folder = pathlib.Path(compiling.cache()["cache"])
  assert folder.parent == tmp_path / "llm_jax" / "compiled"
  assert stat.S_IMODE(folder.stat().st_mode) == 0o700
  assert env["JAX_COMPILATION_CACHE_DIR"] == str(folder) and capsys.readouterr().err == ""
  monkeypatch.setattr(pathlib.Path, "read_text", lambda path, **_: "flags : sse4_2\n")
  assert compiling.own_folder(env).parent == folder.parent
  assert compiling.own_folder(env) != folder


def test_a_relative_cache_home_is_none_as_its_specification_says():
  home = compiling.own_folder({"XDG_CACHE_HOME": "here"})
  assert home == compiling.own_folder({}) and home.is_relative_to(pathlib.Path.home() / ".cache")


def test_a_folder_that_is_given_is_taken_as_it_is(start, tmp_path):
  start(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "ours"))
  (tmp_path / "ours").mkdir()
  broken = tmp_path / "ours" / "a-cache"
  broken.write_bytes(b"broken")
  os.utime(broken, (1e9, 1e9))
  for many in (False, True):
    assert compiling.cache(many) == {"cache": str(tmp_path / "ours")}
  assert list((tmp_path / "ours").iterdir()) == [broken]


def test_a_folder_of_another_machine_is_left_to_jax(start):
  start(JAX_COMPILATION_CACHE_DIR="gs://bucket/compiled")
  assert compiling.cache() == {"cache": "gs://bucket/compiled"}


def test_many_processes_need_a_folder_that_all_see(start, tmp_path):
  env = start(XDG_CACHE_HOME=str(tmp_path))
  assert compiling.cache(many=True) == {} and not list(tmp_path.iterdir())
  assert "JAX_COMPILATION_CACHE_DIR" not in env


def test_it_can_be_switched_off(start, tmp_path):
  start(XDG_CACHE_HOME=str(tmp_path), JAX_ENABLE_COMPILATION_CACHE="false")
  assert compiling.cache() == {} and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"])
def test_a_folder_that_cannot_be_made_is_one_line_and_no_cache(name, start, tmp_path, capsys):
  (tmp_path / "file").write_text("")
  env = start(**{name: str(tmp_path / "file" / "below")})
  assert compiling.cache() == {}
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("warning: compiled programs are not kept in") and "directory" in line
  assert env["JAX_ENABLE_COMPILATION_CACHE"] == "false"


def test_a_program_that_gave_jax_a_folder_keeps_it():
  before = dict(os.environ)
  assert compiling.cache() == {"cache": jax.config.jax_compilation_cache_dir}
  assert dict(os.environ) == before


def put(folder, name, data, age):
  path = folder / f"{name}-cache"
  path.write_bytes(data)
  os.utime(path, (time.time() - age,) * 2)
  return path


def test_what_a_killed_run_left_is_removed_and_what_is_being_written_is_not(tmp_path):
  whole = compilation_cache.compress_executable(bytes(range(256)) * 99)
  good = put(tmp_path, "good", whole, 1000)
  put(tmp_path, "half", whole[: len(whole) // 2], 1000)
  put(tmp_path, "none", b"", 1000)
  growing = put(tmp_path, "growing", whole[:-1], 1)
  theirs = put(tmp_path, "theirs", b"of another compressor", 1000)
  left = {good, growing, theirs, tmp_path / ".checked"}
  compiling.tidy(tmp_path)
  assert set(tmp_path.iterdir()) == left
  compiling.tidy(tmp_path, now=time.time() + 100)  # Nobody went on with it.
  assert set(tmp_path.iterdir()) == left - {growing}


def test_the_longest_unused_make_room(tmp_path):
  whole = compilation_cache.compress_executable(os.urandom(1000))
  old, used, new = (put(tmp_path, f"{age}", whole, age) for age in (9000, 5000, 1000))
  compiling.tidy(tmp_path, limit=2 * len(whole))
  assert not old.exists() and used.exists() and new.exists()
  compiling.tidy(tmp_path, limit=0)
  assert [path.name for path in tmp_path.iterdir()] == [".checked"]


@pytest.fixture
def folder(tmp_path):
  """A cache of this test's own."""
  before = jax.config.jax_compilation_cache_dir
  for path in (tmp_path, before):
    jax.config.update("jax_compilation_cache_dir", str(path))
    compilation_cache.reset_cache()
    if path == tmp_path:
      yield tmp_path


def trained(caplog):
  """Parameters after two steps, with how many programs were loaded and how many compiled."""
  caplog.clear()
  with caplog.at_level(logging.DEBUG, logger="jax._src.compiler"):
    model, place = toys.Toy(), parallel.make(config.Mesh())
    params, _ = toys.train(place, toys.loss_of(model), optax.adamw(1e-2), model=model)
  said = [record.getMessage().lower() for record in caplog.records]
  hits, misses = (sum(f"cache {kind}" in text for text in said) for kind in ("hit", "miss"))
  return jax.tree.leaves(params), hits, misses


@pytest.mark.long
def test_loaded_programs_give_the_same_bits_and_a_broken_one_is_compiled(folder, caplog):
  cold, hits, misses = trained(caplog)
  assert not hits and misses
  programs = sorted(folder.glob("*-cache"))
  warm, hits, misses = trained(caplog)
  assert hits and not misses and sorted(folder.glob("*-cache")) == programs
  for path in programs:
    path.write_bytes(path.read_bytes()[:-20])
  with pytest.warns(UserWarning, match="Error reading persistent compilation cache entry"):
    broken, hits, misses = trained(caplog)
  assert not hits and misses
  for others in (warm, broken):
    jax.tree.map(np.testing.assert_array_equal, others, cold)
