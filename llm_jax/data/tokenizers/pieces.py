"""SentencePiece models, BPE and unigram, ours and others', behind the `Tokenizer` interface."""

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import sentencepiece

from llm_jax.data.tokenizer import Tokenizer
from llm_jax.data.tokenizers.proto import ModelProto
from llm_jax.data.tokenizers.words import SPACE, WordEncoder, obstacle

_LOG = logging.getLogger(__name__)


class SentencePiece(Tokenizer):
  """A SentencePiece model.

  BPE goes through a table of words (`words.WordEncoder`, same ids, several times the
  speed) if the vocabulary allows it; other models go through the library, text by text, and why is
  logged. Unigram is fast enough there.

  Args:
    model: a serialised model. Its control pieces are never found in a text.
    ids: of each special token.
    spell_space: "▁" in a text is spelt in bytes, so that it comes back as what it was; else it is
      a space to the model, as SentencePiece has it.

  Attributes:
    model: as given.
    exact: whether every text comes back as it was, as `spell_space` is set for models made here.
    words: the pattern of words, if the table is in use; else "".
  """

  def __init__(self, model: bytes, ids: Mapping[str, int], spell_space: bool):
    self.model, self.exact = model, spell_space
    self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    size = self._processor.get_piece_size()
    pieces = range(size)
    self.byte_ids = {
      i: int(self._processor.id_to_piece(i)[1:-1], 16) for i in pieces if self._processor.is_byte(i)
    }
    control = {i for i in pieces if self._processor.is_control(i)}
    if self.byte_ids:  # Else a text may well hold what is unknown.
      control.add(ids["unk"])
    super().__init__(size, ids, control)
    spec = ModelProto.FromString(model).normalizer_spec
    self.spaced, self._trims = spec.add_dummy_prefix, spec.remove_extra_whitespaces
    self._inside: SentencePiece | None = None  # Made when it is first needed.
    why = obstacle(model)
    self._encoder = None if why else WordEncoder(model)
    self.words = self._encoder.pattern if self._encoder else ""
    if why:
      _LOG.info("texts are encoded whole by SentencePiece: %s", why)
    spelling = {byte: i for i, byte in self.byte_ids.items()}
    self._space = np.array([spelling[byte] for byte in SPACE.encode() if spell_space], np.int32)

  def token(self, i: int) -> str:
    """Returns how token `i` is spelt, for people: `<|user|>`, `<0x0A>`, `▁the`."""
    return self._processor.id_to_piece(int(i))

  def _encode(self, texts: Sequence[str], threads: int) -> list[np.ndarray]:
    # Only few texts hold "▁" and take the slow path.
    spelt = [self.exact and SPACE in text for text in texts]
    plain = [text for text, slow in zip(texts, spelt, strict=True) if not slow]
    if self._encoder is not None:
      rows = iter([self._encoder.encode(text) for text in plain])
    else:
      found = self._processor.encode(plain, num_threads=threads)
      rows = iter([np.asarray(ids, np.int32) for ids in found])
    return [
      self._encode_spelt(text) if slow else next(rows)
      for text, slow in zip(texts, spelt, strict=True)
    ]

  def _encode_inside(self, texts: Sequence[str]) -> list[np.ndarray]:
    if not self.spaced:
      return self._encode(texts, 1)
    if self._inside is None:
      proto = ModelProto.FromString(self.model)
      proto.normalizer_spec.add_dummy_prefix = False
      self._inside = SentencePiece(proto.SerializeToString(), self._ids, self.exact)
    # A model that takes off the space in front gets it back as the one that it puts there itself.
    first = [self._trims and text.startswith(" ") for text in texts]
    coders = [self if spaced else self._inside for spaced in first]
    return [coder._encode([text], 1)[0] for coder, text in zip(coders, texts, strict=True)]

  def _encode_spelt(self, text: str) -> np.ndarray:
    parts = self._encode(text.split(SPACE), 1)
    between = [self._space] * len(parts)
    return np.concatenate([x for pair in zip(between, parts, strict=True) for x in pair][1:])

  def _decode(self, ids: list[int]) -> str:
    return self._processor.decode(ids)
