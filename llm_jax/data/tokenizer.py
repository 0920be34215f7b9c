"""SentencePiece BPE with byte fallback: any text in, ids out, and the very same text back."""

import hashlib
import heapq
import io
import json
import pathlib
import re
from collections.abc import Iterable, Sequence

import sentencepiece

from llm_jax.errors import UserError

_MODEL, _META = "tokenizer.model", "tokenizer.json"
_SPECIAL = ("pad", "unk", "bos", "eos", "system", "user", "assistant", "end")
_MARKERS = tuple(f"<|{name}|>" for name in _SPECIAL[4:])
_NEWLINES = ("\n", "\n\n")
_SPACE = "\u2581"  # SentencePiece writes a space like this, so the real one is spelt in bytes.
_SURROGATE = re.compile("[\ud800-\udfff]")
_LINE_CHARS = 4_000  # A longer line is cut for training, which takes short sentences only.
_SMALLEST = len(_SPECIAL) + len(_NEWLINES) + 256


class Tokenizer:
  """Text to ids and back, exactly: `decode(encode(text)) == text` for all valid Unicode text.

  Digits are single tokens, newlines are never merged with text. The control tokens (padding,
  document and turn markers) cannot be written: their names in a text become ordinary tokens.

  Attributes:
    vocab_size: number of ids.
    pad_id: 0, padding.
    unk_id: 1, never produced.
    bos_id: first token of a document or conversation.
    eos_id: last token of a document.
    system_id: opens a system turn.
    user_id: opens a user's turn.
    assistant_id: opens an assistant's turn.
    end_id: closes any turn.
  """

  def __init__(self, model: bytes):
    self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    self.vocab_size: int = self._processor.get_piece_size()
    self.pad_id, self.unk_id, self.bos_id, self.eos_id = range(4)
    self.system_id, self.user_id, self.assistant_id, self.end_id = (
      self._processor.piece_to_id(marker) for marker in _MARKERS
    )
    self._space_ids = [
      self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE.encode("utf-8")
    ]
    self._control = frozenset(
      [0, 1, 2, 3, self.system_id, self.user_id, self.assistant_id, self.end_id]
    )

  @classmethod
  def load(cls, directory: str | pathlib.Path) -> "Tokenizer":
    """Reads what `train` wrote.

    Raises:
      UserError: if the files are missing, damaged, or do not belong together.
    """
    directory = pathlib.Path(directory)
    remedy = "train it again with `python -m experiments.prepare`"
    try:
      model = (directory / _MODEL).read_bytes()
      meta = json.loads((directory / _META).read_text(encoding="utf-8"))
      expected = meta["sha256"]
    except OSError as error:
      raise UserError(f"no tokenizer in {directory} ({error.strerror}): {remedy}") from error
    except (ValueError, KeyError, TypeError) as error:
      raise UserError(f"{directory / _META} is damaged: {remedy}") from error
    if hashlib.sha256(model).hexdigest() != expected:
      raise UserError(f"{directory / _MODEL} does not match its hash in {_META}: {remedy}")
    try:
      return cls(model)
    except RuntimeError as error:
      raise UserError(f"{directory / _MODEL} is no SentencePiece model: {remedy}") from error

  def encode(self, text: str) -> list[int]:
    """Returns the ids of `text`, none of them a control id.

    Half of a surrogate pair, which UTF-8 cannot write, becomes U+FFFD.
    """
    return self.encode_batch([text])[0]

  def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
    """Returns `encode` of each text, in one call of the C++ library."""
    texts = [text if text.isascii() else _SURROGATE.sub("\ufffd", text) for text in texts]
    # Only these few texts take the slow path of `_encode_spaced`.
    plain = [text if _SPACE not in text else "" for text in texts]
    rows = self._processor.encode(plain, num_threads=threads)
    return [
      self._encode_spaced(text) if _SPACE in text else row
      for text, row in zip(texts, rows, strict=True)
    ]

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of `ids`; control ids have none.

    Bytes that are no UTF-8, and ids of a model's unused rows beyond the vocabulary, give U+FFFD.
    """
    parts, run = [], []
    for i in map(int, ids):
      if 0 <= i < self.vocab_size:
        if i not in self._control:
          run.append(i)
      else:
        parts += [self._processor.decode(run), "\ufffd"]
        run = []
    return "".join([*parts, self._processor.decode(run)])

  def token(self, i: int) -> str:
    """Returns how token `i` is spelt, for people: `<|user|>`, `<0x0A>`, `▁the`."""
    return self._processor.id_to_piece(int(i))

  def _encode_spaced(self, text: str) -> list[int]:
    ids: list[int] = []
    for i, part in enumerate(text.split(_SPACE)):
      ids += self._space_ids * (i > 0) + self._processor.encode(part)
    return ids


def train(
  texts: Iterable[str],
  directory: str | pathlib.Path,
  vocab_size: int,
  seed: int = 0,
  max_bytes: int = 10_000_000,
) -> Tokenizer:
  """Trains a tokenizer and writes it to `directory`; the same texts in any order give one result.

  Args:
    texts: documents, read once.
    directory: gets tokenizer.model and tokenizer.json (ids, hash, sample size).
    vocab_size: number of ids, control tokens and the 256 bytes included.
    seed: of the sample.
    max_bytes: about so many UTF-8 bytes of whole documents, chosen by hash, are learned from.

  Returns:
    The tokenizer, as `Tokenizer.load(directory)` gives it.

  Raises:
    UserError: if the texts are too few for `vocab_size`, or it is too small for the 256 bytes.
  """
  if vocab_size < _SMALLEST:
    raise UserError(f"vocab_size={vocab_size} is too small: it must be at least {_SMALLEST}")
  chosen = _sample(texts, seed, max_bytes)
  model = _fit(chosen, vocab_size)
  tokenizer = Tokenizer(model)
  _save(tokenizer, model, pathlib.Path(directory), chosen, seed)
  return tokenizer


def bytes_per_token(tokenizer: Tokenizer, texts: Sequence[str]) -> float:
  """Returns UTF-8 bytes per token over all `texts`; 0 if they hold no token."""
  tokens = sum(map(len, tokenizer.encode_batch(texts)))
  return sum(byte_count(text) for text in texts) / tokens if tokens else 0.0


def byte_count(text: str) -> int:
  """Returns the length of `text` in UTF-8 bytes, lone surrogates counting as U+FFFD."""
  return len(text.encode("utf-8", "surrogatepass"))


def _fit(texts: Sequence[str], vocab_size: int) -> bytes:
  buffer = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(_lines(texts)),
      model_writer=buffer,
      model_type="bpe",
      vocab_size=vocab_size,
      byte_fallback=True,
      split_digits=True,
      normalization_rule_name="identity",
      remove_extra_whitespaces=False,
      add_dummy_prefix=False,
      allow_whitespace_only_pieces=True,
      user_defined_symbols=list(_NEWLINES),
      control_symbols=list(_MARKERS),
      pad_id=0,
      unk_id=1,
      bos_id=2,
      eos_id=3,
      max_sentence_length=8 * _LINE_CHARS,
      num_threads=1,  # Another number gives another model, and is no faster.
      minloglevel=2,
    )
  except RuntimeError as error:
    most = re.search(r"value <= (\d+)", str(error))
    least = re.search(r"required_chars\. \d+ vs (\d+)", str(error))
    hint = "add documents"
    if most:
      hint = f"set it to at most {most[1]}, or add documents"
    elif least:
      hint = f"set it to at least {least[1]}: every character in use needs one"
    size = sum(map(len, texts))
    raise UserError(
      f"cannot train a tokenizer of vocab_size={vocab_size} on {size} characters: {hint}"
    ) from error
  return buffer.getvalue()


def _sample(texts: Iterable[str], seed: int, max_bytes: int) -> list[str]:
  """Keeps the documents of the smallest hashes, so that order does not matter."""
  heap: list[tuple[int, str]] = []  # Negated hashes: the largest is on top.
  total = 0
  for text in texts:
    key = hashlib.blake2b(
      text.encode("utf-8", "surrogatepass"), digest_size=8, key=str(seed).encode()
    ).digest()
    heapq.heappush(heap, (-int.from_bytes(key, "big"), text))
    total += byte_count(text)
    while len(heap) > 1 and total - byte_count(heap[0][1]) >= max_bytes:
      total -= byte_count(heapq.heappop(heap)[1])
  return [text for _, text in sorted(heap, reverse=True)]


def _lines(texts: Iterable[str]) -> Iterable[str]:
  for text in texts:
    # The trainer rejects NUL, and its own mark for a space is never learned (see `encode`).
    clean = _SURROGATE.sub("", text).replace("\0", "").replace(_SPACE, "")
    for line in clean.split("\n"):
      for start in range(0, len(line), _LINE_CHARS):
        yield line[start : start + _LINE_CHARS]


def _save(
  tokenizer: Tokenizer, model: bytes, directory: pathlib.Path, chosen: Sequence[str], seed: int
) -> None:
  directory.mkdir(parents=True, exist_ok=True)
  meta = {
    "kind": "sentencepiece-bpe",
    "vocab_size": tokenizer.vocab_size,
    "ids": {name: getattr(tokenizer, f"{name}_id") for name in _SPECIAL},
    "seed": seed,
    "trained_on_documents": len(chosen),
    "trained_on_bytes": sum(map(byte_count, chosen)),
    # The sample is in the order of its hashes: its first documents are as good as any.
    "bytes_per_token": round(bytes_per_token(tokenizer, chosen[:100]), 4),
    "sha256": hashlib.sha256(model).hexdigest(),
  }
  (directory / _MODEL).write_bytes(model)
  (directory / _META).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
