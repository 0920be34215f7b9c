"""The models that a server has: those of a run's stages, loaded when they are first asked for."""

import dataclasses
import json
import pathlib
import threading
from typing import Any, NamedTuple

from llm_jax import config
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.errors import UserError
from llm_jax.models.transformer import Transformer
from llm_jax.serve.engine import Engine, check_positions
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
    self._locks = {name: threading.Lock() for name in self._paths}
    self._loaded: dict[str, Served] = {}
    for path in self._paths.values():
      shape = config.Model(**json.loads((path / "model.json").read_text()))
      check_positions(shape, engine.get("prompt", 0), engine.get("max_new", 0))

  @property
  def names(self) -> list[str]:
    """All of them, whether they are loaded or not."""
    return list(self._paths)

  def get(self, name: str) -> Served:
    """Returns a model, which is loaded if it was not; others answer in the meantime.

    Its products are not rounded, as they may be in training: what they are rounded to depends on
    how many answers are drawn together, and an answer should not.

    Raises:
      KeyError: if there is none of this name.
      UserError: if its files are damaged.
    """
    if name not in self._loaded:
      with self._locks[name]:
        if name not in self._loaded:
          self._loaded[name] = self._load(name)
    return self._loaded[name]

  def _load(self, name: str) -> Served:
    vocabulary = self._tokenizer.vocab_size
    run = runs.load(str(self._paths[name]), "init", vocab_size=vocabulary)
    model = Transformer.from_config(dataclasses.replace(run.shape, matmul_precision=""))
    made = Engine(model, run.params, pad_id=self._tokenizer.pad_id, **self._engine)
    return Served(name, made, self._tokenizer, name != "pretrain")

  def close(self) -> None:
    """Ends all engines."""
    for served in list(self._loaded.values()):
      served.engine.close()
    self._loaded.clear()
