"""One shard through one pass of a recipe: the task that engines run (see recipe.py)."""

import dataclasses
import heapq
import time
from collections.abc import Iterable, Iterator
from typing import Any

from llm_jax.data.crawl import Lost, Options, Raw, Unreadable
from llm_jax.data.documents import Document, identity
from llm_jax.data.pipeline import engines, inputs, shards, steps
from llm_jax.errors import UserError

READ = "read"  # The funnel's first row.
CANDIDATES = 24  # Pages that a shard remembers as they were found.
_PAGE_CHARS = 4000


@dataclasses.dataclass
class Row:
  """One step of the funnel: what was left after it, and what it dropped for which reason.

  `dropped` counts documents; `edited` what else there is to count. `seconds` are
  those of all workers together.
  """

  step: str
  documents: int = 0
  bytes: int = 0
  seconds: float = 0.0
  dropped: dict[str, int] = dataclasses.field(default_factory=dict)
  edited: dict[str, int] = dataclasses.field(default_factory=dict)

  def keeps(self, size: int) -> None:
    """Counts a document that stays."""
    self.documents += 1
    self.bytes += size

  def drops(self, reason: str, documents: int = 1) -> None:
    """Counts documents that go."""
    self.dropped[reason] = self.dropped.get(reason, 0) + documents


@dataclasses.dataclass(frozen=True)
class Pass:
  """Steps on one document, and the step on the corpus before and after them, if there is one."""

  before: steps.Step | None
  steps: tuple[steps.Step, ...]
  after: steps.Step | None

  def rows(self) -> list[Row]:
    """Empty rows: of reading, or of the step before; then of each step."""
    first = self.before.name if self.before else READ
    return [Row(name) for name in (first, *(step.name for step in self.steps))]


def passes(recipe: tuple[str, ...]) -> list[Pass]:
  """Cuts a recipe where a step needs the whole corpus."""
  found: list[Pass] = []
  before, own = None, []
  for step in steps.recipe(recipe):
    if step.kind == "corpus":
      found.append(Pass(before, tuple(own), step))
      before, own = step, []
    else:
      own.append(step)
  return [*found, Pass(before, tuple(own), None)]


def run(
  out: str,
  recipe: tuple[str, ...],
  number: int,
  source: inputs.Part | str,
  previous: str,
  seed: int,
  lenient: bool,
  options: Options,
) -> engines.Result:
  """A task: writes `out`.jsonl, `out`.drops.jsonl and the features of the pass's corpus step.

  Args:
    out: what the files' names start with.
    recipe: of the run.
    number: of the pass.
    source: records to read in the first pass, then the file of the shard's documents.
    previous: `out` of this shard in the pass before.
    seed: of the choice of examples.
    lenient: records that cannot be read are put on record; else the first one is an error.
    options: how records are read.

  Returns:
    {"rows": the shard's rows of the funnel, "features": seconds, "befores": [[hash, id, address,
    body]] of a few pages as they were found, "lost": [[source, where, reason, start]] of records}.
  """
  own = passes(recipe)[number]
  shard = _Shard(own, seed, lenient)
  if isinstance(source, inputs.Part):
    documents = shard.read(source, options)
  else:
    documents = shard.go_on(source, previous)
  shards.write(f"{out}.jsonl", shard.through(documents))
  shards.write(f"{out}.drops.jsonl", shard.dropped)
  begin = time.perf_counter()
  if own.after and own.after.corpus:
    own.after.corpus.features(out, f"{out}.jsonl")
  return {
    "rows": [dataclasses.asdict(row) for row in shard.rows],
    "features": time.perf_counter() - begin,
    "befores": heapq.nsmallest(CANDIDATES, shard.befores),
    "lost": [list(dataclasses.astuple(lost)) for lost in shard.lost],
  }


class _Shard:
  """Documents on their way through a pass, and the count of what happens to them."""

  def __init__(self, own: Pass, seed: int, lenient: bool):
    self.rows = own.rows()
    self.lost: list[Lost] = []
    self._lenient = lenient
    self.dropped: list[dict[str, Any]] = []
    self.befores: list[tuple[str, str, str, str]] = []
    self._pass, self._seed = own, seed
    self._is_html = False  # Whether the document at hand is still to be extracted.

  def read(self, part: inputs.Part, options: Options) -> Iterator[Document]:
    """The records of a part; a page's text is its HTML until it is extracted.

    Raises:
      UserError: as `inputs.read`; of a record that cannot be read it names the budget.
    """
    row, begin = self.rows[0], time.perf_counter()
    lose = self._lose if self._lenient else None
    try:
      for raw in inputs.read(part, lose, self._skip, options):
        row.keeps(shards.size(raw.body))
        row.seconds += time.perf_counter() - begin
        self._remember(raw)
        self._is_html = raw.html
        yield Document(raw.id, raw.body, raw.url, raw.source)
        begin = time.perf_counter()
    except Unreadable as error:
      raise UserError(f"{error}, or let some records be lost with config.max_lost") from error

  def go_on(self, path: str, previous: str) -> Iterator[Document]:
    """What the decision of the corpus step before leaves of the documents in `path`."""
    step, row = self._pass.before, self.rows[0]
    assert step and step.corpus
    begin = time.perf_counter()
    for document, facts in step.corpus.apply(previous, shards.documents(path)):
      if facts is None and not document.text:
        facts = {"reason": "nothing left"}
      row.seconds += time.perf_counter() - begin
      if facts is None:
        row.keeps(shards.size(document.text))
        yield document
      else:
        self._drop(document, row, **facts)
      begin = time.perf_counter()

  def through(self, documents: Iterable[Document]) -> Iterator[Document]:
    """Yields what the steps leave.

    Raises:
      UserError: if a page is left as HTML.
    """
    for document in documents:
      left = self._steps(document)
      if left is not None:
        if self._is_html:
          raise UserError(
            f"{left.source}: holds HTML pages, and config.recipe has no extract(): put it first"
          )
        yield left

  def _steps(self, document: Document) -> Document | None:
    size = -1
    for step, row in zip(self._pass.steps, self.rows[1:], strict=True):
      begin = time.perf_counter()
      after, reason = self._step(step, document)
      row.seconds += time.perf_counter() - begin
      if reason is not None:
        self._drop(document, row, reason)
        return None
      if after is not document or size < 0:
        document, size = after, shards.size(after.text)
      row.keeps(size)
    return document

  def _step(self, step: steps.Step, document: Document) -> tuple[Document, str | None]:
    """Returns the document as the step leaves it, and the reason if it goes."""
    assert step.run
    if step.kind == "document":
      return document, step.run(document)
    if step.kind == "text":
      text = step.run(document.text)
      return dataclasses.replace(document, text=text), None if text else "nothing left"
    if not self._is_html:
      return document, None
    try:
      text = step.run(document.text)
    except UserError:
      raise
    except TimeoutError:
      return document, "extractor timed out"
    except Exception as e:  # One broken page must not stop a crawl; it is on record.
      return document, f"extractor failed: {type(e).__name__}"
    self._is_html = False
    return dataclasses.replace(document, text=text), None if text.strip() else "no main text"

  def _lose(self, lost: Lost) -> None:
    row, where = self.rows[0], f"{lost.source}, {lost.where}"
    self.lost.append(lost)
    row.drops("cannot be read")
    self.dropped.append(
      shards.drop(Document(where, lost.reason, "", lost.source), row.step, "cannot be read")
    )

  def _skip(self, kind: str) -> None:
    """Counts what is not meant to be read, such as "status 404"."""
    edited = self.rows[0].edited
    edited[f"passed over: {kind}"] = edited.get(f"passed over: {kind}", 0) + 1

  def _drop(self, document: Document, row: Row, reason: str, **facts: Any) -> None:
    row.drops(reason)
    self.dropped.append(shards.drop(document, row.step, reason, **facts))

  def _remember(self, raw: Raw) -> None:
    key = identity(f"{self._seed}:{raw.id}")
    self.befores.append((key, raw.id, raw.url or raw.id, raw.body[:_PAGE_CHARS]))
    if len(self.befores) > 2 * CANDIDATES:
      self.befores = heapq.nsmallest(CANDIDATES, self.befores)
