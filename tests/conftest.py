"""Eight CPU devices for the tests of placement, and quick compiles; set before jax is imported."""

import importlib.metadata
import os
import shutil
import tempfile

import pytest

# Tests compile far more than they compute: without LLVM's optimizations they take half the time,
# and without the emitters of fused loops two thirds of that. XLA's flag for these is gone later.
_FLAGS = "--xla_force_host_platform_device_count=8"
if importlib.metadata.version("jaxlib").startswith("0.10."):
  _FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", _FLAGS)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


def pytest_configure(config):
  """Keeps what was compiled for the next test that compiles the same, in this process alone.

  Programs that it starts have a folder of theirs: some are killed while they write.
  """
  import hypothesis
  import jax

  # A busy machine is no failure.
  hypothesis.settings.register_profile("no deadline", deadline=None)
  hypothesis.settings.load_profile("no deadline")

  folder = tempfile.mkdtemp(prefix="llm_jax_compiled_")
  os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(folder, "others")
  config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
  jax.config.update("jax_compilation_cache_dir", folder)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
  """Gives all tests of the chain of tiny stages to one worker, which trains it once: long."""
  for item in items:
    if "root" in getattr(item, "fixturenames", ()):
      item.add_marker(pytest.mark.xdist_group("chain"))
      item.add_marker(pytest.mark.long)
