"""Preferences of one's own files: prompts of messages, cuts, splits, and what was there before."""

import json

import numpy as np
import pytest

from llm_jax import config
from llm_jax.data import formats, posttraining, preferences
from llm_jax.data.intake import Intake
from llm_jax.data.posttraining import Compared
from llm_jax.data.preferences import Answer, Pair
from llm_jax.errors import UserError
from llm_jax.stages import dpo, pairs, reward, runs
from tests.stages.conftest import tiny

TURNS = [
  {"role": "system", "content": "Be short."},
  {"role": "user", "content": "What does sort files do?"},
  {"role": "assistant", "content": "Sort all the files."},
  {"role": "user", "content": "And sort rows of a table?"},
]


@pytest.fixture(scope="module")
def coder(prepared):
  return runs.tokenizer(str(prepared))


def write(path, rows):
  path.parent.mkdir(exist_ok=True)
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def rows(count, word="rows", **more):
  return [
    {"prompt": f"Sort {word} {i}?", "chosen": f"Sort {word}.", "rejected": "Delete names."} | more
    for i in range(count)
  ]


def compared(coder, length=200, **fields):
  item = {"prompt": TURNS, "chosen": "Sort the rows.", "rejected": "Count the words."} | fields
  return posttraining.preference(coder, formats.Preference(**item), length)


def test_only_the_last_answer_counts_and_it_ends(coder):
  row = compared(coder).row.row
  for side, text in (("chosen", "Sort the rows."), ("rejected", "Count the words.")):
    tokens, mask = row[side]
    assert coder.decode([t for t, m in zip(tokens, mask, strict=True) if m]) == text
    assert (tokens[-1], mask[-1]) == (coder.end_id, 1)
  begins = [row[side][1].index(1) for side in pairs.SIDES]
  assert begins[0] == begins[1]
  assert row["chosen"][0][: begins[0]] == row["rejected"][0][: begins[0]]


def test_both_sides_keep_the_same_of_a_prompt_that_is_cut(coder):
  long = "Sort all the rows of a table, and sort all the files of a table."
  whole, cut = compared(coder, chosen=long)
  assert not cut
  size, least = (len(whole.row[side][0]) for side in ("chosen", "rejected"))
  for length in range(size - 3, 20, -5):
    pair, cut = compared(coder, length, chosen=long)
    prompts = [t[: m.index(1)] for t, m in pair.row.values()]
    assert cut and prompts[0] == prompts[1]
    assert max(len(t) for t, _ in pair.row.values()) <= length + 1
    answer = pair.row["rejected"]
    assert sum(answer[1]) == min(sum(whole.row["rejected"][1]), length + 1 - len(prompts[1]))
  assert least < size


def test_answers_that_the_cut_makes_equal_are_dropped(coder):
  start = "Sort all the rows of a table and of "
  same = compared(coder, 14, chosen=start + "files.", rejected=start + "names.")
  assert same == posttraining.SAME


def test_numbers_of_a_pair_come_along(coder):
  pair = compared(coder, margin=2.0, probability=0.75, group="g", source="s").row
  assert (pair.margin, pair.probability, pair.kind) == (2.0, 0.75, "s")
  other = compared(coder, group="g", prompt=[{"role": "user", "content": "else"}]).row
  assert pair.group.endswith(":g") and pair.group != other.group
  assert compared(coder).row.group == ""


def test_a_directory_of_ours_is_read_as_before(prepared, coder, tmp_path):
  made = [
    Pair(f"Sort {i}?", Answer("Sort all."), Answer("Sort", i % 2 == 0), kind, 1.0, 0.25)
    for i, kind in enumerate(["cut_off", "sft_sample"] * 4)
  ]
  preferences.write(tmp_path / "train.jsonl", made)
  preferences.write(tmp_path / "validation.jsonl", made[:2])
  cfg = tiny(config.Reward, prepared, preferences=str(tmp_path), kinds="sft_sample")
  train, apart = pairs.splits(cfg, Intake(tmp_path), coder, every_kind=True)
  want = pairs.load(str(tmp_path), "train", "sft_sample")
  assert [pair.row for pair in train] == pairs.encode(coder, want, cfg.length)
  assert [pair.row for pair in apart] == pairs.encode(coder, made[:2], cfg.length)
  assert {pair.margin for pair in train} == {0.75}
  assert len(pairs.splits(cfg, Intake(tmp_path), coder)[1]) == 1


def test_files_are_split_by_prompt_and_named_by_source(prepared, coder, tmp_path, capsys):
  a, b = write(tmp_path / "a.jsonl", rows(20)), write(tmp_path / "b.jsonl", rows(20, "files"))
  cfg = tiny(config.Dpo, prepared, preferences=f"{a}, {b}=2", validation=0.2)
  train, apart = pairs.splits(cfg, Intake(tmp_path), coder)
  assert {pair.kind for pair in train} == {"a", "b"}
  assert not {repr(p.row) for p in train} & {repr(p.row) for p in apart}
  assert "20 rows, 20 preferences kept, weight 2" in capsys.readouterr().err
  alone = tiny(config.Dpo, prepared, preferences=f"{a},{b}", kinds="b", validation=0.0)
  assert {pair.kind for pair in pairs.splits(alone, Intake(tmp_path), coder)[0]} == {"b"}
  assert pairs.splits(alone, Intake(tmp_path), coder)[1] == []


def test_a_directory_of_files_has_its_own_split(prepared, coder, tmp_path):
  write(tmp_path / "own" / "train.jsonl", rows(6))
  write(tmp_path / "own" / "validation.jsonl", rows(3, "files"))
  cfg = tiny(config.Reward, prepared, preferences=str(tmp_path / "own"))
  train, apart = pairs.splits(cfg, Intake(tmp_path), coder)
  assert (len(train), len(apart)) == (6, 3)
  (tmp_path / "own" / "validation.jsonl").unlink()
  train, apart = pairs.splits(cfg, Intake(tmp_path), coder)
  assert (len(train), len(apart)) == (5, 1)


@pytest.mark.parametrize(
  ("stage", "fields", "message"),
  [
    (reward, {"preferences": "nowhere"}, "is missing: run"),
    (reward, {"preferences": "nowhere.jsonl"}, "cannot read nowhere.jsonl"),
    (dpo, {"preferences": "nowhere.jsonl,b.jsonl=0"}, "config.preferences.*weight"),
    (dpo, {"validation": -0.1}, "config.validation"),
    (reward, {"validation": 1.5}, "config.validation"),
    (dpo, {"kinds": "sft_sample"}, "no pairs of kind 'sft_sample'.*--config.kinds="),
  ],
)
def test_bad_input_is_one_line(stage, fields, message, prepared, start, tmp_path):
  own = {"preferences": write(tmp_path / "mine.jsonl", rows(8)), "init": start} | fields
  make = config.Reward if stage is reward else config.Dpo
  with pytest.raises(UserError, match=message) as error:
    stage.run(tiny(make, prepared, **own), str(tmp_path / "run"))
  assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_flipping_swaps_about_half_of_the_labels_and_nothing_else():
  row = {"chosen": ([1], [1]), "rejected": ([2], [1])}
  given = [Compared(row, "a", 1.0, 0.8, str(i)) for i in range(1000)]
  flipped = pairs.flip(given, seed=0)
  swapped = [pair for pair in flipped if pair.row["chosen"] == ([2], [1])]
  assert 400 < len(swapped) < 600
  assert all((p.margin, p.probability, p.kind) == (1.0, 0.8, "a") for p in flipped)
  assert [p.group for p in flipped] == [str(i) for i in range(1000)]
  assert flipped == pairs.flip(given, seed=0)
  coin = np.random.default_rng(0).random(1000) < 0.5
  assert [p.row["chosen"] == ([2], [1]) for p in flipped] == coin.tolist()
