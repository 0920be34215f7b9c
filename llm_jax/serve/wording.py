"""From tokens that come one by one to text that can be shown: whole characters, no stop texts."""

from collections.abc import Sequence

from llm_jax.data.tokenizer import Tokenizer

_CONTEXT = 8  # Tokens of a prompt that a continuation is decoded after: their spaces are kept.
_WINDOW = 24  # Tokens that are decoded again at most, before it starts nearer to the end.
_HALF = "\ufffd"  # What bytes of a character that is not whole yet decode to.


class Wording:
  """The text of one answer as it grows.

  Args:
    tokenizer: of the model.
    prompt: tokens that the answer goes on from; (): it begins a turn.
    stops: texts before which it ends.
  """

  def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = (), stops: Sequence[str] = ()):
    self._tokenizer, self._stops = tokenizer, [stop for stop in stops if stop]
    self._context = list(prompt[-_CONTEXT:])
    self._skipped = len(tokenizer.decode(self._context))
    self._longest = max((len(stop) for stop in self._stops), default=0)
    # So many tokens, and their text: what follows leaves it as it is. Then where decoding starts,
    # and what it gives from there to the end of these tokens.
    self._fixed = 0, "", 0, ""
    self.tokens: list[int] = []
    self.text = ""
    self.sent = 0
    self.stopped = False

  def add(self, tokens: Sequence[int], last: bool = False) -> str:
    """Takes tokens; returns what can be shown of them, and of earlier ones that had to wait.

    What might be half a character or the beginning of a stop text waits, unless it is the `last`.
    After a stop text, `stopped` is true and the rest is lost.
    """
    if self.stopped:
      return ""
    self.tokens += tokens
    self.text = self._whole()
    found = [place for stop in self._stops if (place := self.text.find(stop)) >= 0]
    if found:
      self.text, self.stopped = self.text[: min(found)], True
      self.tokens = self.tokens[: self._fewest(len(self.text))]
    end = len(self.text)
    if not (last or self.stopped):
      end = len(self.text.rstrip(_HALF))
      end = min(end, self._safe())
    new = self.text[self.sent : end]
    self.sent = max(self.sent, end)
    return new

  def _whole(self) -> str:
    """The text of all tokens; only the last of them are decoded, after some before them."""
    count, fixed, start, before = self._fixed
    every = [*self._context, *self.tokens]
    after = self._tokenizer.decode(every[start:])
    # Spaces in front of a text may be lost, and then more of them with what follows.
    if not count or not before.strip() or not after.startswith(before):
      text = self._tokenizer.decode(every)[self._skipped :]
    else:
      text = fixed + after[len(before) :]
    # Bytes are decoded together, however many there are.
    if self.tokens and self.tokens[-1] not in self._tokenizer.byte_ids and text[-1:] != _HALF:
      if len(every) - start > _WINDOW:
        start = len(every) - _CONTEXT
        after = self._tokenizer.decode(every[start:])
      self._fixed = len(self.tokens), text, start, after
    return text

  def _fewest(self, length: int) -> int:
    """How many tokens give so much of the text."""
    for count in range(len(self.tokens)):
      text = self._tokenizer.decode([*self._context, *self.tokens[:count]])[self._skipped :]
      if len(text.rstrip(_HALF)) >= length:
        return count
    return len(self.tokens)

  def _safe(self) -> int:
    """Characters before what may be the beginning of a stop text."""
    for start in range(max(0, len(self.text) - self._longest + 1), len(self.text)):
      if any(stop.startswith(self.text[start:]) for stop in self._stops):
        return start
    return len(self.text)

  def spans(self) -> list[tuple[str, int]]:
    """The text that each token adds, and where it begins; of a half character nothing."""
    found, before = [], 0
    for count in range(1, len(self.tokens) + 1):
      whole = self._tokenizer.decode([*self._context, *self.tokens[:count]])[self._skipped :]
      after = len(whole.rstrip(_HALF)) if count < len(self.tokens) else len(whole)
      found.append((whole[before:after], before))
      before = max(before, after)
    return found
