"""The error whose text a user reads: one line that says what, where and what to do."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
  """Bad input of a user. Launchers print it as one line and exit with code 2."""


def nearest(name: str, names: Iterable[str]) -> str:
  """Returns `; did you mean "x"?` for the nearest of `names`, or the list of them."""
  names = sorted(names)
  close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
  return f'; did you mean "{close[0]}"?' if close else f"; there are: {', '.join(names)}"
