"""What pages may ask for, checked: every text, number and list has a bound."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

_Text = Annotated[str, Field(max_length=20_000)]
_Name = Annotated[str, Field(max_length=200)]


class _Asked(BaseModel):
  model_config = ConfigDict(extra="forbid")


class Tokenize(_Asked):
  """A text to cut into tokens."""

  text: _Text


class NextToken(_Asked):
  """A context whose next token is wanted.

  Attributes:
    text: what was typed.
    appended: tokens that follow it.
    chat: whether the text is a question, and the tokens the beginning of its answer.
    draw: in [0, 1), what the next token is drawn with.
  """

  model: _Name
  text: _Text
  appended: list[Annotated[int, Field(ge=0)]] = Field(default=[], max_length=1024)
  chat: bool = False
  temperature: float = Field(1.0, ge=0.05, le=5)
  top_p: float = Field(1.0, gt=0, le=1)
  draw: float = Field(0.0, ge=0, lt=1)
  top: int = Field(24, ge=1, le=100)


class Compare(_Asked):
  """A prompt for several models."""

  prompt: _Text = Field(min_length=1)
  models: list[_Name] = Field(min_length=1, max_length=8)
  reference: _Name = ""
  temperature: float = Field(0.7, ge=0, le=5)
  top_p: float = Field(1.0, gt=0, le=1)
  max_tokens: int = Field(64, ge=1)
  seed: int = Field(0, ge=0, lt=1 << 32)


class Judge(_Asked):
  """Two answers for a reward model."""

  model: _Name
  prompt: _Text = Field(min_length=1)
  answers: list[_Text] = Field(min_length=2, max_length=2)


class Vote(_Asked):
  """Two answers, and the better one's number."""

  prompt: _Text = Field(min_length=1)
  answers: list[Annotated[str, Field(min_length=1, max_length=20_000)]] = Field(
    min_length=2, max_length=2
  )
  better: Literal[0, 1]


class Plan(_Asked):
  """A budget; of `params`, `tokens` and `days` two, or days alone."""

  law: _Name = "besiroglu"
  device: _Name = "H100"
  devices: int = Field(1, ge=1, le=10_000_000)
  mfu: float = Field(0.4, gt=0, le=1)
  price: float = Field(0.0, ge=0, le=1e6)
  params: float = Field(0.0, ge=0, le=1e18)
  tokens: float = Field(0.0, ge=0, le=1e18)
  days: float = Field(0.0, ge=0, le=1e6)
