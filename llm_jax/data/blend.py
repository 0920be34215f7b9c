"""The rows that a run is trained on: one prepared corpus or several, in proportions, by step.

A source is a directory: of a corpus that `experiments.prepare` wrote, packed as it is read, or of
rows that `experiments.pack` wrote. What is read at which step is planned from sizes alone
(mixture.py), so it can be looked at before anything runs.
"""

import collections
import dataclasses
import itertools
import json
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from llm_jax.data import mixture, packing, rows
from llm_jax.errors import UserError, nearest

_SAMPLE = 20_000  # Chunks by which the fill of rows is estimated.
_Phases = list[tuple[int, dict[str, float]]]


@dataclasses.dataclass(frozen=True)
class Blend:
  """Sources, and which of them each row of each step is from.

  Attributes:
    sources: documents or packed rows, by name.
    schedule: of the rows.
    shares: what each source gives in the whole run.
    length: T, tokens of a row.
    seed: of the orders.
  """

  sources: Mapping[str, packing.Chunks | rows.RowSource]
  schedule: mixture.Schedule
  shares: Mapping[str, mixture.Share]
  length: int
  seed: int

  def stream(
    self,
    strategy: str = "first_fit",
    process: int = 0,
    processes: int = 1,
    numbered: bool = False,
  ) -> Iterator[dict[str, np.ndarray]]:
    """Returns batches; endless, with get_state and set_state.

    Of rows that are packed already a process reads its part. Documents are packed as they come, by
    one packer whose rows depend on all before: every process packs the whole batch.

    Args:
      strategy: how documents are packed (`packing.pack`); rows that are packed already stay.
      process: the number of this one's part.
      processes: how many parts there are.
      numbered: whether batches name their "documents" (of rows: the rows) and "sources".
    """
    packed = {n: s for n, s in self.sources.items() if isinstance(s, rows.RowSource)}
    if packed:
      return rows.RowStream(
        packed, self.schedule.batch, self.seed, self.schedule, process, processes, numbered
      )
    chunks = {
      n: s.numbered() if numbered else s
      for n, s in self.sources.items()
      if isinstance(s, packing.Chunks)
    }
    return mixture.scheduled(chunks, self.schedule, self.length, self.seed, strategy)

  def describe(self) -> dict[str, Any]:
    """Returns the plan, JSON-able."""
    shares = {name: dataclasses.asdict(share) for name, share in self.shares.items()}
    return {"length": self.length, "schedule": self.schedule.identity(), "shares": shares}


def blend(
  entries: Sequence[str],
  weights: Sequence[str] = (),
  preset: str = "",
  max_epochs: float = 4.0,
  *,
  steps: int,
  batch: int,
  length: int,
  seed: int = 0,
  strategy: str = "first_fit",
) -> Blend:
  """Plans what a run reads.

  Args:
    entries: "name=directory" of each source; a bare directory is called by its last part.
    weights: "web=3, books=1", fractions of the tokens; of a curriculum also those from later steps
      on, as "5000: web=1, books=1"; (): as large as the sources are, or as `preset` says.
    preset: name of a published mixture (mixture_presets.py), whose names the sources have.
    max_epochs: cap on the passes over each source. What it leaves over goes to the others by
      weight; in a curriculum a source that would be read more often is an error.
    steps: of the run.
    batch: B, rows of a step.
    length: T.
    seed: of the orders.
    strategy: how documents are packed, which decides how full rows are.

  Raises:
    UserError: if a source is missing, tokenizers or lengths differ, names do not match, or the
      caps together give too few tokens.
  """
  places = named(entries)
  _check_tokenizers(places)
  found = {name: _open(place, length) for name, place in places.items()}
  _check_kinds(found, places)
  sizes = {name: source.predictions for name, source in found.items()}
  fill = {name: _fill(source, length, strategy) for name, source in found.items()}
  phases = _phases(weights, preset, sizes)
  asked, shares = _asked(phases, steps), {}
  if len(phases) == 1 and not phases[0][0]:
    shares = _capped(sizes, phases[0][1], max_epochs, steps * batch * length, fill)
    phases = [(0, {name: share.share for name, share in shares.items()})]
  # Weights are of tokens, a schedule is of rows: a source with more padding needs more of them.
  by_row = [(step, {n: w / fill[n] for n, w in own.items()}) for step, own in phases]
  schedule = mixture.Schedule(by_row, batch, seed)
  real = {
    name: dataclasses.replace(
      share, weight=asked[name], capped=bool(shares) and shares[name].capped
    )
    for name, share in schedule.plan(sizes, steps, length, max_epochs, fill).items()
  }
  return Blend(found, schedule, real, length, seed)


def named(entries: Sequence[str]) -> dict[str, pathlib.Path]:
  """Reads "name=directory" entries.

  Raises:
    UserError: if two have one name.
  """
  found: dict[str, pathlib.Path] = {}
  for entry in entries:
    name, mark, path = (part.strip() for part in entry.partition("="))
    if not mark or "/" in name:
      name, path = pathlib.Path(entry).name, entry.strip()
    if name in found:
      raise UserError(f'two sources are called "{name}": write name=directory for each')
    found[name] = pathlib.Path(path)
  return found


def parse_weights(text: str) -> dict[str, float]:
  """Reads "web=3, books=1".

  Raises:
    UserError: if a part is no name=number.
  """
  found: dict[str, float] = {}
  for part in text.split(","):
    name, _, value = (word.strip() for word in part.partition("="))
    try:
      weight = float(value)
    except ValueError as error:
      raise UserError(f'weights "{text}" must be like "web=3, books=1"') from error
    if name in found or not math.isfinite(weight):
      raise UserError(f'weights "{text}": one finite number for each source, "{name}" has another')
    found[name] = weight
  return found


def tokenizer_of(directory: pathlib.Path) -> dict[str, Any]:
  """Returns what tells one tokenizer from another, of a prepared corpus or of packed rows.

  Raises:
    UserError: if the directory has none.
  """
  path = directory / "tokenizer" / "tokenizer.json"
  try:
    meta = json.loads(path.read_text(encoding="utf-8"))
    return {name: meta[name] for name in ("kind", "sha256", "ids")}
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(
      f"{directory} holds no prepared corpus and no packed rows (no tokenizer/{path.name}): run "
      f"`python -m experiments.prepare --workdir={directory}` first, or correct the path"
    ) from error


def _open(directory: pathlib.Path, length: int) -> packing.Chunks | rows.RowSource:
  if not (directory / "rows").is_dir():
    return packing.Chunks(packing.TokenSource(directory / "tokens" / "train"), length)
  source = rows.RowSource(directory / "rows")
  if source.length != length:
    raise UserError(
      f"{directory} holds rows of {source.length} tokens, and config.length is {length}: they must "
      "agree"
    )
  return source


def _asked(phases: _Phases, steps: int) -> dict[str, float]:
  """Returns the fraction of a run that each source is to have, over all phases."""
  found: dict[str, float] = collections.defaultdict(float)
  starts = [min(step, steps) for step, _ in phases]
  for begin, end, (_, own) in zip(starts, [*starts[1:], steps], phases, strict=True):
    for name, weight in own.items():
      found[name] += (end - begin) / steps * weight / sum(own.values())
  return found


def _fill(source: packing.Chunks | rows.RowSource, length: int, strategy: str) -> float:
  """Returns the part of a source's rows that is no padding; of documents by a sample."""
  if isinstance(source, rows.RowSource):
    return source.predictions / (len(source) * length)
  if strategy == "concat" or not len(source):
    return 1.0
  return rows.best_fill(source.sizes()[:: max(1, len(source) // _SAMPLE)], length)


def _capped(
  sizes: Mapping[str, int],
  weights: Mapping[str, float],
  max_epochs: float,
  places: int,
  fill: Mapping[str, float],
) -> dict[str, mixture.Share]:
  """Divides what fits into so many places, of which padding takes its part."""
  tokens = float(places)
  for _ in range(5):  # Shares and padding depend on each other, weakly.
    shares = mixture.plan(sizes, weights, tokens, max_epochs)
    tokens = places / sum(share.share / fill[name] for name, share in shares.items())
  return shares


def _check_tokenizers(places: Mapping[str, pathlib.Path]) -> None:
  kinds = {name: tokenizer_of(place) for name, place in places.items()}
  for (first, a), (second, b) in itertools.pairwise(kinds.items()):
    if a != b:
      raise UserError(
        f'sources "{first}" and "{second}" have different tokenizers: prepare one of them again '
        f"with --config.tokenizer.adopt={places[first]}"
      )


def _check_kinds(
  found: Mapping[str, packing.Chunks | rows.RowSource], places: Mapping[str, pathlib.Path]
) -> None:
  packed = [name for name, source in found.items() if isinstance(source, rows.RowSource)]
  if packed and len(packed) < len(found):
    other = next(name for name in found if name not in packed)
    raise UserError(
      f"{places[packed[0]]} holds packed rows, {places[other]} documents: run "
      f"`python -m experiments.pack --config.prepared={places[other]}` too"
    )


def _phases(weights: Sequence[str], preset: str, sizes: Mapping[str, int]) -> _Phases:
  """Returns (first step, weights) of each phase.

  Raises:
    UserError: if names or steps do not fit.
  """
  if preset and weights:
    raise UserError(f"give config.mixture.preset={preset} or config.mixture.weights, not both")
  if preset:
    known = mixture.preset(preset).weights
    for name in sizes:
      if name not in known:
        raise UserError(f'mixture "{preset}" has no source "{name}"{nearest(name, known)}')
    return [(0, {name: known[name] for name in sizes})]
  if not weights:
    return [(0, dict(sizes))]
  phases: _Phases = []
  for i, text in enumerate(weights):
    step, mark, rest = text.partition(":")
    try:
      first = int(step) if mark else 0
    except ValueError as error:
      raise UserError(f'weights "{text}": "{step}" is no step') from error
    phases.append((first, parse_weights(rest if mark else text)))
    if i and not mark:
      raise UserError(f'weights "{text}" need the step from which they hold: "5000: {text}"')
  asked = {name for _, own in phases for name in own}
  for name in asked ^ set(sizes):
    what = "has no weight" if name in sizes else "has a weight and is no source"
    raise UserError(f'"{name}" {what}; sources: {", ".join(sizes)}')
  return phases
