"""The models that a server has: those of a run's stages, loaded when they are first asked for."""

import pathlib
import threading
from typing import Any, NamedTuple

from llm_jax.data.tokenizer import Tokenizer
from llm_jax.errors import UserError
from llm_jax.serve.engine import Engine
from llm_jax.stages import runs

STAGES = ("pretrain", "sft", "dpo", "ppo", "grpo", "online_dpo", "rejection")


class Served(NamedTuple):
  """A model at work.

  Attributes:
    name: of its stage.
    engine: what decodes.
    tokenizer: of the model.
    chat: whether it has learned turns; a base model goes on with text.
  """

  name: str
  engine: Engine
  tokenizer: Tokenizer
  chat: bool


class Models:
  """The models of a run, by the names of their stages.

  Args:
    workdir: a run of the pipeline, or of one stage beside its `prepare`.
    prepared: where the tokenizer is; "": `workdir`/prepare.
    engine: arguments of `Engine`.

  Raises:
    UserError: if there is no model.
  """

  def __init__(self, workdir: str | pathlib.Path, prepared: str = "", **engine: Any):
    root = pathlib.Path(workdir)
    self._prepared = prepared if prepared else str(root / "prepare")
    self._paths = {name: root / name for name in STAGES if (root / name / "model.json").exists()}
    if not self._paths:
      raise UserError(
        f"{root} holds no trained model (none of {', '.join(STAGES)} has a model.json): run "
        "`make quickstart`, or name its directory with --workdir"
      )
    self._tokenizer = runs.tokenizer(self._prepared)
    self._engine = engine
    self._lock = threading.Lock()
    self._loaded: dict[str, Served] = {}

  @property
  def names(self) -> list[str]:
    """All of them, whether they are loaded or not."""
    return list(self._paths)

  def get(self, name: str) -> Served:
    """Returns a model, which is loaded if it was not.

    Raises:
      KeyError: if there is none of this name.
      UserError: if its files are damaged.
    """
    with self._lock:
      if name not in self._loaded:
        path = self._paths[name]
        run = runs.load(str(path), "init", vocab_size=self._tokenizer.vocab_size)
        made = Engine(run.model, run.params, pad_id=self._tokenizer.pad_id, **self._engine)
        self._loaded[name] = Served(name, made, self._tokenizer, name != "pretrain")
      return self._loaded[name]

  def close(self) -> None:
    """Ends all engines."""
    with self._lock:
      for served in self._loaded.values():
        served.engine.close()
      self._loaded.clear()
