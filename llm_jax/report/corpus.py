"""What the finished corpus looks like: lengths, sources, languages, phrases, duplicate clusters."""

from typing import Any

from llm_jax.report.markup import (
  DASH,
  Html,
  bar,
  branch,
  clip,
  count,
  details,
  el,
  join,
  missing,
  number,
  percent,
  real,
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
SAMPLE = 400  # Characters of a duplicate.


def corpus(summary: dict[str, Any]) -> Html:
  """Returns the section on the documents that were kept."""
  found = branch(summary, "data.statistics")
  if not found:
    return section("corpus", "The corpus", LEAD, missing("data.statistics"))
  parts = [el("h3", "Length of documents"), _lengths(rows(found, "lengths"))]
  parts += [el("h3", "Sources"), _sources(found)]
  parts += [el("h3", "Languages of a sample"), _languages(rows(found, "languages"))]
  parts += [el("h3", "Most frequent phrases"), _phrases(branch(found, "grams"))]
  duplicates = rows(summary, "data.duplicates")
  parts += [el("h3", "Duplicates"), *map(_duplicates, duplicates)] if duplicates else []
  return section("corpus", "The corpus", LEAD, *parts)


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


def _duplicates(found: dict[str, Any]) -> Html:
  """Sizes of the clusters that a step found, and the largest of them."""
  clusters, members = (count(found.get(name)) for name in ("clusters", "documents"))
  head = el("p", f"{clusters} clusters of {members} documents in {clip(found.get('step'), 80)}")
  sizes = rows(found, "sizes")
  most = max((number(row.get("clusters")) or 0 for row in sizes), default=0)
  body = []
  for row in sizes:
    low, n = int(number(row.get("members")) or 0), number(row.get("clusters")) or 0
    label = f"{count(low)} to {count(2 * low - 1)}" if low > 1 else "1"
    body.append((label, bar(n / most if most else None, count(n))))
  largest = (_cluster(row) for row in rows(found, "largest"))
  return join((head, table(("Members", "Clusters"), body), el("div", *largest, cls="reasons")))


def _cluster(found: dict[str, Any]) -> Html:
  parts = []
  for row in rows(found, "dropped"):
    facts = f"{row.get('reason')}, similarity {real(row.get('score'))}; {row.get('kept')} stays"
    parts += [el("p", el("code", clip(row.get("id"), 120)), f": {facts}")]
    parts += [el("pre", clip(row.get("sample"), SAMPLE))]
  head = el("span", el("b", clip(found.get("cluster"), 80)), cls="why")
  return details(join((head, f"{count(found.get('members'))} members")), *parts, cls="reason")
