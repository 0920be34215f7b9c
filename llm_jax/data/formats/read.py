"""Reads a file of any of the formats: finds out which, and makes items of the kind asked for."""

import collections
import dataclasses
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator

from llm_jax.data.formats import (
  comparisons,
  dialogues,
  fields,
  files,
  instructions,
  labels,
  pairs,
  rankings,
  trees,
)
from llm_jax.data.formats.schema import (
  KINDS,
  Dropped,
  Format,
  Item,
  Labelled,
  Messages,
  Preference,
  Ranking,
  Reason,
  Table,
)
from llm_jax.data.formats.settle import settled
from llm_jax.data.readers.streams import Lost
from llm_jax.errors import UserError, nearest

# The first that fits a row is its format: one whose rows look like another's, too, comes first.
FORMATS = (
  trees.OASST,
  pairs.HH,
  pairs.SHAREGPT_PAIRS,
  pairs.ALPACA_PAIRS,
  pairs.PAIRS,
  comparisons.PANDALM,
  comparisons.LLMBAR,
  comparisons.WEBGPT,
  comparisons.SHP,
  comparisons.SAFE_RLHF,
  comparisons.HELPSTEER,
  comparisons.TLDR,
  comparisons.ARENA,
  comparisons.PERSONA,
  rankings.RANKINGS,
  labels.KTO,
  labels.TASKMASTER,
  labels.REWARDS,
  instructions.SELF_INSTRUCT,
  dialogues.LIMA,
  dialogues.SHAREGPT,
  dialogues.MESSAGES,
  instructions.ALPACA,
  instructions.FLAN,
  instructions.GSM8K,
  instructions.QUESTIONS,
)
_LOOK = 100  # Rows of which one must fit: some say nothing, such as those of empty conversations.

Path = str | os.PathLike[str]


def read(
  path: Path, kind: str, format: str = "", lost: Callable[[Lost], None] = files.refuse
) -> Table:
  """Reads all items of a kind that a file holds.

  Args:
    path: .jsonl, .json (an array of objects, or lines) or .parquet; the first two may be .gz.
    kind: one of `KINDS`.
    format: name of one of `FORMATS`; "": the first that fits.
    lost: gets each row that is malformed, or raises; nothing of such a row is kept. As it stands,
      the first one is an error.

  Raises:
    UserError: if the file cannot be read, is empty or of no format, or of another than is named; if
      it does not hold this kind; or what `lost` raises (file, line, reason).
  """
  return _read(path, kind, format, lost)


def read_conversations(path: Path) -> list[Messages]:
  """Reads conversations to learn from, each ending with an assistant's message.

  Raises:
    UserError: as in `read`, and for the first row of which anything cannot be learned from.
  """
  return [item.messages for item in _read(path, "conversations", "").items]


def read_preferences(path: Path) -> list[Preference]:
  """Reads preference pairs.

  Raises:
    UserError: as in `read`, and for the first row of which anything cannot be learned from.
  """
  return _read(path, "preferences", "").items


def detect(path: Path, format: str = "", lost: Callable[[Lost], None] = files.refuse) -> Format:
  """Returns the format of a file.

  Args:
    path: as in `read`.
    format: the name of the one that it must be; "": any.
    lost: as in `read`.

  Raises:
    UserError: as in `read`.
  """
  return _detected(path, files.rows(path, lost), format)[0]


def _read(path: Path, kind: str, name: str, lost: Callable[[Lost], None] | None = None) -> Table:
  """As `read`; without `lost` also what cannot be learned from is an error."""
  if kind not in KINDS:
    raise UserError(f'kind "{kind}" is not known{nearest(kind, KINDS)}')
  tally = _Tally(path, lost or files.refuse)
  format, rows = _detected(path, files.rows(path, tally.unread), name)
  if not format.origin(kind):
    raise UserError(
      f"{path} is of the format {format.name}, which has no {kind}: ask for "
      f"{' or '.join(format.kinds)}"
    )
  items: list[Item] = []
  drops: collections.Counter[str] = collections.Counter()
  rows = tally.counted(rows)
  for row in format.gather(rows, tally.bad) if format.gather else rows:
    try:
      found = [row] if isinstance(row, Reason) else list(_outcomes(path, format, row, kind))
      reasons = [out for out in found if isinstance(out, Reason)]
      if reasons and lost is None:
        raise ValueError(reasons[0].rule)
    except ValueError as error:
      tally.bad(row, str(error))
      continue
    drops.update(reason.name for reason in reasons)
    items += [out for out in found if not isinstance(out, Reason)]
  return Table(
    items, kind, format.name, tally.rows, dict(drops.most_common()), dict(tally.lost.most_common())
  )


class _Tally:
  """Counts the rows of a file, and by reason those that cannot be read."""

  def __init__(self, path: Path, lost: Callable[[Lost], None]):
    self._path, self._lost = path, lost
    self.rows = 0
    self.lost: collections.Counter[str] = collections.Counter()

  def counted(self, rows: Iterator[files.Row]) -> Iterator[files.Row]:
    for row in rows:
      self.rows += 1
      yield row

  def unread(self, lost: Lost) -> None:
    """Takes a row that is none, so that `counted` does not see it."""
    self.rows += 1
    self._lose(lost)

  def bad(self, row: files.Row | Reason, why: str) -> None:
    """Takes a row that is malformed."""
    if isinstance(row, Reason):  # Of rows that were left over when all had been read.
      raise UserError(f"{self._path}: {why}; correct or complete the file")
    why = files.one_line(why)  # It may name fields.
    self._lose(Lost(str(self._path), f"{row.unit} {row.number}", why, row.start()))

  def _lose(self, lost: Lost) -> None:
    self._lost(lost)
    self.lost[lost.kind] += 1


def _outcomes(path: Path, format: Format, row: files.Row, kind: str) -> Iterator[Item | Reason]:
  """Yields items of `kind` and reasons for drops; raises `ValueError` if the row is malformed."""
  try:
    for found in format.reads[format.origin(kind)](row.value):
      for item in [found] if isinstance(found, Reason) else settled(found):
        if isinstance(item, Ranking) and item.group == "":
          item = dataclasses.replace(item, group=f"{pathlib.Path(path).name}:{row.number}")
        yield from _converted(item, kind)
  except Dropped as drop:
    yield drop.reason


def _converted(item: Item | Reason, kind: str) -> Iterator[Item | Reason]:
  """Yields an item as one or more of another kind."""
  if isinstance(item, Ranking) and kind == "preferences":
    yield from item.compared()
  elif isinstance(item, Preference) and kind == "labels":
    yield Labelled(item.prompt, item.chosen, True, item.source)
    yield Labelled(item.prompt, item.rejected, False, item.source)
  else:
    yield item


def _detected(
  path: Path, rows: Iterator[files.Row], name: str
) -> tuple[Format, Iterator[files.Row]]:
  """Returns the format of rows, and all of these."""
  names = {format.name: format for format in FORMATS}
  if name and name not in names:
    raise UserError(f'format "{name}" is not known{nearest(name, names)}')
  candidates = (names[name],) if name else FORMATS
  seen: list[files.Row] = []
  for row in itertools.islice(rows, _LOOK):
    seen.append(row)
    fitting = _first(candidates, row)
    if fitting:
      return fitting, itertools.chain(seen, rows)
  if not seen:
    raise UserError(f"{path} holds no rows that can be read: give a file with at least one")
  first = seen[0]
  if name:
    other = _first(FORMATS, first)
    hint = f'; it is "{other.name}"' if other else ""
    reason = f'not of the format "{name}", {names[name].looks}; it has: '
    raise _unfit(path, first, f"{reason}{fields.listed(first.value)}{hint}")
  reason = f"of no known format; it has: {fields.listed(first.value)}{_nearest(first)}"
  raise _unfit(path, first, f"{reason}; write its rows as one of: {', '.join(names)}")


def _first(candidates: tuple[Format, ...], row: files.Row) -> Format | None:
  return next((format for format in candidates if format.fits(row.value)), None)


def _unfit(path: Path, row: files.Row, reason: str) -> UserError:
  return UserError(f"{path}, {row.unit} {row.number}: {reason} (docs/posttraining.md)")


def _nearest(row: files.Row) -> str:
  """Returns the format that a row shares most fields with, and what is wrong; "": there is none."""
  keys = set(row.value)
  close = max(FORMATS, key=lambda f: len(keys & set(f.keys)) / len(keys | set(f.keys)))
  if 2 * len(keys & set(close.keys)) < len(close.keys):
    return ""
  why = ""
  try:
    for read in close.reads.values():
      list(read(row.value))
  except (ValueError, Dropped) as error:
    why = f": {error}"
  return f'; the nearest is "{close.name}"{why}'
