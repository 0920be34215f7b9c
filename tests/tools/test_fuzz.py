"""Broken weights, rows, messages and requests: some hundreds; `python -m tools.fuzz` does more."""

import collections
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from llm_jax import errors
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.errors import UserError
from llm_jax.models.interop import folder
from llm_jax.serve import openai, playground
from tools import convert_hf, fuzz
from tools._fuzz_result import Result

SEED = 20261130
ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  """(kind) -> what its cases need; each is made once."""
  made = {}

  def get(kind):
    if kind not in made:
      made[kind] = fuzz.make(kind, tmp_path_factory.mktemp(kind))
    return made[kind]

  yield get
  for one in made.values():
    one.close()


def ran(world, kind, cases, seed=SEED):
  return [*fuzz.run({kind: world(kind)}, fuzz.numbered(cases, [kind]), seed)]


def problems(done):
  return [f"case {one.number}: {one.result.problem}" for one in done if one.result.problem]


@pytest.mark.parametrize(
  ("kind", "cases"),
  [
    pytest.param("weights", 250, marks=pytest.mark.long),
    ("rows", 300),
    pytest.param("messages", 250, marks=pytest.mark.long),
    pytest.param("requests", 250, marks=pytest.mark.long),
  ],
)
def test_whatever_is_broken_is_taken_or_refused(world, kind, cases):
  done = ran(world, kind, cases)
  assert not problems(done)
  taken = sum(one.result.accepted for one in done)
  assert cases / 10 < taken < 0.9 * cases  # Else it would say little.
  again = [one for one in done if one.result.accepted][-1].number
  assert [one.result for one in fuzz.run({kind: world(kind)}, [again], SEED)] == [Result(True)]


def forged(coder, text, ids):
  """Takes "</s>" in a text for the token."""
  return ids + [coder.eos_id] * ("</s>" in text)


def lost(coder, text, ids):
  """Loses the end of a text."""
  return ids[:-1] if len(ids) > 9 else ids


def encode_wrongly(patch, wrong):
  """Has all tokenizers encode texts wrongly, those at the start of a text and those inside."""
  for name in ("encode_batch", "encode_inside"):
    own = getattr(Tokenizer, name)

    def encode(self, texts, *more, own=own):
      rows = own(self, texts, *more)
      return [wrong(self, text, ids) for text, ids in zip(texts, rows, strict=True)]

    patch.setattr(Tokenizer, name, encode)


@pytest.mark.parametrize(
  ("wrong", "message"), [(forged, "control tokens"), (lost, "text is not where it belongs")]
)
def test_an_encoder_that_lets_text_become_a_token_is_found_out_in_rows(
  world, monkeypatch, wrong, message
):
  world("rows")  # Before anything is wrong.
  encode_wrongly(monkeypatch, wrong)
  assert any(message in problem for problem in problems(ran(world, "rows", 200)))


@pytest.mark.long
def test_a_wrong_way_from_messages_to_tokens_is_found_out(world, monkeypatch):
  world("messages")  # Before anything is wrong.
  with monkeypatch.context() as patch:
    encode_wrongly(patch, forged)
    assert any("control tokens" in problem for problem in problems(ran(world, "messages", 100)))
  render = openai.chat.prompt
  only = lambda coder, talk, limit=0: render(coder, talk[-1:], limit)  # noqa: E731
  monkeypatch.setattr(openai.chat, "prompt", only)  # It forgets what was said before.
  assert any("control tokens" in problem for problem in problems(ran(world, "messages", 100)))


@pytest.mark.long
def test_a_wrong_reader_of_weights_is_found_out(world, monkeypatch):
  world("weights")  # Before anything is wrong.

  def raises(*given):
    raise KeyError("x")

  def unchecked(file, name):
    return file.read(name).astype(np.float32)

  def leaves(source, out, adapter):
    out.with_name("out.part").mkdir(exist_ok=True)
    raise UserError("no")

  cases = ran(world, "weights", 400)
  assert not problems(cases)
  for owner, name, wrong, message in (
    (folder, "floats", raises, "KeyError at "),
    (folder, "floats", unchecked, "not finite"),
    (convert_hf, "from_hf", leaves, "left ['out.part']"),
    (errors, "_line", str, "characters that are no text"),
  ):
    with monkeypatch.context() as patch:
      patch.setattr(owner, name, wrong)
      found = problems(ran(world, "weights", 400, seed=SEED + 1))
    assert any(message in problem for problem in found), (name, found)


@pytest.mark.long
def test_a_server_that_fails_is_found_out(world, monkeypatch):
  world("requests")  # Before anything is wrong.

  def raises(*given):
    raise TypeError("x")

  def failing(*given):
    raise openai.Refused("the model failed", None, 500)

  for owner, name, wrong, message in (
    (playground, "_state", raises, "TypeError at "),
    (openai, "_limit", failing, "status 500"),
    (openai.guards.Guard, "_is_token", lambda self, given: True, "without the token"),
  ):
    with monkeypatch.context() as patch:
      patch.setattr(owner, name, wrong)
      assert any(message in problem for problem in problems(ran(world, "requests", 250))), name


class Toy:
  """A world whose cases sleep, or keep memory."""

  def __init__(self, sleep=0.0, keep=0):
    self.sleep, self.keep, self.kept = sleep, keep, []

  def case(self, rng):
    time.sleep(self.sleep)
    self.kept.append(np.ones(self.keep, np.int8))
    return Result(rng.random() < 0.5)

  def close(self):
    self.kept.clear()


def test_a_case_that_hangs_is_stopped_and_named():
  begin = time.monotonic()
  (done,) = fuzz.run({"rows": Toy(sleep=60)}, [1], 0, limit=0.2)
  assert time.monotonic() - begin < 5
  assert "hangs" in done.result.problem and "test_fuzz.py" in done.result.problem
  (done,) = fuzz.run({"rows": Toy()}, [1], 0, limit=0.2)
  assert not done.result.problem


STUCK = """
import sys
from tools import fuzz
class World:
  def case(self, rng):
    sum(range(10**12))  # In C, where no handler of a signal runs.
  def close(self):
    pass
fuzz.make = lambda kind, folder: World()
sys.exit(fuzz.main(["--cases=2", "--only=rows", "--limit=0.2"]))
"""


def test_a_case_that_no_signal_stops_is_named_and_ends_the_program():
  done = subprocess.run([sys.executable, "-c", STUCK], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == -signal.SIGABRT
  assert done.stderr.startswith("case 1 hangs, and cannot be stopped") and "in case" in done.stderr


@pytest.mark.parametrize(("keep", "code"), [(2_000_000, 1), (0, 0)])
def test_memory_that_grows_is_a_problem(monkeypatch, capsys, keep, code):
  monkeypatch.setattr(fuzz, "make", lambda kind, folder: Toy(keep=keep))
  monkeypatch.setattr(fuzz, "_LEAST_WARM", 5)
  assert fuzz.main(["--cases=100", "--memory=100"]) == code
  said = capsys.readouterr().out
  assert ("memory grew by more than 100 MB" in said) == bool(code)
  lines = said.split("\n")
  assert lines[0].startswith("| kind | cases |") and lines[2].startswith("| weights | 25 |")


def test_numbers_are_of_the_same_kind_whatever_else_runs(monkeypatch, capsys):
  assert fuzz.numbered(6, fuzz.KINDS) == [0, 1, 2, 3, 4, 5]
  assert fuzz.numbered(3, ["rows"]) == [1, 5, 9] and fuzz.numbered(2, ["requests", "rows"]) == [
    3,
    1,
  ]
  counts = collections.Counter(fuzz.KINDS[n % 4] for n in fuzz.numbered(50, ["rows", "messages"]))
  assert counts == {"rows": 25, "messages": 25}
  assert fuzz.main(["--only=rows,wieghts"]) == 2
  assert "kinds are weights, rows, messages, requests" in capsys.readouterr().err
