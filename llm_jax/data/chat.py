"""Conversations as tokens: one template, its loss mask, and the rule for what is cut.

    [bos] ([role] text [end])*            render: a whole conversation
    [bos] ([role] text [end])* [assistant]    prompt: the model is to speak next

Markers are control tokens spliced in by id, so no text can forge a turn. The mask counts what an
assistant says: the tokens of its texts and the [end] of its turns, and nothing else.
"""

from collections.abc import Mapping, Sequence

from llm_jax.data.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant")


def render(
  tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]], max_length: int = 0
) -> tuple[list[int], list[int]]:
  """Returns (tokens, mask) of a conversation; mask[i] = 1 where tokens[i] is to be learned.

  What is longer than `max_length` loses, in this order and no more than needed:
    1. the oldest tokens of the messages before the last, message by message; a message that has
       become empty goes with its markers, except the one just before the last;
    2. tokens of the last message: an answer's newest, any other message's oldest.
  Markers that remain, above all the [end] of the last turn, are never cut.

  Args:
    tokenizer: of the model.
    messages: {"role": "system" | "user" | "assistant", "content": text}, oldest first.
    max_length: tokens at most; 0: no limit.

  Raises:
    ValueError: for no message, an unknown role, or a `max_length` with no room for the markers.
  """
  turns = _turns(tokenizer, messages)
  if max_length:
    turns = _cut(tokenizer, turns, max_length - 1)
  tokens, mask = [tokenizer.bos_id], [0]
  for role_id, ids in turns:
    said = int(role_id == tokenizer.assistant_id)
    tokens += [role_id, *ids, tokenizer.end_id]
    mask += [0] + [said] * (len(ids) + 1)
  return tokens, mask


def prompt(
  tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]], max_length: int = 0
) -> list[int]:
  """Returns the tokens after which the assistant speaks, cut as in `render`.

  Raises:
    ValueError: as in `render`.
  """
  tokens, _ = render(tokenizer, messages, max(max_length - 1, 1) if max_length else 0)
  return [*tokens, tokenizer.assistant_id]


def _turns(
  tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]]
) -> list[tuple[int, list[int]]]:
  if not messages:
    raise ValueError("a conversation needs at least one message")
  unknown = {message["role"] for message in messages} - set(ROLES)
  if unknown:
    raise ValueError(f"unknown role {sorted(unknown)[0]!r}; there are: {', '.join(ROLES)}")
  ids = dict(
    zip(ROLES, (tokenizer.system_id, tokenizer.user_id, tokenizer.assistant_id), strict=True)
  )
  texts = tokenizer.encode_batch([message["content"] for message in messages])
  return [(ids[m["role"]], text) for m, text in zip(messages, texts, strict=True)]


def _cut(
  tokenizer: Tokenizer, turns: list[tuple[int, list[int]]], room: int
) -> list[tuple[int, list[int]]]:
  over = sum(len(ids) + 2 for _, ids in turns) - room
  kept = []
  for i, (role_id, ids) in enumerate(turns):
    if over > 0:
      cut = min(over, len(ids))
      newest = i == len(turns) - 1 and role_id == tokenizer.assistant_id
      ids = ids[: len(ids) - cut] if newest else ids[cut:]
      over -= cut
      if not ids and i < len(turns) - 2:
        over -= 2
        continue
    kept.append((role_id, ids))
  if over > 0:
    raise ValueError(f"max_length={room + 1} has no room for the markers of {len(kept)} turns")
  return kept
