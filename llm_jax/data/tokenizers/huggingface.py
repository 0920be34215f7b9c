"""Hugging Face's tokenizer.json behind the `Tokenizer` interface, with no token that a text forges.

Their library finds special tokens in any text, and what it does not look for as such, the model
itself may still find in its vocabulary. So each special token is known to the library by a name
with U+FFFE around it, a code point that Unicode reserves for internal use, and that is taken out of
texts. BPE and unigram are read; truncation, padding and dropout that a file asks for are not done.
"""

import importlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from llm_jax.data.tokenizer import Tokenizer
from llm_jax.data.tokenizers.train import MARKERS, SPECIAL
from llm_jax.errors import UserError

_INSIDE = "\ufffe"
_KINDS = ("BPE", "Unigram")
_MOST_IDS = 1 << 24
# What a file raises that is JSON, and of another form than it should be.
BROKEN = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)


class HuggingFace(Tokenizer):
  """A tokenizer.json; needs the package `tokenizers`.

  Args:
    text: of the file.
    ids: of each special token.

  Attributes:
    json: the text.

  Raises:
    UserError: if the package is missing, or does not take the text.
  """

  def __init__(self, text: str, ids: Mapping[str, int]):
    self.json = text
    data = json.loads(text)
    self._names = {i: token for token, i in vocabulary(data).items()}
    special = {token["id"] for token in data["added_tokens"] if token["special"]}
    special |= {i for i in ids.values() if i >= 0}
    unk = _unknown(data)
    if unk >= 0 and not data["model"].get("byte_fallback"):
      special.discard(unk)  # A text gives it, so it is no control token.
    super().__init__(max(self._names) + 1, ids, special)
    guarded = _guarded(data, {i: self._names[i] for i in special})
    self._tokenizer = _read(guarded)
    bare, self.spaced = _without_space(guarded)
    self._bare = self._tokenizer if bare == guarded else _read(bare)
    self._bytes = _byte_letters() if '"ByteLevel"' in text else {}
    self.byte_ids = self._single_bytes()

  def token(self, i: int) -> str:
    """Returns how token `i` is spelt, for people: `<|user|>`, `<0x0A>`, `▁the`."""
    name = self._names.get(int(i), f"<unused {i}>")
    if int(i) in self.control or not self._bytes or not all(c in self._bytes for c in name):
      return name
    data = bytes(self._bytes[c] for c in name)
    try:
      return data.decode("utf-8").replace(" ", "\u2581")
    except UnicodeDecodeError:
      return "".join(f"<0x{byte:02X}>" for byte in data)

  def _encode(self, texts: Sequence[str], threads: int) -> list[np.ndarray]:
    return self._encode_by(self._tokenizer, texts, threads)

  def _encode_inside(self, texts: Sequence[str]) -> list[np.ndarray]:
    return self._encode_by(self._bare, texts, 1)

  def _encode_by(self, coder: Any, texts: Sequence[str], threads: int) -> list[np.ndarray]:
    clean = [text.replace(_INSIDE, "\ufffd") for text in texts]
    # The library shares a batch out to all cores, and encodes a batch of one here.
    batches = [clean] if threads > 1 else [[text] for text in clean]
    return [
      np.asarray(encoding.ids, np.int32)
      for batch in batches
      for encoding in coder.encode_batch_fast(batch, add_special_tokens=False)
    ]

  def _decode(self, ids: list[int]) -> str:
    return self._tokenizer.decode(ids, skip_special_tokens=False)

  def _single_bytes(self) -> dict[int, int]:
    found = {}
    for i, name in self._names.items():
      if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
        found[i] = int(name[3:5], 16)
      elif len(name) == 1 and self._bytes.get(name, 0) >= 0x80:
        found[i] = self._bytes[name]
    return {i: byte for i, byte in found.items() if i not in self.control}


def library() -> Any:
  """Returns the module `tokenizers`.

  Raises:
    UserError: if it is not installed.
  """
  try:
    return importlib.import_module("tokenizers")
  except ImportError as error:
    raise UserError("a tokenizer.json needs a package: pip install tokenizers") from error


def vocabulary(data: Mapping[str, Any]) -> dict[str, int]:
  """Returns token -> id of a tokenizer.json, added tokens included."""
  vocab = data["model"]["vocab"]
  if not isinstance(vocab, Mapping):
    vocab = {token: i for i, (token, _) in enumerate(vocab)}
  return {**vocab, **{token["content"]: token["id"] for token in data["added_tokens"]}}


def adopted(
  raw: bytes,
  path: pathlib.Path,
  choose: Callable[[Mapping[str, int], int], tuple[dict[str, int], list[str], list[int]]],
) -> tuple[bytes, dict[str, int], list[str]]:
  """Returns the file with the turn markers that it lacks, the ids, and what was added.

  Args:
    raw: the file.
    path: of it, for messages.
    choose: (vocabulary, id of the unknown token or -1) -> (ids, names to add, ids of control
      tokens of the chat template, which become special tokens).

  Raises:
    UserError: if it is damaged, or neither BPE nor unigram.
  """
  try:
    data = json.loads(raw)
    known = vocabulary(data)
    kind = data["model"].get("type", "BPE")
    unk = _unknown(data)
    for token, i in known.items():
      if not (isinstance(token, str) and type(i) is int and 0 <= i < _MOST_IDS):
        raise ValueError(f"the token {token!r:.100} has the id {i!r:.100}")
  except BROKEN as error:
    raise UserError(f"{path} is no tokenizer.json of Hugging Face ({error!r})") from error
  if kind not in _KINDS:
    raise UserError(f"{path} is a {kind} model; only these can be imported: {', '.join(_KINDS)}")
  ids, added, control = choose(known, unk)
  markers: dict[str, str] = dict(zip(SPECIAL[4:], MARKERS, strict=True))
  data["added_tokens"] += [_special(ids[name], markers[name]) for name in added]
  listed = {token["id"]: token for token in data["added_tokens"]}
  spelt = {i: name for name, i in known.items()}
  for i in control:
    if i in listed:
      listed[i]["special"] = True
    else:
      data["added_tokens"].append(_special(i, spelt[i]))
  return json.dumps(data).encode(), ids, added


def _read(data: Mapping[str, Any]) -> Any:
  """Returns the library's tokenizer, which takes no text for a special token."""
  read = library().Tokenizer.from_str
  try:
    made = read(json.dumps(data))
  except BaseException as error:  # The library raises Exception itself; a panic is not even one.
    if isinstance(error, KeyboardInterrupt | SystemExit):
      raise
    why = " ".join(str(error).split())
    raise UserError(f"the package `tokenizers` does not read this tokenizer: {why}") from error
  made.encode_special_tokens = True
  return made


def _without_space(data: dict[str, Any]) -> tuple[dict[str, Any], bool]:
  """Returns a tokenizer.json that puts no space before a text, and whether it had one everywhere.

  "Everywhere" is before each text between control tokens; a Metaspace may have it at the very start
  alone.
  """
  scheme = lambda part: part.get(  # noqa: E731
    "prepend_scheme", "always" if part.get("add_prefix_space", True) else "never"
  )
  spaced = False

  def bare(part: dict[str, Any] | None) -> dict[str, Any] | None:
    nonlocal spaced
    kind = part["type"] if part else ""
    if part is None or kind == "Prepend":
      spaced |= kind == "Prepend"
      return None
    if kind == "Sequence":
      inner = "normalizers" if "normalizers" in part else "pretokenizers"
      return {**part, inner: [x for x in map(bare, part[inner]) if x is not None]}
    if kind == "Metaspace":
      spaced |= scheme(part) == "always"
      return {**part, "prepend_scheme": "never", "add_prefix_space": False}
    if kind == "ByteLevel":
      spaced |= part.get("add_prefix_space", True)
      return {**part, "add_prefix_space": False}
    return part

  made = {**data, **{key: bare(data.get(key)) for key in ("normalizer", "pre_tokenizer")}}
  return made, spaced


def _unknown(data: Mapping[str, Any]) -> int:
  """Returns the id that stands for what is unknown; -1: there is none."""
  model = data["model"]
  if isinstance(model["vocab"], Mapping):
    return model["vocab"].get(model.get("unk_token"), -1)
  return model["unk_id"] if model.get("unk_id") is not None else -1


def _guarded(data: dict[str, Any], special: Mapping[int, str]) -> dict[str, Any]:
  """Returns a tokenizer.json in which no text can spell the tokens `special` (id -> name)."""
  hidden = {name: f"{_INSIDE}{name}{_INSIDE}" for name in special.values()}
  model = dict(data["model"], dropout=None)
  if isinstance(model["vocab"], Mapping):
    model["vocab"] = {hidden.get(token, token): i for token, i in model["vocab"].items()}
    # What a merge makes must be in the vocabulary; a special token is never made.
    model["merges"] = [merge for merge in model["merges"] if _product(merge) not in hidden]
    if model.get("unk_token") in hidden:
      model["unk_token"] = hidden[model["unk_token"]]
  else:
    model["vocab"] = [[hidden.get(token, token), score] for token, score in model["vocab"]]
  listed = {token["id"] for token in data["added_tokens"]}
  added = [
    dict(token, content=hidden.get(token["content"], token["content"]))
    for token in data["added_tokens"]
  ]
  added += [_special(i, hidden[name]) for i, name in special.items() if i not in listed]
  for token in added:
    if token["id"] in special:
      token["special"] = True
  unused = {"truncation": None, "padding": None, "post_processor": None}
  return {**data, **unused, "model": model, "added_tokens": sorted(added, key=lambda t: t["id"])}


def _product(merge: str | Sequence[str]) -> str:
  return "".join(merge.split(" ") if isinstance(merge, str) else merge)


def _special(i: int, content: str) -> dict[str, Any]:
  flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
  return {"id": i, "content": content, **flags, "special": True}


def _byte_letters() -> dict[str, int]:
  """Returns letter -> byte of byte-level BPE: what is not printable has letters from U+0100 on."""
  plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
  others = [byte for byte in range(256) if byte not in plain]
  return {chr(b): b for b in plain} | {chr(0x100 + i): b for i, b in enumerate(others)}
