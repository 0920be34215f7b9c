"""What the finished corpus looks like: lengths, sources, languages, phrases, duplicate clusters."""

from typing import Any

from llm_jax.report.markup import (
  DASH,
  Html,
  bar,
  branch,
  clip,
  count,
  el,
  join,
  missing,
  number,
  percent,
  rows,
  section,
  size,
  table,
)

LEAD = (
  "What training will read. A spike in the lengths, a language that was not asked for, a phrase "
  "that stands far above the others: each of them is a reason to look at the recipe again."
)
PHRASES = 12  # Rows of a table of phrases.


def corpus(summary: dict[str, Any]) -> Html:
  """Returns the section on the documents that were kept."""
  found = branch(summary, "data.statistics")
  if not found:
    return section("corpus", "The corpus", LEAD, missing("data.statistics"))
  return section("corpus", "The corpus", LEAD, *blocks(found))


def blocks(found: dict[str, Any]) -> list[Html]:
  """The tables of a corpus's statistics."""
  parts = [el("h3", "Length of documents"), _lengths(rows(found, "lengths"))]
  parts += [el("h3", "Sources"), _sources(found)]
  parts += [el("h3", "Languages of a sample"), _languages(rows(found, "languages"))]
  parts += [el("h3", "Most frequent phrases"), _phrases(branch(found, "grams"))]
  return parts


def _lengths(lengths: list[dict[str, Any]]) -> Html:
  most = max((number(row.get("documents")) or 0 for row in lengths), default=0)
  body = []
  for row in lengths:
    low, n = int(number(row.get("words")) or 0), number(row.get("documents")) or 0
    label = f"{count(low)} to {count(2 * low - 1)}" if low > 1 else "0 or 1"
    body.append((label, bar(n / most if most else None, count(n))))
  return table(("Words", "Documents"), body)


def _sources(found: dict[str, Any]) -> Html:
  listed = rows(found, "sources")
  total = sum(number(row.get("bytes")) or 0 for row in listed)
  body = []
  for row in listed:
    n = number(row.get("bytes"))
    share = percent(n / total) if n is not None and total else DASH
    body.append((clip(row.get("source"), 80), count(row.get("documents")), size(n), share))
  others = number(found.get("other_sources")) or 0
  note = el("p", f"and {count(others)} smaller ones") if others else ""
  return join((table(("Source", "Documents", "Bytes", "Share of those shown"), body), note))


def _languages(listed: list[dict[str, Any]]) -> Html:
  total = sum(number(row.get("documents")) or 0 for row in listed)
  body = []
  for row in listed[:10]:
    n = number(row.get("documents")) or 0
    body.append((row.get("language"), bar(n / total if total else None, percent(n / total))))
  return table(("Language", "Documents"), body)


def _phrases(grams: dict[str, Any]) -> Html:
  sides = []
  for n in grams:
    listed = rows(grams, n)[:PHRASES]
    body = [(clip(row.get("phrase"), 60), count(row.get("times"))) for row in listed]
    head = "One word" if n == "1" else f"{n} words"
    sides.append(el("div", table((head, "Times"), body)))
  return el("div", *sides, cls="sides")
