"""The comparison with peers: what agrees passes, what does not fails, and a bad peer is named."""

import numpy as np
import pytest

from tools import compare_losses


@pytest.fixture
def answers(monkeypatch):
  """Peers that compute what we do, times a factor."""

  def answer(factor=1.0):
    def run(name, python, given):
      ours = compare_losses.OURS[name]
      return {key: factor * np.asarray(fn(given)) for key, (_, fn) in ours.items()}

    monkeypatch.setattr(compare_losses, "_run", run)

  return answer


PEERS = [f"--peer={name}=python" for name in compare_losses.PEERS]


def test_a_peer_that_agrees(answers, capsys):
  answers()
  assert compare_losses.main(PEERS) == 0
  rows = capsys.readouterr().out.splitlines()
  assert len(rows) == 2 + sum(len(ours) for ours in compare_losses.OURS.values())
  assert all("0.0e+00" in row for row in rows[2:])


def test_a_peer_that_does_not(answers):
  answers(1.001)
  assert compare_losses.main(PEERS) == 1


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    ([], "--peer is missing"),
    (["--peer=trl-0.2=python"], 'did you mean "trl-0.24"'),
    (["--peer=trl-0.24=/nowhere/python"], "cannot be started"),
    (["--peer=trl-0.24=false"], "failed"),
  ],
)
def test_a_bad_peer_is_one_line(flags, said, capsys):
  assert compare_losses.main(flags) == 2
  error = capsys.readouterr().err
  assert said in error and error.count("\n") == 1
