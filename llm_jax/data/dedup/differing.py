"""Which words of two near duplicates differ."""

import difflib
import re
from collections.abc import Iterator

_WORDS = re.compile(r"\S+")


def differing(kept: str, gone: str, around: int = 8) -> Iterator[list[tuple[str, str]]]:
  """Yields groups of neighbouring pieces of two texts, of which only the words count.

  Args:
    kept: the text that stays.
    gone: the text that went.
    around: equal words shown on either side of a difference.

  Yields:
    Lists of ("same" | "kept" | "gone", words), the latter two in one of the texts only.
  """
  a, b = _WORDS.findall(kept), _WORDS.findall(gone)
  for group in difflib.SequenceMatcher(None, a, b, autojunk=False).get_grouped_opcodes(around):
    pieces = []
    for tag, i, j, k, m in group:
      if tag == "equal":
        pieces.append(("same", " ".join(a[i:j])))
        continue
      pieces += [("kept", " ".join(a[i:j]))] if i < j else []
      pieces += [("gone", " ".join(b[k:m]))] if k < m else []
    yield pieces
