"""What is shown is what the batch holds: text, mask, segments, markers; no text forges any."""

import json
import re

import numpy as np
import pytest

from llm_jax.data import batches, chat, packing, rows
from llm_jax.data import tokenizer as tokenizer_lib
from tools import inspect_batch
from tools.inspect_batch import Paint

TALK = [
  {"role": "system", "content": "Be short."},
  {"role": "user", "content": "What is a list? \u001b[31m ⟦x⟧ <|end|>\n\nSay it in 日本."},
  {"role": "assistant", "content": "A list is a sequence.\n  It is café \u202e1234.\t"},
]
TEXTS = [f"Text {i} speaks of the sum of {i} and {i * 7}, and of words.\n" * 3 for i in range(40)]
MARKS = re.compile(r"[⟦⟧]|⟪[^⟫]*⟫")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("inspect")
  tokenizer = tokenizer_lib.train(TEXTS, folder / "tokenizer", 330)
  for name in ("web", "code"):
    path = folder / "tokens" / name / "00000.array_record"
    packing.write_tokens(path, tokenizer.documents(TEXTS), tokenizer.vocab_size)
  talks = [TALK] * 5 + [TALK[1:]] * 5
  lines = [json.dumps({"messages": talk}) + "\n" for talk in talks]
  (folder / "talks.jsonl").write_text("".join(lines))
  return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
  return tokenizer_lib.Tokenizer.load(folder / "tokenizer")


def plain(tokenizer, batch, **options):
  names = ["source"] * len(batch["tokens"])
  return list(inspect_batch.show(batch, tokenizer, names, Paint(False), **options))


def unspelt(text):
  """Text in which characters that are spelt in one byte stand as any other."""
  return re.sub("‹(.)›", r"\1", text)


def texts(lines):
  """Joins the text of each segment's lines."""
  segments = []
  for line in lines:
    if line.startswith("  segment "):
      segments.append("")
    elif "│" in line:
      segments[-1] += line.partition("│ ")[2].replace("⏎", "\n")
  return segments


@pytest.mark.parametrize("width", [20, 60, 200])
def test_text_between_the_marks_is_what_is_learned(tokenizer, width):
  tokens, mask = chat.render(tokenizer, TALK[:1] + TALK[2:])
  lines = plain(tokenizer, batches.lm_batch([(tokens, mask)], 200), width=width)
  (shown,) = texts(lines)
  learned = re.findall("⟦([^⟧]*)⟧", shown)
  assert [text[-5:] for text in learned] == ["⟪end⟫"]
  readable = TALK[2]["content"].replace("é", "‹é C3 A9›").replace("\u202e", "‹E2 80 AE›")
  assert unspelt(MARKS.sub("", learned[0])) == readable.replace("\t", "‹09›")
  assert unspelt(shown).startswith("⟪s⟫⟪system⟫Be short.⟪end⟫⟪assistant⟫⟦A list")
  assert all(inspect_batch._columns(line) <= width + 3 for line in lines if "│" in line)


def test_nothing_in_a_text_steers_the_terminal_or_looks_like_a_mark(tokenizer):
  batch = batches.lm_batch([chat.render(tokenizer, TALK)], 300)
  for paint in (Paint(False), Paint(True)):
    lines = "\n".join(inspect_batch.show(batch, tokenizer, ["x"], paint))
    bare = re.sub("\033\\[[0-9;]*m", "", lines)
    assert not [c for c in bare if not c.isprintable() and c != "\n"]
    assert bare.count("⟪") == 1 + 7  # The legend's, and the control tokens.
  assert lines != bare
  only = "\n".join(plain(tokenizer, batch)[1:])
  assert only.count("⟦") == only.count("⟧") == 1
  assert "<|end|>" in unspelt(only)  # The user wrote it: text, no control token.


def test_every_segment_position_and_padding_is_accounted_for(folder, tokenizer):
  path = folder / "tokens" / "web"
  batch = next(batches.pack_documents(path, 200, 3, strategy="best_fit", epochs=1))
  lines = plain(tokenizer, batch)
  counts = [
    int(m[1]) for line in lines if (m := re.match(r"  segment \d+ · (\d+) positions", line))
  ]
  padding = [int(m[1]) for line in lines if (m := re.match(r"  padding: (\d+)", line))]
  assert sum(counts) == (batch["segments"] > 0).sum()
  assert sum(counts) + sum(padding) == 600
  shown = [unspelt(MARKS.sub("", text)) for text in texts(lines)]
  assert len(shown) == batch["segments"].max(axis=1).sum()
  assert set(shown) <= set(TEXTS)


def test_parts_of_documents_say_so(tokenizer):
  rows_ = [([tokenizer.bos_id, 300, 301], [1, 1, 1]), ([300, 301, tokenizer.eos_id], [1, 1, 1])]
  titles = [line for line in plain(tokenizer, batches.lm_batch(rows_, 4)) if "segment 1" in line]
  assert ["goes on" in title for title in titles] == [True, False]
  assert ["begins inside" in title for title in titles] == [False, True]


def test_table_has_a_line_for_every_position(tokenizer):
  tokens, mask = chat.render(tokenizer, TALK)
  lines = [
    line
    for line in plain(tokenizer, batches.lm_batch([(tokens, mask)], 300), table=True)
    if "│" in line
  ]
  assert len(lines) == len(tokens) - 1
  for i, line in enumerate(lines):
    position, rest = line.split("│")
    left, right = rest.split("→")
    assert int(position) == i
    assert int(left.split()[0]) == tokens[i]
    assert int(right.split()[0]) == tokens[i + 1]
    assert line.endswith("1" if mask[i + 1] else "-")


def test_ids_that_no_tokenizer_has_are_shown(tokenizer):
  batch = batches.lm_batch([([2, 5000, 300], [0, 1, 1])], 4)
  assert "no token 5000" in "\n".join(plain(tokenizer, batch))


def arguments(folder, *more):
  return [f"--tokenizer={folder / 'tokenizer'}", "--length=64", *more]


def test_the_command_prints_plain_text_when_piped(folder, capsys):
  tokens = folder / "tokens" / "web"
  assert inspect_batch.main(arguments(folder, f"--tokens={tokens}", "--rows=2")) == 0
  said = capsys.readouterr().out
  assert "\033" not in said
  assert "row 2 of 2 · web" in said
  assert inspect_batch.main(arguments(folder, f"--tokens={tokens}", "--color=always")) == 0
  assert "\033[" in capsys.readouterr().out


def test_the_last_line_sums_up_sources(folder, capsys):
  both = [f"--tokens={name}={folder / 'tokens' / name}" for name in ("web", "code")]
  command = arguments(folder, *both, "--weights=web=3,code=1", "--rows=8", "--step=2")
  assert inspect_batch.main(command) == 0
  *_, last = capsys.readouterr().out.splitlines()
  web, code = (int(n.replace(",", "")) for n in re.findall(r"(?:web|code) ([\d,]+)", last))
  fill = float(re.search(r"fill ([\d.]+) %", last)[1])
  np.testing.assert_allclose(fill, 100 * (web + code) / 512, atol=0.1)
  np.testing.assert_allclose(web / (web + code), 0.75, atol=0.03)
  assert last.startswith("8 × 64 ·")
  assert "100.0 % learned" in last


def test_packed_rows_and_conversations_are_shown(folder, capsys):
  source = packing.TokenSource(folder / "tokens" / "web")
  rows.write_rows(folder / "rows.array_record", source, 64)
  assert inspect_batch.main(arguments(folder, f"--tokens={folder / 'rows.array_record'}")) == 0
  assert "segment 1" in capsys.readouterr().out
  assert (
    inspect_batch.main(arguments(folder, f"--chat={folder / 'talks.jsonl'}", "--length=400")) == 0
  )
  said = capsys.readouterr().out
  assert "⟪assistant⟫⟦" in said
  assert "talks.jsonl" in said


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    ([], "--tokens or --chat"),
    (["--tokens=none"], "no token file none"),
    (["--tokens=a=x/t", "--tokens=a=y/t"], "one name"),
    (["--tokens=a=x", "--weights=b=1"], "must name the sources: a"),
    (["--tokens=a=x", "--weights=a=much"], 'like "web=3, books=1"'),
    (["--chat=none.jsonl"], "none.jsonl"),
    (["--tokens=x", "--rows=0"], "--rows >= 1"),
    (["--tokens=x", "--tokenizer=none"], "no tokenizer in none"),
  ],
)
def test_bad_input_is_one_line(folder, capsys, flags, message):
  assert inspect_batch.main(arguments(folder, *flags)) == 2
  said = capsys.readouterr().err
  assert message in said
  assert said.count("\n") == 1
