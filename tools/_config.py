"""The config of a tool's command line: --config and --config.FIELD, as experiments take them."""

from collections.abc import Sequence
from typing import Any

from absl import flags

from experiments import _fields, _launch
from llm_jax.errors import UserError, nearest


def configured(tool: str, words: Sequence[str], known: Sequence[str], stage: str) -> Any:
  """Returns the config that the words give, valid.

  Args:
    tool: the program's name.
    words: what is left of its command line after its own flags.
    known: the names of those, for suggestions.
    stage: whose default config it is, if none is named.

  Raises:
    UserError: for what experiments refuse too.
  """
  cfg = command(tool, words, known, stage).cfg
  _fields.validate(cfg)
  return cfg


def command(tool: str, words: Sequence[str], known: Sequence[str], stage: str) -> _launch.Command:
  """Returns the command line of `configured`, its config not yet checked."""
  for word in words:
    if word.startswith("-") and not word.lstrip("-").startswith(("config", "noconfig")):
      name = word.lstrip("-").partition("=")[0]
      raise UserError(f"unknown flag --{name}{nearest(name, ('config', *known))}")
  argv = [tool, *words]
  path = _launch.config_path(argv) or str(_launch.CONFIGS / f"{stage}.py")
  default = _launch.load_config(path)
  _fields.check_overrides(words, default)
  return _launch.parse(argv, path, default, flags.FlagValues())
