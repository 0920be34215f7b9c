"""Inputs and targets for an encoder-decoder: pairs, and T5's span corruption.

A batch has what an LM batch has of the targets (see batches.py; `tokens` begins with the start
token), and "inputs" and "input_segments" [B, S] int32 of what the encoder reads, 0 being padding.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from llm_jax.data import batches
from llm_jax.data.batches import Arrays
from llm_jax.data.formats import Conversation
from llm_jax.data.posttraining import NOTHING, Encoded
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.errors import UserError

SENTINELS = 100  # As many as T5 has.
Pair = tuple[Sequence[int], Sequence[int]]  # (inputs, targets)


def collate(
  pairs: Sequence[Pair], input_length: int, length: int, start_id: int, pad_id: int = 0
) -> Arrays:
  """Returns a batch of one pair a row, padded on the right.

  Args:
    pairs: inputs of at most `input_length` tokens and targets of at most `length`; all targets are
      learned.
    input_length: S.
    length: T.
    start_id: what the decoder reads before the first target.
    pad_id: fills the rest.

  Raises:
    ValueError: if a row is too long.
  """
  rows = [([start_id, *targets], [0, *[1] * len(targets)]) for _, targets in pairs]
  batch = batches.lm_batch(rows, length, pad_id)
  inputs = np.full((len(pairs), input_length), pad_id, np.int32)
  segments = np.zeros_like(inputs)
  for i, (given, _) in enumerate(pairs):
    if len(given) > input_length:
      raise ValueError(f"row {i} has {len(given)} inputs, input_length is {input_length}")
    inputs[i, : len(given)] = given
    segments[i, : len(given)] = 1
  return batch | {"inputs": inputs, "input_segments": segments}


def sentinels(tokenizer: Tokenizer) -> list[int]:
  """Returns the ids that stand for what was taken out, the first one first.

  T5's tokenizers have them, as <extra_id_0> and on. To others they are ids after the last: a
  model's vocabulary has `SENTINELS` more tokens then.
  """
  named = [tokenizer.control_names.get(f"<extra_id_{i}>", -1) for i in range(SENTINELS)]
  if named[0] >= 0:
    return list(itertools.takewhile(lambda i: i >= 0, named))
  return list(range(tokenizer.vocab_size, tokenizer.vocab_size + SENTINELS))


def corrupt(
  tokens: np.ndarray,
  random: np.random.Generator,
  marks: Sequence[int],
  density: float = 0.15,
  mean_span: float = 3.0,
) -> tuple[np.ndarray, np.ndarray]:
  """Takes random spans out of a text: (what is left, what was taken), a sentinel at each gap.

  Raffel et al. 2020, arXiv:1910.10683, sec. 3.1.4 and figure 2. The text begins with what is left.

  Args:
    tokens: [n] int, n at least 2.
    random: of the spans.
    marks: the sentinels, in order.
    density: fraction of the tokens that is taken.
    mean_span: tokens per span.

  Returns:
    inputs int32 [n - taken + spans] and targets int32 [taken + spans]; an end is not added.

  Raises:
    UserError: if there are more spans than sentinels.
  """
  taken, spans = _counts(len(tokens), density, mean_span)
  if spans > len(marks):
    raise UserError(
      f"{spans} spans of a text of {len(tokens)} tokens need as many sentinels, there are "
      f"{len(marks)}: lower config.length, or raise config.corruption.mean_span"
    )
  sizes = np.stack([_parts(len(tokens) - taken, spans, random), _parts(taken, spans, random)], 1)
  part_n = np.repeat(np.arange(2 * spans), sizes.ravel())
  gone_n = part_n % 2 == 1
  marks_K = np.asarray(marks[:spans], np.int32)
  first_K = np.cumsum(sizes.ravel())[0::2]  # Where each span begins.
  inputs_n = np.where(gone_n, 0, tokens).astype(np.int32)
  inputs_n[first_K] = marks_K
  kept_n = ~gone_n
  kept_n[first_K] = True
  begin_K = np.cumsum(sizes[:, 1]) - sizes[:, 1]
  return inputs_n[kept_n], np.insert(np.asarray(tokens, np.int32)[gone_n], begin_K, marks_K)


def text_length(input_length: int, density: float = 0.15, mean_span: float = 3.0) -> int:
  """Returns the tokens of a text of which `input_length` inputs are left, its end included."""
  size = 2
  while _left(size + 1, density, mean_span) <= input_length:
    size += 1
  return size


def target_length(input_length: int, density: float = 0.15, mean_span: float = 3.0) -> int:
  """Returns the targets of such a text, their end included."""
  taken, spans = _counts(text_length(input_length, density, mean_span), density, mean_span)
  return taken + spans + 1


class Corrupted:
  """Batches of corrupted rows; it goes on exactly where `get_state` was called.

  Args:
    rows: LM batches of `text_length` tokens, an iterator with get_state and set_state.
    tokenizer: of the rows.
    input_length: S.
    seed: with the number of the batch it decides the spans.
    density, mean_span: see `corrupt`.
  """

  def __init__(
    self,
    rows: Iterable[Mapping[str, np.ndarray]],
    tokenizer: Tokenizer,
    input_length: int,
    seed: int = 0,
    density: float = 0.15,
    mean_span: float = 3.0,
  ):
    self._rows, self._tokenizer, self._seed = iter(rows), tokenizer, seed
    self._marks, self._how = sentinels(tokenizer), (density, mean_span)
    self._sizes = input_length, target_length(input_length, density, mean_span)
    self._count = 0

  def __iter__(self) -> Iterator[Arrays]:
    return self

  def __next__(self) -> Arrays:
    batch = next(self._rows)
    random = np.random.default_rng((self._seed, self._count))
    self._count += 1
    texts = [row[used > 0] for row, used in zip(batch["tokens"], batch["segments"], strict=True)]
    pairs = [self._pair(text, random) for text in texts]
    out = collate(pairs, *self._sizes, start_id(self._tokenizer), self._tokenizer.pad_id)
    return out | ({"documents": batch["documents"]} if "documents" in batch else {})

  def get_state(self) -> dict[str, Any]:
    """Returns what `set_state` needs."""
    return {"rows": self._rows.get_state(), "count": self._count}

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Goes on where `get_state` was called."""
    self._rows.set_state(state["rows"])
    self._count = state["count"]

  def _pair(self, text: np.ndarray, random: np.random.Generator) -> Pair:
    if len(text) < 2:  # A row that fills up a last batch: nothing is learned of it.
      return (), ()
    end = [self._tokenizer.eos_id]
    left, taken = corrupt(text, random, self._marks, *self._how)
    return np.concatenate([left, end]), np.concatenate([taken, end])


def start_id(tokenizer: Tokenizer) -> int:
  """Returns what a decoder reads first: the padding, as T5 has it."""
  return tokenizer.pad_id


def pair(tokenizer: Tokenizer, prompt: str, answer: str, input_length: int, length: int) -> Pair:
  """Returns a question and its answer, each with its end; what is too long loses its last words."""
  given, said = tokenizer.encode_batch([prompt, answer])
  end = [tokenizer.eos_id]
  return given[: input_length - 1] + end, said[: length - 1] + end


def last_answer(
  tokenizer: Tokenizer, item: Conversation, input_length: int, length: int
) -> Encoded | str:
  """Returns the pair of a conversation's last answer and all that was said before it.

  The messages before it are joined by newlines, without roles; the answers among them are read and
  not learned. A prompt that is too long loses its last words, as in `pair`.
  """
  end = len(item.messages) - 1
  if end not in item.learned():
    return NOTHING
  asked = "\n".join(m["content"] for m in item.messages[:-1])
  said = item.messages[-1]["content"]
  given, answer = (len(ids) + 1 for ids in tokenizer.encode_batch([asked, said]))
  cut = given > input_length or answer > length
  return Encoded(pair(tokenizer, asked, said, input_length, length), cut)


def _counts(size: int, density: float, mean_span: float) -> tuple[int, int]:
  """Returns (tokens taken, spans) of a text of `size` tokens."""
  taken = min(max(round(size * density), 1), size - 1)
  return taken, min(max(round(taken / mean_span), 1), taken, size - taken)


def _left(size: int, density: float, mean_span: float) -> int:
  taken, spans = _counts(size, density, mean_span)
  return size - taken + spans + 1


def _parts(total: int, count: int, random: np.random.Generator) -> np.ndarray:
  """Returns `count` sizes of at least 1 that add up to `total`, all such lists equally likely."""
  cuts = np.sort(random.choice(total - 1, count - 1, replace=False)) + 1
  return np.diff(np.concatenate([[0], cuts, [total]]))
