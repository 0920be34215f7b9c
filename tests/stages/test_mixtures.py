"""Pretraining on several corpora, on rows that were packed before, and the plan of both."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from llm_jax import config
from llm_jax.data import blend, mixture, packing, rows
from llm_jax.errors import UserError
from llm_jax.stages import pack, pretrain
from tests.stages.conftest import SHAPE, tiny


@pytest.fixture(scope="module")
def corpora(prepared, tmp_path_factory):
  """Two more corpora of the toy tokenizer: token 20 only, and token 30 only."""
  root = tmp_path_factory.mktemp("corpora")
  for name, token, count in (("web", 20, 300), ("books", 30, 60)):
    shutil.copytree(prepared / "tokenizer", root / name / "tokenizer")
    documents = [np.full(30, token) for _ in range(count)]
    packing.write_tokens(root / name / "tokens/train/00000.array_record", documents[::2], 300)
    packing.write_tokens(root / name / "tokens/train/00001.array_record", documents[1::2], 300)
  return root


def mixed(prepared, corpora, weights, kind="", **fields):
  cfg = tiny(config.Pretrain, prepared, steps=8, length=64, model=SHAPE)
  cfg.mixture = config.Mixture(
    sources=(f"web={corpora}/web{kind}", f"books={corpora}/books{kind}"), weights=weights, **fields
  )
  return cfg


def shares(stream, steps):
  """The part of the targets that are of "books", step by step."""
  found = []
  for _ in range(steps):
    batch = next(stream)
    targets = batch["targets"][batch["mask"] > 0]
    found.append(float((targets == 30).mean()))
  return found


@pytest.mark.long
def test_a_mixture_trains_and_leaves_its_plan(prepared, corpora, tmp_path, capsys):
  cfg = mixed(prepared, corpora, ("web=3, books=1",))
  state = pretrain.run(cfg, str(tmp_path))
  assert int(state.step) == 8
  plan = json.loads((tmp_path / "mixture.json").read_text())
  assert plan["shares"]["books"]["share"] == pytest.approx(0.25)
  epochs = 8 * 8 * 58 * 0.25 / (60 * 29)  # Two documents of 29 targets fill a row of 64.
  assert plan["shares"]["books"]["epochs"] == pytest.approx(epochs)
  assert f"{epochs:.2f}" in capsys.readouterr().out
  assert np.mean(shares(pretrain.training_batches(cfg), 8)) == pytest.approx(0.25, abs=0.03)


def test_a_curriculum_changes_the_weights_at_its_step(prepared, corpora):
  cfg = mixed(prepared, corpora, ("web=1, books=0", "4: web=1, books=3"), max_epochs=9)
  found = shares(pretrain.training_batches(cfg), 8)
  assert found[:4] == [0, 0, 0, 0]
  assert np.mean(found[4:]) == pytest.approx(0.75, abs=0.04)


def test_a_cap_is_kept_and_what_it_leaves_goes_to_the_others(prepared, corpora):
  cfg = mixed(prepared, corpora, ("web=1, books=9",), max_epochs=0.5)
  plan = pretrain.blended(cfg)
  assert plan.shares["books"].epochs == pytest.approx(0.5)
  assert plan.shares["books"].capped
  assert sum(share.share for share in plan.shares.values()) == pytest.approx(1)
  curriculum = mixed(prepared, corpora, ("web=1, books=0", "4: web=1, books=9"), max_epochs=0.5)
  with pytest.raises(UserError, match="'books' is read"):
    pretrain.blended(curriculum)


def test_without_weights_sources_count_by_their_size(prepared, corpora):
  plan = pretrain.blended(mixed(prepared, corpora, ()))
  assert plan.shares["books"].share == pytest.approx(60 / 360, abs=0.02)


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["best_fit", "concat"])
def test_packed_rows_train_like_documents(prepared, corpora, tmp_path, strategy, capsys):
  for name in ("web", "books"):
    cfg = config.Pack(prepared=str(corpora / name), length=64, strategy=strategy, workers=1)
    made = pack.run(cfg, tmp_path / f"{name}-rows")
    assert made["predictions"] == 29 * made["documents"]
    assert made["padding"] == pytest.approx(1 - 58 / 64 if strategy == "best_fit" else 0, abs=0.06)
  assert "padding" in capsys.readouterr().out
  cfg = mixed(prepared, tmp_path, ("web=1, books=1",), "-rows")
  stream = pretrain.training_batches(cfg)
  assert isinstance(stream, rows.RowStream)
  assert np.mean(shares(stream, 8)) == pytest.approx(0.5, abs=0.03)
  pretrain.run(cfg, str(tmp_path / "run"))
  # One packed corpus alone is a mixture of one.
  cfg.mixture = config.Mixture(sources=(f"{tmp_path}/web-rows",))
  assert shares(pretrain.training_batches(cfg), 2) == [0, 0]


def test_packing_does_not_depend_on_workers_and_goes_on_after_a_kill(
  corpora, tmp_path, monkeypatch
):
  monkeypatch.setattr(pack, "_PART", 1000)
  cfg = config.Pack(prepared=str(corpora / "web"), length=64, workers=1)
  pack.run(cfg, tmp_path / "one")
  count = len(list((tmp_path / "one/rows").iterdir()))
  assert count == 2
  cfg.workers = 2
  made = pack.run(cfg, tmp_path / "two")
  cfg.workers = 1
  (tmp_path / "two/.building").mkdir()  # As of a kill in the last moment.
  assert pack.run(cfg, tmp_path / "two") == made  # It is complete, whatever the workers.
  assert not (tmp_path / "two/.building").exists()
  with pytest.raises(UserError, match="another corpus or config"):
    pack.run(config.Pack(prepared=str(corpora / "books"), length=64), tmp_path / "two")
  real = pack.pack

  def once(out, *args):
    if out.endswith("1"):
      raise KeyboardInterrupt
    return real(out, *args)

  cfg.workers = 1
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(pack, "pack", once)
    pack.run(cfg, tmp_path / "cut")
  assert not (tmp_path / "cut" / "manifest.json").exists()
  pack.run(cfg, tmp_path / "cut")
  for other in ("two", "cut"):
    for file in (tmp_path / "one/rows").iterdir():
      assert file.read_bytes() == (tmp_path / other / "rows" / file.name).read_bytes()
    assert not (tmp_path / other / ".building").exists()


def test_rows_are_shared_by_processes_and_documents_are_packed_by_each(corpora, tmp_path):
  pack.run(config.Pack(prepared=str(corpora / "web"), length=64, workers=1), tmp_path / "rows")
  plan = blend.blend((f"web={tmp_path}/rows",), steps=4, batch=8, length=64)
  whole = next(plan.stream())
  halves = [next(plan.stream(process=i, processes=2)) for i in range(2)]
  np.testing.assert_array_equal(
    whole["tokens"], np.concatenate([half["tokens"] for half in halves])
  )
  plan = blend.blend((f"{corpora}/web",), steps=4, batch=8, length=64)
  whole, again = (next(plan.stream(process=i, processes=2))["tokens"] for i in range(2))
  assert len(whole) == 8
  np.testing.assert_array_equal(whole, again)


def test_published_weights_go_to_sources_of_their_names(corpora):
  entries = (f"common_crawl={corpora}/web", f"wikipedia={corpora}/books")
  plan = blend.blend(entries, preset="gpt3", steps=8, batch=8, length=64)
  assert plan.shares["wikipedia"].weight == pytest.approx(3 / 63)
  with pytest.raises(UserError, match='did you mean "wikipedia"'):
    blend.blend((f"wikipedi={corpora}/web",), preset="gpt3", steps=1, batch=1, length=64)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"weights": ("web=1",)}, '"books" has no weight'),
    ({"weights": ("web=1, books=1, code=1",)}, '"code" has a weight and is no source'),
    ({"weights": ("web:1",)}, "is no step"),
    ({"weights": ("web",)}, "must be like"),
    ({"weights": ("web=1, books=1", "web=2, books=1")}, "need the step"),
    ({"weights": ("web=1, books=1",), "preset": "gpt3"}, "not both"),
    ({"sources": ("web=gone",)}, "gone holds no prepared corpus"),
    ({"max_epochs": 0.1}, "raise max_epochs"),
  ],
)
def test_what_does_not_fit_is_one_line(prepared, corpora, change, message):
  cfg = mixed(prepared, corpora, ())
  for name, value in change.items():
    setattr(cfg.mixture, name, value)
  with pytest.raises(UserError, match=message) as caught:
    pretrain.blended(cfg)
  assert "\n" not in str(caught.value)


def test_other_tokenizers_and_lengths_are_refused(prepared, corpora, tmp_path):
  shutil.copytree(corpora / "web", tmp_path / "other")
  meta = tmp_path / "other/tokenizer/tokenizer.json"
  meta.write_text(meta.read_text().replace('"sha256": "', '"sha256": "0'))
  with pytest.raises(UserError, match="have different tokenizers"):
    blend.blend((f"{corpora}/web", f"{tmp_path}/other"), steps=1, batch=1, length=64)
  pack.run(config.Pack(prepared=str(corpora / "web"), length=32, workers=1), tmp_path / "rows")
  with pytest.raises(UserError, match="rows of 32 tokens"):
    blend.blend((f"{tmp_path}/rows",), steps=1, batch=1, length=64)
  with pytest.raises(UserError, match="run `python -m experiments.pack"):
    blend.blend((f"{tmp_path}/rows", f"{corpora}/books"), steps=1, batch=1, length=32)


def test_a_stopped_mixture_goes_on_to_the_same_batches(prepared, corpora):
  cfg = mixed(prepared, corpora, ("web=1, books=1",))
  first, second = pretrain.training_batches(cfg), pretrain.training_batches(cfg)
  for _ in range(3):
    next(first)
  second.set_state(json.loads(json.dumps(first.get_state())))
  for _ in range(4):
    np.testing.assert_array_equal(next(first)["tokens"], next(second)["tokens"])


def test_a_dry_run_shows_the_plan(prepared, corpora):
  words = [
    "--dry_run", f"--config.prepared={prepared}", "--config.length=64", "--config.steps=8",
    f"--config.mixture.sources=('web={corpora}/web', 'books={corpora}/books')",
    "--config.mixture.weights=('web=3, books=1',)",
  ]  # fmt: skip
  done = subprocess.run(
    [sys.executable, "-m", "experiments.pretrain", *words],
    capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"},
    cwd=pathlib.Path(__file__).parents[2], check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  entries = (f"web={corpora}/web", f"books={corpora}/books")
  plan = blend.blend(entries, ("web=3, books=1",), steps=8, batch=16, length=64)
  assert mixture.table(plan.shares) in done.stdout
