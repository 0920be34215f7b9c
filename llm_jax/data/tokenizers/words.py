"""SentencePiece's BPE word by word: every distinct word is encoded once, and ids stay the same.

BPE joins neighbours only into pieces of its vocabulary. Where no piece has a space (or a newline)
next to a certain side, nothing is ever joined across that place, so that a text may be cut there
and its parts encoded one by one. Words repeat, so a table of them does most of the work.

That holds for BPE alone. Unigram adds up 32-bit scores from the start of the text on, and what is
lost in rounding decides between ways to cut a word that are about as good: a word's ids depend on
how far down the text it stands. SentencePiece itself is fast there, and is called as it is.
"""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import sentencepiece

from llm_jax.data.tokenizers.proto import ModelProto

SPACE = "\u2581"  # How SentencePiece writes a space.

_CACHED = 1 << 18  # Words in the table: 50 to 100 MB, and all but the rarest of a large corpus.
_LONGEST = 64  # Characters of a word in the table; longer ones are mostly rubbish, seen once.
_BLOCK = 1 << 20  # Characters that are split at once: a text of any size in bounded memory.


class WordEncoder:
  """Encodes as `SentencePieceProcessor.encode` does, id by id, from a table of words.

  The table holds at most 262,144 words and starts anew when it is full. Threads may share it.

  Args:
    model: a serialised SentencePiece model for which `obstacle` returns "".

  Attributes:
    pattern: regular expression of a word, spaces written as " "; words leave nothing out.
  """

  def __init__(self, model: bytes):
    proto = ModelProto.FromString(model)
    spec = proto.normalizer_spec
    whole = sentencepiece.SentencePieceProcessor(model_proto=model)
    plain = _is_plain(proto)
    # A text is normalised whole, its words are not normalised again.
    self._normalize = None if plain else whole.normalize
    if not plain:
      spec.name, spec.precompiled_charsmap = "identity", b""
      spec.add_dummy_prefix = spec.remove_extra_whitespaces = False
      whole = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    self._table = _Table(whole)
    self.pattern = r"\n+| *[^ \n]+| +" if _lines_apart(proto) else r" *[^ ]+| +"
    self._words = re.compile(self.pattern)

  def encode(self, text: str) -> np.ndarray:
    """Returns the ids of `text`, int32 [n]; valid Unicode only."""
    if self._normalize is not None:
      text = self._normalize(text)
    # Either way of writing a space is the same to the model, and " " keeps ASCII text small.
    text = text.replace(SPACE, " ")
    ids = [
      b"".join(map(self._table.__getitem__, self._words.findall(text, start, end)))
      for start, end in _blocks(text)
    ]
    return np.frombuffer(b"".join(ids), np.int32)


def obstacle(model: bytes) -> str:
  """Returns why a SentencePiece model's texts must be encoded whole; "" if words will do.

  What counts is the vocabulary itself, not what the model's trainer was told.
  """
  proto = ModelProto.FromString(model)
  trainer = proto.trainer_spec
  if trainer.model_type != trainer.BPE:
    return "only BPE gives a word the same ids everywhere"
  if not proto.normalizer_spec.escape_whitespaces:
    return "the model does not escape spaces"
  for piece in _pieces(proto):
    if " " in piece:
      return f"the piece {piece!r} holds a space that is not escaped"
    # Never "a▁": a space always begins something new, alone or with other spaces.
    if SPACE in piece.lstrip(SPACE):
      return f"the piece {piece!r} goes on after a space"
  # Neighbours that are both unknown count as one, which a cut between them would undo.
  if not trainer.byte_fallback and SPACE not in _pieces(proto):
    return "the model may take a space for an unknown character"
  return ""


class _Table(dict[str, bytes]):
  """Words to their ids, int32 as bytes; what is missing is encoded on demand."""

  def __init__(self, processor: sentencepiece.SentencePieceProcessor):
    super().__init__()
    self._processor = processor

  def __missing__(self, word: str) -> bytes:
    ids = np.asarray(self._processor.encode(word), np.int32).tobytes()
    if len(word) <= _LONGEST:
      if len(self) >= _CACHED:
        self.clear()
      self[word] = ids
    return ids


def _blocks(text: str) -> Iterator[tuple[int, int]]:
  """Yields where to cut a text, always before the first of some spaces."""
  start = 0
  while len(text) - start > _BLOCK:
    end = text.find(" ", start + _BLOCK)
    while end > 0 and text[end - 1] == " ":
      end -= 1
    if end <= start:
      break
    yield start, end
    start = end
  yield start, len(text)


def _is_plain(proto: Any) -> bool:
  """Whether the model takes a text as it is."""
  spec = proto.normalizer_spec
  return not (spec.precompiled_charsmap or spec.add_dummy_prefix or spec.remove_extra_whitespaces)


def _lines_apart(proto: Any) -> bool:
  """Whether nothing is ever joined with a newline but another newline."""
  pieces = _pieces(proto)
  known = proto.trainer_spec.byte_fallback or "\n" in pieces
  return known and all(piece.strip("\n") == "" for piece in pieces if "\n" in piece)


def _pieces(proto: Any) -> set[str]:
  """The pieces that a text can hold."""
  kinds = (
    ModelProto.SentencePiece.NORMAL,
    ModelProto.SentencePiece.USER_DEFINED,
    ModelProto.SentencePiece.UNUSED,
  )
  return {piece.piece for piece in proto.pieces if piece.type in kinds}
