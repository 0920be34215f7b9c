"""Text in pieces is the text: no half characters, no beginnings of stop texts."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.data.tokenizer import Tokenizer
from llm_jax.serve.wording import Wording


class Bytes:
  """A tokenizer whose tokens are bytes, decoded as a model's are: halves become U+FFFD."""

  byte_ids = {}

  def decode(self, ids):
    return bytes(ids).decode("utf-8", "replace")


def pieces(text, stops=(), sizes=(1,), prompt=""):
  ids = list(text.encode())
  wording = Wording(Bytes(), list(prompt.encode()), stops)
  shown, at, k = [], 0, 0
  while at < len(ids):
    size = sizes[k % len(sizes)]
    shown.append(wording.add(ids[at : at + size], last=at + size >= len(ids)))
    at, k = at + size, k + 1
  return wording, shown


@settings(max_examples=200, deadline=None)
@given(
  st.text(max_size=20), st.lists(st.integers(1, 5), min_size=1, max_size=4), st.text(max_size=12)
)
def test_pieces_add_up_to_the_text(text, sizes, prompt):
  wording, shown = pieces(text, sizes=sizes, prompt=prompt)
  assert "".join(shown) == wording.text == text


@settings(max_examples=200, deadline=None)
@given(
  st.text("abc", max_size=20),
  st.lists(st.text("abc", min_size=1, max_size=3), max_size=2),
  st.lists(st.integers(1, 5), min_size=1, max_size=4),
)
def test_nothing_from_a_stop_text_on_is_shown(text, stops, sizes):
  wording, shown = pieces(text, stops, sizes)
  places = [text.find(stop) for stop in stops if stop in text]
  # Where two stop texts come in one piece the first of them counts; else the one that comes first.
  assert "".join(shown) == wording.text
  assert not places or wording.stopped
  if places and len(stops) == 1:
    assert wording.text == text[: places[0]]
  if not places:
    assert wording.text == text
  assert not any(stop in wording.text for stop in stops)


@pytest.fixture(scope="session")
def coder(prepared):
  return Tokenizer.load(prepared / "tokenizer")


class Runs(Bytes):
  """Tokens from 256 on are words; of bytes side by side that are no text, none is one."""

  byte_ids = {i: i for i in range(256)}

  def decode(self, ids):
    parts = []
    for own, run in itertools.groupby(ids, lambda i: i < 256):
      run = list(run)
      try:
        parts.append(bytes(run).decode() if own else "".join(f" w{i}" for i in run))
      except UnicodeDecodeError:
        parts.append("\ufffd" * len(run))
    return "".join(parts)[:1].replace(" ", "") + "".join(parts)[1:]


def whole(tokenizer, prompt, ids):
  context = list(prompt[-8:])
  return tokenizer.decode([*context, *ids])[len(tokenizer.decode(context)) :]


TOKENS = st.one_of(st.integers(256, 259), st.integers(0, 255), st.sampled_from(b"a \xe2\x82\xac"))


@settings(max_examples=300, deadline=None)
@given(st.lists(TOKENS, max_size=12), st.lists(st.lists(TOKENS, max_size=9), max_size=9))
def test_what_is_decoded_bit_by_bit_is_what_is_decoded_at_once(prompt, parts):
  wording, ids = Wording(Runs(), prompt), []
  for part in parts:
    wording.add(part)
    ids += part
    assert wording.text == whole(Runs(), prompt, ids)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_the_same_with_pieces_of_words(coder, data):
  tokens = st.one_of(
    st.integers(0, coder.vocab_size + 1), st.sampled_from([*coder.byte_ids, *coder.control]),
    st.sampled_from(coder.encode("€ a   \n\n  b\u2581")),
  )  # fmt: skip
  prompt = data.draw(st.lists(tokens, max_size=12))
  wording, ids = Wording(coder, prompt), []
  for part in data.draw(st.lists(st.lists(tokens, max_size=9), max_size=9)):
    wording.add(part)
    ids += part
    assert wording.text == whole(coder, prompt, ids)


def test_only_the_end_of_a_long_answer_is_decoded():
  class Counted(Bytes):
    seen = 0

    def decode(self, ids):
      self.seen += len(list(ids))
      return super().decode(ids)

  tokenizer = Counted()
  wording = Wording(tokenizer)
  for _ in range(100):
    wording.add(list(b"abcd"))
  assert wording.text == "abcd" * 100 and tokenizer.seen < 100 * 24


def test_half_a_character_waits():
  wording = Wording(Bytes())
  euro = list("€".encode())
  assert [wording.add(euro[:1]), wording.add(euro[1:2]), wording.add(euro[2:])] == ["", "", "€"]
  assert wording.add(euro[:1], last=True) == "\ufffd"


@pytest.mark.parametrize("text", ["plain", "a€b", "€€"])
def test_spans_cover_the_text(text):
  wording, _ = pieces(text)
  spans = wording.spans()
  assert len(spans) == len(text.encode())
  assert "".join(part for part, _ in spans) == text
  assert [text[at : at + len(part)] for part, at in spans] == [part for part, _ in spans]
