"""Sums in words: every answer is right, and nothing that is held out was asked in training."""

import pytest

from llm_jax.data import arithmetic
from llm_jax.errors import UserError

ALL = {"largest": 30, "operations": arithmetic.OPERATIONS}
# Read by another rule than they are written: every word has a value, "hundred" multiplies.
UNITS = (
  "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
  "sixteen seventeen eighteen nineteen"
).split()
VALUES = {word: value for value, word in enumerate(UNITS)} | {
  word: 10 * tens
  for tens, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)
}


def read(text):
  total = 0
  for word in text.split():
    total = 100 * total if word == "hundred" else total + VALUES[word]
  return total


def test_words_name_their_number_and_no_other():
  assert [read(arithmetic.words(number)) for number in range(1000)] == list(range(1000))
  assert arithmetic.words(0) == "zero" and arithmetic.words(115) == "one hundred fifteen"
  assert arithmetic.words(40) == "forty" and arithmetic.words(999) == "nine hundred ninety nine"
  for number in (-1, 1000):
    with pytest.raises(ValueError, match=str(number)):
      arithmetic.words(number)


def evaluated(question):
  """The result of a question, from its words alone."""
  said = question.removeprefix("What is ").removesuffix("?")
  (name,) = set(said.split()) & set(arithmetic.OPERATIONS)
  left, right = map(read, said.split(name))
  return {"plus": left + right, "minus": left - right, "times": left * right}[name]


@pytest.mark.parametrize("operation", arithmetic.OPERATIONS)
def test_every_answer_is_right(operation):
  for problem in sum(arithmetic.split(80, 20, largest=30, operations=[operation]), []):
    assert operation in problem.question.split()
    assert read(problem.answer) == evaluated(problem.question) >= 0


@pytest.mark.parametrize("seed", range(5))
def test_no_question_and_no_twin_of_it_is_on_both_sides(seed):
  train, held_out = arithmetic.split(1000, 200, seed=seed, **ALL)
  asked = {problem.question for problem in train}
  assert (len(asked), len({p.question for p in held_out})) == (1000, 200)
  for left, operation, right in held_out:
    assert arithmetic.Problem(left, operation, right).question not in asked
    if operation != "minus":
      assert arithmetic.Problem(right, operation, left).question not in asked


def test_a_seed_draws_the_same_and_another_one_others():
  drawn = [arithmetic.split(100, 50, seed=seed, **ALL) for seed in (3, 3, 4)]
  assert drawn[0] == drawn[1]
  assert set(drawn[0][1]) != set(drawn[2][1])
  texts = [[*arithmetic.counting(20, largest=30, seed=seed)] for seed in (3, 3, 4)]
  assert texts[0] == texts[1] != texts[2]


def test_texts_count_and_say_no_sums():
  for text in arithmetic.counting(200, largest=70):
    numbers = [read(part) for part in text.removesuffix(".").split(", ")]
    steps = {b - a for a, b in zip(numbers, numbers[1:], strict=False)}
    assert len(steps) <= 1 and steps <= {1, -1, 10, -10} and 0 <= min(numbers) <= max(numbers) <= 70


def test_operands_stay_in_their_bounds():
  for left, operation, right in sum(arithmetic.split(1400, 100, **ALL), []):
    assert max(left, right) <= (arithmetic.LARGEST_FACTOR if operation == "times" else 30)
    assert operation != "minus" or right <= left


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"train": 0}, "--train must be at least 1, got 0"),
    ({"seed": -1}, "--seed must be at least 0"),
    ({"largest": 500}, "--largest must be from 1 to 499, got 500"),
    ({"operations": ()}, "--operations must name each once, got none"),
    ({"operations": ("plus", "plus")}, "each once, got plus,plus"),
    ({"operations": ("plos",)}, 'there is no "plos"; did you mean "plus"?'),
    ({"train": 100_000}, "more than the"),
  ],
)
def test_what_cannot_be_is_one_line(change, message):
  with pytest.raises(UserError) as caught:
    arithmetic.split(**{"train": 10, "validation": 5, **ALL, **change})
  assert message in str(caught.value) and "\n" not in str(caught.value)
