"""Shows a batch as a model gets it: text, segments, positions, loss mask, control tokens, bytes.

python -m tools.inspect_batch --tokenizer=RUN/prepare/tokenizer --tokens=RUN/prepare/tokens/train
python -m tools.inspect_batch --tokenizer=DIR --tokens=web=A --tokens=code=B --weights=web=3,code=1
python -m tools.inspect_batch --tokenizer=DIR --chat=talks.jsonl --length=256 --rows=4

--tokens takes token files, or rows that were packed before (llm_jax/data/rows.py). On a terminal,
tokens alternate between two colours, and what is not learned is faint; without colour, what is
learned stands between ⟦ and ⟧. A segment is shown with its last target, so one token longer than
the positions it takes.
"""

import argparse
import dataclasses
import itertools
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from llm_jax.data import batches, blend, chat, formats, mixture, packing, records, rows
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.errors import UserError

_BYTES = re.compile(r"(<0x[0-9A-F]{2}>)+")
_CODES = {
  "even": "", "odd": "36", "control": "35", "byte": "33", "mark": "2", "title": "1", "faint": "2",
}  # fmt: skip
_SEGMENTS = ("32", "34", "33", "35", "36", "31")
_OWN = "⟦⟧⟪⟫‹›⏎⇥␍␡⍽"
_SIGNS = {"\n": "⏎", "\t": "⇥", "\r": "␍", "\x7f": "␡", "\u00a0": "⍽"}


def main(argv: list[str] | None = None) -> int:
  """Prints one batch; 2 is the exit code of bad input."""
  options = _parser().parse_args(argv)
  if hasattr(sys.stdout, "reconfigure"):
    sys.stdout.reconfigure(errors="backslashreplace")  # pyright: ignore
  try:
    tokenizer = Tokenizer.load(options.tokenizer)
    batch, names = _batch(options, tokenizer)
    paint = Paint(_colored(options.color))
    width = options.width or min(shutil.get_terminal_size((100, 24)).columns, 120)
    print("\n".join(show(batch, tokenizer, names, paint, width, options.table)))
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


@dataclasses.dataclass(frozen=True)
class Paint:
  """Colours for a terminal, or none."""

  on: bool

  def __call__(self, text: str, *codes: str) -> str:
    """Returns `text` in the colours `codes` (ANSI SGR numbers; "" is none)."""
    codes = tuple(code for code in codes if code)
    return f"\033[{';'.join(codes)}m{text}\033[0m" if self.on and codes and text else text


@dataclasses.dataclass(frozen=True)
class Cell:
  """A token, or part of one, as it is shown.

  Attributes:
    text: printable, without a line break.
    kind: "even" or "odd" for text (neighbours differ), "control", "byte".
    learned: whether its loss counts.
    position: in its segment.
    ends: a line break follows.
  """

  text: str
  kind: str
  learned: bool
  position: int
  ends: bool = False


def show(
  batch: Mapping[str, np.ndarray],
  tokenizer: Tokenizer,
  names: Sequence[str],
  paint: Paint,
  width: int = 100,
  table: bool = False,
) -> Iterator[str]:
  """Yields lines that show an LM batch [B, T], and a last one that sums it up.

  Args:
    batch: see llm_jax/data/batches.py.
    tokenizer: of the batch.
    names: the source of each row, [B].
    paint: colours.
    width: columns.
    table: a line per position instead of text.
  """
  yield _legend(paint)
  for b, name in enumerate(names):
    row = {key: values[b] for key, values in batch.items()}
    yield ""
    yield _row_title(row, b, len(names), name, paint, width)
    for segment in range(1, int(row["segments"].max()) + 1):
      color = _SEGMENTS[(segment - 1) % len(_SEGMENTS)]
      at = row["segments"] == segment
      part = {key: values[at] for key, values in row.items()}
      yield paint(_segment_title(part, segment, tokenizer), color)
      lines = _table(part, tokenizer, paint) if table else _text(part, tokenizer, paint, width - 9)
      yield from (paint(f"{gutter:>6} │ ", color) + line for gutter, line in lines)
    padding = int((row["segments"] == 0).sum())
    if padding:
      yield paint(f"  padding: {padding} positions", _CODES["faint"])
  yield ""
  yield paint(_summary(batch, names), _CODES["title"])


def _text(
  part: Mapping[str, np.ndarray], tokenizer: Tokenizer, paint: Paint, width: int
) -> Iterator[tuple[str, str]]:
  """Yields (position, text) of the lines of a segment."""
  ids = [*part["tokens"].tolist(), int(part["targets"][-1])]
  learned = [False, *(part["mask"] > 0).tolist()]
  inside = False
  lines = list(_lines(_cells(ids, learned, tokenizer), width))
  for number, line in enumerate(lines):
    shown = []
    for cell in line:
      if not paint.on and cell.learned != inside:
        shown.append("⟦" if cell.learned else "⟧")
        inside = cell.learned
      shown.append(_painted(cell, paint))
    if inside and number == len(lines) - 1:
      shown.append("⟧")
    yield str(line[0].position), "".join(shown)


def _painted(cell: Cell, paint: Paint) -> str:
  strong = "7" if cell.kind == "control" else ""
  text = paint(cell.text, _CODES[cell.kind], strong if cell.learned else _CODES["faint"])
  return text + (paint(_SIGNS["\n"], _CODES["mark"]) if cell.ends else "")


def _cells(ids: Sequence[int], learned: Sequence[bool], tokenizer: Tokenizer) -> Iterator[Cell]:
  """Yields the tokens of a segment; bytes that spell one character are one cell."""
  kinds = itertools.cycle(("even", "odd"))
  place = 0
  while place < len(ids):
    begin, name = place, _name(ids[place], tokenizer)
    data = _data(ids[begin], name, tokenizer)
    place += 1
    if ids[begin] in tokenizer.control:
      yield Cell(f"⟪{name.strip('<|>')}⟫", "control", learned[begin], begin)
    elif data:
      while place < len(ids) and not _character(data) and learned[place] == learned[begin]:
        more = _data(ids[place], _name(ids[place], tokenizer), tokenizer)
        if not more or len(data) > 7:
          break
        data, place = data + more, place + 1
      yield Cell(_spelt(data), "byte", learned[begin], begin, data == b"\n")
    else:
      yield from _written(name.replace("\u2581", " "), next(kinds), learned[begin], begin)


def _written(text: str, kind: str, learned: bool, position: int) -> Iterator[Cell]:
  """Yields the lines of one token's text, what cannot be seen made visible."""
  *lines, last = text.split("\n")
  for line in lines:
    yield Cell("".join(map(_visible, line)), kind, learned, position, True)
  if last:
    yield Cell("".join(map(_visible, last)), kind, learned, position)


def _visible(character: str) -> str:
  """Nothing that a text holds may steer the terminal, or look like a mark of ours."""
  if character in _SIGNS:
    return _SIGNS[character]
  if ord(character) < 0x20:
    return chr(0x2400 + ord(character))
  if character.isprintable() and character not in _OWN:
    return character
  return f"‹U+{ord(character):04X}›"


def _name(i: int, tokenizer: Tokenizer) -> str:
  return tokenizer.token(i) if 0 <= i < tokenizer.vocab_size else f"‹no token {i}›"


def _data(i: int, name: str, tokenizer: Tokenizer) -> bytes:
  """Returns the bytes of a token that is not text by itself; none for others."""
  if i in tokenizer.byte_ids:
    return bytes([tokenizer.byte_ids[i]])
  spelt = i not in tokenizer.control and _BYTES.fullmatch(name)
  return bytes(int(digits, 16) for digits in re.findall(r"<0x(..)>", name)) if spelt else b""


def _spelt(data: bytes) -> str:
  """Returns ‹a›, ‹é C3 A9› or ‹E2 96›."""
  digits, character = data.hex(" ").upper(), _character(data)
  if not character.isprintable() or character in _OWN:
    return f"‹{digits}›"
  return f"‹{character}›" if len(data) == 1 else f"‹{character} {digits}›"


def _character(data: bytes) -> str:
  try:
    return data.decode("utf-8")
  except UnicodeDecodeError:
    return ""


def _lines(cells: Iterator[Cell], width: int) -> Iterator[list[Cell]]:
  """Yields lines of cells that are no wider than `width`."""
  line: list[Cell] = []
  room = width
  for whole in cells:
    for cell in _fitting(whole, width):
      size = _columns(cell.text) + cell.ends
      if line and size > room:
        yield line
        line, room = [], width
      line.append(cell)
      room -= size
      if cell.ends:
        yield line
        line, room = [], width
  if line:
    yield line


def _fitting(cell: Cell, width: int) -> Iterator[Cell]:
  """Yields a cell in parts that fit a line."""
  step = max(1, width // 2)
  if _columns(cell.text) + cell.ends <= width:
    yield cell
    return
  for start in range(0, len(cell.text), step):
    part = cell.text[start : start + step]
    last = start + step >= len(cell.text)
    yield dataclasses.replace(cell, text=part, ends=cell.ends and last)


def _columns(text: str) -> int:
  wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
  return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def _table(
  part: Mapping[str, np.ndarray], tokenizer: Tokenizer, paint: Paint
) -> Iterator[tuple[str, str]]:
  """Yields (position, input, target and mask) of every position of a segment."""
  for position, i, target, mask in zip(
    *(part[key].tolist() for key in ("positions", "tokens", "targets", "mask")), strict=True
  ):
    left, right = (f"{x:>7} {_short(x, tokenizer)}" for x in (i, target))
    line = f"{left}{' ' * max(1, 30 - _columns(left))}→ {right}"
    line += " " * max(1, 64 - _columns(line)) + (f"{mask:g}" if mask else "-")
    yield str(position), paint(line, "" if mask else _CODES["faint"])


def _short(i: int, tokenizer: Tokenizer) -> str:
  return "".join(map(_visible, _name(i, tokenizer)))[:20]


def _legend(paint: Paint) -> str:
  if not paint.on:
    return "⟦ learned ⟧   ⟪control⟫   ‹byte›   ⏎ newline   number: position of a line's first token"
  return "   ".join([
    paint("learned ", "") + paint("learned", _CODES["odd"]),
    paint("not ", _CODES["faint"]) + paint("learned", _CODES["odd"], _CODES["faint"]),
    paint("⟪control⟫", _CODES["control"], "7"),
    paint("‹byte›", _CODES["byte"]),
    paint("⏎ newline", _CODES["mark"]),
    paint("number: position of a line's first token", _CODES["faint"]),
  ])  # fmt: skip


def _row_title(
  row: Mapping[str, np.ndarray], b: int, count: int, name: str, paint: Paint, width: int
) -> str:
  real = int((row["segments"] > 0).sum())
  title = f"── row {b + 1} of {count} · {name} · {_share(real, len(row['segments']))} full "
  return paint(title + "─" * max(0, width - _columns(title)), _CODES["title"])


def _segment_title(part: Mapping[str, np.ndarray], segment: int, tokenizer: Tokenizer) -> str:
  count, learned = len(part["tokens"]), int((part["mask"] > 0).sum())
  ends = (tokenizer.eos_id, tokenizer.end_id)
  firsts = tokenizer.bos_id, chat.prompt(tokenizer, [{"role": "user", "content": ""}])[0]
  cut = [
    "begins inside a document" if part["tokens"][0] not in firsts else "",
    "goes on elsewhere" if part["targets"][-1] not in ends else "",
  ]
  more = "".join(f" · {text}" for text in cut if text)
  return f"  segment {segment} · {count} positions · {learned} learned{more}"


def _summary(batch: Mapping[str, np.ndarray], names: Sequence[str]) -> str:
  fill = batches.fill([dict(batch)])
  real_B = (batch["segments"] > 0).sum(axis=1)
  by_source = {n: int(real_B[[m == n for m in names]].sum()) for n in dict.fromkeys(names)}
  sources = ", ".join(f"{n} {c:,} ({_share(c, fill.real)})" for n, c in by_source.items())
  shape = " × ".join(map(str, batch["tokens"].shape))
  return (
    f"{shape} · fill {_share(fill.real, fill.positions)} · "
    f"{fill.segments / max(fill.rows, 1):.2f} segments a row · "
    f"{_share(fill.counted, fill.real)} learned · tokens: {sources}"
  )


def _share(part: int, whole: int) -> str:
  return f"{100 * part / max(whole, 1):.1f} %"


def _batch(
  options: argparse.Namespace, tokenizer: Tokenizer
) -> tuple[Mapping[str, np.ndarray], list[str]]:
  """Returns the batch that is asked for, and the source of each row."""
  count, length = options.rows, options.length
  if bool(options.chat) == bool(options.tokens) or count < 1 or length < 2 or options.step < 0:
    raise UserError("give --tokens or --chat, --rows >= 1, --length >= 2 and --step >= 0")
  if options.chat:
    talks = formats.read_conversations(options.chat)
    examples = [chat.render(tokenizer, talk, length + 1) for talk in talks]
    stream = batches.pack_examples(
      examples, length, count, options.seed, epochs=-1, strategy=options.strategy
    )
    return next(itertools.islice(stream, options.step, None)), [Path(options.chat).name] * count
  paths = dict(_named(text) for text in options.tokens)
  if len(paths) < len(options.tokens):
    raise UserError("two sources of --tokens have one name: write --tokens=NAME=PATH")
  schedule = mixture.Schedule([(0, _weights(options.weights, paths))], count, options.seed)
  names = [schedule.names[k] for k in schedule.sources(options.step)]
  files = [records.files(path)[0] for path in paths.values()]
  if all(records.format_of(file) == rows.FORMAT for file in files):
    sources = {name: rows.RowSource(path) for name, path in paths.items()}
    return rows.RowStream(sources, count, options.seed, schedule).at(options.step), names
  chunks = {n: packing.Chunks(packing.TokenSource(p), length) for n, p in paths.items()}
  stream = mixture.scheduled(chunks, schedule, length, options.seed, options.strategy)
  return next(itertools.islice(stream, options.step, None)), names


def _named(text: str) -> tuple[str, str]:
  """Splits NAME=PATH; a bare path is called by its last part."""
  name, mark, path = text.partition("=")
  if mark and "/" not in name:
    return name, path
  return Path(text).name.removesuffix(records.SUFFIX), text


def _weights(text: str, paths: Mapping[str, str]) -> dict[str, float]:
  """Reads "web=3,code=1"; all alike if nothing is given.

  Raises:
    UserError: if a source has no weight, a weight no source, or one is no number.
  """
  if not text:
    return dict.fromkeys(paths, 1.0)
  given = blend.parse_weights(text)
  if set(given) != set(paths):
    raise UserError(f"--weights={text} must name the sources: {', '.join(paths)}")
  return {name: given[name] for name in paths}


def _colored(when: str) -> bool:
  if when != "auto":
    return when == "always"
  plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
  return sys.stdout.isatty() and not plain


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--tokenizer", required=True, help="folder of the tokenizer")
  parser.add_argument("--tokens", action="append", help="[NAME=]PATH; may be repeated")
  parser.add_argument("--chat", help="conversations, in any format of docs/posttraining.md")
  parser.add_argument("--weights", default="", help="NAME=WEIGHT,...: parts of the rows")
  parser.add_argument("--length", type=int, default=256, help="positions of a row")
  parser.add_argument("--rows", type=int, default=4, help="rows of the batch")
  parser.add_argument("--step", type=int, default=0, help="which batch")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--strategy", default="best_fit", choices=("first_fit", "best_fit", "concat"))
  parser.add_argument("--table", action="store_true", help="a line per position")
  parser.add_argument("--color", default="auto", choices=("auto", "always", "never"))
  parser.add_argument("--width", type=int, default=0, help="columns; 0: the terminal's")
  return parser


if __name__ == "__main__":
  sys.exit(main())
