"""KTO on files of labels: whose answers make the baseline, what it is, what is learned."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import config
from llm_jax.errors import UserError
from llm_jax.losses import objectives
from llm_jax.stages import dpo, runs, training, unpaired
from llm_jax.train.metrics import read
from llm_jax.types import Mean, TrainState
from tests.stages.conftest import tiny


def row(prompt, answer):
  return [prompt] * 3 + [answer] * 2, [0] * 3 + [1] * 2


def test_every_answer_goes_to_another_prompt_once():
  rows = [row(i, 100 + i) for i in range(9)]
  got = unpaired.mismatched(rows, rows, 20, 0)
  assert [tokens[:3] for tokens, _ in got] == [[i] * 3 for i in range(9)]
  given = [tokens[-1] - 100 for tokens, _ in got]
  assert sorted(given) == list(range(9)) and all(i != k for i, k in enumerate(given))
  assert all(mask == [0, 0, 0, 1, 1] for _, mask in got)
  assert got == unpaired.mismatched(rows, rows, 20, 0) != unpaired.mismatched(rows, rows, 20, 1)


def test_answers_to_the_same_prompt_are_no_mismatch():
  rows = [row(i // 4, 100 + i) for i in range(8)]  # As pairs give them: many answers a prompt.
  for (tokens, _), (own, _) in zip(unpaired.mismatched(rows, rows, 20, 3), rows, strict=True):
    assert (tokens[-1] - 100) // 4 != own[0]
  apart = unpaired.mismatched([row(7, 107)], rows, 3, 0)
  assert apart[0][0][:3] == [7] * 3 and apart[0][1] == [0, 0, 0, 1]  # Cut to 4 tokens.
  with pytest.raises(UserError, match="one prompt"):
    unpaired.mismatched(rows[:4], rows[:4], 20, 0)


def test_the_baseline_is_the_mean_over_the_whole_batch():
  def drift(params, batch):
    return Mean(jnp.sum(batch["mismatched"]["x"]), jnp.float32(batch["mismatched"]["x"].size))

  def step(state, batch):
    assert "mismatched" not in batch
    return state, batch

  batch = {"mismatched": {"x": jnp.arange(4.0)}, "desirable": jnp.ones(4)}
  state = TrainState(jnp.int32(0), {}, (), jax.random.key(0))
  got = unpaired.anchored(drift, None, step)(state, batch)[1]
  np.testing.assert_allclose(got["baseline"], np.full(4, 1.5))
  parts = jax.tree.map(lambda x: x.reshape(2, 2), batch)
  each = jax.vmap(lambda b: unpaired.anchored(drift, "d", step)(state, b)[1], axis_name="d")
  np.testing.assert_allclose(each(parts)["baseline"], np.full((2, 2), 1.5))


def test_a_model_has_no_drift_from_itself_and_gives_no_gradient(prepared, start):
  coder, model = runs.tokenizer(str(prepared)), runs.load(start, "init")
  rows = [([coder.bos_id, i, 9, 8, 7], [0, 0, 0, 1, 1]) for i in (20, 21)]
  encoded = [
    {"answer": a, "mismatched": b, "desirable": 1.0}
    for a, b in zip(rows, unpaired.mismatched(rows, rows, 8, 0), strict=True)
  ]
  apply = training.decoder_apply(model.model)
  batch = unpaired.collate(encoded, 8)
  refs = jax.jit(objectives.sequence_logps(apply))(
    model.params, batch["mismatched"], jax.random.key(0)
  )
  batch |= {"ref_mismatched": np.asarray(refs)}
  drift = jax.jit(functools.partial(unpaired.mismatch, apply), static_argnames="average")
  np.testing.assert_allclose(drift(model.params, batch).value, 0, atol=1e-5)
  moved = batch | {"ref_mismatched": np.asarray(refs) - np.array([1.0, 3.0], np.float32)}
  np.testing.assert_allclose(drift(model.params, moved).value, 2, rtol=1e-5)
  mean = drift(model.params, moved, average=True)
  np.testing.assert_allclose(mean.value, 1, rtol=1e-5)
  slope = jax.jit(jax.grad(lambda p: drift(p, batch).total))(model.params)
  assert all(not np.any(x) for x in jax.tree.leaves(slope))


def write(path, count=32, **fixed):
  rows = [
    {"prompt": f"Sort {i}?", "completion": "Sort the rows." if i % 2 else "Delete the names.",
     "label": bool(i % 2)} | fixed
    for i in range(count)
  ]  # fmt: skip
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def configured(prepared, start, labels, **fields):
  own = {"init": start, "labels": labels, "loss": "kto(beta=0.1)", "validation": 0.2} | fields
  cfg = tiny(config.Dpo, prepared, optimizer=config.Optimizer(lr=1e-2, warmup=1), **own)
  cfg.loss = own["loss"]
  return cfg


@pytest.mark.long
def test_kto_tells_wanted_answers_from_others(prepared, start, tmp_path, capsys):
  cfg = configured(prepared, start, write(tmp_path / "labels.jsonl"), steps=8)
  dpo.run(cfg, str(tmp_path / "run"))
  assert "desirable and" in capsys.readouterr().err
  rows = [r for r in read(tmp_path / "run") if "eval/loss" in r]
  assert rows[-1]["eval/loss"] < 0.5  # Where the model is the reference it is 1 - sigmoid(0).
  assert rows[-1]["eval/rewards/margins"] > 1
  assert rows[-1]["eval/rewards/accuracies"] > 0.9
  train = [r for r in read(tmp_path / "run") if "kl" in r]
  assert len(train) == 4 and all(np.isfinite(r["kl"]) for r in train)


@pytest.mark.long
def test_microbatches_share_one_baseline(prepared, start, tmp_path):
  labels = write(tmp_path / "labels.jsonl")
  found = []
  for accum in (1, 2):
    cfg = configured(prepared, start, labels, accum=accum, batch=16, validation=0.0)
    cfg.accum = accum
    state = dpo.run(cfg, str(tmp_path / str(accum)))
    found.append((jax.device_get(state.params), [r["kl"] for r in read(tmp_path / str(accum))]))
  np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-3, atol=1e-4)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), found[0][0], found[1][0])


@pytest.mark.parametrize(
  ("fields", "rows", "message"),
  [
    ({"loss": "logistic(beta=0.1)"}, {}, "no loss on single answers"),
    ({}, {"label": True}, "all answers are desirable"),
    ({}, {"prompt": "same"}, "ask the same"),
    ({"validation": 0.0}, {"prompt": "same"}, "all rows have one prompt"),
    ({"sync_every": 2}, {}, "leave config.labels"),
  ],
)
def test_bad_labels_are_one_line(fields, rows, message, prepared, start, tmp_path):
  cfg = configured(prepared, start, write(tmp_path / "labels.jsonl", 8, **rows), **fields)
  with pytest.raises(UserError, match=message) as error:
    dpo.run(cfg, str(tmp_path / "run"))
  assert "\n" not in str(error.value) and not (tmp_path / "run").exists()
