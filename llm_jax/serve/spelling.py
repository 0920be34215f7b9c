"""How tokens are shown: the text that each of them adds, and the names of those without any."""

from collections.abc import Iterator, Sequence
from typing import Any

from llm_jax.data.tokenizer import Tokenizer

_WINDOW = 8  # Tokens before a token that its spaces and half characters depend on.
_HALF = "\ufffd"


def texts(tokenizer: Tokenizer, ids: Sequence[int], before: Sequence[int] = ()) -> Iterator[str]:
  """Yields what each token adds to the text; the last byte of a character adds all of it.

  Args:
    tokenizer: of the ids.
    ids: the tokens.
    before: tokens that stand before them.
  """
  whole, first = [*before[-_WINDOW:], *ids], min(len(before), _WINDOW)
  for place in range(first, len(whole)):
    context = whole[max(place - _WINDOW, 0) : place]
    old = tokenizer.decode(context).rstrip(_HALF)
    new = tokenizer.decode([*context, whole[place]])
    last = place == len(whole) - 1
    yield (new if last else new.rstrip(_HALF))[len(old) :]


def pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[dict[str, Any]]:
  """Returns {"id", "text", "name"} of each token; "name" is "" unless it is a control token."""
  names = {i: name for name, i in tokenizer.control_names.items()}
  found = zip(ids, texts(tokenizer, ids), strict=True)
  return [{"id": int(i), "text": text, "name": names.get(int(i), "")} for i, text in found]
