"""The models that a server has: those of a run's stages, loaded when they are first asked for."""

import dataclasses
import pathlib
import threading
import time
from typing import Any, NamedTuple

import jax

from llm_jax.data.tokenizer import Tokenizer
from llm_jax.errors import UserError
from llm_jax.models.transformer import Transformer
from llm_jax.serve.engine import MAX_NEW, Engine, check_positions
from llm_jax.stages import runs
from llm_jax.train import checkpoint
from llm_jax.types import Params

_FRESH = 1.0  # Seconds between two looks for a newer checkpoint.
STAGES = ("pretrain", "sft", "dpo", "ppo", "grpo", "online_dpo", "rejection")


class Served(NamedTuple):
  """A model at work.

  Attributes:
    name: of its stage.
    engine: what decodes.
    tokenizer: of the model.
    chat: whether it has learned turns; a base model goes on with text.
    model: the decoder.
    params: its parameters, on the device.
  """

  name: str
  engine: Engine
  tokenizer: Tokenizer
  chat: bool
  model: Transformer
  params: Params


class Models:
  """The models of a run, by the names of their stages; new ones as they are trained.

  Args:
    workdir: a run of the pipeline, or of one stage beside its `prepare`.
    prepared: where the tokenizer is; "": `workdir`/prepare.
    wait: whether a run that has trained nothing yet is fine.
    engine: arguments of `Engine`.

  Raises:
    UserError: if there is no model, unless they may come later, or no corpus where one was named.
  """

  def __init__(
    self, workdir: str | pathlib.Path, prepared: str = "", *, wait: bool = False, **engine: Any
  ):
    root = pathlib.Path(workdir)
    self.prepared = prepared if prepared else str(root / "prepare")
    self._paths = {name: root / name for name in STAGES}
    self._engine = engine
    self._locks = {name: threading.Lock() for name in STAGES}
    self._loaded: dict[str, tuple[int, Served]] = {}
    self._looked: dict[str, float] = {}  # When a loaded model was last known to be the newest.
    if not (self.names or wait):
      raise UserError(
        f"{root} holds no trained model (none of {', '.join(STAGES)} has a model.json): run "
        "`make quickstart`, or name its directory with --workdir"
      )
    if prepared or not wait:
      runs.tokenizer(self.prepared)
    for name in self.names:
      shape = runs.saved_shape(self._paths[name])
      check_positions(shape, engine.get("prompt", 0), engine.get("max_new", 0))

  @property
  def max_new(self) -> int:
    """The most tokens of an answer."""
    return self._engine.get("max_new", MAX_NEW)

  @property
  def names(self) -> list[str]:
    """All of them, whether they are loaded or not."""
    return [name for name in STAGES if self._step(name) is not None]

  def loaded(self, name: str) -> Served | None:
    """Returns a model if its newest checkpoint is loaded."""
    step, served = self._loaded.get(name, (None, None))
    if served is None or time.monotonic() - self._looked[name] < _FRESH:
      return served
    if step != self._step(name):
      return None
    self._looked[name] = time.monotonic()
    return served

  def get(self, name: str) -> Served:
    """Returns a model, which is loaded if it was not; others answer in the meantime.

    A stage that has saved a newer checkpoint is loaded again; answers on their way are finished by
    the older one. Its products are not rounded, as they may be in training: what they are rounded
    to depends on how many answers are drawn together, and an answer should not.

    Raises:
      KeyError: if there is none of this name.
      UserError: if its files are damaged.
    """
    with self._locks[name]:
      step = self._step(name)
      if step is None:
        raise KeyError(name)
      if name not in self._loaded or self._loaded[name][0] != step:
        made = self._load(name)
        if name in self._loaded:
          threading.Thread(target=self._loaded[name][1].engine.drain, daemon=True).start()
        self._loaded[name], self._looked[name] = (step, made), time.monotonic()
      return self._loaded[name][1]

  def _step(self, name: str) -> int | None:
    path = self._paths[name]
    if not (path / "model.json").exists():
      return None
    return checkpoint.latest_step(path / "checkpoints")

  def _load(self, name: str) -> Served:
    tokenizer = runs.tokenizer(self.prepared)
    run = runs.load(str(self._paths[name]), "init", vocab_size=tokenizer.vocab_size)
    model = Transformer.from_config(dataclasses.replace(run.shape, matmul_precision=""))
    params = jax.device_put(run.params)
    made = Engine(model, params, pad_id=tokenizer.pad_id, **self._engine)
    return Served(name, made, tokenizer, name != "pretrain", model, params)

  def close(self) -> None:
    """Ends all engines."""
    for _, served in list(self._loaded.values()):
      served.engine.close()
    self._loaded.clear()
