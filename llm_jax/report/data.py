"""From raw pages to tokens: what each step kept, what it dropped and why."""

from typing import Any

from llm_jax.report.load import Run
from llm_jax.report.markup import (
  DASH,
  Html,
  bar,
  branch,
  clip,
  count,
  details,
  dig,
  el,
  join,
  missing,
  number,
  percent,
  real,
  rows,
  seconds,
  section,
  size,
  table,
)

FIRST = 8  # Reasons shown at once; the rarer ones open on demand.
EXAMPLES = 4  # Pages shown before and after extraction.
SAMPLE = 600  # Characters of a dropped document.
PAGE = 4000  # Characters of a page before or after extraction; the recipe keeps no more.

LEAD = (
  "Each row is a step of the preparation; the bars shrink as documents are removed. Look for one "
  "step that takes far more than the others, and open its reasons: nothing is dropped without a "
  "recorded one. Bytes fall by more than documents where a step cleans text and keeps the page."
)


def data(run: Run) -> Html:
  """Returns the funnel, the reasons with samples, extraction and the tokenizer."""
  funnel = rows(run.summary, "data.funnel")
  body = [_funnel(funnel) if funnel else missing("data.funnel")]
  body += [el("h3", "Why documents were dropped"), _reasons(run.summary, funnel)]
  body += [el("h3", "What extraction does to a page"), _before_after(run.summary)]
  body += [el("h3", "Tokenizer and splits"), _tokenizer(run.summary)]
  return section("data", "From pages to tokens", LEAD, *body)


def _funnel(funnel: list[dict[str, Any]]) -> Html:
  most = {
    key: max((number(step.get(key)) or 0 for step in funnel), default=0)
    for key in ("documents", "bytes", "tokens")
  }
  formats = {"documents": count, "bytes": size, "tokens": count}
  body = []
  for step in funnel:
    cells = []
    for key, show in formats.items():
      value = number(step.get(key))
      share = value / most[key] if value is not None and most[key] else None
      cells.append(bar(share, show(value), key) if value is not None else DASH)
    dropped = _dropped(step)
    lost = sum(dropped.values())
    cells += [f"−{count(lost)}" if lost else "0", seconds(step.get("seconds"))]
    cut = [f"{count(n)} {what}" for what, n in _positive(step, "edited").items()]
    name = step.get("step")
    if cut:
      name = join((name, el("small", ", ".join(cut), cls="cut")))
    body.append((name, *cells))
  head = ("Step", "Documents", "Bytes", "Tokens", "Dropped", "Time")
  return table(head, body, cls="stack funnel")


def _dropped(step: dict[str, Any]) -> dict[str, float]:
  return _positive(step, "dropped")


def _positive(step: dict[str, Any], key: str) -> dict[str, float]:
  """The counts above zero, the largest first."""
  found = branch(step, key)
  counts = {k: x for k, v in found.items() if (x := number(v)) is not None and x > 0}
  return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _reasons(summary: dict[str, Any], funnel: list[dict[str, Any]]) -> Html:
  samples = rows(summary, "data.drop_samples")
  reasons = [(str(s.get("step")), why, n) for s in funnel for why, n in _dropped(s).items()]
  if not reasons and not samples:
    return missing("data.funnel[].dropped", "data.drop_samples")
  most = max((n for _, _, n in reasons), default=1)
  seen, blocks = set(), []
  for step, why, n in sorted(reasons, key=lambda r: -r[2]):
    mine = [s for s in samples if (str(s.get("step")), str(s.get("reason"))) == (step, why)]
    seen.update(id(s) for s in mine)
    head = join((el("span", el("b", why), f" in {step}", cls="why"), bar(n / most, count(n))))
    shown = [_sample(s) for s in mine[:3]] or [el("p", "No sample was kept.", cls="missing")]
    blocks.append(details(head, *shown, cls="reason"))
  rest = [s for s in samples if id(s) not in seen]
  for s in rest[:20]:
    head = el("span", el("b", s.get("reason")), f" in {s.get('step')}", cls="why")
    blocks.append(details(head, _sample(s), cls="reason"))
  if len(blocks) > FIRST + 2:
    rare = blocks[FIRST:]
    blocks[FIRST:] = [details(f"{len(rare)} rarer reasons", *rare, cls="more")]
  return el("div", *blocks, cls="reasons")


def _sample(sample: dict[str, Any]) -> Html:
  name = el("code", clip(sample.get("url") or sample.get("id"), 200))
  score = number(sample.get("score"))
  twin = ""
  if sample.get("kept"):
    alike = f", similarity {real(score)}" if score is not None else ""
    twin = el("span", f"kept instead: {clip(sample['kept'], 80)}{alike}")
  text = clip(sample.get("sample"), SAMPLE)
  return join((el("p", name, twin, cls="source"), el("pre", text or "(empty)")))


def _before_after(summary: dict[str, Any]) -> Html:
  pages = rows(summary, "data.before_after")
  if not pages:
    return missing("data.before_after")
  blocks = []
  for i, page in enumerate(pages[:EXAMPLES]):
    sides = []
    for key, title in (("before", "As it was fetched"), ("after", "What was kept")):
      text = page.get(key)
      length = len(str(text or ""))
      amount = f"{count(length)} characters"
      amount = f"the first {amount}" if length == PAGE else amount
      head = el("h4", title, el("small", amount))
      sides.append(el("div", head, el("pre", clip(text, PAGE))))
    block = details(
      el("code", clip(page.get("url"), 200)), el("div", *sides, cls="sides"), cls="reason"
    )
    # The first one is open: a reader should see what a page turns into without a click.
    blocks.append(Html(block.replace("<details", "<details open", 1)) if i == 0 else block)
  return el("div", *blocks)


def _tokenizer(summary: dict[str, Any]) -> Html:
  parts = []
  stats = branch(summary, "data.tokenizer")
  if stats:
    parts.append(
      el(
        "p",
        f"{count(stats.get('vocab_size'))} pieces; one token stands for "
        f"{real(stats.get('bytes_per_token'))} bytes of text on average. More bytes per token "
        "mean a longer reach for the same context length.",
      )
    )
  else:
    parts.append(missing("data.tokenizer"))
  sources = rows(summary, "data.tokenizer.sources")
  if len(sources) > 1:
    parts.append(_by_source(sources))
  splits = branch(summary, "data.splits")
  if not splits:
    return join([*parts, missing("data.splits")])
  total = sum(number(dig(part, "tokens")) or 0 for part in splits.values())
  body = []
  for name, part in splits.items():
    tokens = number(dig(part, "tokens"))
    body.append(
      (
        name,
        count(dig(part, "documents")),
        size(dig(part, "bytes")),
        count(tokens),
        percent(tokens / total) if tokens is not None and total else DASH,
      )
    )
  head = ("Split", "Documents", "Bytes", "Tokens", "Share of tokens")
  return join([*parts, table(head, body)])


def _by_source(sources: list[dict[str, Any]]) -> Html:
  head = ("Source", "Documents", "Bytes", "Tokens", "Bytes a token", "Tokens a word")
  body = [
    (
      clip(row.get("source"), 80),
      count(row.get("documents")),
      size(row.get("bytes")),
      count(row.get("tokens")),
      real(row.get("bytes_per_token")),
      real(row.get("tokens_per_word")),
    )
    for row in sources
  ]
  return table(head, body)
