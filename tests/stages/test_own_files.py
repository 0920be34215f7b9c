"""SFT on files of one's own: what is evaluated, what is refused, what resumes."""

import json

import jax
import numpy as np
import pytest

from llm_jax import config
from llm_jax.data import batches, posttraining
from llm_jax.errors import UserError
from llm_jax.losses import objectives, token
from llm_jax.stages import own, prompts, runs, sft, training
from llm_jax.train import checkpoint, parallel
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


def test_the_loss_of_all_is_that_of_its_sources_by_their_tokens(prepared, start, two, tmp_path):
  cfg = tiny(config.Sft, prepared, init=start, data=two, validation=0.3)
  coder, model = runs.tokenizer(str(prepared)), runs.load(start, "init")
  _, apart = own.conversations(
    cfg, tmp_path, None, lambda item: sft.posttraining.conversation(coder, item, cfg.length)
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


def test_without_files_the_questions_are_as_they_were(prepared, start, tmp_path):
  cfg = tiny(config.Sft, prepared, init=start)
  coder = runs.tokenizer(str(prepared))
  train, apart = own.conversations(cfg, tmp_path, lambda q: sft.example(coder, q, cfg.length), None)
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


def spoilt(path, word, every=5):
  """Talks, with a line that is no JSON before each fifth of them; returns (file, the good rows)."""
  good = talks(path.with_suffix(".good.jsonl"), 40, word)
  with open(good) as f:
    rows = f.readlines()
  path.write_text(
    "".join("{broken\n" + row if i % every == 0 else row for i, row in enumerate(rows))
  )
  return str(path), good


@pytest.mark.long
def test_bad_rows_within_the_budget_change_nothing_but_what_is_told(
  prepared, start, tmp_path, capsys
):
  bad, good = spoilt(tmp_path / "rows.jsonl", "rows")
  fields = {"init": start, "validation": 0.2, "steps": 4, "max_lost": 8}
  for name, file in (("bad", bad), ("good", good), ("bad", bad)):
    sft.run(tiny(config.Sft, prepared, data=(file,), **fields), str(tmp_path / name))
    told = capsys.readouterr().err
    assert ("8 of 48 rows cannot be read (not JSON 8); they are in" in told) == (name == "bad")
  params = [checkpoint.load_params(tmp_path / name) for name in ("bad", "good")]
  jax.tree.map(np.testing.assert_array_equal, *params)
  assert not (tmp_path / "good" / "quarantine.jsonl").exists()
  rows = (tmp_path / "bad" / "quarantine.jsonl").read_text().splitlines()
  assert [json.loads(row)["where"] for row in rows] == [f"line {n}" for n in range(1, 48, 6)]
  (entry,) = json.loads((tmp_path / "bad" / "data.json").read_text())
  assert (entry["rows"], entry["kept"], entry["lost"]) == (48, 40, {"not JSON": 8})


def test_where_no_row_is_left_the_line_says_where_they_are(tmp_path):
  path = tmp_path / "bad.jsonl"
  path.write_text("{\n[]\n")
  cfg = config.Sft(data=(str(path),), max_lost=9)
  with pytest.raises(UserError) as error, own.intake(cfg, tmp_path / "run") as taken:
    prompts.load(cfg.data, "", intake=taken)
  said = str(error.value)
  assert said.startswith(f"{path} holds no rows that can be read") and "\n" not in said
  assert "; 2 rows cannot be read (a JSON list where an object must be 1, not JSON 1); " in said
  assert said.endswith(f"they are in {tmp_path / 'run' / 'quarantine.jsonl'}")
  assert len((tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()) == 2
  path.write_text("")
  with pytest.raises(UserError) as error, own.intake(cfg, tmp_path / "other") as taken:
    prompts.load(cfg.data, "", intake=taken)
  assert "quarantine" not in str(error.value) and not (tmp_path / "other").exists()


def test_one_row_over_the_budget_stops_every_stage_that_reads_files(prepared, start, tmp_path):
  bad, _ = spoilt(tmp_path / "rows.jsonl", "rows")
  says = r"8 of 48 rows cannot be read \(not JSON 8\), which is more than config.max_lost=7; "
  learned = lambda cfg, out: own.conversations(cfg, out, None, posttraining.Encoded)  # noqa: E731
  for make, load in ((config.Sft, learned), (config.Grpo, prompts.both)):
    out = tmp_path / make.__name__
    with pytest.raises(UserError, match=says):
      load(tiny(make, prepared, init=start, data=(bad,), max_lost=7), out)
    assert (out / "quarantine.jsonl").read_text().count("{broken") == 8
    load(tiny(make, prepared, init=start, data=(bad,), max_lost=8), out)
    with pytest.raises(UserError, match="line 1: not JSON .*config.max_lost$"):
      load(tiny(make, prepared, init=start, data=(bad,)), out)


def test_prompts_of_both_files_share_a_budget_and_rows_without_one_are_counted(
  prepared, tmp_path, capsys
):
  (bad, _), (judged, _) = (spoilt(tmp_path / f"{name}.jsonl", name) for name in ("a", "b"))
  lonely = tmp_path / "lonely.jsonl"
  lonely.write_text('{"messages": [{"role": "assistant", "content": "Hi"}]}\n')
  cfg = tiny(config.Grpo, prepared, data=(bad, str(lonely)), eval_data=(judged,), max_lost=16)
  asked, held_out = prompts.both(cfg, tmp_path / "run")
  assert (len(asked), len(held_out)) == (40, 40)
  assert "1 rows, 0 prompts, 1 dropped: no prompt" in capsys.readouterr().out
  files = json.loads((tmp_path / "run" / "data.json").read_text())
  assert [(x["file"], x["dropped"]) for x in files] == [
    (bad, {}), (str(lonely), {"no prompt": 1}), (judged, {}),
  ]  # fmt: skip
  cfg.max_lost = 15
  with pytest.raises(UserError, match="16 of 97 rows cannot be read"):
    prompts.both(cfg, tmp_path / "run")
