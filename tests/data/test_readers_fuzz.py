"""Broken inputs: a few hundred of them a time; tools/fuzz_readers.py takes thousands."""

import collections

import pytest

from tools import fuzz_readers

RUNS = 72 * 6  # Each of nine inputs, each of eight accidents, six times.


def test_every_record_of_a_broken_file_is_read_or_lost_or_skipped(tmp_path):
  problems, seen = [], collections.Counter()
  for number, what, how, outcome in fuzz_readers.run(RUNS, 20261125, tmp_path):
    seen[what, how] += 1
    if outcome.problem:
      problems.append(f"run {number}: {what}, {how}: {outcome.problem}")
  assert not problems
  assert len(seen) == 72 and set(seen.values()) == {6}


def test_the_same_seed_breaks_the_same_bytes(tmp_path):
  def counts(seed):
    found = fuzz_readers.run(40, seed, tmp_path)
    return [(o.read, o.lost, o.skipped) for _, _, _, o in found]

  assert counts(1) == counts(1) != counts(2)


def test_whole_inputs_are_read_to_the_last_record(tmp_path):
  for given in fuzz_readers.inputs():
    out = fuzz_readers.check(given, "none", given.data, tmp_path)
    assert (out.lost, out.missing, out.changed, out.problem) == (0, 0, 0, ""), given.name
    assert out.read + out.skipped == given.count and out.read == len(given.bodies)


@pytest.mark.parametrize("wrong", ["raises", "swallows", "counts twice"])
def test_a_wrong_reader_is_found_out(tmp_path, monkeypatch, wrong):
  right = fuzz_readers.crawl.read

  def read(path, lost=None, **options):
    if wrong == "raises":
      raise KeyError("x")
    if wrong == "counts twice" and lost:
      lost(fuzz_readers.crawl.Lost("x", "byte 1", "no reason"))
    yield from right(path, lost=(lambda item: None) if wrong == "swallows" else lost, **options)

  monkeypatch.setattr(fuzz_readers.crawl, "read", read)
  assert any(o.problem for *_, o in fuzz_readers.run(72, 3, tmp_path))


def test_the_tool_prints_a_table(capsys):
  assert fuzz_readers.main(["--runs=9"]) == 0
  lines = capsys.readouterr().out.strip().split("\n")
  assert len(lines) == 11 and lines[0].startswith("| input | runs | read |")
