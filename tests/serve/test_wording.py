"""Text in pieces is the text: no half characters, no beginnings of stop texts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.serve.wording import Wording


class Bytes:
  """A tokenizer whose tokens are bytes, decoded as a model's are: halves become U+FFFD."""

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
