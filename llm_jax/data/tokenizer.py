"""Text to ids and back: one interface for tokenizers that are trained here and for those of others.

In tokenizers/, SentencePiece models are in pieces.py, tokenizer.json files of Hugging Face in
huggingface.py; files.py reads and writes both, export.py gives ours to Hugging Face's libraries.
"""

import abc
import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from llm_jax.data import templates
from llm_jax.data.documents import Document
from llm_jax.data.tokenizers import train as tokenizer_train
from llm_jax.data.tokenizers.train import SPECIAL, SURROGATE, byte_count
from llm_jax.data.workers import batched
from llm_jax.errors import UserError

__all__ = [
  "Fertility",
  "Tokenizer",
  "byte_count",
  "bytes_per_token",
  "report",
  "table",
  "train",
]


class Tokenizer(abc.ABC):
  """Text to ids and back; a text is never read as a control token, whatever it spells.

  Tokenizers that `train` made are exact: `decode(encode(text)) == text` for all valid Unicode
  text. An imported one keeps its own rules: it may add a space in front, or compose characters.

  Attributes:
    vocab_size: number of ids.
    pad_id: padding, 0 in those made here.
    unk_id: never produced where bytes spell what is unknown; -1: there is none.
    bos_id: first token of a document or conversation.
    eos_id: last token of a document.
    system_id: opens a system turn in the template "llm_jax"; -1 in the others.
    user_id: opens a user's turn, likewise.
    assistant_id: opens an assistant's turn, likewise.
    end_id: closes what an assistant says: the sampler stops there.
    control: ids that no text gives, and that decode to nothing.
    byte_ids: id -> the byte that it stands for, of ids that are one byte.
    template: how conversations are written, a name of `templates`; see `use_template`.
    spaced: whether a text that follows a control token has a space put in front, as one alone has.
  """

  vocab_size: int
  pad_id: int
  unk_id: int
  bos_id: int
  eos_id: int
  system_id: int
  user_id: int
  assistant_id: int
  end_id: int
  control: frozenset[int]
  byte_ids: Mapping[int, int]
  template: str = templates.DEFAULT
  spaced: bool = False

  def __init__(self, vocab_size: int, ids: Mapping[str, int], control: Iterable[int]):
    self.vocab_size, self._ids = vocab_size, dict(ids)
    for name in SPECIAL:
      setattr(self, f"{name}_id", ids[name])
    self.control = frozenset(control)

  @staticmethod
  def load(directory: str | pathlib.Path) -> "Tokenizer":
    """Reads what `train` or `tokenizers.files.adopt` wrote.

    Raises:
      UserError: if the files are missing, damaged, or do not belong together.
    """
    from llm_jax.data.tokenizers import files as tokenizer_files  # It imports this module.

    return tokenizer_files.load(directory)

  @functools.cached_property
  def control_names(self) -> dict[str, int]:
    """Name -> id of each control token."""
    return {self.token(i): i for i in sorted(self.control)}

  def use_template(self, name: str) -> None:
    """Sets the template of conversations, and the ids of turns with it.

    Raises:
      UserError: for an unknown template, or one with a control token that is none here.
    """
    template = templates.get(name)
    own = name == templates.DEFAULT
    turns = {role: self._ids[role] if own else -1 for role in SPECIAL[4:]}
    if not own:
      for piece in template.pieces():
        if isinstance(piece, templates.Control):
          self.control_id(piece, name)
      turns["end"] = self.control_id(template.end(), name)
    for role, i in turns.items():
      setattr(self, f"{role}_id", i)
    self.template = name

  def control_id(self, name: str, template: str) -> int:
    """Returns the id of a control token of a template, `templates.Control`.

    Raises:
      UserError: if there is none, or a text may give it.
    """
    if name in SPECIAL:
      found = getattr(self, f"{name}_id")
    else:
      found = self.control_names.get(name, -1)
    if found >= 0:
      return found
    why = f"this tokenizer has no {name}"
    if name not in SPECIAL and any(self.token(i) == name for i in range(self.vocab_size)):
      why = f"to this tokenizer {name} is ordinary text: adopt its source with this template"
    raise UserError(f'the chat template "{template}" needs a control token: {why}')

  def encode(self, text: str) -> list[int]:
    """Returns the ids of `text`, none of them a control id.

    Half of a surrogate pair, which UTF-8 cannot write, becomes U+FFFD.
    """
    return self.encode_arrays([text])[0].tolist()

  def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
    """Returns `encode` of each text."""
    return [ids.tolist() for ids in self.encode_arrays(texts, threads)]

  def encode_arrays(self, texts: Sequence[str], threads: int = 1) -> list[np.ndarray]:
    """Returns `encode` of each text as int32 [n], which is faster than lists.

    Args:
      texts: any strings.
      threads: of the C++ or Rust library, where it encodes whole texts. A table of words (see
        tokenizers/words.py) is no faster with threads: use processes there.
    """
    return self._encode(_clean(texts), threads)

  def encode_inside(self, texts: Sequence[str]) -> list[list[int]]:
    """Returns the ids of texts that go on from other text: no space is put in front of them."""
    return [ids.tolist() for ids in self._encode_inside(_clean(texts))]

  def documents(self, texts: Iterable[str], threads: int = 1) -> Iterator[np.ndarray]:
    """Yields [bos] text [eos] of each text, int32 [n], for `packing.write_tokens`."""
    first, last = np.array([self.bos_id], np.int32), np.array([self.eos_id], np.int32)
    for batch in batched(texts, 64):
      for ids in self.encode_arrays(batch, threads):
        yield np.concatenate([first, ids, last])

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of `ids`; control ids have none.

    Bytes that are no UTF-8, and ids of a model's unused rows beyond the vocabulary, give U+FFFD.
    """
    parts, run = [], []
    for i in map(int, ids):
      if 0 <= i < self.vocab_size:
        if i not in self.control:
          run.append(i)
      else:
        parts += [self._decode(run), "\ufffd"]
        run = []
    return "".join([*parts, self._decode(run)])

  @abc.abstractmethod
  def token(self, i: int) -> str:
    """Returns how token `i` is spelt, for people: `<|user|>`, `<0x0A>`, `▁the`."""

  @abc.abstractmethod
  def _encode(self, texts: Sequence[str], threads: int) -> list[np.ndarray]:
    """Returns the ids of texts without surrogates, int32 [n] each."""

  def _encode_inside(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Returns `_encode` of texts without the space that it may put in front."""
    return self._encode(texts, 1)

  @abc.abstractmethod
  def _decode(self, ids: list[int]) -> str:
    """Returns the text of ids below `vocab_size`, none of them a control id."""


def _clean(texts: Sequence[str]) -> list[str]:
  return [text if text.isascii() else SURROGATE.sub("\ufffd", text) for text in texts]


def train(
  texts: Iterable[str | Document],
  directory: str | pathlib.Path,
  vocab_size: int,
  seed: int = 0,
  max_bytes: int = 10_000_000,
  *,
  weights: Mapping[str, float] | None = None,
  kind: str = "bpe",
  split_digits: bool = True,
  newlines: int = 2,
  space_runs: int = 0,
  template: str = templates.DEFAULT,
) -> Tokenizer:
  """Trains a tokenizer and writes it to `directory`; the same texts in any order give one result.

  Args:
    texts: documents, read once; `Document`s if there are `weights`.
    directory: gets tokenizer.model and tokenizer.json (ids, rules, hash, sample).
    vocab_size: number of ids, control tokens and the 256 bytes included.
    seed: of the sample.
    max_bytes: about so many UTF-8 bytes of whole documents, chosen by hash, are learned from.
    weights: source -> its part of these bytes, relative; None: all documents alike. A source that
      has fewer bytes gives what it has, and tokenizer.json says so.
    kind: see `tokenizer_train.Rules`, as for the other keywords.
    split_digits: every digit is a token of its own.
    newlines: runs of 1 to so many newlines are tokens; no other token holds any.
    space_runs: runs of 2 to so many spaces are always tokens; 0: what is frequent.
    template: of conversations, a name of `templates` that needs no tokens of its own.

  Returns:
    The tokenizer, as `Tokenizer.load(directory)` gives it.

  Raises:
    UserError: if the texts are too few for `vocab_size`, it is too small for the 256 bytes, a rule
      is unknown, or weights and sources do not match.
  """
  from llm_jax.data.tokenizers import files as tokenizer_files  # It imports this module.

  rules = tokenizer_train.Rules(kind, split_digits, newlines, space_runs)
  tokenizer_train.check(rules, vocab_size)
  chosen = tokenizer_train.sample(texts, seed, max_bytes, weights)
  model = tokenizer_train.fit([t for s in chosen.values() for t in s.texts], vocab_size, rules)
  return tokenizer_files.save(model, directory, rules, chosen, seed, template)


def bytes_per_token(tokenizer: Tokenizer, texts: Sequence[str]) -> float:
  """Returns UTF-8 bytes per token over all `texts`; 0 if they hold no token."""
  tokens = sum(map(len, tokenizer.encode_arrays(texts)))
  return sum(map(byte_count, texts)) / tokens if tokens else 0.0


@dataclasses.dataclass(frozen=True)
class Fertility:
  """What a tokenizer makes of one source's texts.

  Attributes:
    source: its name.
    texts: how many.
    bytes: UTF-8 bytes in them.
    words: what stands between white space.
    tokens: without markers of documents.
    bytes_per_token: more is better.
    tokens_per_word: the fertility, 1 at best (Rust et al., arXiv:2012.15613).
    spelt: fraction of tokens that are one byte of a character without a token.
  """

  source: str
  texts: int
  bytes: int
  words: int
  tokens: int
  bytes_per_token: float
  tokens_per_word: float
  spelt: float


def report(tokenizer: Tokenizer, sources: Mapping[str, Iterable[str]]) -> list[Fertility]:
  """Returns a row per source of {source: texts}; ratios are 0 where there is nothing to count."""
  rows = []
  letters = np.array(sorted(tokenizer.byte_ids), np.int32)
  for source, texts in sources.items():
    count, size, words, tokens, spelt = 0, 0, 0, 0, 0
    for batch in batched(texts, 64):
      count += len(batch)
      size += sum(map(byte_count, batch))
      words += sum(len(text.split()) for text in batch)
      for ids in tokenizer.encode_arrays(batch):
        tokens += len(ids)
        spelt += int(np.isin(ids, letters).sum())
    ratio = lambda a, b: a / b if b else 0.0  # noqa: E731
    parts = ratio(size, tokens), ratio(tokens, words), ratio(spelt, tokens)
    rows.append(Fertility(source, count, size, words, tokens, *parts))
  return rows


def table(rows: Sequence[Fertility]) -> str:
  """Returns the rows of `report` as lines for people."""
  width = max([len("source"), *(len(row.source) for row in rows)])
  head = f"{'source':<{width}}  {'texts':>9}  {'bytes':>13}  {'tokens':>12}  bytes/token"
  lines = [f"{head}  tokens/word  spelt in bytes"]
  for r in rows:
    lines.append(
      f"{r.source:<{width}}  {r.texts:9,}  {r.bytes:13,}  {r.tokens:12,}  {r.bytes_per_token:11.3f}"
      f"  {r.tokens_per_word:11.3f}  {100 * r.spelt:13.2f}%"
    )
  return "\n".join(lines)
