"""The online feed: every row once per epoch, early stop, and exact continuation."""

import json

import numpy as np
import pytest

from llm_jax.stages.online import OnlineFeed


def feed(**changes):
  calls = []

  def collect(state, iteration, carried):
    calls.append(iteration)
    carried["kl_coef"] = carried.get("kl_coef", 0.0) + 1.0
    tokens = np.arange(8, dtype=np.int32).reshape(8, 1) + 100 * iteration
    logps = np.linspace(0, 1, 8, dtype=np.float32).reshape(8, 1)
    return {"tokens": tokens, "old_logps": logps}, {"objective/kl": float(iteration)}

  made = OnlineFeed(collect, **({"rows": 4, "epochs": 2, "seed": 0} | changes))
  return made, calls


def test_each_epoch_uses_every_row_once_in_an_order_of_its_own():
  made, _ = feed()
  parts = [made.next(None)["tokens"][:, 0].tolist() for _ in range(4)]
  assert sorted(parts[0] + parts[1]) == sorted(parts[2] + parts[3]) == list(range(8))
  assert parts[0] + parts[1] != parts[2] + parts[3]


def test_rows_of_a_minibatch_stay_together():
  made, _ = feed()
  batch = made.next(None)
  np.testing.assert_allclose(batch["old_logps"], batch["tokens"] / 7, rtol=1e-6)


def test_a_new_rollout_is_collected_when_the_last_is_used_up():
  made, calls = feed()
  for _ in range(9):
    made.next(None)
  assert calls == [0, 1, 2]
  # Of the rollouts since it was last asked.
  assert made.metrics() == {"objective/kl": 1.0}
  assert made.metrics() == {}


@pytest.mark.parametrize(("approxkl", "iterations"), [(0.2, [0, 1]), (0.05, [0])])
def test_an_update_that_went_too_far_ends_its_iteration(approxkl, iterations):
  made, calls = feed(max_approxkl=0.1)
  made.next(None)
  made.observe(1, {"policy/approxkl": approxkl})
  made.next(None)
  assert calls == iterations


@pytest.mark.parametrize("used", [1, 3, 4, 6])
def test_a_restored_feed_goes_on_with_the_same_minibatches(used):
  first, _ = feed()
  for _ in range(used):
    first.next(None)
  saved = json.loads(json.dumps(first.get_state()))
  second, calls = feed()
  second.set_state(saved)
  for _ in range(5):
    a, b = first.next(None), second.next(None)
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)
  assert first.carried == second.carried
  assert first.metrics() == second.metrics()


def test_a_restored_feed_gives_pairs_too():
  def pairs(state, iteration, carried):
    sides = [{"tokens": np.arange(8, dtype=np.int32).reshape(8, 1) + 10 * k} for k in range(2)]
    logps = np.linspace(0, 1, 8, dtype=np.float32)
    return {"chosen": sides[0], "rejected": sides[1], "ref_chosen": logps}, {}

  first, second = (OnlineFeed(pairs, rows=4, epochs=1, seed=0) for _ in range(2))
  first.next(None)
  second.set_state(json.loads(json.dumps(first.get_state())))
  a, b = first.next(None), second.next(None)
  for batch in (a, b):
    np.testing.assert_array_equal(batch["rejected"]["tokens"], batch["chosen"]["tokens"] + 10)
    np.testing.assert_allclose(batch["ref_chosen"], batch["chosen"]["tokens"][:, 0] / 7, rtol=1e-6)
  np.testing.assert_array_equal(a["chosen"]["tokens"], b["chosen"]["tokens"])
  assert b["ref_chosen"].dtype == np.float32
