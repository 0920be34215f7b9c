"""What stages read from each other's directories: tokenizers, models, questions, pairs."""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from llm_jax import config, rundir
from llm_jax.data import questions
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.errors import UserError
from llm_jax.models import interop, lora
from llm_jax.models.language_model import LanguageModel
from llm_jax.train import checkpoint, processes
from llm_jax.types import Params

_ADAPTER = "adapter.json"


class Run(NamedTuple):
  """A trained model as an earlier stage left it.

  Attributes:
    model: the decoder, or an encoder-decoder where that is asked for.
    params: its parameters, or of a reward model {"decoder", "head"}; host arrays, but for what was
      `put` on devices. What an adapter adds is in them.
    shape: the decoder's configuration.
    grown: new tokens, whose rows no training has seen.
  """

  model: Any
  params: Params
  shape: config.Model
  grown: int = 0


def tokenizer(prepared: str) -> Tokenizer:
  """Loads the tokenizer of a prepared corpus.

  Raises:
    UserError: if `prepared` holds none.
  """
  path = pathlib.Path(prepared)
  if not (path / "manifest.json").exists():
    raise UserError(
      f"{prepared} holds no prepared corpus (no manifest.json): run "
      f"`python -m experiments.prepare --workdir={prepared}`, or set --config.prepared"
    )
  return Tokenizer.load(path / "tokenizer")


def asked(prepared: str, split: str) -> list[questions.Question]:
  """Reads the questions of one split of a prepared corpus.

  Raises:
    UserError: if the corpus has no questions (only the documentation corpus does).
  """
  path = pathlib.Path(prepared) / "questions" / f"{split}.jsonl"
  if not path.exists():
    raise UserError(
      f"{path} is missing: only a corpus prepared with --config.source=pydocs has questions"
    )
  found = questions.read(path)
  if len(found) < 2:
    raise UserError(
      f"{path} has {len(found)} questions, two are needed: prepare more text (a larger max_bytes)"
    )
  return found


def save_shape(workdir: str | pathlib.Path, shape: config.Model) -> None:
  """Writes model.json, so that later stages can rebuild the decoder."""
  processes.first(lambda: _write(pathlib.Path(workdir) / "model.json", dataclasses.asdict(shape)))


def saved_shape(workdir: str | pathlib.Path) -> config.Model:
  """Reads model.json.

  Raises:
    UserError: if it is damaged.
  """
  path = pathlib.Path(workdir) / "model.json"
  try:
    return config.Model(**json.loads(path.read_text(encoding="utf-8")))
  except (OSError, ValueError, TypeError) as error:
    raise UserError(f"{path} is damaged ({error}): delete it or train again") from error


def load(
  directory: str,
  field: str,
  reward: bool = False,
  vocab_size: int = 0,
  seq2seq: bool = False,
  put: interop.Put | None = None,
) -> Run:
  """Loads the newest checkpoint of a run, or a folder of Hugging Face, for the field that named it.

  Args:
    directory: of the run, or a folder with their config.json and safetensors.
    field: names the remedy in an error.
    reward: a reward model is wanted, not a decoder.
    vocab_size: of the tokenizer it is to be used with; 0: not known. A model of others grows to it,
      as imported tokenizers have turn markers that it lacks.
    seq2seq: whether it may be an encoder-decoder.
    put: of a placement (train/parallel.py); the weights of a folder go straight to its devices.

  Raises:
    UserError: if the directory holds no trained model, one of the other kind, or one of a smaller
      vocabulary.
  """
  path = pathlib.Path(directory)
  if is_hugging_face(path) and not reward:
    run = _grown(*interop.load(path, put=put), vocab_size)
    _check_kind(run.shape, directory, field, seq2seq)
    return run
  if not (path / "model.json").exists():
    raise UserError(
      f"{directory} holds no trained model (no model.json): run its stage first "
      f"(`make quickstart` runs all), or set --config.{field}"
    )
  shape = saved_shape(path)
  params = checkpoint.load_params(path / "checkpoints")
  if "policy" in params:  # A PPO run: its critic is of no use to a later stage.
    params = params["policy"]
  if (path / _ADAPTER).exists():
    params = lora.merge(with_adapter(directory, params)[1])
  if ("decoder" in params) != reward:
    wanted = "a reward model" if reward else "a language model"
    raise UserError(f"{directory} does not hold {wanted}: set --config.{field}")
  if vocab_size > shape.vocab_size:
    raise UserError(
      f"{directory} has a vocabulary of {shape.vocab_size}, the tokenizer of config.prepared has "
      f"{vocab_size}: set --config.prepared to the corpus that it was trained on"
    )
  _check_kind(shape, directory, field, seq2seq)
  return Run(interop.model_of(shape), params, shape)


def _check_kind(shape: config.Model, directory: str, field: str, seq2seq: bool) -> None:
  if shape.encoder_layers and not seq2seq:
    raise UserError(
      f"{directory} is an encoder-decoder: set --config.{field} to a decoder, as only pretraining "
      "and SFT take the other kind"
    )


def save_adapter(workdir: str | pathlib.Path, init: str, start: Run, adapter: config.Lora) -> None:
  """Writes adapter.json, which says what an adapter is on; nothing if there is none.

  Raises:
    UserError: if the model under it is another one than the run began with, grew by tokens that an
      adapter cannot learn, or has no such layers.
  """
  if not adapter.rank:
    return
  if start.grown:
    raise UserError(
      f"{init} has no rows for {start.grown} tokens of config.prepared, such as turn markers, and "
      "an adapter cannot learn them: adopt its tokenizer with a config.tokenizer.template of its "
      "own tokens, or train all parameters (config.lora.rank=0)"
    )
  lora.check(start.params, adapter)
  path = pathlib.Path(workdir) / _ADAPTER
  found = {"init": init, "fingerprint": _fingerprint(init), "lora": dataclasses.asdict(adapter)}
  if path.exists() and checkpoint.latest_step(path.parent / "checkpoints") is not None:
    if json.loads(path.read_text())["fingerprint"] != found["fingerprint"]:
      raise UserError(
        f"{init} has changed since the adapter of {workdir} was begun on it: use another --workdir"
      )
  processes.first(lambda: _write(path, found))


def _write(path: pathlib.Path, found: dict[str, Any]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  rundir.write_json(path, found)


class Base(NamedTuple):
  """What an adapter is on: its name, a run or a folder of Hugging Face, and the model."""

  name: str
  model: LanguageModel


def with_adapter(directory: str, trained: Params | None = None) -> tuple[Base, Params]:
  """Returns what an adapter of a run is on, and its parameters with the adapter under "lora".

  Args:
    directory: of a run that trained an adapter.
    trained: what its checkpoint holds; None: it is read.

  Raises:
    UserError: if the run has no adapter, or the model under it is no longer what it was.
  """
  path = pathlib.Path(directory)
  if not (path / _ADAPTER).exists():
    raise UserError(f"{directory} trained no adapter (no {_ADAPTER}): set config.lora.rank there")
  found = json.loads((path / _ADAPTER).read_text())
  if _fingerprint(found["init"]) != found["fingerprint"]:
    raise UserError(
      f"{found['init']}, which the adapter of {directory} is on, is missing or has changed since: "
      "train the adapter again"
    )
  shape = saved_shape(path)
  base = load(found["init"], "init", vocab_size=shape.vocab_size, seq2seq=True)
  trained = checkpoint.load_params(path / "checkpoints") if trained is None else trained
  scaled = lora.with_scale(trained[lora.KEY], config.Lora(**found["lora"]))
  return Base(found["init"], base.model), {**base.params, lora.KEY: scaled}


def is_hugging_face(directory: str | pathlib.Path) -> bool:
  """Whether a directory is a folder of Hugging Face: its config.json names an architecture."""
  try:
    found = json.loads((pathlib.Path(directory) / "config.json").read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return False
  return isinstance(found, dict) and "model_type" in found


def _fingerprint(directory: str) -> str:
  """Returns what changes when the model of a run or of a folder of Hugging Face does."""
  path = pathlib.Path(directory)
  if not is_hugging_face(path):
    return checkpoint.fingerprint(path)
  digest = hashlib.sha256((path / "config.json").read_bytes())
  for file in sorted(path.glob("*.safetensors")):
    with open(file, "rb") as opened:
      digest.update(hashlib.file_digest(opened, "sha256").digest())
  return digest.hexdigest()


def _grown(model: LanguageModel, params: Params, vocab_size: int) -> Run:
  """A model with rows for tokens that it does not know: near the mean of those that it knows.

  Rows that are the same could not be told apart by what is frozen, nor by a gradient.
  """
  shape = model.cfg
  missing = max(vocab_size - shape.vocab_size, 0)
  if missing:
    noise = np.random.default_rng(0)

    def rows(known_VD: np.ndarray) -> np.ndarray:
      known_VD = np.asarray(known_VD)
      width = 0.1 * known_VD.std(0)
      new = known_VD.mean(0) + width * noise.standard_normal((missing, len(width)))
      return np.concatenate([known_VD, new.astype(np.float32)])

    params["embedding"] = rows(params["embedding"])
    if not shape.tied:
      params["lm_head"] = rows(np.asarray(params["lm_head"]).T).T
    shape = dataclasses.replace(shape, vocab_size=vocab_size)
    if processes.primary():
      print(f"{missing} new tokens start near the mean of all others", flush=True)
  return Run(interop.model_of(shape), params, shape, missing)
