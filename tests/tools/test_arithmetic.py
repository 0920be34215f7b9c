"""Sums in words from files to a table: a chain of tiny runs, and settings that load."""

import json

import pytest

from experiments import _fields, _launch
from llm_jax import config
from llm_jax.data import formats
from llm_jax.errors import UserError
from tools import arithmetic, make_arithmetic

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
FEW = ("--train=60", "--validation=16", "--largest=12", "--documents=200")
KINDS = {
  "prepare": config.Prepare,
  "pretrain": config.Pretrain,
  "sft": config.Sft,
  "grpo": config.Grpo,
  "grpo_constant": config.Grpo,
  "sft_more": config.Sft,
}


def read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_files_hold_what_was_asked_for(tmp_path, capsys):
  assert make_arithmetic.main([f"--out={tmp_path / 'a'}", *FEW]) == 0
  assert f"60 rows in {tmp_path / 'a' / 'train.jsonl'}" in capsys.readouterr().out
  make_arithmetic.write([f"--out={tmp_path / 'b'}", *FEW])
  for name, count in (("train", 60), ("validation", 16)):
    table = formats.read(tmp_path / "a" / f"{name}.jsonl", "conversations")
    assert (table.format, len(table.items), table.drops) == ("messages", count, {})
  for path in (tmp_path / "a").iterdir():
    assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_the_text_has_no_question_that_is_held_out_and_no_answer(tmp_path):
  make_arithmetic.write([f"--out={tmp_path}", *FEW])
  texts = [row["text"] for row in read(tmp_path / "corpus.jsonl")]
  asked = [row["messages"][0]["content"] for row in read(tmp_path / "train.jsonl")]
  held_out = [row["messages"][0]["content"] for row in read(tmp_path / "validation.jsonl")]
  assert len(texts) == 260 and {text for text in texts if "?" in text} == set(asked)
  assert not set(texts) & set(held_out)
  assert all("plus" not in text for text in texts if "?" not in text)


@pytest.mark.parametrize(
  ("word", "message"),
  [("--documents=0", "--documents"), ("--train=999", "--train=999"), ("--operations=a", '"a"')],
)
def test_bad_arguments_are_one_line(tmp_path, capsys, word, message):
  assert make_arithmetic.main([f"--out={tmp_path / 'x'}", *FEW, word]) == 2
  said = capsys.readouterr().err
  assert said.startswith("error: ") and message in said and said.count("\n") == 1
  assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", arithmetic.ORDER)
def test_each_stage_has_its_settings(name):
  cfg = _launch.load_config(f"{_launch.CONFIGS / 'arithmetic.py'}:{name}")
  assert type(cfg) is KINDS[name]
  _fields.validate(cfg)
  with pytest.raises(UserError, match=f'did you mean "{name}"'):
    _launch.load_config(f"{_launch.CONFIGS / 'arithmetic.py'}:{name}x")


def test_training_and_held_out_questions_are_files_of_their_own(tmp_path):
  cfgs = arithmetic.stages(tmp_path, 3)
  assert {cfg.seed for cfg in cfgs.values()} == {3}
  for name in ("grpo", "grpo_constant"):
    assert cfgs[name].data == (str(tmp_path / "data" / "train.jsonl"),)
    assert cfgs[name].eval_data == (str(tmp_path / "data" / "validation.jsonl"),)
  assert cfgs["sft_more"].data == cfgs["sft"].data
  assert cfgs["sft_more"].steps == cfgs["grpo"].steps
  assert (cfgs["grpo"].score, cfgs["grpo_constant"].score) == ("exact", "constant")
  fewer = arithmetic.stages(tmp_path, 3, answers=0.25)
  assert fewer["sft"].data == fewer["sft_more"].data == (f"{cfgs['grpo'].data[0]}=0.25",)
  assert fewer["grpo"] == cfgs["grpo"]
  with pytest.raises(UserError, match="--answers must be above 0"):
    arithmetic.stages(tmp_path, 3, answers=1.5)


def test_the_table_has_every_seed_and_the_mean():
  figures = dict.fromkeys(arithmetic.ROWS, 0.5) | {"lift": 25.0, "seconds": 100.0}
  said = arithmetic.table({0: figures, 2: figures | {"lift": 35.0, "seconds": 300.0}})
  assert "| held-out accuracy | seed 0 | seed 2 | mean |" in said
  assert "| points by which GRPO lifts it | +25.0 | +35.0 | +30.0 |" in said
  assert "| seconds in all | 100 | 300 | 200 |" in said


@pytest.mark.parametrize("seeds", ["", "0,0", "-1", "a"])
def test_seeds_must_be_numbers(seeds, capsys):
  assert arithmetic.main([f"--seeds={seeds}"]) == 2
  assert capsys.readouterr().err.startswith("error: --seeds=")


@pytest.mark.long
def test_a_tiny_chain_runs_to_its_figures_and_is_not_run_again(tmp_path):
  cfgs = arithmetic.stages(tmp_path, 0)
  cfgs["prepare"].vocab_size = 360
  cfgs["pretrain"].model = config.Model(dim=32, layers=1, heads=2)
  for name in arithmetic.ORDER.keys() - {"prepare"}:
    cfgs[name].steps, cfgs[name].batch, cfgs[name].length = 4, 8, 64
    cfgs[name].eval_every = cfgs[name].checkpoint_every = cfgs[name].log_every = 4
    cfgs[name].optimizer.name = "adamw"
  for name in ("grpo", "grpo_constant"):
    cfgs[name].prompts, cfgs[name].samples, cfgs[name].prompt_length = 8, 2, 32
  figures = arithmetic.run(tmp_path, 0, cfgs, FEW)
  assert set(figures) == {*arithmetic.ROWS, "seconds"}
  assert figures["grpo_constant"] == figures["sft"]  # Groups that tie teach nothing.
  assert figures["lift"] == pytest.approx(100 * (figures["grpo"] - figures["sft"]))
  rows = read(tmp_path / "grpo" / "metrics.jsonl")
  last = [row["eval/scores/exact"] for row in rows if "eval/scores/exact" in row][-1]
  assert last == pytest.approx(figures["grpo"])
  before = (tmp_path / "grpo" / "metrics.jsonl").read_bytes()
  again = arithmetic.run(tmp_path, 0, cfgs, FEW)
  assert again == figures
  assert (tmp_path / "grpo" / "metrics.jsonl").read_bytes() == before
  cfgs["grpo"].samples = 4
  with pytest.raises(UserError, match="samples"):
    arithmetic.run(tmp_path, 0, cfgs, FEW)
