"""SFT on files of one's own: what is evaluated, what is refused, what resumes."""

import json

import numpy as np
import pytest

from llm_jax import config
from llm_jax.data import batches
from llm_jax.errors import UserError
from llm_jax.losses import objectives, token
from llm_jax.stages import own, runs, sft, training
from llm_jax.train import parallel
from llm_jax.train.metrics import read
from tests.stages.conftest import tiny


def talks(path, count, word):
  with open(path, "w") as f:
    for i in range(count):
      row = {"instruction": f"Say {word} {i}", "output": f"{word} " * (1 + i % 3), "input": ""}
      f.write(json.dumps(row) + "\n")
  return str(path)


@pytest.fixture
def two(tmp_path):
  return talks(tmp_path / "rows.jsonl", 40, "rows"), talks(tmp_path / "files.jsonl", 40, "files")


@pytest.mark.long
def test_two_files_are_trained_on_and_measured_apart(prepared, start, two, tmp_path, capsys):
  cfg = tiny(
    config.Sft, prepared, init=start, data=(two[0], f"{two[1]}=0.5"), validation=0.2,
    optimizer=config.Optimizer(lr=3e-3, warmup=1), steps=8, neftune=5.0,
  )  # fmt: skip
  sft.run(cfg, str(tmp_path / "run"))
  told = capsys.readouterr().err
  assert f"{two[0]}: alpaca, 40 rows, 40 conversations kept" in told and "weight 0.5" in told
  rows = [row for row in read(tmp_path / "run") if "eval/loss" in row]
  assert {"eval/loss/rows", "eval/loss/files"} <= rows[-1].keys()
  assert rows[-1]["eval/loss"] < rows[0]["eval/loss"]
  sides = rows[-1]["eval/loss/rows"], rows[-1]["eval/loss/files"]
  assert min(sides) <= rows[-1]["eval/loss"] <= max(sides)


def test_the_loss_of_all_is_that_of_its_sources_by_their_tokens(prepared, start, two):
  cfg = tiny(config.Sft, prepared, init=start, data=two, validation=0.3)
  coder, model = runs.tokenizer(str(prepared)), runs.load(start, "init")
  _, apart = own.conversations(
    cfg, None, lambda item: sft.posttraining.conversation(coder, item, cfg.length)
  )
  objective = objectives.next_token(training.decoder_apply(model.model), token.cross_entropy)
  place = parallel.make(cfg.mesh)
  params = training.placed(place, model.model, model.params)

  def packed(rows):
    return lambda: batches.pack_examples(rows, cfg.length, cfg.batch)

  split = {name: packed(rows) for name, rows in apart.items()}
  whole = {"all": packed([row for rows in apart.values() for row in rows])}
  parts = training.losses_on(objective, place, split)(params)
  (name, loss), *none = training.losses_on(objective, place, whole)(params).items()
  assert (name, none) == ("loss", []) and set(parts) == {"loss", "loss/rows", "loss/files"}
  np.testing.assert_allclose(parts["loss"], loss, rtol=1e-5)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"neftune": -1.0}, "config.neftune must not be negative"),
    ({"validation": 1.0}, "config.validation=1.0 must be"),
    ({"validation_data": ("a.jsonl",)}, "config.data, which is empty"),
    ({"data": ("nowhere.jsonl",)}, "nowhere.jsonl"),
    ({"data": ("nowhere.jsonl=0",)}, "weight above 0"),
  ],
)
def test_bad_files_are_one_line(fields, message, prepared, start, tmp_path):
  with pytest.raises(UserError, match=message) as error:
    sft.run(tiny(config.Sft, prepared, init=start, **fields), str(tmp_path / "run"))
  assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_without_files_the_questions_are_as_they_were(prepared, start):
  cfg = tiny(config.Sft, prepared, init=start)
  coder = runs.tokenizer(str(prepared))
  train, apart = own.conversations(cfg, lambda q: sft.example(coder, q, cfg.length), None)
  assert train == [sft.example(coder, q, cfg.length) for q in runs.asked(str(prepared), "train")]
  assert list(apart) == ["questions"] and len(apart["questions"]) == 24


def test_unpacked_a_batch_counts_conversations(prepared):
  rows = [([1, 10 + i, 40 + i], [0, 1, 1]) for i in range(16)]
  cfg = tiny(config.Sft, prepared, packed=False)
  stream = sft._endless(rows, cfg)
  first, second = next(stream), next(stream)
  assert first["tokens"].shape == (8, cfg.length)
  assert first["segments"].max() == 1 and first["mask"].sum() == 16
  ends = [batch["targets"][:, 1].tolist() for batch in (first, second)]
  assert sorted(ends[0] + ends[1]) == [40 + i for i in range(16)]
