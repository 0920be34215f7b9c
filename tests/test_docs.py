"""The commands of the README and the guides name programs, configs and fields that exist."""

import importlib.util
import pathlib
import re
import shlex

import pytest

from experiments import _fields, _launch, sweep

# ml_collections loads the file that --config names in an old way.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
COMMAND = re.compile(r"python -m ((?:experiments|tools)\.\w+)((?:[^`\n\\]|\\\n)*)")


def commands():
  for page in PAGES:
    text = (ROOT / page).read_text(encoding="utf-8")
    for found in COMMAND.finditer(text):
      yield pytest.param(found[1], found[2].replace("\\\n", " "), id=f"{page}:{found[0][:60]}")


@pytest.mark.parametrize(("module", "words"), [*commands()])
def test_commands_exist(module, words, monkeypatch):
  assert importlib.util.find_spec(module), module
  if module.startswith("experiments."):
    argv = [module, *shlex.split(words, comments=True)]
    stage = module.partition(".")[2]
    if stage == "sweep":
      assert sweep.main([*argv[1:], "--list"]) == 0
      return
    path = _launch.config_path(argv) or str(_launch.CONFIGS / f"{stage}.py")
    if stage != "custom_loss":
      monkeypatch.chdir(ROOT)
      _fields.check_overrides(argv[1:], _launch.load_config(path))


def test_linked_files_exist():
  for page in PAGES:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
      assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def test_named_source_files_exist():
  for page in PAGES:
    text = (ROOT / page).read_text(encoding="utf-8")
    for name in re.findall(r"`(llm_jax/[\w/]+\.py)`", text):
      assert (ROOT / name).exists(), f"{page}: {name}"
