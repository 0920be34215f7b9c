"""What a tokenizer is learned from, by source and by hash, and the rules that it is learned by."""

import dataclasses
import hashlib
import heapq
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import sentencepiece

from llm_jax.data.documents import Document
from llm_jax.data.tokenizers.words import SPACE
from llm_jax.errors import UserError, nearest

SPECIAL = ("pad", "unk", "bos", "eos", "system", "user", "assistant", "end")
MARKERS = tuple(f"<|{name}|>" for name in SPECIAL[4:])
SURROGATE = re.compile("[\ud800-\udfff]")
KINDS = ("bpe", "unigram")

_LINE_CHARS = 4_000  # A longer line is cut for training, which takes short sentences only.
_ASCII = "".join(map(chr, range(33, 127)))


@dataclasses.dataclass(frozen=True)
class Rules:
  """How text is cut into pieces, whatever the vocabulary.

  Attributes:
    kind: "bpe" (Sennrich et al., arXiv:1508.07909) or "unigram" (Kudo, arXiv:1804.10959).
    split_digits: every digit is a token of its own.
    newlines: runs of 1 to so many newlines are one token each; newlines are never part of others.
    space_runs: runs of 2 to so many spaces are one token each, always, as GPT-NeoX has them for
      code (24; arXiv:2204.06745), for BPE only; 0 or 1: only the runs that are frequent in the
      sample, and the last space of a run belongs to the word after it.
  """

  kind: str = "bpe"
  split_digits: bool = True
  newlines: int = 2
  space_runs: int = 0

  def symbols(self) -> list[str]:
    """Returns the pieces that are never cut and never joined with others."""
    lines = ["\n" * count for count in range(1, self.newlines + 1)]
    return lines + [SPACE * count for count in range(2, self.space_runs + 1)]

  def smallest(self) -> int:
    """Returns the smallest vocabulary: control tokens, symbols and the 256 bytes."""
    return len(SPECIAL) + len(self.symbols()) + 256


@dataclasses.dataclass(frozen=True)
class Sample:
  """The training text of one source.

  Attributes:
    texts: documents, those of the smallest hashes first.
    bytes: UTF-8 bytes in them.
    asked: bytes that were asked for; a source that has fewer gives all it has.
  """

  texts: tuple[str, ...]
  bytes: int
  asked: int


def check(rules: Rules, vocab_size: int) -> None:
  """Raises UserError if no tokenizer can have these rules and this size."""
  if rules.kind not in KINDS:
    raise UserError(f'kind="{rules.kind}" of tokenizer is unknown{nearest(rules.kind, KINDS)}')
  if rules.newlines < 0 or rules.space_runs < 0:
    raise UserError(
      f"newlines={rules.newlines} and space_runs={rules.space_runs} must not be negative"
    )
  if rules.kind == "unigram" and rules.space_runs > 1:
    raise UserError('space_runs needs kind="bpe": a unigram model weighs runs against words')
  if vocab_size < rules.smallest():
    raise UserError(f"vocab_size={vocab_size} is too small: it must be at least {rules.smallest()}")


def sample(
  documents: Iterable[str | Document],
  seed: int,
  max_bytes: int,
  weights: Mapping[str, float] | None = None,
) -> dict[str, Sample]:
  """Keeps the documents of the smallest hashes of each source, so that order does not matter.

  Args:
    documents: texts, or documents whose `source` counts; read once.
    seed: another seed draws another sample.
    max_bytes: about so many UTF-8 bytes are kept in all, in whole documents.
    weights: of each source's bytes; None: all documents are of one source, "".

  Raises:
    UserError: for a source without a weight, a weight without documents, or a weight <= 0.
  """
  shares = {"": 1.0} if weights is None else dict(weights)
  wrong = [name for name, weight in shares.items() if not weight > 0]
  if wrong or not shares:
    raise UserError(f"weights of sources must be above 0, got {shares}")
  total = sum(shares.values())
  heaps = {name: _Heap(seed, int(max_bytes * w / total)) for name, w in sorted(shares.items())}
  for document in documents:
    name = "" if weights is None or isinstance(document, str) else document.source
    if name not in heaps:
      raise UserError(f'source "{name}" of a document has no weight{nearest(name, heaps)}')
    heaps[name].push(document if isinstance(document, str) else document.text)
  empty = [name for name, heap in heaps.items() if weights is not None and not heap.bytes]
  if empty:
    raise UserError(f'source "{empty[0]}" has a weight, but no text: remove it from the weights')
  return {name: Sample(heap.texts(), heap.bytes, heap.limit) for name, heap in heaps.items()}


def fit(texts: Sequence[str], vocab_size: int, rules: Rules) -> bytes:
  """Returns a serialised SentencePiece model; the same texts give the same bytes.

  Raises:
    UserError: if the texts are too few for `vocab_size`, or hold more characters than it.
  """
  buffer = io.BytesIO()
  # With all of ASCII in it, a unigram model spells the name of a token rather than takes it for
  # the token: tokenizers that keep both in one table (see export.py) depend on that.
  options: dict[str, Any] = {"required_chars": _ASCII} if rules.kind == "unigram" else {}
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=_lines(texts),
      model_writer=buffer,
      model_type=rules.kind,
      vocab_size=vocab_size,
      byte_fallback=True,
      split_digits=rules.split_digits,
      normalization_rule_name="identity",
      remove_extra_whitespaces=False,
      add_dummy_prefix=False,
      allow_whitespace_only_pieces=True,
      user_defined_symbols=rules.symbols(),
      control_symbols=list(MARKERS),
      pad_id=0,
      unk_id=1,
      bos_id=2,
      eos_id=3,
      max_sentence_length=8 * _LINE_CHARS,
      num_threads=1,  # Another number gives another model, and is no faster.
      minloglevel=2,
      **options,
    )
  except RuntimeError as error:
    raise _explained(error, vocab_size, sum(map(len, texts))) from error
  return buffer.getvalue()


def byte_count(text: str) -> int:
  """Returns the length of `text` in UTF-8 bytes, lone surrogates counting as U+FFFD."""
  return len(text.encode("utf-8", "surrogatepass"))


class _Heap:
  """The texts of the smallest hashes that add up to `limit` bytes."""

  def __init__(self, seed: int, limit: int):
    self._key = str(seed).encode()
    self._heap: list[tuple[int, str]] = []  # Negated hashes: the largest is on top.
    self.limit, self.bytes = limit, 0

  def push(self, text: str) -> None:
    data = text.encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(data, digest_size=8, key=self._key).digest()
    heapq.heappush(self._heap, (-int.from_bytes(digest, "big"), text))
    self.bytes += len(data)
    while len(self._heap) > 1 and self.bytes - byte_count(self._heap[0][1]) >= self.limit:
      self.bytes -= byte_count(heapq.heappop(self._heap)[1])

  def texts(self) -> tuple[str, ...]:
    return tuple(text for _, text in sorted(self._heap, reverse=True))


def _lines(texts: Iterable[str]) -> Iterator[str]:
  for text in texts:
    # The trainer rejects NUL, and its own mark for a space is never learned: it is spelt in bytes.
    clean = SURROGATE.sub("", text).replace("\0", "").replace(SPACE, "")
    for line in clean.split("\n"):
      for start in range(0, len(line), _LINE_CHARS):
        yield line[start : start + _LINE_CHARS]


def _explained(error: RuntimeError, vocab_size: int, characters: int) -> UserError:
  most = re.search(r"value <= (\d+)", str(error))
  least = re.search(r"required_chars\. \d+ vs (\d+)", str(error))
  hint = "add documents"
  if most:
    hint = f"set it to at most {most[1]}, or add documents"
  elif least:
    hint = f"set it to at least {least[1]}: every character in use needs one"
  return UserError(
    f"cannot train a tokenizer of vocab_size={vocab_size} on {characters} characters: {hint}"
  )
