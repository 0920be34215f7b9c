"""What clients of OpenAI's interface may ask for, checked."""

import secrets
from typing import Annotated, Any, Literal

from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StrictInt, model_validator

from llm_jax.serve import guards
from llm_jax.serve.models import Served

_SEEDS = 1 << 32
_TOP = 20
_Stop = Annotated[str, Field(max_length=256)]


class Asked(BaseModel):
  """What both kinds of request have. Fields that say nothing about the answer are let pass."""

  model_config = ConfigDict(extra="forbid")

  @model_validator(mode="before")
  @classmethod
  def _without_nulls(cls, given: Any) -> Any:
    """A field that is null is a field that is not there."""
    if isinstance(given, dict):
      return {name: value for name, value in given.items() if value is not None}
    return given

  model: str
  temperature: float = Field(1.0, ge=0, le=10)
  top_p: float = Field(1.0, gt=0, le=1)
  top_k: int = Field(0, ge=0)  # Not OpenAI's; others have it.
  n: int = Field(1, ge=1, le=32)
  stop: _Stop | Annotated[list[_Stop], Field(max_length=16)] | None = None
  seed: StrictInt | None = None
  stream: bool = False
  stream_options: dict[str, bool | None] | None = None
  presence_penalty: float = Field(0.0, ge=0, le=0)  # None is implemented.
  frequency_penalty: float = Field(0.0, ge=0, le=0)
  user: str | None = None
  metadata: dict[str, str] | None = None
  store: bool | None = None

  def stops(self) -> list[str]:
    """The texts that end an answer."""
    return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

  def root(self) -> int:
    """The seed of all answers."""
    return secrets.randbelow(_SEEDS) if self.seed is None else self.seed % _SEEDS


class Completion(Asked):
  """A text, or token ids, to go on with."""

  prompt: str | list[str] | list[StrictInt] | list[list[StrictInt]]
  max_tokens: int | None = Field(None, ge=0)
  echo: bool = False
  logprobs: int | None = Field(None, ge=0, le=5)

  def prompts(self, served: Served) -> list[list[int]]:
    """The tokens of each prompt; a text begins a document.

    Raises:
      Refused: if there are ids of no token.
    """
    given = self.prompt
    if isinstance(given, str) or (given and isinstance(given[0], int)):
      given = [given]
    found = []
    for one in given:
      if isinstance(one, str):
        found.append([served.tokenizer.bos_id, *served.tokenizer.encode(one)])
      else:
        if not all(0 <= i < served.tokenizer.vocab_size for i in one):
          raise Refused(f"token ids are 0 to {served.tokenizer.vocab_size - 1}", "prompt")
        found.append(list(one))
    return found


class Message(BaseModel):
  """One turn."""

  model_config = ConfigDict(extra="forbid")

  role: Literal["system", "user", "assistant"]
  content: str
  name: str | None = None


class Chat(Asked):
  """A conversation to answer."""

  messages: list[Message] = Field(min_length=1, max_length=256)
  max_tokens: int | None = Field(None, ge=1)
  max_completion_tokens: int | None = Field(None, ge=1)
  logprobs: bool = False
  top_logprobs: int = Field(0, ge=0, le=_TOP)


FIELDS = {*Completion.model_fields, *Chat.model_fields, *Message.model_fields}


class Refused(Exception):
  """A request that is answered with an error."""

  def __init__(self, message: str, param: str | None = None, status: int = 400):
    super().__init__(message)
    self.response = JSONResponse(guards.error(message, status, param), status)
