"""Answers that take turns in few rows are those that are drawn all at once."""

import jax
import numpy as np
import pytest

from llm_jax.errors import UserError
from llm_jax.generate import refill, sample, slots
from tests.generate import test_sampler as small

NEW = 12
LENGTHS = (2, 5, 3, 7, 1, 4, 7, 2, 6, 3, 5)
PROMPTS, MASK = small.prompt_batch(LENGTHS, 7)
KEYS = jax.random.split(jax.random.key(7), 2 * len(LENGTHS))


def drawn(rows=0, samples=1, fields=None, **how):
  model, params = small.make(**fields) if fields else (small.MODEL, small.PARAMS)
  settings = {"max_new": NEW, "end_id": small.END, "pad_id": small.PAD} | how
  keys = KEYS[: len(LENGTHS) * samples]
  return jax.device_get(
    sample(model, params, PROMPTS, MASK, keys, samples=samples, rows=rows, **settings)
  )


def same(found, expected):
  for name in ("tokens", "positions", "segments", "mask", "lengths", "ended"):
    np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    assert getattr(found, name).dtype == getattr(expected, name).dtype
  np.testing.assert_allclose(found.logps, expected.logps, atol=1e-4)
  np.testing.assert_allclose(found.sampled_logps, expected.sampled_logps, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 4, pytest.param(7, marks=pytest.mark.long)])
def test_answers_that_take_turns_are_those_drawn_at_once(rows):
  expected = drawn()
  assert len(set(expected.lengths)) > 3  # Rows end at different times.
  same(drawn(rows), expected)


@pytest.mark.long
@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize(
  "how",
  [
    {"temperature": 0.0},
    {"top_k": 5},
    {"top_p": 0.8, "temperature": 0.7},
    {"end_id": small.NEVER},
    {"chunk": 2},
    {"fields": {"scan": True}},
    {"fields": {"windows": (3,)}},
    {"fields": {"position": "learned", "norm": "layernorm", "mlp": "plain", "bias": True}},
    {"fields": {"position": "alibi", "logit_cap": 5.0, "tied": False}},
  ],
  ids=lambda how: "-".join(f"{k}" for k in how.get("fields", how)),
)
def test_whatever_the_model_and_the_setting(how, samples):
  same(drawn(5, samples, **how), drawn(0, samples, **how))


@pytest.mark.long
def test_the_last_quarter_goes_on_in_a_smaller_batch(monkeypatch):
  monkeypatch.setattr(refill, "_LEAST_ROWS", 4)
  sizes = []
  run = slots.run
  monkeypatch.setattr(refill, "run", lambda *a: sizes.append(len(a[2].ended)) or run(*a))
  same(drawn(8, 2), drawn(0, 2))
  assert sizes[0] == 8 and sizes[-1] < 8


@pytest.mark.long
def test_a_prompt_is_read_once_for_all_of_its_answers_and_in_few_widths(monkeypatch):
  seen = []
  admit = slots.admit
  monkeypatch.setattr(refill, "admit", lambda *a: seen.append(a[3]) or admit(*a))
  monkeypatch.setattr(refill, "_LEAST_WIDTH", 2)
  same(drawn(8, 2), drawn(0, 2))
  assert {new.prompts.shape[0] for new in seen} == {2}  # Two answers each, of two prompts at most.
  assert {new.prompts.shape[1] for new in seen} <= {2, 4, 7}


@pytest.mark.long
def test_rows_draw_each_at_a_temperature_and_a_limit_of_their_own():
  state = slots.empty(small.MODEL, 3, 7 + NEW, NEW)
  new = slots.Arrivals(
    prompts=PROMPTS[:3], mask=MASK[:3], source=np.arange(3), row=np.array([2, 0, 1]),
    keys=KEYS[:3], limit=np.array([4, 12, 3], np.int32), end_id=np.full(3, small.NEVER),
    temperature=np.array([0.0, 1.0, 0.5], np.float32), top_k=np.array([19, 3, 19], np.int32),
    top_p=np.array([1.0, 1.0, 0.7], np.float32),
  )  # fmt: skip
  state = slots.admit(small.MODEL, small.PARAMS, state, new, 4, small.PAD)
  state = slots.run(small.MODEL, small.PARAMS, state, 2, 3, True, small.PAD)
  np.testing.assert_array_equal(state.drawn, [2, 2, 2])  # Steps may be few,
  state = slots.run(small.MODEL, small.PARAMS, state, 99, 1, True, small.PAD)
  np.testing.assert_array_equal(state.drawn, [3, 3, 3])  # and a free row ends them.
  state = slots.run(small.MODEL, small.PARAMS, state, 99, 3, True, small.PAD)
  np.testing.assert_array_equal(state.drawn, [12, 3, 4])
  for row, prompt, how in (
    (2, 0, {"temperature": 0.0}),
    (0, 1, {"top_k": 3}),
    (1, 2, {"temperature": 0.5, "top_p": 0.7}),
  ):
    alone = small.run(
      prompts=PROMPTS[prompt : prompt + 1], mask=MASK[prompt : prompt + 1],
      keys=KEYS[prompt : prompt + 1], max_new=NEW, end_id=small.NEVER, **how,
    )  # fmt: skip
    count = int(state.drawn[row])
    np.testing.assert_array_equal(state.tokens[row, :count], alone.tokens[0, 7 : 7 + count])


def test_a_row_that_is_taken_again_sees_nothing_of_the_answer_before():
  state = slots.empty(small.MODEL, 2, 7 + NEW, NEW)
  junk = jax.tree.map(lambda x: x + 100, (state.cache.keys, state.cache.values))
  before = state.cache._replace(
    keys=junk[0], values=junk[1], segments=state.cache.segments + 1, index=state.cache.index + 9
  )
  expected = drawn()
  new = slots.Arrivals(
    prompts=PROMPTS[:1, -4:], mask=MASK[:1, -4:], source=np.zeros(1, int), row=np.ones(1, int),
    keys=KEYS[:1], limit=np.full(1, NEW, np.int32), end_id=np.full(1, small.END),
    temperature=np.ones(1, np.float32),
    top_k=np.full(1, 19, np.int32), top_p=np.ones(1, np.float32),
  )  # fmt: skip
  state = slots.admit(small.MODEL, small.PARAMS, state._replace(cache=before), new, 4, small.PAD)
  state = slots.run(small.MODEL, small.PARAMS, state, NEW, 2, False, small.PAD)
  count = int(state.drawn[1])
  assert count == expected.lengths[0]
  np.testing.assert_array_equal(state.tokens[1, :count], expected.tokens[0, 7 : 7 + count])
  np.testing.assert_allclose(state.logps[1, :count], expected.logps[0, 7 : 7 + count], atol=1e-4)


def test_only_decoders_take_turns():
  with pytest.raises(UserError, match=r"config\.sampling\.rows is for decoders"):
    refill.refilled(None, {}, None, 4)
  with pytest.raises(ValueError, match="chunk and rows not negative"):
    drawn(-1)
