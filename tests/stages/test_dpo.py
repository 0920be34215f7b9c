"""DPO: other references, those that follow, and what looks like an error and is none."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import config
from llm_jax.errors import UserError
from llm_jax.models import interop
from llm_jax.stages import dpo, reference, runs
from llm_jax.train import checkpoint
from llm_jax.train.metrics import read
from llm_jax.types import Mean, Outputs, TrainState
from tests.stages.conftest import tiny

FAST = config.Optimizer(lr=1e-2, warmup=1)


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
  path = tmp_path_factory.mktemp("pairs") / "mine.jsonl"
  rows = [
    {
      "prompt": [{"role": "system", "content": "Be short."}, {"role": "user", "content": f"{i}?"}],
      "chosen": f"Sort the rows {i}.",
      "rejected": "Delete all the names.",
      "probability": 1.0 if i % 2 else 0.8,
    }
    for i in range(24)
  ]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def configured(prepared, start, mine, **fields):
  given = {"init": start, "preferences": mine, "optimizer": FAST, "validation": 0.2} | fields
  return tiny(config.Dpo, prepared, **given)


def logged(path, name):
  return [row[name] for row in read(path) if name in row]


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_following_reference_by_hand():
  """Of a policy that moves by 1 a step, the reference is what the two equations say."""

  def apply(params, batch, rng):
    return Outputs(hidden=jnp.ones((2, 1, 1)) * params["w"], head=jnp.array([[0.0, 1.0]]))

  seen = []

  def step(state, batch):
    seen.append(float(batch["ref_chosen"][0]))
    new = state.replace(step=state.step + 1, params={"w": state.params["w"] + 1})
    return new, {"loss": Mean(jnp.ones(()), jnp.ones(()))}

  lm = {"targets": jnp.ones((2, 1), jnp.int32), "mask": jnp.ones((2, 1))}
  params = {"w": jnp.float32(0)}
  state = TrainState(jnp.int32(0), params, (), jax.random.key(0), {}, {"w": jnp.float32(0)})
  run = reference.following(apply, 2, 0.25, step)
  kept = []
  for _ in range(5):
    state, _ = run(state, {"chosen": lm, "rejected": lm})
    kept.append(float(state.reference["w"]))
  second = 0.25 * 4 + 0.75 * 0.5
  np.testing.assert_allclose(kept, [0, 0.5, 0.5, second, second])
  used = np.array([0, 0, 0.5, 0.5, second])  # Of each step, before its update.
  np.testing.assert_allclose(seen, used - np.log1p(np.exp(used)), rtol=1e-4)


@pytest.mark.long
def test_a_reference_that_never_follows_is_the_one_on_disk(prepared, start, mine, tmp_path):
  plain = configured(prepared, start, mine)
  late = configured(prepared, start, mine, sync_every=100)
  ends = [dpo.run(cfg, str(tmp_path / name)) for name, cfg in (("plain", plain), ("late", late))]
  assert ends[0].reference == {}
  before = runs.load(start, "init").params
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ends[1].reference, before)
  for name in ("loss", "rewards/margins", "eval/rewards/margins"):
    got = [logged(tmp_path / x, name) for x in ("plain", "late")]
    np.testing.assert_allclose(*got, rtol=1e-3, atol=1e-3)
  assert not (tmp_path / "late" / "reference-train.npz").exists()
  assert logged(tmp_path / "plain", "eval/rewards/margins")[-1] > 0


@pytest.mark.long
def test_a_following_reference_goes_on_to_the_same_end(prepared, start, mine, tmp_path):
  cfg = configured(prepared, start, mine, sync_every=3, sync_alpha=0.6, steps=8)
  whole = dpo.run(cfg, str(tmp_path / "whole"))
  saved = pathlib.Path("checkpoints", "6")
  shutil.copytree(tmp_path / "whole" / saved, tmp_path / "part" / saved)
  part = dpo.run(cfg, str(tmp_path / "part"))
  same(jax.device_get(whole.reference), jax.device_get(part.reference))
  same(jax.device_get(whole.params), jax.device_get(part.params))
  same(checkpoint.load_params(tmp_path / "part"), jax.device_get(whole.params))
  moved = jax.tree.map(
    lambda a, b: float(jnp.abs(a - b).max()), whole.reference, runs.load(start, "init").params
  )
  assert max(jax.tree.leaves(moved)) > 1e-4


@pytest.mark.long
def test_another_model_is_the_reference(prepared, start, mine, tmp_path):
  model, params = interop.load(start)
  other = tmp_path / "other"
  interop.save(other, model, jax.tree.map(lambda x: 1.5 * x, params))
  cfg = configured(prepared, start, mine, reference=str(other), steps=2)
  dpo.run(cfg, str(tmp_path / "run"))
  assert abs(logged(tmp_path / "run", "rewards/chosen")[0]) > 0.1
  itself = configured(
    prepared, start, mine, reference=start, steps=2, optimizer=config.Optimizer(lr=0.0)
  )
  dpo.run(itself, str(tmp_path / "itself"))
  np.testing.assert_allclose(logged(tmp_path / "itself", "rewards/chosen"), 0, atol=1e-4)


def test_what_is_normal_is_said_once(monkeypatch, capsys):
  found = [
    {"rewards/chosen": 0.5, "rewards/margins": 2.0},
    {"rewards/chosen": -0.01, "rewards/margins": 2.0},
    {"rewards/chosen": -1.5, "rewards/margins": -2.0},
    {"rewards/chosen": -1.5, "rewards/margins": 2.0},
    {"rewards/chosen": -2.5, "rewards/margins": 3.0},
  ]
  left = iter(found)
  monkeypatch.setattr(dpo.training, "metrics_on", lambda *_: lambda params: next(left))
  evaluate = dpo._evaluate(config.Dpo(), None, None, [])
  told = []
  for want in found:
    assert evaluate(None) == want
    told.append(capsys.readouterr().err)
  assert [bool(text) for text in told] == [False, False, False, True, False]
  assert told[3].startswith("normal for DPO: chosen answers are 1.5 nats less likely")


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"sync_every": -1}, "config.sync_every must not be negative"),
    ({"sync_every": 2, "sync_alpha": 0.0}, "config.sync_alpha in"),
    ({"sync_every": 2, "lora": config.Lora(rank=2)}, "leave config.lora.rank"),
    ({"sync_every": 2, "reference": "x"}, "leave config.reference"),
    ({"reference": "nowhere"}, "nowhere holds no trained model.*--config.reference"),
    ({"loss": "llm_jax.losses.token:entropy()"}, "cannot be called with"),
  ],
)
def test_bad_references_are_one_line(fields, message, prepared, start, mine, tmp_path):
  with pytest.raises(UserError, match=message) as error:
    dpo.run(configured(prepared, start, mine, **fields), str(tmp_path / "run"))
  assert "\n" not in str(error.value) and not (tmp_path / "run").exists()
