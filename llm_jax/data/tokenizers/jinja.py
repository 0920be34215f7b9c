"""Chat templates as Jinja, which Hugging Face's libraries run: made from the data that chat.py has.

What the assistant says is marked for their loss mask (`{% generation %}`), as ours counts it.
"""

from collections.abc import Sequence

from llm_jax.data import templates
from llm_jax.data.templates import ROLES, Control, Template, Turn
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.errors import UserError


def chat_template(tokenizer: Tokenizer) -> str:
  """Returns the template of a tokenizer.

  Raises:
    UserError: if text of the template spells a control token of the tokenizer: those libraries
      would read it as the token.
  """
  template = templates.get(tokenizer.template)
  for piece in template.pieces():
    for name in tokenizer.control_names:
      if not isinstance(piece, Control) and name in piece:
        raise UserError(
          f'the chat template "{tokenizer.template}" writes {name} as text, which is a control '
          "token of this tokenizer: Hugging Face's libraries cannot tell them apart"
        )
  return _Writer(tokenizer, template).whole()


class _Writer:
  """Writes one template in the spelling of one tokenizer."""

  def __init__(self, tokenizer: Tokenizer, template: Template):
    self._tokenizer, self._template = tokenizer, template

  def whole(self) -> str:
    """Returns the Jinja text."""
    template = self._template
    text = "message['content'] | trim" if template.strip else "message['content']"
    parts = ["{% set ns = namespace(between='', inside=false) %}", *self._messages()]
    parts += [_shown(self._text(template.opens)), "{% for message in messages %}"]
    parts.append(f"{{% set text = {text} %}}")
    for i, role in enumerate(ROLES):
      parts.append(f"{{% {'elif' if i else 'if'} message['role'] == '{role}' %}}")
      parts += self._turn(role)
    parts.append("{% else %}{{ raise_exception('unknown role ' + message['role']) }}{% endif %}")
    parts += ["{% endfor %}", *self._leave(), "{% if add_generation_prompt %}"]
    parts += [_shown("ns.between", self._text(template.assistant.opens)), "{% endif %}"]
    return "".join(parts)

  def _messages(self) -> list[str]:
    """The messages in the order in which they are written: see `Template.arranged`."""
    parts = []
    if self._template.default_system:
      first = f"[{{'role': 'system', 'content': {_quoted(self._template.default_system)}}}]"
      parts.append(
        f"{{% if messages[0]['role'] != 'system' %}}{{% set messages = {first} + messages %}}"
        "{% endif %}"
      )
    if self._template.folded == "last":
      systems = "attr('role', 'equalto', 'system') | list"
      parts.append(
        "{% set ns.last = -1 %}{% for message in messages %}{% if message['role'] == 'user' %}"
        "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% if ns.last > 0 %}"
        f"{{% set messages = (messages[:ns.last] | reject{systems})"
        f" + (messages[:ns.last] | select{systems}) + messages[ns.last:] %}}{{% endif %}}"
      )
    return parts

  def _turn(self, role: str) -> list[str]:
    template, turn = self._template, self._template.turn(role)
    opens = _shown("ns.between", self._text(turn.opens))
    closes, between = self._text(turn.closes), self._between(turn)
    if role == "assistant":
      lead = self._text((template.lead,), turn.opens if turn.opens else template.user.closes)
      said = _shown(lead, "text", closes)
      return [*self._leave(), opens, "{% generation %}", said, "{% endgeneration %}", between]
    if not template.folded:
      return [opens, _shown("text", closes), between]
    user = _shown("ns.between", self._text(template.user.opens))
    opens = self._text(turn.opens) if role == "system" else "''"
    inside = "true" if role == "system" else "false"
    return [
      "{% if not ns.inside %}", user, "{% endif %}", _shown(opens, "text", closes),
      f"{{% set ns.inside = {inside} %}}", between,
    ]  # fmt: skip

  def _leave(self) -> list[str]:
    """Closes a user's turn that system messages alone have opened."""
    if not self._template.folded:
      return []
    user = self._template.user
    return [
      "{% if ns.inside %}", _shown(self._text(user.closes)), "{% set ns.inside = false %}",
      self._between(user), "{% endif %}",
    ]  # fmt: skip

  def _between(self, turn: Turn) -> str:
    return f"{{% set ns.between = {self._text(turn.then)} %}}"

  def _text(self, pieces: Sequence[str], before: Sequence[str] = ()) -> str:
    """Returns pieces as one literal; `before` says what precedes them.

    Where the tokenizer itself puts a space before a text that follows a control token, one that the
    template writes there is the same.
    """
    text, last = "", before[-1] if before else ""
    for piece in pieces:
      if isinstance(piece, Control):
        i = self._tokenizer.control_id(piece, self._tokenizer.template)
        text += self._tokenizer.token(i)
      else:
        own = self._tokenizer.spaced and isinstance(last, Control)
        text += piece.removeprefix(" ") if own else piece
      last = piece
    return _quoted(text)


def _shown(*expressions: str) -> str:
  """Prints expressions one after another; those that are empty literals are left out."""
  parts = [part for part in expressions if part != "''"]
  return f"{{{{ {' + '.join(parts)} }}}}" if parts else ""


def _quoted(text: str) -> str:
  escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
  return f"'{escaped}'"
