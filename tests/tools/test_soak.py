"""The soak: its flags are checked, what differs is a problem, and it leaves no run behind."""

import time
from typing import NamedTuple

import pytest

from tools import soak


def words(folder, **flags):
  return [f"--workdir={folder}", *(f"--{k}={v}" for k, v in flags.items()), "--", "pretrain"]


@pytest.mark.parametrize(
  "flags", [{"minutes": 0}, {"minutes": "nan"}, {"kill_every": 0}, {"kill_every": -1}]
)
def test_times_out_of_bounds_are_one_line_and_start_nothing(flags, tmp_path, capsys):
  assert soak.main(words(tmp_path / "s", **flags)) == 2
  said = capsys.readouterr().err
  assert "must be above 0" in said and said.count("\n") == 1
  assert not (tmp_path / "s").exists()


def test_when_one_run_ends_by_itself_the_other_is_ended_too(tmp_path, capsys, monkeypatch):
  started, Life = [], soak.Life

  def life(_, log):
    code = "pass" if log.stem == soak.WHOLE else "import time; time.sleep(600)"
    started.append(Life(["timeit", "-n1", "-r1", code], log))
    return started[-1]

  monkeypatch.setattr(soak, "Life", life)
  began = time.monotonic()
  assert soak.main(words(tmp_path / "s", minutes=1)) == 2
  assert "the run of" in capsys.readouterr().err and time.monotonic() - began < 30
  assert len(started) == 2 and all(each.process.returncode is not None for each in started)


def test_what_should_not_be_is_named():
  good = {
    "rows_that_differ": 0, "rows_compared": 5, "parameters_equal": True, "growth": 0.01,
    "growth_over_lives": None, "codes": {"killed": 143, "whole": -15},
  }  # fmt: skip
  assert soak.problems(good, 0.03) == []
  bad = {
    "rows_that_differ": 1, "rows_compared": 0, "parameters_equal": False, "growth": None,
    "growth_over_lives": 0.2, "codes": {"killed": 1, "whole": 143},
  }  # fmt: skip
  for name, value in bad.items():
    assert len(soak.problems(good | {name: value}, 0.03)) == 1, name


class Sampled(NamedTuple):
  """What is known of a process's memory."""

  memory: list[tuple[float, float]]


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_memory_that_goes_up_and_down_is_judged_by_its_peaks(rate):
  def life(begin, seconds):
    times = range(seconds)
    return Sampled(
      [(t, (2000 if t % 10 else 900 + t % 7) * (1 + rate * (begin + t) / 3600)) for t in times]
    )

  lives = {soak.WHOLE: [life(0, 3600)], soak.KILLED: [life(90 * n, 90) for n in range(40)]}
  found = soak.memory(lives)
  assert found["growth"] == pytest.approx(0.67 * rate, abs=0.02)
  assert found["growth_over_lives"] == pytest.approx(0.8 * rate, abs=0.02)
  assert found["lives_with_memory"] == 40
