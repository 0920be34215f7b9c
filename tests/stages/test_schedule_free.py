"""A schedule-free run trains y; what is evaluated, loaded by a later stage and exported is x."""

import math

import jax
import numpy as np
import pytest

from llm_jax import config
from llm_jax.losses import objectives, token
from llm_jax.stages import pretrain, runs, sft, training
from llm_jax.train import checkpoint, feeds, metrics, optim, parallel
from tests.stages.conftest import SHAPE, tiny
from tests.train import toys

FREE = config.Optimizer("schedule_free", 0.02, schedule="constant", warmup=1, skip_limit=2)


def apart(a, b):
  return max(np.abs(x - y).max() for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


@pytest.mark.long
@pytest.mark.parametrize("kind", ["mesh", "pmap"])
def test_what_is_evaluated_and_loaded_is_the_average(kind, tmp_path):
  cfg = config.Stage(steps=3, batch=toys.ROWS, optimizer=FREE, mesh=config.Mesh(kind=kind))
  place, seen = parallel.make(cfg.mesh), []

  def evaluate(params):
    seen.append(place.fetch(params))
    return {}

  state = training.train(
    cfg,
    tmp_path,
    loss_fn=toys.loss_of(toys.Toy()),
    make_params=toys.make_params(toys.Toy()),
    feed=feeds.IteratorFeed(toys.make_batch(n) for n in range(3)),
    place=place,
    evaluate=evaluate,
  )
  y, opt_state = place.fetch((state.params, state.opt_state))
  x = optim.averaged(y, opt_state)
  assert apart(seen[-1], x) < 1e-6 and apart(checkpoint.load_params(tmp_path), x) < 1e-6
  assert apart(x, y) > 1e-3


@pytest.mark.slow
def test_sft_starts_at_the_average_of_pretraining(prepared, tmp_path, monkeypatch):
  cfg = tiny(config.Pretrain, prepared, model=SHAPE, optimizer=FREE)
  state = pretrain.run(cfg, tmp_path / "pretrain")
  x = jax.device_get(optim.averaged(state.params, state.opt_state))
  started = []
  monkeypatch.setattr(sft.training, "train", lambda *_, loaded, **__: started.append(loaded))
  sft.run(tiny(config.Sft, prepared, init=str(tmp_path / "pretrain")), str(tmp_path / "sft"))
  assert apart(started[0], x) < 1e-6 < 1e-3 < apart(started[0], jax.device_get(state.params))
  measure = training.metrics_on(
    objectives.next_token(
      training.decoder_apply(runs.load(str(tmp_path / "pretrain"), "init").model),
      token.cross_entropy,
    ),
    parallel.make(cfg.mesh),
    lambda: pretrain.validation_batches(cfg),
  )
  at_x, at_y = (measure(params)["nll"] for params in (started[0], state.params))
  rows = metrics.read(tmp_path / "pretrain")
  logged = [row["eval/loss"] for row in rows if "eval/loss" in row][-1]
  assert math.isclose(logged, at_x, rel_tol=1e-5) and abs(logged - at_y) > 1e-3
