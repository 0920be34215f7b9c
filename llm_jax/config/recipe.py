"""A chain of stages by name, as published pipelines of post-training are, and the paths in it."""

import dataclasses
import re
from typing import Any

from llm_jax.config.aligning import Rlaif
from llm_jax.config.pipeline import Preferences
from llm_jax.config.training import Stage
from llm_jax.errors import UserError, nearest

_LINK = re.compile(r"""(^|['",]\s*)@(\w*)""")
_TAKEN = ("base", "examples", "prepared")  # Names in a run's directory that are no stage's.
_FILLED = ("seed", "prepared")  # Fields of a stage that the recipe fills in.


@dataclasses.dataclass
class Recipe:
  """Stages in order: a subclass declares them as fields, each with the config of a stage.

  A text of a stage that begins with "@" is a path in the same run: "@sft" is the directory of an
  earlier stage, "@revise/revised.jsonl" a file in it, "@base" what `base` names, and
  "@examples/alpaca.json" a small file made of the questions of `prepared` (data/examples.py). It
  may stand after a comma or in quotes, too: "reward_model(run='@reward')".
  """

  seed: int = 0  # Of all stages.
  prepared: str = "runs/quickstart/prepare"  # A directory that `experiments.prepare` wrote.
  base: str = "runs/quickstart/pretrain"  # A run, or a folder of Hugging Face, to start from.
  template: str = ""  # Of conversations (data/templates.py); "": that of the tokenizer.

  def stages(self) -> dict[str, Any]:
    """Returns the config of each stage as it is written, by name, in order."""
    own = {field.name for field in dataclasses.fields(Recipe)}
    names = [field.name for field in dataclasses.fields(self) if field.name not in own]
    return {name: getattr(self, name) for name in names}

  def connected(self, root: str, prepared: str = "") -> dict[str, Any]:
    """Returns the config of each stage with its seed, its tokenizer and all paths filled in.

    Args:
      root: directory of the run, in which each stage has one of its name.
      prepared: takes the place of `self.prepared`; "": nothing does.

    Raises:
      UserError: for a path to what is no earlier stage.
    """
    known = {"base": self.base, "examples": f"{root}/examples"}
    given = {"seed": self.seed, "prepared": prepared if prepared else self.prepared}
    found = {}
    for name, stage in self.stages().items():
      found[name] = _linked(dataclasses.replace(stage, **given), f"config.{name}", known)
      known[name] = f"{root}/{name}"
    return found

  def validate(self) -> None:
    """Checks that every field is a stage, and that paths lead to earlier ones.

    Raises:
      UserError: one line that names the field and the remedy.
    """
    for name, stage in self.stages().items():
      if not isinstance(stage, Stage | Rlaif | Preferences) or name in _TAKEN:
        raise UserError(
          f"config.{name}: each field of a recipe holds the config of a stage, and none is called "
          f"{', '.join(_TAKEN)}"
        )
      for field in _FILLED:
        if getattr(stage, field) != getattr(type(stage)(), field):
          raise UserError(f"config.{name}.{field} is filled in: set config.{field}")
    if not self.stages():
      raise UserError("config: this recipe has no stages")
    self.connected(".")


def _linked(value: Any, where: str, known: dict[str, str]) -> Any:
  """Returns a config, or a part of it, with its links resolved."""
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    parts = {
      field.name: _linked(getattr(value, field.name), f"{where}.{field.name}", known)
      for field in dataclasses.fields(value)
    }
    return dataclasses.replace(value, **parts)
  if isinstance(value, tuple):
    return tuple(_linked(part, where, known) for part in value)
  if not isinstance(value, str):
    return value

  def path(link: re.Match[str]) -> str:
    if link[2] not in known:
      raise UserError(f'{where}={value}: no earlier stage "{link[2]}"{nearest(link[2], known)}')
    return link[1] + known[link[2]]

  return _LINK.sub(path, value)
