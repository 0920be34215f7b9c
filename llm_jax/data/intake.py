"""What the files of a run held: counts, and the rows that cannot be read, up to a budget.

    intake = Intake("runs/sft", most=100)
    table = formats.read("talks.jsonl", "conversations", lost=intake.lose)
    intake.add("talks.jsonl", table.rows)
    intake.write()  # quarantine.jsonl and data.json
    intake.check()

Both files follow from what was read alone: a run that goes on writes the same ones again.
"""

import collections
import dataclasses
import json
import os
import pathlib
from typing import Any

from llm_jax import rundir
from llm_jax.data.formats.files import remedy
from llm_jax.data.readers.streams import Lost
from llm_jax.errors import UserError

_WORST = 3  # Reasons that a line names.


class Intake:
  """Takes rows that cannot be read, as long as they are few.

  Args:
    directory: of the run.
    most: rows that may be unreadable: a count; below 1 a share of all rows; 0: none.
    noun: what rows are called.

  Attributes:
    most: as it was given.
    files: facts of each file that was added, in order.
  """

  def __init__(self, directory: str | os.PathLike[str], most: float = 0.0, noun: str = "rows"):
    self.most, self._noun = most, noun
    self.files: list[dict[str, Any]] = []
    self._path = pathlib.Path(directory) / rundir.QUARANTINE
    self._rows: dict[str, int] = {}  # A file may be read twice.
    self._lost: dict[tuple[str, str], Lost] = {}

  def lose(self, lost: Lost) -> None:
    """Takes a row that cannot be read.

    Raises:
      UserError: if there is no budget at all: file, line, reason and what to do.
    """
    if not self.most:
      raise UserError(
        f"{lost.source}, {lost.where}: {lost.reason}; {remedy(lost)}, or let some {self._noun} be "
        "lost with config.max_lost"
      )
    self._lost[lost.source, lost.where] = lost

  def count(self, rows: int, file: str = "") -> None:
    """Takes how many rows a file has, those that cannot be read among them."""
    self._rows[file] = rows

  def add(self, file: str, rows: int, **facts: Any) -> None:
    """Takes how many rows a file has, and other facts for data.json."""
    self.count(rows, file)
    self.files.append({"file": file, "rows": rows} | facts)

  def reasons(self) -> dict[str, int]:
    """Returns how many rows cannot be read for which kind of reason, the most frequent first."""
    counts = collections.Counter(lost.kind for lost in self._lost.values())
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))

  def lines(self, most: int) -> list[str]:
    """Returns a line for each row that cannot be read, and one for all after `most`."""
    lost = [*self._lost.values()]
    found = [f"{x.source}, {x.where}: {x.reason}; {remedy(x)}" for x in lost[:most]]
    rest = len(lost) - len(found)
    return [*found, f"{rest:,} more; of all, {self._reasons()}"] if rest else found

  def told(self) -> str:
    """Returns a line on the rows that cannot be read; "": all can be."""
    return f"{self._summary()}; they are in {self._path}" if self._lost else ""

  def write(self) -> None:
    """Writes quarantine.jsonl and data.json, each whole or not at all; not where there is nothing.

    Raises:
      UserError: if the directory cannot be written.
    """
    self.write_lost()
    text = json.dumps(self.files, indent=2, ensure_ascii=False) + "\n" if self.files else ""
    _put(self._path.with_name(rundir.DATA), text)

  def write_lost(self) -> None:
    """Writes quarantine.jsonl alone, as `write` does."""
    rows = (dataclasses.asdict(lost) for lost in self._lost.values())
    named = ({"file": row.pop("source")} | row for row in rows)
    _put(self._path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in named))

  def check(self) -> None:
    """Raises UserError, in one line with the worst reasons, if more was lost than may be."""
    most = self.most if self.most >= 1 else self.most * sum(self._rows.values())
    if len(self._lost) <= most + 1e-6:  # 0.29 of 100 rows are 28.999999999999996.
      return
    first = next(iter(self._lost.values()))
    raise UserError(
      f"{self._summary()}, which is more than config.max_lost={self.most:g}; the first: "
      f"{first.source}, {first.where}: {first.reason}; all are in {self._path}: correct or remove "
      "them, or raise config.max_lost"
    )

  def _summary(self) -> str:
    rows, lost = sum(self._rows.values()), len(self._lost)
    # A file that was not read to its end has not been counted.
    counted = "" in self._rows or {x.source for x in self._lost.values()} <= self._rows.keys()
    of = f" of {rows:,}" if counted else ""
    return f"{lost:,}{of} {self._noun} cannot be read ({self._reasons()})"

  def _reasons(self) -> str:
    kinds = [*self.reasons().items()]
    shown = [f"{kind} {count:,}" for kind, count in kinds[:_WORST]]
    others = sum(count for _, count in kinds[_WORST:])
    shown += [f"other reasons {others:,}"] if others else []
    return ", ".join(shown)


def _put(path: pathlib.Path, text: str) -> None:
  """Writes a file whole, or removes it if it is to be empty."""
  try:
    if not text:
      path.unlink(missing_ok=True)
      return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    # Half of a surrogate pair becomes what JSON writes for it.
    temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
    temporary.replace(path)
  except OSError as error:
    raise UserError(f"{path} cannot be written ({error.strerror}): make room for it") from error
