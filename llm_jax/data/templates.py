"""Chat templates of the published families, as data: what stands around each thing that is said.

A piece is a control token by its name, `Control("<|im_start|>")`, or text. Control tokens are
spliced in by id (see chat.py), and no text of a conversation gives one. Markers that a family
writes as text (those of Llama-2, the first Mistral, Zephyr, Vicuna and Alpaca) can be imitated by
whoever writes a message, as they can wherever these models run; only tokens are safe. The space
that SentencePiece puts before a text of its own accord is not written here.

What stands between two turns, such as ChatML's newline, is not written after the last one, where
the published templates have it: nobody learns it, and an answer that was drawn ends before it.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from llm_jax.errors import UserError, nearest

ROLES = ("system", "user", "assistant")
DEFAULT = "llm_jax"


class Control(str):
  """A control token: its own name, or "bos", "eos", "system", "user", "assistant", "end"."""

  __slots__ = ()


Pieces = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Turn:
  """What stands around a text.

  Attributes:
    opens: before it; an assistant's makes the assistant speak.
    closes: after it; an assistant's ends with the control token at which the sampler stops.
    then: between this turn and what follows it.
  """

  opens: Pieces = ()
  closes: Pieces = ()
  then: Pieces = ()


@dataclasses.dataclass(frozen=True)
class Template:
  """How a conversation is written.

  Attributes:
    source: the paper, model card or program that has it.
    opens: before everything.
    system: turn of a system message, or what stands around it inside a user's turn.
    user: turn of a user.
    assistant: turn of an assistant.
    lead: text in front of what the assistant says, said by it.
    folded: "": system messages have turns of their own; "next": they are put inside the user's turn
      that follows; "last": inside the last user's turn.
    strip: whether white space around messages is taken off.
    default_system: text of the system message where a conversation begins without one; "": none.
  """

  source: str
  opens: Pieces
  system: Turn
  user: Turn
  assistant: Turn
  lead: str = ""
  folded: str = ""
  strip: bool = False
  default_system: str = ""

  def turn(self, role: str) -> Turn:
    """Returns the turn of a role of `ROLES`."""
    return getattr(self, role)

  def end(self) -> str:
    """Returns the control token that ends what an assistant says."""
    return self.assistant.closes[-1]

  def pieces(self) -> list[str]:
    """Returns all pieces, some of them more than once."""
    turns = [self.turn(role) for role in ROLES]
    around = [piece for t in turns for piece in (*t.opens, *t.closes, *t.then)]
    return [*self.opens, *around, *(text for text in (self.lead, self.default_system) if text)]

  def controls(self) -> list[str]:
    """Returns the control tokens that the family itself names, in order."""
    found = [p for p in self.pieces() if isinstance(p, Control) and p not in _ROLE_TOKENS]
    return list(dict.fromkeys(found))

  def arranged(self, messages: Sequence[Mapping[str, str]]) -> list[tuple[str, str]]:
    """Returns (role, text) in the order in which they are written, defaults included."""
    said = [(m["role"], m["content"].strip() if self.strip else m["content"]) for m in messages]
    if self.default_system and said[0][0] != "system":
      said.insert(0, ("system", self.default_system))
    users = [i for i, (role, _) in enumerate(said) if role == "user"]
    if self.folded == "last" and users:
      before = said[: users[-1]]
      systems = [turn for turn in before if turn[0] == "system"]
      said = [turn for turn in before if turn[0] != "system"] + systems + said[users[-1] :]
    return said


BOS, EOS = Control("bos"), Control("eos")
_ROLE_TOKENS = ("bos", "eos", *ROLES, "end")


def _alike(write: Callable[[str], Turn]) -> tuple[Turn, Turn, Turn]:
  """Returns the turns of a family in which the roles differ in their names only."""
  return write("system"), write("user"), write("assistant")


def _chatml(role: str) -> Turn:
  return Turn((Control("<|im_start|>"), f"{role}\n"), (Control("<|im_end|>"),), ("\n",))


def _llama_3(role: str) -> Turn:
  head = Control("<|start_header_id|>"), role, Control("<|end_header_id|>"), "\n\n"
  return Turn(head, (Control("<|eot_id|>"),))


def _gemma(role: str) -> Turn:
  return Turn((Control("<start_of_turn>"), f"{role}\n"), (Control("<end_of_turn>"),), ("\n",))


TEMPLATES: dict[str, Template] = {
  "llm_jax": Template(
    "this project: control tokens only",
    (BOS,),
    *_alike(lambda role: Turn((Control(role),), (Control("end"),))),
  ),
  "llama-2": Template(
    "Touvron et al., arXiv:2307.09288; generation.py of Meta's llama, which begins every question "
    "with a bos and, since August 2023, has no default system text",
    (BOS,),
    Turn(("<<SYS>>\n",), ("\n<</SYS>>\n\n",)),
    Turn(("[INST] ",), (" [/INST]",)),
    Turn((), (" ", EOS), (BOS,)),
    lead=" ",
    folded="next",
    strip=True,
  ),
  "llama-3": Template(
    "Llama 3 model card and prompt format (Meta, 2024); 3.1 writes a date into its system message, "
    "which is the caller's to give",
    (BOS,),
    *_alike(_llama_3),
    strip=True,
  ),
  "chatml": Template(
    "ChatML (OpenAI, 2023), as Qwen and MPT-chat have it; their default system texts differ "
    '(Qwen2: "You are a helpful assistant."; Qwen3: none), so there is none here',
    (),
    *_alike(_chatml),
  ),
  "zephyr": Template(
    "Tunstall et al., arXiv:2310.16944; model card of zephyr-7b-beta. Its markers are text. The "
    "card shows no bos; the alignment handbook trained with the one that the tokenizer puts first",
    (BOS,),
    *_alike(lambda role: Turn((f"<|{role}|>\n",), (EOS,), ("\n",))),
  ),
  "tulu": Template(
    "Wang et al., arXiv:2306.04751, and the model cards of Tulu 2: as Zephyr's, but only what the "
    "assistant says is ended by the eos",
    (BOS,),
    Turn(("<|system|>\n",), (), ("\n",)),
    Turn(("<|user|>\n",), (), ("\n",)),
    Turn(("<|assistant|>\n",), (EOS,), ("\n",)),
  ),
  "vicuna": Template(
    'conversation "vicuna_v1.1" of FastChat (Zheng et al., arXiv:2306.05685), whose system text is '
    "the default; its tokenizer puts the bos first",
    (BOS,),
    Turn((), (), (" ",)),
    Turn(("USER: ",), (), (" ",)),
    Turn(("ASSISTANT:",), (EOS,)),
    lead=" ",
    default_system="A chat between a curious user and an artificial intelligence assistant. The "
    "assistant gives helpful, detailed, and polite answers to the user's questions.",
  ),
  "alpaca": Template(
    'train.py of Stanford Alpaca (Taori et al., 2023), "prompt_no_input"; further turns follow the '
    "end of an answer as FastChat has it. A system message replaces the preamble",
    (BOS,),
    Turn((), (), ("\n\n",)),
    Turn(("### Instruction:\n",), (), ("\n\n",)),
    Turn(("### Response:",), (EOS,)),
    default_system="Below is an instruction that describes a task. Write a response that "
    "appropriately completes the request.",
  ),
  "mistral": Template(
    "Jiang et al., arXiv:2310.06825; mistral-common, tokenizer v1: the markers are text, and a "
    "system message stands in the first question",
    (BOS,),
    Turn((), ("\n\n",)),
    Turn(("[INST] ",), (" [/INST]",)),
    Turn((), (EOS,)),
    lead=" ",
    folded="next",
    strip=True,
  ),
  "mistral-v3": Template(
    "mistral-common, tokenizers v2 and v3 (Mistral-7B-Instruct-v0.3): the markers are tokens, and "
    "a system message stands in the last question",
    (BOS,),
    Turn((), ("\n\n",)),
    Turn((Control("[INST]"), " "), (Control("[/INST]"),)),
    Turn((), (EOS,)),
    lead=" ",
    folded="last",
    strip=True,
  ),
  "gemma": Template(
    "Gemma Team, arXiv:2403.08295, formatting and control tokens; a system message as in the "
    "template of Gemma 3's model card, as Gemma has no such turn",
    (BOS,),
    Turn((), ("\n\n",)),
    _gemma("user"),
    _gemma("model"),
    folded="next",
    strip=True,
  ),
}


def names() -> list[str]:
  """Returns the names of all templates."""
  return list(TEMPLATES)


def get(name: str) -> Template:
  """Returns the template of a name.

  Raises:
    UserError: if there is none.
  """
  if name not in TEMPLATES:
    raise UserError(f'there is no chat template "{name}"{nearest(name, TEMPLATES)}')
  return TEMPLATES[name]


def detected(vocabulary: Mapping[str, int]) -> str:
  """Returns the template whose own control tokens a vocabulary has; "llm_jax" where none fits.

  Only families that have such tokens can be told: those that write their markers as text, as
  Llama-2's, must be named.
  """
  if all(f"<|{name}|>" in vocabulary for name in (*ROLES, "end")):
    return DEFAULT
  for name, template in TEMPLATES.items():
    controls = template.controls()
    if controls and all(control in vocabulary for control in controls):
      return name
  return DEFAULT
