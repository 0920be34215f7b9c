"""All that a recipe can name: a step is a call such as "gopher_quality(stop_words=2)".

What a step is, its first parameter without a default says: `html` (extraction: a page's HTML to its
text), `text` (an edit: text to text), `document` (a rule: a Document to a reason to drop it, or
None). One that has no such parameter gives a step on the whole corpus (corpus_steps.py). A
function of one's own is "my_package.module:name(keyword=literal)".
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal

from llm_jax import spec
from llm_jax.data import crawl, dedup, extraction
from llm_jax.data.decontaminate import decontaminate, without_overlap
from llm_jax.data.filters import (
  blocked_urls,
  c4_lines,
  c4_page,
  c4_words,
  fineweb,
  gopher_quality,
  gopher_repetition,
  language,
  length,
  letters,
  mask_pii,
  mc4_paragraphs,
  nemo,
  refinedweb_lines,
  refinedweb_page,
  without_addresses,
)
from llm_jax.data.normalize import (
  documentation,
  repair,
  rulers,
  whitespace,
  without_bare_signatures,
)
from llm_jax.data.pipeline import corpus_steps, stretches
from llm_jax.data.pipeline.corpus_steps import CorpusStep
from llm_jax.data.quality import quality
from llm_jax.errors import UserError

__all__ = [
  "blocked_urls", "c4_lines", "c4_page", "c4_words", "common_lines", "decontaminate",
  "documentation", "duplicates", "exact_duplicates", "extract", "fineweb", "gopher_quality",
  "gopher_repetition", "language", "length", "letters", "mask_pii", "mc4_paragraphs", "nemo",
  "quality", "refinedweb_lines", "refinedweb_page", "repair", "repeated_lines",
  "repeated_paragraphs", "repeated_substrings", "rulers", "same_address", "whitespace",
  "without_addresses", "without_bare_signatures", "without_overlap",
]  # fmt: skip

Kind = Literal["html", "text", "document", "corpus"]
_INPUTS = ("html", "text", "document")


@dataclasses.dataclass(frozen=True)
class Step:
  """One step of a recipe.

  Attributes:
    name: how the funnel calls it.
    kind: what it is.
    run: the function of an "html", "text" or "document" step, its keywords bound.
    corpus: the step of a "corpus" one.
  """

  name: str
  kind: Kind
  run: Callable[[Any], Any] | None = None
  corpus: CorpusStep | None = None


def resolve(text: str) -> Step:
  """Returns the step that a spec names.

  Raises:
    UserError: if there is none, or a keyword is wrong; with the nearest name.
  """
  fn = spec.resolve(text, __name__, "step", _INPUTS)
  if isinstance(fn, spec.Sum):
    raise UserError(f"step {text!r}: a step is one call, not a sum")
  needed = [p for p in inspect.signature(fn).parameters.values() if p.default is p.empty]
  if not needed:
    step = fn()
    if not all(hasattr(step, name) for name in ("features", "decide", "apply")):
      raise UserError(f"step {text!r}: its first parameter must be html, text or document")
    return Step(_name(text), "corpus", corpus=step)
  kind = needed[0].name
  if kind not in _INPUTS or len(needed) > 1:
    raise UserError(f"step {text!r}: its only parameter must be html, text or document")
  return Step(_name(text), kind, run=fn)


@functools.cache
def recipe(specs: tuple[str, ...]) -> tuple[Step, ...]:
  """Resolves all steps; each name is told apart from an earlier one like it.

  Raises:
    UserError: naming the bad step.
  """
  steps: list[Step] = []
  for text in specs:
    if not isinstance(text, str):
      raise UserError(f"config.recipe: a step is text such as 'extract()', got {text!r}")
    step = resolve(text)
    same = sum(s.name.split(" #")[0] == step.name for s in steps)
    steps.append(dataclasses.replace(step, name=f"{step.name} #{same + 1}") if same else step)
  return tuple(steps)


def extract(html: str, extractor: str = "trafilatura", seconds: float = extraction.SECONDS) -> str:
  """The main text of a page, as `crawl.extract`; documents that are text already stay.

  A page that takes longer than `seconds` goes; 0: no limit. Which pages do is then up to the
  machine, so two runs may differ in those that come near it.
  """
  if not seconds >= 0:
    raise UserError(f"step extract: seconds must be 0 or more, got {seconds}")
  return crawl.extract(html, extractor, seconds)


def duplicates(threshold: float = 0.7, measure: str = "jaccard", against: str = "") -> CorpusStep:
  """Drops exact and near duplicates: similarity of word 5-grams >= `threshold`.

  `measure` "containment" takes the part of the text that goes instead of Jaccard's. What is in
  the corpus `against` (a prepared run, or anything that a source can be) goes too.
  """
  try:
    dedup.check(threshold, measure)
    if against:
      corpus_steps.sources(against)
  except UserError as error:
    raise UserError(f"step duplicates: {error}") from error
  return corpus_steps.Duplicates(threshold, measure, against)


def exact_duplicates() -> CorpusStep:
  """Drops texts that differ in nothing but case, white space and Unicode composition."""
  return corpus_steps.Duplicates(2.0)


def same_address() -> CorpusStep:
  """Drops documents whose address or id stood before."""
  return corpus_steps.SameAddress()


def common_lines(fraction: float = 0.01, min_words: int = 3) -> CorpusStep:
  """Cuts out lines that stand on more than a fraction of the pages."""
  if not 0 < fraction <= 1:
    raise UserError(f"step common_lines: fraction must be in (0, 1], got {fraction}")
  return corpus_steps.CommonLines(fraction, min_words)


def repeated_paragraphs(min_chars: int = 40) -> CorpusStep:
  """Cuts out paragraphs that stood before anywhere in the corpus."""
  return corpus_steps.RepeatedParts("\n\n", min_chars)


def repeated_lines(min_chars: int = 1) -> CorpusStep:
  """Cuts out lines that stood before anywhere in the corpus (C4's rule, by single lines)."""
  return corpus_steps.RepeatedParts("\n", min_chars)


def repeated_substrings(tokens: int = 50, keep_first: bool = True, most: float = 0.0) -> CorpusStep:
  """Cuts out stretches of at least `tokens` words that stood before (see stretches.py)."""
  if tokens < 2 or not 0 <= most < 1:
    raise UserError(f"step repeated_substrings: tokens={tokens} must be 2 or more, most={most} < 1")
  return stretches.RepeatedStretches(tokens, keep_first, most)


def _name(text: str) -> str:
  """What the funnel shows of a spec: its function, and the keywords as they stand."""
  return text.replace("()", "").strip()
