"""How a test names the faults that a process is to do to itself: the words, not the deeds.

    LLM_JAX_TESTING=1 LLM_JAX_FAULT=kill@step:7

A fault is KIND@PLACE:N, several are separated by commas; it happens once, in the first process:

    kill, term, hang @ step:N          before update N: SIGKILL, SIGTERM, or no end
    kill, term, enospc @ save:N        in the N-th save of the process; enospc: the disk is full
    kill, enospc @ commit:N            in the N-th save, once it is committed and not hashed yet
    nan, spike @ step:N                update N has a loss that is no number, or far too high
    clock_jump @ step:N                from update N on the clock is a day behind
    bitflip, truncate @ latest         the newest checkpoint is damaged before it is read
    worker_kill @ task:N               the data worker that has the N-th task gets SIGKILL

train/faults.py does what happens in training, data/workers.py what happens to workers.
"""

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from llm_jax.errors import UserError

FAULT, TESTING = "LLM_JAX_FAULT", "LLM_JAX_TESTING"
PLACES = {
  "step": ("kill", "term", "hang", "nan", "spike", "clock_jump"),
  "save": ("kill", "term", "enospc"),
  "commit": ("kill", "enospc"),
  "latest": ("bitflip", "truncate"),
  "task": ("worker_kill",),
}
_SPEC = re.compile(r"(\w+)@(\w+)(?::(\d+))?")


class Fault(NamedTuple):
  """What is to happen, where, and at which count of it."""

  kind: str
  place: str
  number: int


def parse(text: str) -> list[Fault]:
  """Returns the faults of a spec.

  Raises:
    UserError: for an unknown one.
  """
  found = []
  for part in filter(None, text.split(",")):
    match = _SPEC.fullmatch(part.strip())
    if not match or match[1] not in PLACES.get(match[2], ()):
      known = ", ".join(f"{k}@{place}" for place, kinds in PLACES.items() for k in kinds)
      raise UserError(f"{FAULT}={text}: {part} is none of {known}, with :N where it counts")
    found.append(Fault(match[1], match[2], int(match[3] or 1)))
  return found


def asked(environ: Mapping[str, str] = os.environ) -> list[Fault]:
  """Returns the faults that a process's environment asks for; none, unless it is tested.

  Raises:
    UserError: for an unknown fault, or one outside of tests.
  """
  text = environ.get(FAULT, "")
  if text and environ.get(TESTING) != "1":
    raise UserError(f"{FAULT}={text} is for tests alone: unset it, or set {TESTING}=1 too")
  return parse(text)
