"""A metrics.jsonl as columns: what is new is read once, and gives what reading all of it gives."""

import dataclasses
import json

from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.train import curves

_VALUES = st.one_of(
  st.none(), st.booleans(), st.integers(-5, 5), st.floats(width=32), st.just("text")
)
_ROWS = st.fixed_dictionaries(
  {"step": st.one_of(st.integers(0, 9), st.just(1.5), st.none())},
  optional={name: _VALUES for name in ("loss", "kl", curves.CLOCK)},
).map(json.dumps)
_LINES = st.one_of(_ROWS, st.sampled_from(["", "{", "[]", "[" * 5000]))


@settings(deadline=None)
@given(st.lists(st.lists(_LINES, max_size=6), max_size=4), st.integers(1, 12))
def test_a_file_that_grows_is_read_as_if_it_was_read_at_once(tmp_path_factory, parts, points):
  path = tmp_path_factory.mktemp("curves") / "metrics.jsonl"
  path.touch()
  reader, whole = curves.Reader(path), ""
  for part in parts:
    whole += "".join(line + "\n" for line in part)
    path.write_text(whole + '{"step": 3, "lo')  # The next line is on its way.
    assert reader.read(points).unreadable == curves.read_curves(path, points).unreadable
    path.write_text(whole)
    assert dataclasses.asdict(reader.read(points)) == dataclasses.asdict(
      curves.read_curves(path, points)
    )


def test_a_file_that_was_begun_again_is_read_from_its_beginning(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
  reader = curves.Reader(path)
  assert reader.read(10).series == {"loss": [2.0, 1.0]}
  path.write_text('{"step": 1, "loss": 3.0}\n')
  assert reader.read(10).series == {"loss": [3.0]} and reader.read(10).rows == 1
  path.write_text("")
  assert reader.read(10).rows == 0


def test_a_step_that_was_written_twice_keeps_its_later_row(tmp_path):
  path = tmp_path / "metrics.jsonl"
  rows = [{"step": 2, "a": 1, "b": 1}, {"step": 1, "a": 5}, {"step": 2, "a": 3}]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  found = curves.read_curves(path, 10)
  assert found.steps == [1, 2] and found.series == {"a": [5.0, 3.0], "b": [None, 1.0]}
