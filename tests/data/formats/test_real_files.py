"""Real files, where they are: the rows that their README counts, and what is kept of them."""

import os
import pathlib

import pytest

from llm_jax.data import formats
from llm_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[3]
DATA = pathlib.Path(os.environ.get("LLM_JAX_DATA", ROOT.parent / "shared" / "data"))
LONG = pytest.mark.long
OASST = {"fewer than two answers": 42, "unranked answer": 6}
# file, format, rows as its README says, kind, items, drops
FILES = [
  ("instruct_small/dolly_hhrlhf_train_small.jsonl.gz", "messages", 1000, "conversations", 1000, {}),
  ("instruct_small/self_instruct_seed_tasks.jsonl.gz", "self_instruct", 175, "conversations", 175,
   {}),
  ("instruct_small/self_instruct_user_oriented_252.jsonl.gz", "self_instruct", 252,
   "conversations", 252, {}),
  ("instruct_small/rasbt_instruction_data.json.gz", "alpaca", 1100, "conversations", 1100, {}),
  ("instruct_small/gpteacher_codegen.json.gz", "alpaca", 4535, "conversations", 4535, {}),
  ("instruct_small/gpteacher_roleplay.json.gz", "alpaca", 1923, "conversations", 1923, {}),
  ("instruct_small/oasst_en_100_tree.jsonl.gz", "oasst", 100, "conversations", 546,
   {"unanswered end": 226}),
  ("instruct_small/oasst_en_100_tree.jsonl.gz", "oasst", 100, "rankings", 212, OASST),
  ("instruct_small/oasst_en_100_message.jsonl.gz", "oasst", 100, "conversations", 546,
   {"unanswered end": 226}),
  ("instruct_small/oasst_en_100_message.jsonl.gz", "oasst", 100, "preferences", 754, OASST),
  ("llamafactory_demos/alpaca_en_demo.json.gz", "alpaca", 999, "conversations", 999, {}),
  ("llamafactory_demos/identity.json.gz", "alpaca", 91, "conversations", 91, {}),
  ("llamafactory_demos/glaive_toolcall_en_demo.json.gz", "sharegpt", 300, "conversations", 300, {}),
  ("llamafactory_demos/dpo_en_demo.json.gz", "sharegpt_pairs", 300, "preferences", 300, {}),
  ("llamafactory_demos/kto_en_demo.json.gz", "kto", 300, "labels", 300, {}),
  ("preference_small/rasbt_dpo_pairs.json.gz", "alpaca_pairs", 1100, "preferences", 1094,
   {"same answers": 6}),
  ("preference_small/rasbt_dpo_pairs.json.gz", "alpaca_pairs", 1100, "conversations", 1100, {}),
  ("preference_small/pandalm_testset-v1.json.gz", "pandalm", 999, "preferences", 842,
   {"tie": 105, "empty answer": 52}),
  ("preference_small/llmbar.jsonl.gz", "llmbar", 419, "preferences", 419, {}),
  ("gsm8k/test.jsonl.gz", "gsm8k", 1319, "conversations", 1319, {}),
  ("gsm8k/train.jsonl.gz", "gsm8k", 7473, "conversations", 7473, {}),
  ("taskmaster_reward/tm4_dialogs.jsonl.gz", "messages", 3710, "conversations", 3710,
   {"unanswered end": 75}),
  pytest.param("taskmaster_reward/reward.jsonl.gz", "taskmaster", 6895, "labels", 6885,
   {"no prompt": 6, "empty answer": 4}, marks=LONG),
  pytest.param("preference_small/anthropic_persona.jsonl.gz", "persona", 133204, "preferences",
   133204, {}, marks=LONG),
  pytest.param("t0_train_50k/t0_train_50k.jsonl.gz", "flan", 55185, "conversations", 53785,
   {"empty answer": 1400}, marks=LONG),
]  # fmt: skip


def found(name):
  if not (DATA / name).exists():
    pytest.skip(f"needs {name} in the folder shared/data beside the repository")
  return DATA / name


@pytest.mark.parametrize(("name", "format", "rows", "kind", "count", "drops"), FILES)
def test_a_file_is_read_whole(name, format, rows, kind, count, drops):
  table = formats.read(found(name), kind)
  assert (table.format, table.rows, len(table.items)) == (format, rows, count)
  assert table.drops == drops


def test_every_answer_of_gsm8k_ends_with_a_number():
  for item in formats.read(found("gsm8k/test.jsonl.gz"), "conversations").items:
    assert formats.final_number(item.messages[-1]["content"]).lstrip("-").isdecimal()


def test_a_file_without_answers_is_of_no_format():
  with pytest.raises(UserError, match='the nearest is "alpaca": "output" is missing'):
    formats.read(found("preference_small/pandalm_testset-inference-v1.json.gz"), "preferences")


def test_the_guide_lists_every_format_and_its_kinds():
  guide = (ROOT / "docs" / "posttraining.md").read_text(encoding="utf-8")
  for format in formats.FORMATS:
    *_, line = [line for line in guide.splitlines() if line.startswith(f"| `{format.name}` |")]
    assert line.endswith(f"| {', '.join(format.kinds)} |")
