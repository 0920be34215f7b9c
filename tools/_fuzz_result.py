"""What came of a case, and what a refusal must look like."""

from typing import NamedTuple

from llm_jax.errors import UserError

_LONGEST = 4000  # Characters of a line that somebody reads.


class Result(NamedTuple):
  """What came of a case.

  Attributes:
    accepted: whether the input was taken.
    problem: what is wrong; "" if nothing is.
  """

  accepted: bool
  problem: str = ""


def refused(error: UserError) -> Result:
  """A refusal, which is to be one line that can be shown."""
  line = str(error)
  if not line.isprintable():
    return Result(False, f"a refusal with characters that are no text: {line[:300]!r}")
  if not line or len(line) > _LONGEST:
    return Result(False, f"a refusal of {len(line):,} characters: {line[:300]!r}")
  return Result(False)
