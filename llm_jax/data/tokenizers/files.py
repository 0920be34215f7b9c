"""Tokenizers on disk: what `train` writes, and models of others adopted behind the same interface.

A directory holds tokenizer.json, which says what it is (kind, ids of the special tokens, SHA-256),
and the model: tokenizer.model of SentencePiece, or huggingface.json.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import sentencepiece

from llm_jax.data import templates
from llm_jax.data.tokenizer import Tokenizer, bytes_per_token
from llm_jax.data.tokenizers import huggingface as tokenizer_huggingface
from llm_jax.data.tokenizers.huggingface import HuggingFace
from llm_jax.data.tokenizers.pieces import SentencePiece
from llm_jax.data.tokenizers.proto import ModelProto
from llm_jax.data.tokenizers.train import MARKERS, SPECIAL, Rules, Sample
from llm_jax.errors import UserError, nearest

_MODEL, _META, _HUGGINGFACE = "tokenizer.model", "tokenizer.json", "huggingface.json"
_TRAINED, _ADOPTED, _HF = "sentencepiece-", "adopted-sentencepiece", "adopted-huggingface"
_LOG = logging.getLogger(__name__)
_REMEDY = "train it again with `python -m experiments.prepare`"
# What special tokens are called elsewhere, where nothing else tells.
_NAMES = {
  "bos": ("<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "<|bos|>", "<SOS>"),
  "eos": ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>", "<|eos|>", "<EOT>"),
  "pad": ("<pad>", "<|pad|>", "<|finetune_right_pad_id|>", "[PAD]"),
} | {name: (marker,) for name, marker in zip(SPECIAL[4:], MARKERS, strict=True)}


def save(
  model: bytes,
  directory: str | pathlib.Path,
  rules: Rules,
  chosen: Mapping[str, Sample],
  seed: int,
  template: str = templates.DEFAULT,
) -> Tokenizer:
  """Writes a model that was trained here, and returns its tokenizer."""
  places = sentencepiece.SentencePieceProcessor(model_proto=model).piece_to_id
  ids = {name: i for i, name in enumerate(SPECIAL[:4])}
  ids |= {name: places(marker) for name, marker in zip(SPECIAL[4:], MARKERS, strict=True)}
  tokenizer = SentencePiece(model, ids, spell_space=True)
  tokenizer.use_template(template)
  texts = [text for sample in chosen.values() for text in sample.texts]
  meta: dict[str, Any] = {
    "kind": _TRAINED + rules.kind,
    "vocab_size": tokenizer.vocab_size,
    "template": template,
    "ids": ids,
    "rules": dataclasses.asdict(rules),
    "seed": seed,
    "trained_on_documents": len(texts),
    "trained_on_bytes": sum(sample.bytes for sample in chosen.values()),
  }
  if set(chosen) != {""}:
    meta["sources"] = {
      name: {"documents": len(s.texts), "bytes": s.bytes, "asked_bytes": s.asked}
      for name, s in chosen.items()
    }
  # A sample is in the order of its hashes: its first documents are as good as any.
  first = [text for sample in chosen.values() for text in sample.texts[:100]]
  meta["bytes_per_token"] = round(bytes_per_token(tokenizer, first), 4)
  _write(pathlib.Path(directory), _MODEL, model, meta)
  return tokenizer


def load(directory: str | pathlib.Path) -> Tokenizer:
  """Reads a directory that `save` or `adopt` wrote.

  Raises:
    UserError: if the files are missing, damaged, or do not belong together.
  """
  directory = pathlib.Path(directory)
  try:
    meta = json.loads((directory / _META).read_text(encoding="utf-8"))
    if "sha256" not in meta and "model" in meta:
      raise UserError(
        f"{directory / _META} is of Hugging Face: `python -m tools.tokenizer adopt` imports it"
      )
    kind, expected, ids = meta["kind"], meta["sha256"], meta["ids"]
    name = _HUGGINGFACE if kind == _HF else _MODEL
    data = (directory / name).read_bytes()
  except OSError as error:
    raise UserError(f"no tokenizer in {directory} ({error.strerror}): {_REMEDY}") from error
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(f"{directory / _META} is damaged: {_REMEDY}") from error
  if hashlib.sha256(data).hexdigest() != expected:
    raise UserError(f"{directory / name} does not match its hash in {_META}: {_REMEDY}")
  try:
    return _made(kind, data, ids, meta.get("template", templates.DEFAULT))
  except RuntimeError as error:
    raise UserError(f"{directory / name} is no SentencePiece model: {_REMEDY}") from error


def adopt(
  source: str | pathlib.Path,
  directory: str | pathlib.Path,
  specials: Mapping[str, str] | None = None,
  template: str | None = None,
) -> Tokenizer:
  """Imports a tokenizer of others, and writes it to `directory` for `Tokenizer.load`.

  Special tokens are taken from `specials`, else from tokenizer_config.json beside the source, else
  by the names that are usual. Without a bos, it is the eos; without a pad, the unk or the eos, as
  padding is never learned. The chat template is `template`, else that of the family whose turn
  markers the vocabulary has, else ours, whose markers are added after the last id where they are
  missing: a model of this tokenizer needs so many new rows. All of these tokens become control
  tokens: no text gives them.

  Args:
    source: a SentencePiece `.model`, a tokenizer.json of Hugging Face (BPE or unigram; needs the
      package `tokenizers`), or a folder with one of the two. What is ours already, a tokenizer's
      folder or a prepared run, is copied as it is.
    directory: gets the model and our tokenizer.json.
    specials: name ("pad", "bos", "eos", "system", "user", "assistant", "end") -> token. The turn
      markers among them are for the template "llm_jax", which they imply.
    template: a name of `templates`; None: as the vocabulary tells, or as the source, being ours,
      has it.

  Raises:
    UserError: if the source is missing, damaged or of another kind, a token of `specials` or a
      control token of the template does not exist, or nothing tells the eos.
  """
  directory, own = pathlib.Path(directory), _own(pathlib.Path(source))
  path = own / _META if own else _source(pathlib.Path(source))
  if directory.resolve() == path.parent.resolve():
    raise UserError(
      f"{directory} holds the source, which would be overwritten: name another folder"
    )
  if own:
    if specials:
      raise UserError(f"{own} is ours already: its special tokens cannot be named anew")
    return _copied(own, directory, template)
  named = _configured(path.parent) | dict(specials or {})
  unknown = set(named) - set(_NAMES)
  if unknown:
    raise UserError(f'no special token is called "{min(unknown)}"{nearest(min(unknown), _NAMES)}')
  choice = _Choice(named, template, path)
  data = path.read_bytes()
  theirs = path.suffix == ".json"
  kind, name = (_HF, _HUGGINGFACE) if theirs else (_ADOPTED, _MODEL)
  adopted = tokenizer_huggingface.adopted if theirs else _adopted_sentencepiece
  try:  # The library finds out more than we do, and has no error of its own.
    data, ids, added = adopted(data, path, choice)
    made = _made(kind, data, ids, choice.template)
  except (*tokenizer_huggingface.BROKEN, RuntimeError) as error:
    raise UserError(f"{path} is damaged, or no such tokenizer ({error!r})") from error
  if added:
    _LOG.info("%s: added %s", path, ", ".join(added))
  _LOG.info("%s: conversations are written as %s has them", path, choice.template)
  meta = {"kind": kind, "source": path.name, "template": choice.template}
  _write(directory, name, data, {**meta, "ids": ids, "added": added})
  return made


def _copied(own: pathlib.Path, directory: pathlib.Path, template: str | None) -> Tokenizer:
  """Copies a tokenizer that is ours; only its template may be another one."""
  made, meta = load(own), json.loads((own / _META).read_text(encoding="utf-8"))
  if template:
    made.use_template(template)
    meta["template"] = template
  name = _HUGGINGFACE if meta["kind"] == _HF else _MODEL
  _write(directory, name, (own / name).read_bytes(), meta)
  return made


def _made(kind: str, data: bytes, ids: Mapping[str, int], template: str) -> Tokenizer:
  if kind == _HF:
    made = HuggingFace(data.decode("utf-8"), ids)
  else:
    made = SentencePiece(data, ids, spell_space=kind != _ADOPTED)
  made.use_template(template)
  return made


def _adopted_sentencepiece(
  data: bytes, path: pathlib.Path, choice: "_Choice"
) -> tuple[bytes, dict[str, int], list[str]]:
  """Returns a model whose special tokens are all control pieces, their ids, and what was added."""
  proto = ModelProto()
  try:
    proto.ParseFromString(data)
  except Exception as error:  # protobuf's own class has moved between releases.
    raise UserError(f"{path} is no SentencePiece model ({error})") from error
  kinds = proto.SentencePiece
  places = {piece.piece: i for i, piece in enumerate(proto.pieces)}
  unk = next((i for i, piece in enumerate(proto.pieces) if piece.type == kinds.UNKNOWN), -1)
  if unk < 0:
    raise UserError(f"{path} is no SentencePiece model: it has no piece for what is unknown")
  ids, added, control = choice(places, unk)
  for name in added:
    proto.pieces.add(piece=f"<|{name}|>", score=0.0, type=kinds.CONTROL)
  for i in {*ids.values(), *control} - {unk, -1}:
    proto.pieces[i].type = kinds.CONTROL
  return proto.SerializeToString(), ids, added


class _Choice:
  """Chooses the special tokens and the chat template of a vocabulary.

  Args:
    named: name -> token, as they are known beforehand.
    template: its name, or None for what the vocabulary tells.
    path: of the vocabulary, for messages.

  Attributes:
    template: the one that was chosen, after a call.
  """

  def __init__(self, named: Mapping[str, str], template: str | None, path: pathlib.Path):
    self._named, self._path = named, path
    turns = [name for name in SPECIAL[4:] if name in named]
    if template and template != templates.DEFAULT and turns:
      raise UserError(f'the template "{template}" has its own "{turns[0]}": do not name it')
    self._asked = templates.DEFAULT if turns else template
    if template:
      templates.get(template)
    self.template = ""

  def __call__(
    self, vocabulary: Mapping[str, int], unk: int
  ) -> tuple[dict[str, int], list[str], list[int]]:
    """Returns the ids, the names of those that get a new one, and ids of the template's tokens."""
    self.template = self._asked or templates.detected(vocabulary)
    template = templates.get(self.template)
    lacking = [name for name in template.controls() if name not in vocabulary]
    if lacking:
      raise UserError(
        f'{self._path} has no token "{lacking[0]}", which the chat template "{self.template}" needs'
      )
    ids, added = _special_ids(vocabulary, self._named, unk, self._path)
    control = [vocabulary[name] for name in template.controls()]
    if self.template != templates.DEFAULT:
      ids |= dict.fromkeys(SPECIAL[4:], -1)
      added = []
      end = template.end()
      ids["end"] = ids[end] if end in ids else vocabulary[end]
    return ids, added, control


def _special_ids(
  vocabulary: Mapping[str, int], named: Mapping[str, str], unk: int, path: pathlib.Path
) -> tuple[dict[str, int], list[str]]:
  """Returns the ids of all special tokens, and the names of those that get a new one."""
  ids: dict[str, int] = {}
  for name in _NAMES:
    if name in named and named[name] not in vocabulary:
      raise UserError(
        f'{path} has no token "{named[name]}" for {name}{nearest(named[name], vocabulary)}'
      )
    usual = [named[name]] if name in named else _NAMES[name]
    found = [vocabulary[token] for token in usual if token in vocabulary]
    if found:
      ids[name] = found[0]
  ids["unk"] = unk
  if "eos" not in ids:
    hint = "python -m tools.tokenizer adopt --special=eos=TOKEN"
    raise UserError(f"{path}: nothing tells which token ends a text; name it with `{hint}`")
  ids.setdefault("bos", ids["eos"])
  ids.setdefault("pad", unk if unk >= 0 else ids["eos"])
  added = [name for name in SPECIAL if name not in ids]
  first = max(vocabulary.values()) + 1
  ids |= {name: first + i for i, name in enumerate(added)}
  turns = [ids[name] for name in SPECIAL[4:]]
  if len(set(turns)) < len(turns):
    raise UserError(f"{path}: the turn markers must be different tokens, got {dict(named)}")
  return {name: ids[name] for name in SPECIAL}, added


def _own(source: pathlib.Path) -> pathlib.Path | None:
  """Returns the folder of a tokenizer that is ours already, if the source is or holds one."""
  whole = [source.parent] if source.name in (_META, _MODEL) else [source, source / "tokenizer"]
  for folder in whole:
    with contextlib.suppress(OSError, *tokenizer_huggingface.BROKEN):
      if "sha256" in json.loads((folder / _META).read_text(encoding="utf-8")):
        return folder
  return None


def _source(path: pathlib.Path) -> pathlib.Path:
  """Returns the file that is meant."""
  if path.is_dir():
    found = [file for file in (path / _META, path / _MODEL) if file.is_file()]
    if len(found) != 1:
      many = " and ".join(file.name for file in found)
      raise UserError(f"{path} has {many}: name one" if found else f"no tokenizer in {path}")
    path = found[0]
  if not path.is_file():
    raise UserError(f"no tokenizer {path}")
  return path


def _configured(folder: pathlib.Path) -> dict[str, str]:
  """Returns the special tokens that a tokenizer_config.json names."""
  path = folder / "tokenizer_config.json"
  if not path.is_file():
    return {}
  try:
    config = json.loads(path.read_text(encoding="utf-8"))
    tokens = {name: config.get(f"{name}_token") for name in ("bos", "eos", "pad")}
    found = {n: t["content"] if isinstance(t, dict) else t for n, t in tokens.items() if t}
    if not all(isinstance(token, str) for token in found.values()):
      raise ValueError(f"special tokens {found!r:.200}")
    return found
  except tokenizer_huggingface.BROKEN as error:
    raise UserError(f"{path} is damaged ({error}): remove it, or give `specials`") from error


def _write(directory: pathlib.Path, name: str, data: bytes, meta: Mapping[str, Any]) -> None:
  directory.mkdir(parents=True, exist_ok=True)
  (directory / name).write_bytes(data)
  meta = {**meta, "sha256": hashlib.sha256(data).hexdigest()}
  # Written last, and whole or not at all: its presence says that the tokenizer is complete.
  temporary = directory / f".{_META}.tmp"
  temporary.write_text(json.dumps(meta, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
  temporary.replace(directory / _META)
