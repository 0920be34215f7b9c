"""Sums in words, a task whose answers can be checked: "What is seventeen plus twenty five?".

Questions that are the same sum, "two plus three" and "three plus two", are on one side of the
split, so what is held out was never asked in training, in neither order.
"""

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from llm_jax.errors import UserError, nearest

OPERATIONS = ("plus", "minus", "times")
LARGEST_FACTOR = 12  # Of "times", whatever the largest operand is.
_LIMIT = 499  # The largest operand: sums then have words.

_SMALL = (
  "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
  "sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


class Problem(NamedTuple):
  """Two operands of an operation.

  Attributes:
    left: at least 0.
    operation: of OPERATIONS.
    right: at least 0; of "minus" at most `left`.
  """

  left: int
  operation: str
  right: int

  @property
  def question(self) -> str:
    """What the user says."""
    return f"What is {words(self.left)} {self.operation} {words(self.right)}?"

  @property
  def value(self) -> int:
    """What is right."""
    if self.operation == "minus":
      return self.left - self.right
    return self.left * self.right if self.operation == "times" else self.left + self.right

  @property
  def answer(self) -> str:
    """What is right, in words."""
    return words(self.value)

  @property
  def same(self) -> tuple[str, int, int]:
    """What it has in common with its twin, the same operands in the other order."""
    if self.operation == "minus":
      return self.operation, self.left, self.right
    return self.operation, *sorted((self.left, self.right))


def words(number: int) -> str:
  """Returns 0 to 999 in words, without "and" and without hyphens.

  Raises:
    ValueError: for any other number.
  """
  if not 0 <= number < 1000:
    raise ValueError(f"numbers from 0 to 999 have words here, not {number}")
  hundreds, rest = divmod(number, 100)
  said = [f"{_SMALL[hundreds]} hundred"] if hundreds else []
  if rest >= 20:
    said.append(_TENS[rest // 10 - 2])
    rest %= 10
    if rest:
      said.append(_SMALL[rest])
  elif rest or not hundreds:
    said.append(_SMALL[rest])
  return " ".join(said)


def split(
  train: int, validation: int, *, largest: int, operations: Sequence[str], seed: int = 0
) -> tuple[list[Problem], list[Problem]]:
  """Draws problems, none twice, and no problem or twin of it on both sides.

  Args:
    train: how many to learn from.
    validation: how many are held out.
    largest: operand, of plus and minus.
    operations: of OPERATIONS.
    seed: of the draw; the same one gives the same problems in the same order.

  Raises:
    UserError: if there are not so many, or an argument cannot be.
  """
  _check(train, validation, largest, operations, seed)
  rng = random.Random(seed)
  groups: dict[tuple[str, int, int], list[Problem]] = {}
  for problem in _all(largest, operations):
    groups.setdefault(problem.same, []).append(problem)
  order = list(groups.values())
  rng.shuffle(order)
  sides: tuple[list[Problem], list[Problem]] = ([], [])
  for group in order:
    side, most = (sides[1], validation) if len(sides[1]) < validation else (sides[0], train)
    side += group[: most - len(side)]
  if len(sides[0]) < train:
    raise UserError(
      f"--train={train} and --validation={validation} are more than the {sum(map(len, order))} "
      f"problems with operands up to {largest}, twins on one side: {len(sides[0])} are left to "
      "train; ask for fewer, or a larger --largest"
    )
  for side in sides:
    rng.shuffle(side)
  return sides


def counting(documents: int, *, largest: int, seed: int = 0) -> Iterator[str]:
  """Yields texts that count by ones and tens, up and down, and say no sums.

  Args:
    documents: how many.
    largest: number in them.
    seed: of the draw.
  """
  rng = random.Random(f"counting {seed}")
  for _ in range(documents):
    start, step = rng.randint(0, largest), rng.choice((1, -1, 10, -10))
    numbers = range(start, largest + 1 if step > 0 else -1, step)[: rng.randint(4, 12)]
    yield f"{', '.join(map(words, numbers))}."


def _all(largest: int, operations: Sequence[str]) -> Iterator[Problem]:
  for operation in operations:
    most = min(largest, LARGEST_FACTOR) if operation == "times" else largest
    for left in range(most + 1):
      for right in range((left if operation == "minus" else most) + 1):
        yield Problem(left, operation, right)


def _check(train: int, validation: int, largest: int, operations: Sequence[str], seed: int) -> None:
  for name, value, least in (("train", train, 1), ("validation", validation, 1), ("seed", seed, 0)):
    if value < least:
      raise UserError(f"--{name} must be at least {least}, got {value}")
  if not 1 <= largest <= _LIMIT:
    raise UserError(f"--largest must be from 1 to {_LIMIT}, got {largest}")
  if not operations or len(set(operations)) < len(operations):
    raise UserError(f"--operations must name each once, got {','.join(operations) or 'none'}")
  for name in operations:
    if name not in OPERATIONS:
      raise UserError(f'--operations: there is no "{name}"{nearest(name, OPERATIONS)}')
