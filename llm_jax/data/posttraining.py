"""Files of one's own for post-training: what trains, what is held out, how often each row counts.

    found = load("conversations", ("talks.jsonl", "code.parquet=0.5"), encode, validation=0.02)

Rows are held out by the first text of the user, whatever the stage, the seed or the file: what SFT
has not seen, a reward model and DPO have not seen either.
"""

import collections
import dataclasses
import hashlib
import math
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from llm_jax.data import chat, formats
from llm_jax.data.formats import Conversation, Labelled, Preference
from llm_jax.data.intake import Intake
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.errors import UserError

NOTHING = "nothing to learn"
CUT_AWAY = "nothing to learn after the cut"
SAME = "same answers after the cut"
OTHER = "other"  # The name of all sources that are too small for one of their own.
_MOST = 20  # Sources that are measured apart.


class File(NamedTuple):
  """A file, and how often its rows count in an epoch."""

  path: str
  weight: float = 1.0


class Encoded(NamedTuple):
  """What an item became, and whether it lost text to a limit of tokens."""

  row: Any
  cut: bool = False


Encode = Callable[[Any], Encoded | str]  # An item to what it became, or why it was dropped.


Tokens = tuple[list[int], list[int]]  # Tokens and mask of one conversation.


@dataclasses.dataclass(frozen=True)
class Compared:
  """A preference as tokens.

  Attributes:
    row: {"chosen": (tokens, mask), "rejected": (tokens, mask)}.
    kind: what the pair is counted under: its source, or what is wrong with the rejected answer.
    margin, probability: as in `Preference`.
    group: the same for all pairs of a K-way prompt; "": a pair of its own.
  """

  row: dict[str, Tokens]
  kind: str
  margin: float = 0.0
  probability: float = 1.0
  group: str = ""


class Data(NamedTuple):
  """Rows of all files.

  Attributes:
    train: rows as `encode` made them; one of weight 2 is there twice.
    validation: rows held out, each once.
    sources: of the rows of `validation`.
    reports: a line for every file.
  """

  train: list[Any]
  validation: list[Any]
  sources: list[str]
  reports: list[str]


@dataclasses.dataclass
class _Part:
  """What one file gave: rows, with the prompt and the source of each."""

  file: File
  rows: list[Any]
  prompts: list[str]
  sources: list[str]
  report: str


def files(entries: Iterable[str], field: str = "config.data") -> list[File]:
  """Returns the files that "file" or "file=weight" name.

  Raises:
    UserError: for a weight that is not above 0, or an empty name.
  """
  found = []
  for entry in entries:
    path, mark, number = entry.rpartition("=")
    weight = _number(number) if mark and not pathlib.Path(entry).exists() else None
    file = File(entry) if weight is None else File(path, weight)
    if not file.path or not 0 < file.weight < math.inf:
      raise UserError(
        f'{field}: "{entry}" must be a file, or file=weight with a weight above 0, such as 0.5'
      )
    found.append(file)
  return found


def load(
  kind: str,
  entries: Iterable[str],
  encode: Encode,
  *,
  validation: float = 0.0,
  held_out: Iterable[str] = (),
  seed: int = 0,
  field: str = "config.data",
  intake: Intake | None = None,
) -> Data:
  """Reads files of any format (llm_jax/data/formats) and encodes what they hold.

  Args:
    kind: of the items: "conversations", "preferences" or "labels".
    entries: files, or file=weight: its rows count `weight` times in an epoch. Of a fraction of a
      time it is always the same rows that count, drawn by `seed`.
    encode: an item, whose source is the file's name if the row has none -> what it became, or the
      reason why it is dropped.
    validation: fraction of prompts held out, at least one; 0: none.
    held_out: files that are held out whole, in the place of a fraction.
    seed: of the rows that a fractional weight leaves out.
    field: names the remedy in an error.
    intake: takes the counts of each file, and rows that cannot be read; None: the first of these is
      an error.

  Raises:
    UserError: if a file cannot be read, or nothing is left to train on or to hold out.
  """
  parts = [_read(file, kind, encode, intake) for file in files(entries, field)]
  whole = files(held_out, f"{field} (validation)")
  others = [_read(file, kind, encode, intake) for file in whole]
  if not any(part.rows for part in parts):
    raise UserError(f"{field}: no row is left to train on: {'; '.join(p.report for p in parts)}")
  if others and not any(part.rows for part in others):
    raise UserError(f"{field}: no row is left to hold out: {'; '.join(p.report for p in others)}")
  apart = set() if others else chosen((p for part in parts for p in part.prompts), validation)
  data = Data([], [], [], [])
  for number, part in enumerate(parts):
    away = [i for i, prompt in enumerate(part.prompts) if prompt in apart]
    kept = sorted(set(range(len(part.rows))) - set(away))
    data.train.extend(
      part.rows[kept[i]] for i in repeated(len(kept), part.file.weight, seed, number)
    )
    _hold_out(data, part, away)
    data.reports.append(f"{part.report}; {len(away):,} held out" if away else part.report)
  for part in others:
    _hold_out(data, part, range(len(part.rows)))
    data.reports.append(f"{part.report}; all held out")
  if not data.train:
    raise UserError(
      f"{field}: all prompts are held out: lower config.validation={validation}, or give more data"
    )
  both = {p for part in parts for p in part.prompts} & {p for part in others for p in part.prompts}
  if both:
    data.reports.append(f"{len(both):,} prompts are both trained on and held out")
  return data


def prompt_of(item: Conversation | Preference | Labelled) -> str:
  """Returns what an item is told apart by: the user's first text, spaces made equal."""
  messages = item.messages if isinstance(item, Conversation) else item.prompt
  asked = (m["content"] for m in messages if m["role"] == "user")
  return " ".join(next(asked, messages[0]["content"]).split())


def chosen(prompts: Iterable[str], fraction: float) -> set[str]:
  """Returns the prompts that are held out: about `fraction` of all different ones, at least one.

  Raises:
    UserError: if there is only one, which cannot be on both sides.
  """
  if not fraction:
    return set()
  places = {prompt: _place(prompt) for prompt in prompts}
  if len(places) < 2:
    raise UserError(
      "config.validation: all rows ask the same, so none can be held out; set it to 0, or name "
      "files that are held out"
    )
  return {p for p, at in places.items() if at < fraction} or {min(places, key=places.__getitem__)}


def repeated(count: int, weight: float, seed: int, number: int = 0) -> list[int]:
  """Returns the numbers of `count` rows as an epoch has them, round(count * weight) in all.

  Args:
    count: rows of a file.
    weight: times that each of them counts.
    seed: decides with `number` which rows have one time more than others.
    number: of the file.
  """
  total = max(math.floor(count * weight + 0.5), 1) if count else 0
  times, rest = divmod(total, max(count, 1))
  some = np.random.default_rng((seed, number)).permutation(count)[:rest]
  return sorted([*range(count)] * times + some.tolist())


def bounded(sources: Sequence[str], most: int = _MOST) -> list[str]:
  """Returns the sources, those after the `most` most frequent ones as "other"."""
  counts = collections.Counter(sources)
  kept = {name for name, _ in sorted(counts.items(), key=lambda x: (-x[1], x[0]))[:most]}
  return [name if name in kept else OTHER for name in sources]


def conversation(tokenizer: Tokenizer, item: Conversation, length: int) -> Encoded | str:
  """Returns (tokens, mask) of a conversation, at most `length` + 1 tokens."""
  tokens, mask = chat.render(tokenizer, item.messages, learn=item.learn)
  cut = len(tokens) > length + 1
  if cut:
    tokens, mask = chat.render(tokenizer, item.messages, length + 1, item.learn)
  if not any(mask[1:]):
    return CUT_AWAY if cut else NOTHING
  return Encoded((tokens, mask), cut)


def preference(tokenizer: Tokenizer, item: Preference, length: int) -> Encoded | str:
  """Returns a `Compared` of conversations of at most `length` + 1 tokens.

  Where one of them is cut, both keep the same of the prompt, so that only the answers differ.
  """
  sides = [_answered(tokenizer, item.prompt, text) for text in (item.chosen, item.rejected)]
  cut = max(len(tokens) for tokens, _ in sides) > length + 1
  if cut:
    texts = item.chosen, item.rejected
    sides = [_answered(tokenizer, item.prompt, text, length + 1) for text in texts]
    begins = [mask.index(1) for _, mask in sides]
    sizes = [min(begins) + len(side[0]) - at for side, at in zip(sides, begins, strict=True)]
    sides = [_answered(tokenizer, item.prompt, *x) for x in zip(texts, sizes, strict=True)]
  if sides[0] == sides[1]:
    return SAME
  group = "" if item.group == "" else f"{_place(prompt_of(item))}:{item.group}"
  row = {"chosen": sides[0], "rejected": sides[1]}
  return Encoded(Compared(row, item.source, item.margin, item.probability, group), cut)


def labelled(tokenizer: Tokenizer, item: Labelled, length: int) -> Encoded:
  """Returns {"answer": (tokens, mask), "desirable": 0.0 or 1.0}, at most `length` + 1 tokens."""
  whole = _answered(tokenizer, item.prompt, item.answer)
  cut = len(whole[0]) > length + 1
  row = _answered(tokenizer, item.prompt, item.answer, length + 1) if cut else whole
  return Encoded({"answer": row, "desirable": float(item.desirable)}, cut)


def _answered(tokenizer: Tokenizer, prompt, answer: str, limit: int = 0) -> Tokens:
  """Returns (tokens, mask) of a prompt and an answer, which alone is learned, with its end."""
  messages = [*prompt, {"role": "assistant", "content": answer}]
  return chat.render(tokenizer, messages, limit, (len(prompt),))


def _read(file: File, kind: str, encode: Encode, intake: Intake | None) -> _Part:
  lost = intake.lose if intake else formats.refuse
  table = formats.read(file.path, kind, lost=lost)
  part = _Part(file, [], [], [], "")
  drops, cut, stem = collections.Counter(table.drops), 0, name_of(file.path)
  for item in table.items:
    source = item.source if item.source else stem
    got = encode(dataclasses.replace(item, source=source))
    if isinstance(got, str):
      drops[got] += 1
      continue
    cut += got.cut
    part.rows.append(got.row)
    part.prompts.append(prompt_of(item))
    part.sources.append(source)
  part.report = f"{file.path}: {table.format}, {table.rows:,} rows, {len(part.rows):,} {kind} kept"
  part.report += f", {cut:,} cut to the length" if cut else ""
  part.report += f", weight {file.weight:g}" if file.weight != 1 else ""
  gone = dict(drops.most_common())
  for what, counts in (("dropped", gone), ("cannot be read", table.lost)):
    listed = ", ".join(f"{name} {n:,}" for name, n in counts.items())
    part.report += f"; {what}: {listed}" if listed else ""
  if intake:
    facts = {"format": table.format, "kind": kind, "kept": len(part.rows), "cut": cut}
    intake.add(file.path, table.rows, **facts, dropped=gone, lost=table.lost)
  return part


def name_of(path: str) -> str:
  """Returns the name of a file without folders and suffixes."""
  name = pathlib.Path(path).name.removesuffix(".gz")
  return pathlib.Path(name).stem


def _hold_out(data: Data, part: _Part, numbers: Iterable[int]) -> None:
  for i in numbers:
    data.validation.append(part.rows[i])
    data.sources.append(part.sources[i])


def _place(prompt: str) -> float:
  digest = hashlib.blake2b(prompt.encode("utf-8", "surrogatepass"), digest_size=8).digest()
  return int.from_bytes(digest, "big") / 2**64


def _number(text: str) -> float | None:
  try:
    return float(text)
  except ValueError:
    return None
