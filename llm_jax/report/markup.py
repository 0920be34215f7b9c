"""Small pieces of HTML: escaping, number formats, tables, bars and chips.

Everything that a run wrote (page text, model answers, names of metrics) is untrusted. A piece of
finished HTML has the type `Html`; every other value is escaped when it is put into one.
"""

import html
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from llm_jax.train.curves import number

DASH = "–"
GAP = "\u00a0"  # Keeps a unit on the line of its number.
POLICIES = ("base", "sft", "dpo", "ppo")
NAMES = {"base": "Base", "sft": "SFT", "dpo": "DPO", "ppo": "PPO"}


class Html(str):
  """A string that is already HTML."""


class Shown(str):
  """A number as people read it; `value` is the number, for those who save a table."""

  value: float

  def __new__(cls, text: str, value: float) -> "Shown":
    """Ties a text to its number."""
    made = super().__new__(cls, text)
    made.value = value
    return made


def esc(value: Any) -> Html:
  """Returns `value` as HTML: as it is if it is `Html`, else escaped (quotes too)."""
  if isinstance(value, Html):
    return value
  return Html(html.escape("" if value is None else str(value), quote=True))


def join(parts: Iterable[Any], between: str = "") -> Html:
  """Returns the escaped parts, one after the other."""
  return Html(between.join(esc(part) for part in parts))


def el(tag: str, *children: Any, **attributes: Any) -> Html:
  """Returns an element. `cls` is class, `_` in a name is `-`, None leaves an attribute out."""
  text = "".join(
    f' {"class" if name == "cls" else name.replace("_", "-")}="{esc(value)}"'
    for name, value in attributes.items()
    if value is not None
  )
  return Html(f"<{tag}{text}>{join(children)}</{tag}>")


def minus(text: str) -> str:
  """Returns the text with a true minus sign, as wide as a digit."""
  return text.replace("-", "−")


def count(value: Any) -> str:
  """1234567 -> 1.23 M; whole numbers below 100 000 keep every digit."""
  x = number(value)
  if x is None:
    return DASH
  for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
    if abs(x) >= max(size, 1e5):
      digits = f"{x / size:.3g}" if abs(x) / size < 999.5 else f"{x / size:.0f}"
      return Shown(minus(f"{digits}{GAP}{unit}"), x)
  return Shown(minus(f"{x:,.0f}".replace(",", GAP)), x) if x == int(x) else real(x)


def size(value: Any) -> str:
  """Bytes: 1234567 -> 1.23 MB (decimal units)."""
  x = number(value)
  if x is None:
    return DASH
  for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
    if abs(x) >= scale:
      digits = f"{x / scale:.0f}" if x / scale >= 99.95 else f"{x / scale:.3g}"
      return Shown(f"{digits}{GAP}{unit}", x)
  return Shown(f"{x:.0f}{GAP}B", x)


def seconds(value: Any) -> str:
  """Seconds: 0.5 s, 42 s, 3 min 20 s, 1 h 02 min."""
  x = number(value)
  if x is None:
    return DASH
  whole = round(x)
  if x < 9.95:
    text = f"{x:.1f}{GAP}s"
  elif whole < 60:
    text = f"{whole}{GAP}s"
  elif whole < 3600:
    text = f"{whole // 60}{GAP}min {whole % 60:02d}{GAP}s"
  else:
    text = f"{whole // 3600}{GAP}h {whole % 3600 // 60:02d}{GAP}min"
  return Shown(text, x)


def percent(value: Any, digits: int = 1) -> str:
  """A fraction: 0.431 -> 43.1 %."""
  x = number(value)
  return DASH if x is None else Shown(minus(f"{100 * x:.{digits}f}{GAP}%"), x)


def real(value: Any, digits: int = 3) -> str:
  """A number with `digits` significant digits, never in powers of ten between 1e-4 and 1e6."""
  x = number(value)
  if x is None:
    return DASH
  if x == 0:
    return Shown("0", x)
  if not 1e-4 <= abs(x) < 1e6:
    return Shown(minus(f"{x:.{digits - 1}e}"), x)
  whole = len(str(int(abs(x)))) if abs(x) >= 1 else 0
  decimals = max(0, digits - whole) if whole else digits - 1 - math.floor(math.log10(abs(x)))
  return Shown(minus(f"{x:.{decimals}f}"), x)


def slug(text: str) -> str:
  """Returns a text as a part of a file's name: "KL to SFT" -> "kl-to-sft"."""
  return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:80] or "unnamed"


def exactly(value: Any) -> str | None:
  """Returns the number behind a formatted one, for an attribute; None of all else."""
  return f"{value.value:.10g}" if isinstance(value, Shown) else None


def clip(text: Any, limit: int) -> str:
  """Returns at most `limit` characters, and says how many more there were."""
  text = "" if text is None else str(text)
  if len(text) <= limit:
    return text
  return f"{text[:limit]} … ({len(text) - limit} more characters)"


def dig(tree: Any, path: str) -> Any:
  """Returns `tree["a"]["b"]` for the path "a.b", or None where there is no such thing."""
  for key in path.split("."):
    if not isinstance(tree, dict):
      return None
    tree = tree.get(key)
  return tree


def branch(tree: Any, path: str) -> dict[str, Any]:
  """Returns the dict at `path`; anything else is an empty one."""
  found = dig(tree, path)
  return found if isinstance(found, dict) else {}


def rows(tree: Any, path: str) -> list[dict]:
  """Returns the dicts of the list at `path`; an absent list is an empty one."""
  found = dig(tree, path)
  return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []


def missing(*paths: str) -> Html:
  """Returns the plain statement that the run did not record `paths`."""
  names = join((el("code", path) for path in paths), ", ")
  return el("p", "Not recorded in this run: ", names, ".", cls="missing")


def table(head: Sequence[Any], body: Iterable[Sequence[Any]], cls: str = "") -> Html:
  """Returns a table; on a narrow screen a `stack` table shows each row as a card."""
  names = [re.sub(r"<[^>]*>", "", esc(name)) for name in head]
  lines = []
  for row in body:
    cells = [el("th", row[0], scope="row")]
    cells += [
      el("td", cell, data_label=Html(name), data_value=exactly(cell))
      for name, cell in zip(names[1:], row[1:], strict=True)
    ]
    lines.append(el("tr", *cells))
  top = el("thead", el("tr", *(el("th", name, scope="col") for name in head)))
  return el("div", el("table", top, el("tbody", *lines), cls=cls or None), cls="scroll")


def bar(fraction: float | None, label: Any, color: str = "muted") -> Html:
  """Returns a horizontal bar of `fraction` of its cell, with its label."""
  width = 0.0 if fraction is None else 100 * min(max(fraction, 0.0), 1.0)
  fill = el("i", style=f"width:{width:.2f}%;background:var(--{color})")
  text = el("span", label, cls="num", data_value=exactly(label))
  return el("span", el("span", fill, cls="track"), text, cls="bar")


def details(summary: Any, *body: Any, cls: str | None = None) -> Html:
  """Returns a block that opens when its summary is clicked."""
  return el("details", el("summary", summary), *body, cls=cls)


def hue(name: str) -> str:
  """Returns the CSS variable of a policy's colour; other names never reach a style."""
  return name if name in POLICIES else "muted"


def policy(name: str) -> Html:
  """Returns the name of a policy with its colour, the same on the whole page."""
  return el(
    "span", el("i", style=f"background:var(--{hue(name)})"), NAMES.get(name, name), cls="policy"
  )


def section(name: str, title: str, lead: Any, *body: Any) -> Html:
  """Returns a section with an anchor, a title and the sentences on what to look at."""
  return el("section", el("h2", title), el("p", prose(lead), cls="lead"), *body, id=name)


def prose(text: Any) -> Html:
  """Returns the escaped text with percent signs tied to their numbers."""
  return Html(esc(text).replace(" %", f"{GAP}%"))
