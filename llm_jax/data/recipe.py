"""Recipes: named lists of steps from raw pages to clean documents, with a record of every drop."""

import contextlib
import dataclasses
import functools
import heapq
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from llm_jax.data import crawl, dedup, filters, normalize
from llm_jax.data.documents import Document, identity
from llm_jax.data.workers import batched, ordered_map
from llm_jax.errors import UserError, nearest

_CHUNK = 32  # Pages per task of a worker.
_CANDIDATES = 24  # Pages remembered as they were found ...
EXAMPLES = 6  # ... of which so many that were kept are shown before and after.
SAMPLES = 3  # Dropped documents shown per step and reason.
_SAMPLE_CHARS = 600
_PAGE_CHARS = 4000


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What is done to pages, in this order.

  Attributes:
    extractor: how HTML becomes text (`crawl.extract`).
    edits: text to text, page by page.
    boilerplate: lines on more than this fraction of the pages go; 0: none.
    paragraphs: drop every paragraph that stood before.
    tidy: edit after lines and paragraphs were dropped.
    rules: a document in, a reason to drop it or None out.
  """

  extractor: str
  edits: tuple[Callable[[str], str], ...]
  boilerplate: float
  paragraphs: bool
  tidy: Callable[[str], str] | None
  rules: tuple[Callable[[Document], str | None], ...]


@dataclasses.dataclass
class Row:
  """One step of the funnel: what was left after it, and what it dropped for which reason.

  `dropped` counts documents; `edited` what was taken out of documents that stayed.
  """

  step: str
  documents: int
  bytes: int
  seconds: float
  dropped: dict[str, int]
  edited: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Result:
  """What a recipe made.

  Attributes:
    documents: kept, in the order of the source.
    funnel: one row a step.
    drops: {"id", "url", "step", "reason", "sample"} of each dropped document, and "kept" and
      "score" of a duplicate.
    before_after: {"url", "before", "after"} of a few pages.
  """

  documents: list[Document]
  funnel: list[Row] = dataclasses.field(default_factory=list)
  drops: list[dict] = dataclasses.field(default_factory=list)
  before_after: list[dict[str, str]] = dataclasses.field(default_factory=list)


# Pages of API documentation. Their headings are signatures, their examples code, and what they say
# about one function they say about the next in the same words. So of the published rules:
#   left out: C4's "{" (dictionaries in examples), "ends in a full stop" (signatures do not), "three
#     sentences" (fields have no full stop);
#   wider, after a look at what they dropped: mean word length 12 (`ignore_index=True`), words with
#     a letter 0.6 (operators, numbers), repeated n-grams 3 times (at 1.5 times, 5-grams alone
#     dropped 29 % of the text, the best pages: every parameter is described again), repeated
#     lines 1.5 times and 0.3 of the characters ("Returns:"), short lines 0.8, newlines 0.5 a word;
#   as published: word count, symbols, bullets, ellipses, stop words, lines that end a sentence.
_PYDOCS = Recipe(
  extractor="blocks",
  edits=(
    normalize.repair,
    normalize.whitespace,
    normalize.rulers,
    normalize.documentation,
  ),
  boilerplate=0.01,
  paragraphs=True,
  tidy=normalize.without_bare_signatures,
  rules=(
    partial(filters.length, least=200),
    partial(filters.letters, least=0.6),
    partial(filters.c4_page, braces=False, most_chars=1_000_000, sentences=1),
    partial(filters.gopher_quality, mean_length=(3, 12), with_letter=0.6),
    partial(filters.gopher_repetition, scale=1.5, gram_scale=3.0),
    partial(filters.fineweb, short=0.8, repeated=0.3, newlines=0.5),
  ),
)

# FineWeb's list (datatrove examples/fineweb.py) without its language filter.
_WEB = Recipe(
  extractor="trafilatura",
  edits=(
    normalize.repair,
    normalize.whitespace,
    partial(filters.c4_lines, terminal=False, least_words=1),
  ),
  boilerplate=0.0,
  paragraphs=False,
  tidy=None,
  rules=(
    filters.gopher_repetition,
    filters.gopher_quality,
    filters.c4_page,
    partial(filters.fineweb, repeated=0.01),
  ),
)

# Text that somebody has cleaned before.
_CLEAN = Recipe(
  extractor="trafilatura",
  edits=(normalize.repair, normalize.whitespace),
  boilerplate=0.0,
  paragraphs=False,
  tidy=None,
  rules=(partial(filters.length, least=1),),
)

RECIPES = {"pydocs": _PYDOCS, "web": _WEB, "clean": _CLEAN}


def get(name: str) -> Recipe:
  """Returns a recipe.

  Raises:
    UserError: if there is none of this name.
  """
  if name not in RECIPES:
    raise UserError(f'config.recipe: there is no recipe "{name}"{nearest(name, RECIPES)}')
  return RECIPES[name]


def run(
  raws: Iterable[crawl.Raw],
  name: str,
  near_threshold: float,
  seed: int = 0,
  workers: int = 1,
  log: Callable[[str], None] = lambda line: None,
) -> Result:
  """Runs all steps of the recipe `name`.

  Args:
    raws: pages or texts; read once, a few at a time.
    name: of the recipe.
    near_threshold: Jaccard similarity of word 5-grams from which one of two documents goes.
    seed: of the choice of samples.
    workers: processes.
    log: gets a line per step.
  """
  recipe = get(name)
  state = _State(seed, log)
  state.clean(raws, name, workers)
  if recipe.boilerplate:
    with state.step("boilerplate lines") as edited:
      lines = normalize.boilerplate((d.text for d in state.documents), recipe.boilerplate)
      edited["different lines"] = len(lines)
      state.edit([normalize.without_lines(d.text, lines) for d in state.documents])
  with state.step("duplicates"):
    texts, ids = [d.text for d in state.documents], [d.id for d in state.documents]
    kept, removed = dedup.near_duplicates(texts, ids, near_threshold, workers)
    reasons = {r["id"]: r for r in removed}
    state.keep(set(kept), lambda d: f"{reasons[d.id]['rule']} duplicate", reasons)
  if recipe.paragraphs:
    with state.step("repeated paragraphs") as edited:
      unique, count, _ = normalize.unique_paragraphs([d.text for d in state.documents])
      state.edit([recipe.tidy(text) for text in unique] if recipe.tidy else unique)
      edited["paragraphs"] = count
  with state.step("rules"):
    state.judge(name, workers)
  return state.result()


class _State:
  """The documents that are left, and the record of what happened to the others."""

  def __init__(self, seed: int, log: Callable[[str], None]):
    self.documents: list[Document] = []
    self._result = Result([])
    self._seed, self._log = seed, log
    self._dropped: Counter[str] = Counter()
    self._befores: list[tuple[str, str, str]] = []  # (hash, id, body), the smallest hashes.

  def clean(self, raws: Iterable[crawl.Raw], name: str, workers: int) -> None:
    """Extracts and edits; the rows of both steps share the time of the pass."""
    begin = time.monotonic()
    sizes: Counter[str] = Counter()
    extracted: list[dict] = []
    tasks = batched(self._distinct(raws, sizes), _CHUNK)
    for done in ordered_map(partial(_clean, name=name), tasks, workers):
      for document, size, reason, seconds in done:
        sizes["extract"] += size
        sizes["extract pages"] += bool(size)
        sizes["us extract"] += int(seconds[0] * 1e6)
        sizes["us edit"] += int(seconds[1] * 1e6)
        if reason:
          extracted.append(_drop(document, "extract", reason))
        elif not document.text:
          extracted.append(_drop(document, "normalise", "nothing left"))
        else:
          self.documents.append(document)
    wall = time.monotonic() - begin
    share = sizes["us extract"] / max(sizes["us extract"] + sizes["us edit"], 1)
    again = Counter(drop["reason"] for drop in self._result.drops)
    self._row("read", sizes["pages"], sizes["read"], 0.0, again)
    self._result.drops += extracted
    for step, pages, size, seconds in (
      ("extract", sizes["extract pages"], sizes["extract"], wall * share),
      ("normalise", len(self.documents), self._bytes(), wall * (1 - share)),
    ):
      dropped = Counter(d["reason"] for d in extracted if d["step"] == step)
      self._row(step, pages, size, seconds, dropped)

  def edit(self, texts: Sequence[str]) -> None:
    """Replaces the texts; a document of which nothing is left is dropped."""
    pairs = zip(self.documents, texts, strict=True)
    self.documents = [dataclasses.replace(d, text=text) for d, text in pairs]
    self.keep({i for i, d in enumerate(self.documents) if d.text}, lambda d: "nothing left")

  def keep(self, kept: set[int], reason: Callable[[Document], str], facts: dict | None = None):
    """Keeps the documents of these indices and records the others."""
    for i, document in enumerate(self.documents):
      if i not in kept:
        why = reason(document)
        extra = {k: v for k, v in (facts or {}).get(document.id, {}).items() if k in _FACTS}
        self._dropped[why] += 1
        self._result.drops.append(_drop(document, self._step, why) | extra)
    self.documents = [d for i, d in enumerate(self.documents) if i in kept]

  def judge(self, name: str, workers: int) -> None:
    """Applies the rules; the first that speaks gives the reason."""
    tasks = batched(self.documents, _CHUNK)
    reasons = [r for part in ordered_map(partial(_judge, name=name), tasks, workers) for r in part]
    by_id = {d.id: reason for d, reason in zip(self.documents, reasons, strict=True)}
    self.keep({i for i, r in enumerate(reasons) if r is None}, lambda d: by_id[d.id])

  @contextlib.contextmanager
  def step(self, name: str) -> Iterator[dict[str, int]]:
    """Times a step and adds its row; the dictionary takes what was edited."""
    begin = time.monotonic()
    self._step, self._dropped = name, Counter()
    edited: dict[str, int] = {}
    yield edited
    seconds = time.monotonic() - begin
    self._row(name, len(self.documents), self._bytes(), seconds, self._dropped)
    self._result.funnel[-1].edited.update(edited)

  def result(self) -> Result:
    """Returns what there is, with the examples of before and after."""
    after = {d.id: d for d in self.documents}
    for _, key, body in sorted(self._befores):
      if key in after and len(self._result.before_after) < EXAMPLES:
        page = after[key]
        self._result.before_after.append(
          {
            "url": page.url or page.id,
            "before": body[:_PAGE_CHARS],
            "after": page.text[:_PAGE_CHARS],
          }
        )
    self._result.documents = self.documents
    return self._result

  def _distinct(self, raws: Iterable[crawl.Raw], sizes: Counter[str]) -> Iterator[crawl.Raw]:
    """Passes on the first record of each id and remembers a few as they are."""
    seen: set[str] = set()
    for raw in raws:
      if raw.id in seen:
        page = Document(raw.id, raw.body, raw.url, raw.source)
        self._result.drops.append(_drop(page, "read", "same address or id"))
        continue
      seen.add(raw.id)
      sizes["pages"] += 1
      sizes["read"] += len(raw.body.encode("utf-8", "surrogatepass"))
      self._befores.append((identity(f"{self._seed}:{raw.id}"), raw.id, raw.body))
      if len(self._befores) > 2 * _CANDIDATES:
        self._befores = heapq.nsmallest(_CANDIDATES, self._befores)
      yield raw

  def _bytes(self) -> int:
    return sum(len(d.text.encode("utf-8", "surrogatepass")) for d in self.documents)

  def _row(self, step: str, documents: int, size: int, seconds: float, dropped: Counter) -> None:
    counts = dict(sorted(dropped.items(), key=lambda item: (-item[1], item[0])))
    self._result.funnel.append(Row(step, documents, size, round(seconds, 2), counts))
    self._log(f"{step}: {documents:,} documents, {size / 1e6:.2f} MB, {seconds:.1f} s")


_FACTS = ("kept", "score")


def samples(drops: Sequence[dict]) -> list[dict]:
  """Returns a few drops of each step and reason, in their order."""
  counts: Counter[tuple[str, str]] = Counter()
  chosen = []
  for drop in drops:
    key = drop["step"], drop["reason"]
    counts[key] += 1
    if counts[key] <= SAMPLES:
      chosen.append(drop)
  return chosen


def _clean(raws: Sequence[crawl.Raw], name: str) -> list[tuple]:
  """Returns (document, bytes after extraction, reason or "", (seconds, seconds)) of each page."""
  recipe = get(name)
  done = []
  for raw in raws:
    begin = time.perf_counter()
    text, reason = raw.body, ""
    if raw.html:
      try:
        text = crawl.extract(raw.body, recipe.extractor)
      except UserError:
        raise
      except Exception as e:  # One broken page must not stop a crawl; it is on record.
        text, reason = "", f"extractor failed: {type(e).__name__}"
      if not text.strip() and not reason:
        text, reason = "", "no main text"
    size = len(text.encode("utf-8", "surrogatepass"))
    middle = time.perf_counter()
    if not reason:
      text = functools.reduce(lambda t, edit: edit(t), recipe.edits, text)
    end = time.perf_counter()
    document = Document(raw.id, text if not reason else raw.body, raw.url, raw.source)
    done.append((document, size, reason, (middle - begin, end - middle)))
  return done


def _judge(documents: Sequence[Document], name: str) -> list[str | None]:
  rules = get(name).rules
  return [next((reason for rule in rules if (reason := rule(d))), None) for d in documents]


def _drop(document: Document, step: str, reason: str) -> dict:
  return {
    "id": document.id,
    "url": document.url,
    "step": step,
    "reason": reason,
    "sample": document.text[:_SAMPLE_CHARS],
  }
