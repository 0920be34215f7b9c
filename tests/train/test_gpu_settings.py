"""Settings of XLA for GPUs: tried before they are set, the user's own win, and a CPU has none."""

import json
import os

import pytest

from llm_jax.errors import UserError
from llm_jax.train import gpu_settings, processes
from llm_jax.train.gpu_settings import LEVEL, PARTS

OWN = ("XLA_FLAGS", "JAX_OPTIMIZATION_LEVEL")
MADE_UP, HARMLESS = "--xla_made_up_flag=true", "--xla_cpu_enable_fast_min_max=true"


@pytest.fixture
def gpu(monkeypatch, tmp_path):
  """An environment where there is a GPU, these settings are known, and what was asked is listed."""

  def of(known, **variables):
    rest = {k: v for k, v in os.environ.items() if k not in OWN}
    env = rest | {"XDG_CACHE_HOME": str(tmp_path)} | variables
    monkeypatch.setattr(os, "environ", env)
    monkeypatch.setattr(gpu_settings, "uses_cuda", lambda env: True)
    monkeypatch.setattr(gpu_settings, "accepted", lambda word: asked.append(word) or word in known)
    return env, asked

  asked = []
  return of


def test_a_flag_that_xla_does_not_know_is_refused_and_the_others_are_used():
  """In processes of their own: here the first one would end this one."""
  taken, refused = gpu_settings.choose([MADE_UP, HARMLESS], gpu_settings.accepted)
  assert (taken, refused) == ([HARMLESS], [MADE_UP])


@pytest.mark.slow
def test_settings_are_known_to_the_installed_jax():
  assert gpu_settings.choose([LEVEL, *PARTS], gpu_settings.accepted) == ([LEVEL, *PARTS], [])
  assert gpu_settings.accepted("JAX_OPTIMIZATION_LEVEL=O9") is False
  assert gpu_settings.accepted("JAX_NO_SUCH_SETTING=1") is False
  assert gpu_settings.accepted(f"{PARTS[0].partition('=')[0]}=perhaps") is False


def test_nothing_follows_from_a_probe_that_fails_otherwise(monkeypatch, capsys):
  monkeypatch.setattr(gpu_settings, "_PROBE", "raise MemoryError('the GPU is full')")
  assert gpu_settings.accepted(HARMLESS) is None
  text = f"note: {HARMLESS} could not be tried: MemoryError: the GPU is full\n"
  assert capsys.readouterr().err == text
  assert gpu_settings.choose([HARMLESS], lambda word: None) == ([], [])


def test_the_level_is_set_recorded_and_said(gpu, capsys):
  env, _ = gpu({LEVEL})
  settings = gpu_settings.apply()
  assert env["JAX_OPTIMIZATION_LEVEL"] == "O1" and "XLA_FLAGS" not in env
  assert settings == {"set": LEVEL, "JAX_OPTIMIZATION_LEVEL": "O1"}
  gpu_settings.announce(settings, many=False)
  assert capsys.readouterr().err == f"compiles with {LEVEL}\n"


def test_without_the_level_its_parts_are_set_and_the_run_goes_on_without_those_refused(gpu, capsys):
  env, _ = gpu(set(PARTS[1:]), XLA_FLAGS="--xla_mine=1")
  settings = gpu_settings.apply()
  assert env["XLA_FLAGS"] == " ".join(["--xla_mine=1", *PARTS[1:]]) == settings["XLA_FLAGS"]
  assert "JAX_OPTIMIZATION_LEVEL" not in env
  assert settings["refused"] == f"{LEVEL} {PARTS[0]}"
  gpu_settings.announce(settings, many=False)
  assert capsys.readouterr().err.endswith(f"; refused by what is installed: {LEVEL} {PARTS[0]}\n")


def test_what_the_user_sets_wins(gpu):
  env, _ = gpu({LEVEL, *PARTS}, JAX_OPTIMIZATION_LEVEL="O0")
  assert gpu_settings.apply() == {"JAX_OPTIMIZATION_LEVEL": "O0"}
  assert env["JAX_OPTIMIZATION_LEVEL"] == "O0" and "XLA_FLAGS" not in env
  # The level would turn on what this flag turns off.
  off = PARTS[0].replace("true", "false")
  env, _ = gpu({LEVEL, *PARTS}, XLA_FLAGS=off)
  gpu_settings.apply()
  assert env["XLA_FLAGS"].split() == [off, *PARTS[1:]] and "JAX_OPTIMIZATION_LEVEL" not in env


def test_what_was_found_is_remembered_for_these_versions(gpu, tmp_path, monkeypatch):
  _, asked = gpu({LEVEL})
  gpu_settings.apply()
  gpu({LEVEL})
  gpu_settings.apply()
  assert asked == [LEVEL]
  (answers,) = json.loads((tmp_path / "llm_jax" / "xla.json").read_text()).values()
  assert answers == {LEVEL: True}
  monkeypatch.setattr(gpu_settings, "_version", lambda name: "99")
  gpu({LEVEL})
  gpu_settings.apply()
  assert asked == [LEVEL, LEVEL]
  (tmp_path / "llm_jax" / "xla.json").write_text("damaged")
  gpu({LEVEL})
  assert gpu_settings.apply()["set"] == LEVEL


def test_a_cpu_has_no_settings_and_what_the_user_set_is_recorded(monkeypatch, capsys):
  monkeypatch.setattr(os, "environ", {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": HARMLESS})
  settings = gpu_settings.apply()
  assert settings == {"XLA_FLAGS": HARMLESS}
  gpu_settings.announce(settings, many=False)
  assert capsys.readouterr().err == ""


def test_a_gpu_is_used_where_there_is_a_plugin_a_driver_and_nothing_against_it(monkeypatch):
  monkeypatch.setattr(gpu_settings, "_DRIVERS", (os.devnull,))
  assert not gpu_settings.uses_cuda({})  # No plugin is installed here.
  monkeypatch.setattr(gpu_settings, "_version", lambda name: "1")
  for env in ({}, {"JAX_PLATFORMS": "cuda,cpu"}, {"CUDA_VISIBLE_DEVICES": "0"}):
    assert gpu_settings.uses_cuda(env)
  for env in ({"JAX_PLATFORMS": "cpu"}, {"JAX_PLATFORMS": "tpu"}, {"CUDA_VISIBLE_DEVICES": ""}):
    assert not gpu_settings.uses_cuda(env)
  monkeypatch.setattr(gpu_settings, "_DRIVERS", ("/no/such/device",))
  assert not gpu_settings.uses_cuda({})


def test_processes_that_differ_are_refused_before_they_wait_for_each_other(monkeypatch, capsys):
  monkeypatch.setattr(processes, "gather", lambda own: [own, ["", ""]])
  with pytest.raises(UserError, match="would compile with different settings"):
    gpu_settings.announce({"set": LEVEL}, many=True)
  gpu_settings.announce({"XLA_FLAGS": "--xla_dump_to=of_this_one"}, many=True)
  assert capsys.readouterr().err == ""
