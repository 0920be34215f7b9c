"""What a run says of its attention, and that its rows fit it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.errors import UserError
from llm_jax.models import selftest
from llm_jax.models.dot_product import attention as attend
from llm_jax.stages import attention
from llm_jax.train import feeds
from tests.models import fake_cudnn

T = 8


def rows(*texts):
  """A batch of a pair: two rows a side, of these numbers in their slots."""
  segments = np.zeros((2, T), np.int32)
  segments[0, : len(texts)] = texts
  return {"chosen": {"segments": segments}, "rejected": {"segments": segments[::-1]}}


def started(batches, dtype="bfloat16", **how):
  @jax.jit
  def step(state, batch):
    segments = batch["chosen"]["segments"]
    q = jnp.ones((*segments.shape, 2, 8), dtype)
    out = attend(q, *[q.swapaxes(1, 2)] * 2, segments=segments, max_segments=2, **how)
    return state, {"loss": out.sum()}

  return attention.watched(step, feeds.IteratorFeed(batches), "sft")


def test_one_line_before_the_first_step_and_no_test_of_xla(capsys, monkeypatch):
  monkeypatch.setattr(selftest, "check", lambda *_: pytest.fail("xla needs no test"))
  step, feed = started([rows(1, 2, 3)] * 2, backend="auto")
  for _ in range(2):
    step(0, feed.next(0))
  (line,) = capsys.readouterr().err.splitlines()
  assert line == (
    "sft: attention by xla (rows of at most 1024 tokens; not cudnn: there is no NVIDIA GPU): "
    "2 x 8 tokens, 2 heads of 8, bfloat16"
  )
  assert feed.get_state() == {"used": 2} and not feed.wants_metrics


def test_another_backend_is_tested_and_its_figures_are_told(capsys, monkeypatch):
  monkeypatch.setattr(selftest, "check", lambda request, backend: f"{backend} is fine")
  step, feed = started([rows(1)], backend="xla_chunked")
  step(0, feed.next(0))
  assert "(config.model.attention=xla_chunked)" in (line := capsys.readouterr().err)
  assert line.endswith("; xla_chunked is fine\n")


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
  ("texts", "reason"),
  [((1, 2, 0, 3), "holds 3 texts, .* at most 2"), ((2, 1), "in one piece"), ((1, 2), "")],
)
def test_rows_that_cudnn_was_not_told_of_stop_the_run(texts, reason, late, monkeypatch):
  fake_cudnn.install(monkeypatch)
  monkeypatch.setattr(selftest, "check", lambda *_: "fine")
  step, feed = started([*[rows(1, 2)] * late, rows(*texts)], backend="auto")

  def run():
    for _ in range(1 + late):
      step(0, feed.next(0))

  if not reason:
    return run()
  with pytest.raises(UserError, match=reason):
    run()
