"""The sampler against the learner: same log-probs, same tokens, whatever the batch looks like."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import config
from llm_jax.generate import rollout_to_batch, sample, sampler
from llm_jax.models.transformer import Transformer, stack

TINY = config.Model(vocab_size=19, dim=16, layers=2, heads=4, kv_heads=2, max_length=32)
END, PAD, NEW = 5, 0, 6
NEVER = -1  # An end token that no model draws.


def make(**fields):
  model = Transformer.from_config(dataclasses.replace(TINY, **fields))
  boxed = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
  random = np.random.default_rng(0)

  def draw(path, x):
    center = 1.0 if path[-1].key == "scale" else 0.0
    return jnp.asarray(center + 0.3 * random.standard_normal(x.shape), jnp.float32)

  return model, jax.tree_util.tree_map_with_path(draw, nn.unbox(boxed)["params"])


MODEL, PARAMS = make()


def prompt_batch(lengths, width, seed=0):
  ids = np.random.default_rng(seed).integers(6, 19, (len(lengths), width)).astype(np.int32)
  mask = (np.arange(width)[None] >= width - np.array(lengths)[:, None]).astype(np.int32)
  return np.where(mask, ids, PAD).astype(np.int32), mask


PROMPTS, MASK = prompt_batch([2, 5, 3, 5], 5)
KEYS = jax.random.split(jax.random.key(7), 4)


def run(model=MODEL, params=PARAMS, prompts=PROMPTS, mask=MASK, keys=KEYS, **kwargs):
  settings = {"max_new": NEW, "end_id": END, "pad_id": PAD, **kwargs}
  return jax.tree.map(np.asarray, sample(model, params, prompts, mask, keys, **settings))


@functools.partial(jax.jit, static_argnums=0)
def learner_logps(model, params, rollout, temperature=1.0):
  batch = rollout_to_batch(rollout)
  hidden = model.apply({"params": params}, batch["tokens"], batch["positions"], batch["segments"])
  logits = hidden @ model.head(params) / temperature
  logps = jax.nn.log_softmax(logits, axis=-1)
  picked = jnp.take_along_axis(logps, batch["targets"][..., None], axis=-1)[..., 0]
  return picked * batch["mask"], logits


@pytest.mark.parametrize("temperature", [pytest.param(1.0, marks=pytest.mark.long), 0.7])
@pytest.mark.parametrize(
  "fields",
  [{}, {"scan": True}, {"position": "learned", "norm": "layernorm", "mlp": "plain", "bias": True}],
  ids=["llama", "scan", "gpt2"],
)
def test_sampler_logps_are_what_the_learner_recomputes(fields, temperature):
  model, params = make(**fields)
  rollout = run(model, params, temperature=temperature)
  expected, _ = learner_logps(model, params, rollout, temperature)
  np.testing.assert_allclose(rollout_to_batch(rollout)["sampler_logps"], expected, atol=1e-4)
  np.testing.assert_allclose(rollout.sampled_logps, rollout.logps, atol=1e-5)  # No truncation.


@pytest.mark.parametrize("count", [4, 40])  # Of many rows the last quarter goes on by itself.
def test_values_are_what_a_head_says_of_the_states_that_tokens_were_drawn_from(count):
  head = {"kernel": np.random.default_rng(3).normal(size=MODEL.cfg.dim), "bias": np.float32(0.3)}
  head["kernel"] = head["kernel"].astype(np.float32)
  prompts, mask = prompt_batch([1 + i % 5 for i in range(count)], 5)
  keys = jax.random.split(jax.random.key(7), count)
  rollout = run(prompts=prompts, mask=mask, keys=keys, value=head)
  batch = rollout_to_batch(rollout)
  hidden = MODEL.apply(PARAMS, batch["tokens"], batch["positions"], batch["segments"])
  expected = (np.asarray(hidden, np.float32) @ head["kernel"] + head["bias"]) * batch["mask"]
  np.testing.assert_allclose(batch["sampler_values"], expected, atol=1e-4)
  without = run(prompts=prompts, mask=mask, keys=keys)
  np.testing.assert_array_equal(without.tokens, rollout.tokens)
  assert without.values is None and "sampler_values" not in rollout_to_batch(without)


def test_rows_that_are_refilled_have_no_values():
  head = {"kernel": np.zeros(MODEL.cfg.dim, np.float32), "bias": np.float32(0)}
  with pytest.raises(ValueError, match="rows=0"):
    run(rows=2, value=head)


def test_with_rounded_factors_the_learner_recomputes_about_the_same():
  """Attention to a cache is not rounded, and another order of sums rounds otherwise."""
  model, params = make(matmul_precision="bfloat16")
  prompts, mask = prompt_batch([2, 5, 3, 5, 4, 5, 1, 2, 5], 5)
  rollout = run(model, params, prompts, mask, jax.random.split(jax.random.key(7), 9))
  expected, _ = learner_logps(model, params, rollout)
  np.testing.assert_allclose(rollout_to_batch(rollout)["sampler_logps"], expected, atol=0.1)


@pytest.mark.long
def test_long_answers_outgrow_the_first_cache_and_stay_what_the_learner_recomputes():
  assert len(sampler._rooms(5, 70)) == 2
  rollout = run(max_new=70, end_id=NEVER)
  expected, _ = learner_logps(MODEL, PARAMS, rollout)
  np.testing.assert_allclose(rollout_to_batch(rollout)["sampler_logps"], expected, atol=1e-4)


@pytest.mark.parametrize(("slots", "max_new"), [(64, 128), (5, 70), (900, 60), (3, 31), (9, 4096)])
def test_room_grows_to_all_new_tokens_in_few_steps(slots, max_new):
  rooms = sampler._rooms(slots, max_new)
  assert rooms[-1] == max_new and len(rooms) <= 4
  steps = np.diff([0, *rooms])
  assert len(rooms) == 1 or (steps >= 32).all()
  assert max_new >= slots or len(rooms) == 1


def test_a_prompt_in_chunks_is_answered_as_at_once():
  first, second = run(), run(chunk=2)
  np.testing.assert_array_equal(first.tokens, second.tokens)
  np.testing.assert_allclose(first.logps, second.logps, atol=1e-5)


@pytest.mark.long
def test_samples_of_a_prompt_are_rows_of_it_with_keys_of_their_own():
  keys = jax.random.split(jax.random.key(3), 12)
  together = run(keys=keys, samples=3)
  apart = run(prompts=np.repeat(PROMPTS, 3, 0), mask=np.repeat(MASK, 3, 0), keys=keys)
  for name in ("tokens", "positions", "segments", "mask", "lengths", "ended"):
    np.testing.assert_array_equal(getattr(together, name), getattr(apart, name))
  np.testing.assert_allclose(together.logps, apart.logps, atol=1e-5)
  assert len(np.unique(together.tokens, axis=0)) > 4  # More than one answer to a prompt.


def test_a_scanned_model_samples_what_its_unrolled_twin_samples():
  scanned = Transformer(dataclasses.replace(MODEL.cfg, scan=True))
  first, second = run(), run(scanned, stack(PARAMS, 2))
  np.testing.assert_array_equal(first.tokens, second.tokens)


@pytest.mark.long
def test_the_fields_of_a_rollout_fit_together():
  keys = jax.random.split(jax.random.key(1), 64)
  prompts, mask = prompt_batch([3] * 64, 4)
  rollout = run(prompts=prompts, mask=mask, keys=keys, temperature=3.0)
  assert 0 < rollout.ended.sum() < 64  # Both kinds are there.
  for b in range(64):
    n = rollout.lengths[b]
    answer, rest = rollout.tokens[b, 4 : 4 + n], rollout.tokens[b, 4 + n :]
    assert (answer[:-1] != END).all() and (answer[-1] == END) == rollout.ended[b]
    assert rollout.ended[b] or n == NEW
    assert (rest == PAD).all()
    np.testing.assert_array_equal(rollout.mask[b], [0] * 4 + [1] * n + [0] * (NEW - n))
    np.testing.assert_array_equal(rollout.segments[b], [0] + [1] * (3 + n) + [0] * (NEW - n))
    np.testing.assert_array_equal(rollout.positions[b, 1 : 4 + n], np.arange(3 + n))
  assert (rollout.logps[rollout.mask == 0] == 0).all()
  assert (rollout.logps[rollout.mask == 1] < 0).all()


def test_more_padding_on_the_left_changes_nothing():
  wide = np.pad(PROMPTS, ((0, 0), (3, 0)), constant_values=9)  # Garbage in the padding.
  wide_mask = np.pad(MASK, ((0, 0), (3, 0)))
  first, second = run(), run(prompts=wide, mask=wide_mask)
  np.testing.assert_array_equal(first.tokens[:, 5:], second.tokens[:, 8:])
  np.testing.assert_allclose(first.logps[:, 5:], second.logps[:, 8:], atol=1e-5)
  np.testing.assert_array_equal(first.positions[:, 5:], second.positions[:, 8:])


def test_a_row_does_not_depend_on_its_batch_mates():
  whole = run()
  order = np.array([2, 0])
  part = run(prompts=PROMPTS[order], mask=MASK[order], keys=KEYS[order])
  np.testing.assert_array_equal(whole.tokens[order], part.tokens)
  np.testing.assert_allclose(whole.logps[order], part.logps, atol=1e-5)


def test_keys_decide():
  same = [1, 1, 1, 1]
  keys = KEYS[jnp.array([0, 0, 1, 2])]
  rollout = run(prompts=PROMPTS[same], mask=MASK[same], keys=keys, temperature=3.0, end_id=NEVER)
  np.testing.assert_array_equal(rollout.tokens[0], rollout.tokens[1])
  assert len({tuple(row) for row in rollout.tokens}) == 3
  raw = run(keys=jax.random.key_data(KEYS))
  np.testing.assert_array_equal(raw.tokens, run().tokens)


def test_greedy_takes_the_most_likely_token():
  rollout = run(temperature=0.0, end_id=NEVER)
  expected, logits = learner_logps(MODEL, PARAMS, rollout)
  np.testing.assert_array_equal(rollout.tokens[:, 5:], np.argmax(logits, axis=-1)[:, 4:])
  np.testing.assert_allclose(rollout.logps[:, 1:], expected, atol=1e-4)
  assert not rollout.sampled_logps.any()
  again = run(temperature=0.0, end_id=NEVER, keys=jax.random.split(jax.random.key(99), 4))
  np.testing.assert_array_equal(again.tokens, rollout.tokens)


@pytest.mark.long
@pytest.mark.parametrize("setting", [{"top_k": 3}, {"top_p": 0.6}, {"top_k": 6, "top_p": 0.8}])
def test_truncation_draws_inside_and_its_logps_normalise(setting):
  rows = 64
  keys = jax.random.split(jax.random.key(3), rows)
  prompts, mask = np.repeat(PROMPTS[1:2], rows, 0), np.repeat(MASK[1:2], rows, 0)
  rollout = run(prompts=prompts, mask=mask, keys=keys, max_new=1, end_id=NEVER, **setting)
  probs = np.asarray(jax.nn.softmax(learner_logps(MODEL, PARAMS, rollout)[1][0, 4]))
  order = np.argsort(-probs)
  inside = order[: setting.get("top_k", 19)]
  share = probs[inside] / probs[inside].sum()
  inside = inside[np.cumsum(share) - share < setting.get("top_p", 1.0)]
  drawn = rollout.tokens[:, -1]
  assert set(drawn) <= set(inside) and len(set(drawn)) > 1
  np.testing.assert_allclose(np.exp(rollout.logps[:, -1]), probs[drawn], rtol=1e-3)
  kept = probs[drawn] / probs[inside].sum()  # So they sum to one over `inside`.
  np.testing.assert_allclose(np.exp(rollout.sampled_logps[:, -1]), kept, rtol=1e-3)


@pytest.mark.long
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_draws_follow_the_tempered_distribution(temperature):
  rows = 4000
  keys = jax.random.split(jax.random.key(3), rows)
  prompts, mask = np.repeat(PROMPTS[1:2], rows, 0), np.repeat(MASK[1:2], rows, 0)
  rollout = run(
    prompts=prompts, mask=mask, keys=keys, max_new=1, end_id=NEVER, temperature=temperature
  )
  small = jax.tree.map(lambda x: x[:1], rollout)
  logits = learner_logps(MODEL, PARAMS, small, temperature)[1][0, 4]
  expected = rows * np.asarray(jax.nn.softmax(logits))
  seen = np.bincount(rollout.tokens[:, -1], minlength=19)
  chi2 = np.sum((seen - expected) ** 2 / np.maximum(expected, 1e-3))
  assert chi2 < 19 + 6 * np.sqrt(2 * 19)


def test_it_stops_when_all_rows_have_ended():
  calls = []

  class Counting(Transformer):
    def __call__(self, tokens, *args, **kwargs):
      jax.debug.callback(lambda _: calls.append(1), tokens)
      return super().__call__(tokens, *args, **kwargs)

  model = Counting(MODEL.cfg)
  params = {**PARAMS, "embedding": jnp.zeros_like(PARAMS["embedding"])}  # The argmax is token 0.
  for end_id, forwards in ((0, 1), (NEVER, 20)):
    calls.clear()
    run(model, params, max_new=20, temperature=0.0, end_id=end_id)
    jax.effects_barrier()
    assert len(calls) == forwards  # The prefill, and one per token but the last.


def test_one_compilation_serves_all_temperatures():
  before = sampler._sample._cache_size()
  for temperature in (0.31, 0.62, 0.93):
    run(temperature=temperature, max_new=3)
  assert sampler._sample._cache_size() == before + 1


def test_batches_are_shifted_and_aligned():
  rollout = run()
  batch = rollout_to_batch(rollout)
  assert all(x.shape == (4, 5 + NEW - 1) for x in batch.values())
  np.testing.assert_array_equal(batch["targets"], rollout.tokens[:, 1:])
  np.testing.assert_array_equal(batch["mask"].sum(axis=1), rollout.lengths)
  assert (batch["targets"][rollout.ended][batch["mask"][rollout.ended] > 0] == END).sum() == (
    rollout.ended.sum()
  )


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"mask": MASK[:, 1:]}, r"prompts \(4, 5\) and prompt_mask \(4, 4\)"),
    ({"keys": KEYS[:3]}, r"keys \(3,\) must be one per answer"),
    ({"mask": MASK[:, ::-1]}, "padded on the left"),
    ({"samples": 2}, "2 for each row"),
    ({"max_new": 0}, "max_new"),
    ({"chunk": -1}, "chunk"),
    ({"temperature": -1.0}, "temperature"),
    ({"top_p": 0.0}, "top_p"),
    ({"top_k": -2}, "top_k"),
  ],
)
def test_bad_arguments_are_errors(change, message):
  with pytest.raises(ValueError, match=message):
    run(**change)


def test_learned_positions_overflow_is_an_error():
  model, params = make(position="learned", max_length=8)
  with pytest.raises(ValueError, match="11 tokens per row exceed"):
    run(model, params)
