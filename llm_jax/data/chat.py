"""Conversations as tokens: a template, its loss mask, and the rule for what is cut.

    [bos] ([role] text [end])*            render: a whole conversation
    [bos] ([role] text [end])* [assistant]    prompt: the model is to speak next

That is the template "llm_jax"; those of the published families are in templates.py, and a tokenizer
names the one that is used. Markers are control tokens spliced in by id, so no text can forge one.
Text between two control tokens, a template's and a message's alike, is encoded as one, except that
it ends where an assistant is to speak: what is learned follows the very tokens that `prompt` gives.
The mask counts what an assistant says: the tokens of its texts and those that close its turns, up
to the one at which the sampler stops, and nothing else.

A text that follows a control token is encoded as if it stood alone, so that a SentencePiece model
puts its space in front: as Meta's llama and mistral-common do, and Hugging Face's `legacy=True`.
Where a tokenizer.json says that only the start of everything has that space, that is followed.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from llm_jax.data import templates
from llm_jax.data.templates import ROLES, Control, Template
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.errors import UserError


class _Apart(str):
  """A message's text that is encoded apart from the text of the template around it."""

  __slots__ = ()


class _Piece(NamedTuple):
  """A control token or text of the template, the number of a message, or None: speak from here."""

  value: str | int | None
  said: bool = False


class _Run(NamedTuple):
  """What is encoded as one: a text, or ids where these are known; `number`: of its message."""

  text: str
  alone: bool  # As if nothing came before it.
  ids: list[int] | None
  said: bool
  number: int | None = None


def render(
  tokenizer: Tokenizer,
  messages: Sequence[Mapping[str, str]],
  max_length: int = 0,
  learn: Collection[int] | None = None,
) -> tuple[list[int], list[int]]:
  """Returns (tokens, mask) of a conversation; mask[i] = 1 where tokens[i] is to be learned.

  What is longer than `max_length` loses, in this order and no more than needed:
    1. the oldest tokens of the messages before the last, message by message; a message that has
       become empty goes with its markers, except the one just before the last;
    2. tokens of the last message: an answer's newest, any other message's oldest.
  Markers that remain, above all what ends the last turn, are never cut. A message that is cut is
  encoded apart from the markers around it; a template's default system text is a message.

  Args:
    tokenizer: of the model.
    messages: {"role": "system" | "user" | "assistant", "content": text}, oldest first.
    max_length: tokens at most; 0: no limit.
    learn: numbers of the assistant's messages that are learned, each with its turn's end; None: of
      all. The tokens do not depend on it.

  Raises:
    UserError: if the tokenizer lacks a control token of its template, or `max_length` has no room
      for the markers.
    ValueError: for no message, an unknown role, or a number in `learn` that is not the assistant's.
  """
  return _Conversation(tokenizer, messages, speak=False, learn=learn).fitted(max_length)


def prompt(
  tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]], max_length: int = 0
) -> list[int]:
  """Returns the tokens after which the assistant speaks, cut as in `render`.

  Raises:
    UserError, ValueError: as in `render`.
  """
  return _Conversation(tokenizer, messages, speak=True).fitted(max_length)[0]


class _Conversation:
  """One conversation in the template of a tokenizer.

  Args:
    tokenizer: of the model.
    messages: as in `render`.
    speak: whether the assistant is to speak next.
    learn: as in `render`.
  """

  def __init__(
    self,
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, str]],
    speak: bool,
    learn: Collection[int] | None = None,
  ):
    if not messages:
      raise ValueError("a conversation needs at least one message")
    unknown = {message["role"] for message in messages} - set(ROLES)
    if unknown:
      raise ValueError(f"unknown role {sorted(unknown)[0]!r}; there are: {', '.join(ROLES)}")
    self._tokenizer, self._speak = tokenizer, speak
    self._template = templates.get(tokenizer.template)
    arranged = self._template.arranged(messages)
    self._roles = [role for role, _ in arranged]
    self._learned = _learned(messages, self._roles, learn)
    lead = {"assistant": self._template.lead}
    self._contents: list[str | list[int]] = [lead.get(role, "") + text for role, text in arranged]
    self._known: dict[tuple[bool, str], list[int]] = {}  # (alone, text) -> ids

  def fitted(self, limit: int) -> tuple[list[int], list[int]]:
    """Returns (tokens, mask), cut to `limit` tokens if it is not 0."""
    kept = list(range(len(self._roles)))
    tokens, mask = self._written(kept)
    if not limit or len(tokens) <= limit:
      return tokens, mask
    last = kept[-1]
    for i in range(last + 1):
      ids = self._apart(kept, i)
      self._contents[i] = []
      left = min(limit - len(self._written(kept)[0]), len(ids))
      if left > 0:
        newest = i == last and self._roles[i] == "assistant"
        self._contents[i] = ids[:left] if newest else ids[-left:]
      elif i < last - 1:
        kept.remove(i)
      tokens, mask = self._written(kept)
      if len(tokens) <= limit:
        return tokens, mask
    raise UserError(
      f"{limit} tokens have no room for the markers of {len(kept)} turns in the chat template "
      f"{self._tokenizer.template}: raise config.length"
    )

  def _apart(self, kept: list[int], i: int) -> list[int]:
    """Returns the ids of message `i` where it stands, encoded apart from the text around it."""
    self._contents[i] = _Apart(self._contents[i])
    runs = self._runs(kept)
    ids = self._encoded(runs)
    return next((x for x, run in zip(ids, runs, strict=True) if run.number == i), [])

  def _written(self, kept: list[int]) -> tuple[list[int], list[int]]:
    """Returns (tokens, mask) of the messages of these numbers."""
    runs = self._runs(kept)
    tokens, mask = [], []
    for ids, run in zip(self._encoded(runs), runs, strict=True):
      tokens += ids
      mask += [int(run.said)] * len(ids)
    return tokens, mask

  def _encoded(self, runs: list[_Run]) -> list[list[int]]:
    """Returns the ids of each run; no text is encoded twice."""
    wanted = {(run.alone, run.text): None for run in runs if run.ids is None}
    for alone in (True, False):
      texts = [
        text for which, text in wanted if which == alone and (alone, text) not in self._known
      ]
      encode = self._tokenizer.encode_batch if alone else self._tokenizer.encode_inside
      self._known |= zip([(alone, text) for text in texts], encode(texts), strict=True)
    return [self._known[run.alone, run.text] if run.ids is None else run.ids for run in runs]

  def _runs(self, kept: list[int]) -> list[_Run]:
    """Returns the messages of these numbers and what is around them, text joined with text."""
    runs: list[_Run] = []
    joins, after_text = False, False
    for value, said in _layout(self._template, self._roles, kept, self._speak, self._learned):
      number = value if isinstance(value, int) else None
      content = self._contents[value] if isinstance(value, int) else value
      if content is None:
        joins = False
      elif isinstance(content, Control):
        i = self._tokenizer.control_id(content, self._tokenizer.template)
        runs.append(_Run("", False, [i], said))
        joins = after_text = False
      elif isinstance(content, list):
        runs.append(_Run("", False, content, said))
        joins, after_text = False, after_text or bool(content)
      elif joins and not isinstance(content, _Apart):
        runs[-1] = runs[-1]._replace(text=runs[-1].text + content)
      elif content:
        alone = not runs or (
          # A space that the template itself writes after a control token is the tokenizer's own.
          self._tokenizer.spaced
          and not after_text
          and not self._literal(content, number).startswith(" ")
        )
        runs.append(_Run(content, alone, None, said, number))
        joins, after_text = not isinstance(content, _Apart), True
    return runs

  def _literal(self, content: str, number: int | None) -> str:
    """Returns the part of a text that the template wrote."""
    if number is None:
      return content
    return self._template.lead if self._roles[number] == "assistant" else ""


def _learned(
  messages: Sequence[Mapping[str, str]], roles: Sequence[str], learn: Collection[int] | None
) -> set[int]:
  """Returns the numbers of what is learned among messages as a template has arranged them.

  It adds and moves the system's, so the assistant's stay in order.

  Args:
    messages: as in `render`.
    roles: as they are arranged.
    learn: as in `render`.
  """
  given = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
  arranged = [i for i, role in enumerate(roles) if role == "assistant"]
  if learn is None:
    return set(arranged)
  wrong = sorted(set(learn) - set(given))
  if wrong:
    raise ValueError(f"message {wrong[0]} is not the assistant's, so it cannot be learned")
  return {i for i, number in zip(arranged, given, strict=True) if number in learn}


def _layout(
  template: Template,
  roles: Sequence[str],
  kept: Sequence[int],
  speak: bool,
  learned: Collection[int],
) -> Iterator[_Piece]:
  """Yields what a conversation consists of, in order.

  Args:
    template: of the conversation.
    roles: of all messages.
    kept: numbers of the messages that are written.
    speak: whether the assistant is to speak next.
    learned: numbers of the messages that are learned.
  """
  yield from map(_Piece, template.opens)
  between: tuple[str, ...] = ()
  inside = False  # A user's turn that a system message has opened.
  for number in kept:
    role, turn = roles[number], template.turn(roles[number])
    folded = role == "system" and bool(template.folded)
    if inside and role == "assistant":
      yield from map(_Piece, template.user.closes)
      between, inside = template.user.then, False
    if not inside:
      yield from map(_Piece, (*between, *(template.user if folded else turn).opens))
    if folded:
      yield from map(_Piece, turn.opens)
    said = number in learned
    if role == "assistant":
      yield _Piece(None)
    yield _Piece(number, said)
    yield from (_Piece(piece, said) for piece in turn.closes)
    between, inside = turn.then, folded
  if inside:
    yield from map(_Piece, template.user.closes)
    between = template.user.then
  if speak:
    yield from map(_Piece, (*between, *template.assistant.opens))
