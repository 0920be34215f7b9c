"""The error whose text a user reads: one line that says what, where and what to do."""

import difflib
from collections.abc import Iterable

_LONGEST = 3000  # Characters of a line.


class UserError(Exception):
  """Bad input of a user. Launchers print it as one line and exit with code 2.

  What it quotes may be anybody's: white space becomes spaces, other characters that cannot be shown
  or move a terminal's cursor become U+FFFD, and a very long text loses its middle.
  """

  def __init__(self, text: str = ""):
    super().__init__(_line(text))


def _line(text: str) -> str:
  if not text.isprintable():
    text = "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text)
  if len(text) <= _LONGEST:
    return text
  half = _LONGEST // 2
  return f"{text[:half]} ... {text[-half:]}"


def nearest(name: str, names: Iterable[str]) -> str:
  """Returns `; did you mean "x"?` for the nearest of `names`, or the list of them."""
  names = sorted(names)
  close = difflib.get_close_matches(name[:100], names, n=1, cutoff=0.6)
  return f'; did you mean "{close[0]}"?' if close else f"; there are: {', '.join(names)}"
