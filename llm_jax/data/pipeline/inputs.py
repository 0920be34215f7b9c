"""A source cut into parts that many workers can read: the plan depends on sizes alone."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence

from llm_jax.data import crawl, jsonl

_PACKED, _PLAIN = 1_000_000, 8_000_000  # Bytes of a part, of a compressed file and of others.
_PARTS = 16  # Of a file: each of them reads all of it, and passes over the others' records.
_BLOCK = 16  # Records in a row that go to the same part.
_COMPRESSED = (".gz", ".xz", ".bz2", ".zst")


@dataclasses.dataclass(frozen=True)
class Part:
  """Some of the records of some files.

  Attributes:
    files: (path, name in the source) of each.
    part: which blocks of records: those whose number leaves this remainder by `parts`.
    parts: how many there are.
    lines: instead, the lines of the only file, a plain one of JSON lines.
  """

  files: tuple[tuple[str, str], ...]
  part: int = 0
  parts: int = 1
  lines: jsonl.Range | None = None


def plan(source: str | pathlib.Path) -> list[Part]:
  """Cuts a source into parts: large files into several, small ones go together.

  Raises:
    UserError: if there is nothing to read.
  """
  found = crawl.files(source)
  if not found:  # A data set that is no files: it is read as a stream.
    return [Part(((str(source), str(source)),))]
  parts: list[Part] = []
  together: list[tuple[str, str]] = []
  size = 0
  for file in found:
    name = crawl.name_of(file, source)
    bytes_ = file.stat().st_size
    own = (str(file), name)
    if file.suffix == ".jsonl" and bytes_ > _PLAIN:
      parts += [Part((own,), lines=lines) for lines in jsonl.ranges(file, _PLAIN)]
      continue
    count = min(-(-bytes_ // (_PACKED if file.suffix in _COMPRESSED else _PLAIN)), _PARTS)
    if count > 1:
      parts += [Part((own,), i, count) for i in range(count)]
      continue
    if together and size + bytes_ > _PLAIN:
      parts.append(Part(tuple(together)))
      together, size = [], 0
    together.append(own)
    size += bytes_
  return [*parts, Part(tuple(together))] if together else parts


def read(
  part: Part,
  lost: Callable[[crawl.Lost], None] | None = None,
  skipped: Callable[[str], None] | None = None,
  options: crawl.Options = crawl.DEFAULTS,
) -> Iterator[crawl.Raw]:
  """Yields the records of a part.

  Args:
    part: of a plan.
    lost: as for `crawl.read`; called by the first part of a file only, for they all read it.
    skipped: likewise.
    options: as for `crawl.read`.

  Raises:
    UserError: as `crawl.read`.
  """
  if part.lines:
    yield from crawl.read_lines(part.lines, part.files[0][1], lost=lost, options=options)
    return
  if part.part:
    lost, skipped = (lost and _nothing), None
  for path, name in part.files:
    if path.startswith("hf:"):
      raws = crawl.read(path, lost=lost, skipped=skipped, options=options)
    else:
      raws = crawl.read_file(path, name, lost=lost, skipped=skipped, options=options)
    for number, raw in enumerate(raws):
      if number // _BLOCK % part.parts == part.part:
        yield raw


def numbered(parts: Iterable[Part], lost: Sequence[crawl.Lost]) -> list[crawl.Lost]:
  """Returns what was lost with numbers of lines in the place of bytes, where lines were read.

  A part does not know how many lines are before it, and to count them in each would be to read a
  large file many times.

  Args:
    parts: of a plan.
    lost: of all of them.
  """
  files = {part.files[0][1]: part.files[0][0] for part in parts if part.lines}
  starts: dict[str, list[int]] = {}
  for x in lost:
    if x.source in files:
      starts.setdefault(x.source, []).append(int(x.where.removeprefix("byte ")))
  known = {name: jsonl.numbers(files[name], own) for name, own in starts.items()}
  return [
    dataclasses.replace(x, where=f"line {known[x.source][int(x.where[5:])]}")
    if x.source in known
    else x
    for x in lost
  ]


def _nothing(_: object) -> None:
  """Takes what another part records."""
