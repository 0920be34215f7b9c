"""Tokenizers for Hugging Face's libraries: tokenizer.json, its config and its chat template.

Ours are written with real spaces in their pieces, where SentencePiece writes "▁": then a "▁" of the
text is spelt in bytes there as here, and nothing has to be normalised.
"""

import itertools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from llm_jax.data import templates
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.data.tokenizers.huggingface import HuggingFace
from llm_jax.data.tokenizers.jinja import chat_template
from llm_jax.data.tokenizers.pieces import SentencePiece
from llm_jax.data.tokenizers.proto import ModelProto
from llm_jax.data.tokenizers.train import SPECIAL
from llm_jax.data.tokenizers.words import SPACE
from llm_jax.errors import UserError

_KINDS = ModelProto.SentencePiece
_NEVER = 1000.0  # Nats below the least likely piece: never taken from a text.
_SYMBOL = 0.1  # SentencePiece's bonus per character of a user-defined symbol after its first.


def export(tokenizer: Tokenizer, directory: str | pathlib.Path) -> None:
  """Writes what `tokenizers.Tokenizer.from_file` and `transformers.AutoTokenizer` load.

  Ids are the same, with one exception: unigram models add scores in 64 bits there and in 32 here,
  so that of two ways to cut a text that are equally good to rounding the other may be taken. The
  chat template gives the ids of chat.py, too; only where an answer begins with characters that the
  tokenizer would join with the end of the template's header, its tokens differ from those that are
  learned here. It is in tokenizer_config.json, and in chat_template.jinja, where newer releases of
  transformers look for it. Hugging Face's libraries take the name of a control token in a text for
  the token; `split_special_tokens=True` (transformers) or `encode_special_tokens = True`
  (tokenizers) switches that off.

  Args:
    tokenizer: as `Tokenizer.load` gives it.
    directory: gets the three files; another one than the tokenizer's own.

  Raises:
    UserError: for an imported SentencePiece model that the format cannot express exactly, a chat
      template whose text spells a control token, or a directory that holds a tokenizer of ours.
  """
  directory = pathlib.Path(directory)
  if (directory / "tokenizer.model").exists() or (directory / "huggingface.json").exists():
    raise UserError(f"{directory} holds a tokenizer of ours: export it to another folder")
  if isinstance(tokenizer, HuggingFace):
    text = tokenizer.json
  else:
    assert isinstance(tokenizer, SentencePiece)
    text = json.dumps(_converted(tokenizer), ensure_ascii=False, indent=1)
  config = _config(tokenizer)
  directory.mkdir(parents=True, exist_ok=True)
  (directory / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
  (directory / "tokenizer_config.json").write_text(
    json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
  )
  # No newline after it, which would be printed.
  (directory / "chat_template.jinja").write_text(config["chat_template"], encoding="utf-8")


def _converted(tokenizer: SentencePiece) -> dict[str, Any]:
  proto = ModelProto.FromString(tokenizer.model)
  _check(proto)
  bpe = proto.trainer_spec.model_type == proto.trainer_spec.BPE
  prefix = proto.normalizer_spec.add_dummy_prefix
  space = " " if tokenizer.exact else SPACE
  names = [piece.piece.replace(SPACE, space) for piece in proto.pieces]
  added = [
    _added(i, names[i], special=piece.type != _KINDS.USER_DEFINED)
    for i, piece in enumerate(proto.pieces)
    if piece.type in (_KINDS.CONTROL, _KINDS.UNKNOWN) or piece.type == _KINDS.USER_DEFINED and bpe
  ]
  normalizer = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
  normalizer += [{"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
  decoder: list[dict[str, Any]] = [{"type": "ByteFallback"}, {"type": "Fuse"}]
  if not tokenizer.exact:
    decoder.insert(0, {"type": "Replace", "pattern": {"String": SPACE}, "content": " "})
  if prefix:
    decoder.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
  # The library keeps a table of words, too, if it is told where they end.
  words = {"Regex": tokenizer.words.replace(" ", space)}
  return {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": added,
    "normalizer": None if tokenizer.exact else {"type": "Sequence", "normalizers": normalizer},
    "pre_tokenizer": {"type": "Split", "pattern": words, "behavior": "Isolated", "invert": False}
    if tokenizer.words
    else None,
    "post_processor": _begin(tokenizer),
    "decoder": {"type": "Sequence", "decoders": decoder},
    "model": _bpe(proto, names) if bpe else _unigram(proto, names),
  }


def _check(proto: Any) -> None:
  spec, trainer = proto.normalizer_spec, proto.trainer_spec
  kinds = {piece.type for piece in proto.pieces}
  why = ""
  if trainer.model_type not in (trainer.BPE, trainer.UNIGRAM):
    why = "it is neither BPE nor unigram"
  elif spec.precompiled_charsmap or spec.remove_extra_whitespaces or not spec.escape_whitespaces:
    why = f"it normalises texts ({spec.name})"
  elif _KINDS.UNUSED in kinds or trainer.treat_whitespace_as_suffix:
    why = "it has unused pieces, or spaces at the ends of words"
  elif spec.add_dummy_prefix and _KINDS.USER_DEFINED in kinds:
    why = "it has user-defined symbols and puts a space before a text"
  elif not trainer.byte_fallback:
    why = "it does not spell what is unknown in bytes"
  if why:
    raise UserError(f"this SentencePiece model cannot be exported exactly: {why}")


def _bpe(proto: Any, names: list[str]) -> dict[str, Any]:
  scores = {n: p.score for n, p in zip(names, proto.pieces, strict=True) if p.type == _KINDS.NORMAL}
  joined = sorted((name for name in scores if len(name) > 1), key=lambda name: -scores[name])
  merges: list[tuple[str, str]] = []
  for _, group in itertools.groupby(joined, key=lambda name: scores[name]):
    pieces = list(group)
    merges += _splits(pieces[0], scores) if len(pieces) == 1 else _runs(pieces)
  return {
    "type": "BPE",
    "dropout": None,
    "unk_token": names[_unknown(proto)],
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": True,
    "byte_fallback": True,
    "ignore_merges": False,
    "vocab": {name: i for i, name in enumerate(names)},
    "merges": merges,
  }


def _runs(pieces: list[str]) -> list[tuple[str, str]]:
  """Returns the merges of pieces with one score, as Llama has them for 2 to 16 spaces.

  SentencePiece joins what is furthest to the left first. So a run grows from its left end, by one
  or, where the next size is missing, by what the rest of it has grown to.
  """
  one, sizes = pieces[0][:1], [1, *sorted(map(len, pieces))]
  merges = [(one * a, one * (b - a)) for a, b in itertools.pairwise(sizes)]
  if any(piece.strip(one) for piece in pieces) or not all(len(b) in sizes for _, b in merges):
    raise UserError("this SentencePiece model cannot be exported exactly: pieces of equal score")
  return merges[::-1]


def _splits(name: str, scores: Mapping[str, float]) -> list[tuple[str, str]]:
  """Returns the pairs that make a piece, the one that SentencePiece would take first in front.

  It joins any pair that gives the piece, from left to right, where Hugging Face ranks the pairs.
  That matters only where two of them overlap, as in x|y|z with xy = yz = name: there y is both the
  end and the start of the name, and x|y must come first.
  """
  pairs = [(name[:i], name[i:]) for i in range(1, len(name))]
  pairs = [pair for pair in pairs if pair[0] in scores and pair[1] in scores]
  return sorted(pairs, key=lambda pair: not name.startswith(pair[1]))


def _unigram(proto: Any, names: list[str]) -> dict[str, Any]:
  normal = {n: p.score for n, p in zip(names, proto.pieces, strict=True) if p.type == _KINDS.NORMAL}
  ascii_ = {chr(i) for i in range(33, 127)}
  if not (set("".join(normal)) | ascii_) <= set(normal):
    raise UserError(
      "this SentencePiece model cannot be exported exactly: it lacks characters of its own pieces, "
      "or of ASCII"
    )
  # SentencePiece keeps the special pieces apart from those that a text is cut into.
  low = min(normal.values()) - _NEVER
  vocab = []
  for name, piece in zip(names, proto.pieces, strict=True):
    symbol = piece.type == _KINDS.USER_DEFINED  # Runs of newlines: the fewest pieces are best.
    vocab.append([name, _SYMBOL * (len(name) - 1) if symbol else normal.get(name, low)])
  return {"type": "Unigram", "unk_id": _unknown(proto), "vocab": vocab, "byte_fallback": True}


def _unknown(proto: Any) -> int:
  return next(i for i, piece in enumerate(proto.pieces) if piece.type == _KINDS.UNKNOWN)


def _added(i: int, content: str, special: bool) -> dict[str, Any]:
  flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
  return {"id": i, "content": content, **flags, "special": special}


def _begin(tokenizer: Tokenizer) -> dict[str, Any]:
  """Puts the first token of a document before a text that is encoded with special tokens."""
  name = tokenizer.token(tokenizer.bos_id)
  first = {"SpecialToken": {"id": name, "type_id": 0}}
  return {
    "type": "TemplateProcessing",
    "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [first, *({"Sequence": {"id": part, "type_id": 0}} for part in "AB")],
    "special_tokens": {name: {"id": name, "ids": [tokenizer.bos_id], "tokens": [name]}},
  }


def _config(tokenizer: Tokenizer) -> dict[str, Any]:
  ids = {name: getattr(tokenizer, f"{name}_id") for name in SPECIAL}
  spelt = {name: tokenizer.token(i) for name, i in ids.items() if i >= 0}
  turns = [spelt[name] for name in SPECIAL[4:] if ids[name] not in (-1, tokenizer.eos_id)]
  template = templates.get(tokenizer.template)
  return {
    "tokenizer_class": "PreTrainedTokenizerFast",
    **{f"{name}_token": spelt[name] for name in SPECIAL[:4] if name in spelt},
    "additional_special_tokens": list(dict.fromkeys([*turns, *template.controls()])),
    "clean_up_tokenization_spaces": False,
    "chat_template": chat_template(tokenizer),
  }
