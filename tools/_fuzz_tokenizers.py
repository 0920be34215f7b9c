"""Fuzzes tokenizers of others: tokenizer.json, SentencePiece models, tokenizer_config.json."""

import contextlib
import json
import os
import pathlib
import random
import shutil
from collections.abc import Iterator
from typing import Any

from llm_jax.data.tokenizers import files
from llm_jax.errors import UserError
from tools import _fuzz_chat
from tools import _fuzz_inputs as inputs
from tools._fuzz_result import Result, refused

_CONFIG = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": "<pad>"}
_NAMES = (
  "type", "vocab", "merges", "id", "content", "special", "normalizer", "pre_tokenizer", "decoder",
  "unk_token", "unk_id", "byte_fallback", "prepend_scheme", "add_prefix_space", "pretokenizers",
)  # fmt: skip


class Tokenizers:
  """A tokenizer of each kind, and a folder for one that is broken."""

  def __init__(self, folder: pathlib.Path):
    self._source, self._out = folder / "source", folder / "adopted"
    self._json, self._model = _fuzz_chat.byte_level(), _fuzz_chat.pieces()

  def case(self, rng: random.Random) -> Result:
    """Adopts a broken tokenizer, and encodes a text with it."""
    for folder in (self._source, self._out):
      shutil.rmtree(folder, ignore_errors=True)
    self._source.mkdir(parents=True)
    for name, data in self._files(rng).items():
      (self._source / name).write_bytes(data)
    try:
      with _quiet():
        own = files.adopt(self._source, self._out)
    except UserError as error:
      left = self._out.exists()
      return Result(False, "a refused tokenizer is half there") if left else refused(error)
    ids = own.encode(inputs.text(rng))
    own.decode(ids)
    forged = sorted(own.control & set(ids))
    return Result(True, f"a text gave the control tokens {forged}" if forged else "")

  def _files(self, rng: random.Random) -> dict[str, bytes]:
    whole = self._json.encode()
    how = rng.randrange(5)
    if how == 0:
      return {"tokenizer.model": inputs.broken(rng, self._model)}
    if how == 1:
      return {"tokenizer.json": inputs.broken(rng, whole)}
    if how == 2:
      config = inputs.dumps(rng, inputs.changed(rng, _CONFIG, list(_CONFIG)))
      return {"tokenizer.json": whole, "tokenizer_config.json": config}
    return {"tokenizer.json": inputs.dumps(rng, _changed(rng, json.loads(whole)))}


def _changed(rng: random.Random, data: dict[str, Any]) -> Any:
  """The same with accidents anywhere but among the hundreds of pieces, or in one of these."""
  model = data["model"]
  large = {name: model.pop(name) for name in ("vocab", "merges")}
  data["added_tokens"] = data["added_tokens"][:4]
  if rng.random() < 0.3:
    name, piece = rng.choice(list(large)), rng.choice(list(large["vocab"]))
    if name == "vocab":
      large["vocab"][rng.choice((piece, inputs.text(rng)))] = inputs.odd(rng)
    else:
      large["merges"].append(rng.choice((inputs.odd(rng), [piece, inputs.text(rng)], piece)))
  else:
    data = inputs.changed(rng, data, _NAMES)
  if isinstance(data, dict) and isinstance(data.get("model"), dict):
    data["model"] = large | data["model"]
  return data


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps what a library in Rust says of its own panic off the terminal."""
  kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, 2)
  try:
    yield
  finally:
    os.dup2(kept, 2)
    os.close(kept)
    os.close(nowhere)
