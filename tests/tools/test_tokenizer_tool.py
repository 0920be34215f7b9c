"""The tokenizer's commands: figures, tokens of a text, the way to other libraries and back."""

import io
import json

import pytest
import sentencepiece

from llm_jax import config
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.stages import prepare
from tools import tokenizer as tool

TEXTS = ["ab ab", " ab  <|user|>\n\n\nba\t", "é <0x0A> \u2581日", "", "ab" * 9 + "\0"]


def lines(path, texts, column="text"):
  path.write_text("".join(json.dumps({column: text}) + "\n" for text in texts))
  return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A prepared run of 20 documents; beside bytes and "a", "b", "▁" it knows "ab" and "▁ab"."""
  root = tmp_path_factory.mktemp("run")
  rows = [{"id": f"d{i}", "text": "ab ab ab"} for i in range(20)]
  (root / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  cfg = config.Prepare(source=str(root / "in.jsonl"), recipe=("same_address",), workers=1)
  cfg.vocab_size, cfg.validation = 271, 0.25
  prepare.run(cfg, root / "run")
  return root / "run"


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
  """A SentencePiece model without turn markers, whose texts end in "</s>"."""
  buffer = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["banana ananas"] * 9), model_writer=buffer, model_type="bpe",
    vocab_size=270, byte_fallback=True, normalization_rule_name="identity",
    remove_extra_whitespaces=False, add_dummy_prefix=False, minloglevel=2,
  )  # fmt: skip
  path = tmp_path_factory.mktemp("foreign") / "fruit.model"
  path.write_bytes(buffer.getvalue())
  return path


def said(capsys, *words):
  code = tool.main([str(word) for word in words])
  out, err = capsys.readouterr()
  return code, out, err


@pytest.mark.parametrize("given", ["", "tokenizer", "tokenizer/tokenizer.model"])
def test_the_report_has_the_figures_that_a_pencil_gives(run, tmp_path, capsys, given):
  lines(tmp_path / "x.jsonl", ["ab ab", "ab"], "body")  # ab|▁ab and ab
  lines(tmp_path / "y.jsonl", ["é ab"], "body")  # C3|A9|▁ab
  code, out, err = said(
    capsys, "report", f"--tokenizer={run / given}", f"--source=x={tmp_path / 'x.jsonl'}",
    f"--source=y={tmp_path / 'y.jsonl'}", "--text=body",
  )  # fmt: skip
  assert (code, err) == (0, "")
  rows = [line.split() for line in out.splitlines()]
  assert rows[1] == ["x", "2", "7", "3", "2.333", "1.000", "0.00%"]
  assert rows[2] == ["y", "1", "5", "3", "1.667", "1.500", "66.67%"]


def test_the_report_reads_prepared_runs_and_counts_pages_without_text(run, tmp_path, capsys):
  (tmp_path / "pages").mkdir()
  (tmp_path / "pages" / "a.html").write_text("<html><body></body></html>")
  (tmp_path / "pages" / "b.txt").write_text("ab")
  where = [f"--tokenizer={run}", f"--source={run}", f"--source=pages={tmp_path / 'pages'}"]
  code, out, _ = said(capsys, "report", *where)
  rows = [line.split() for line in out.splitlines()]
  assert code == 0
  assert rows[1] == [str(run), "20", "160", "60", "2.667", "1.000", "0.00%"]  # Both splits.
  assert rows[2][:4] == ["pages", "1", "2", "1"]
  assert out.splitlines()[3] == "pages left out: 1 no main text"


@pytest.mark.parametrize("text", TEXTS)
def test_show_spells_every_byte_of_a_text(run, capsys, text):
  code, out, _ = said(capsys, "show", f"--tokenizer={run}", text)
  shown = out.splitlines()
  rows = shown[1:-3]
  coder = Tokenizer.load(run / "tokenizer")
  assert [int(row.split()[0]) for row in rows] == coder.encode(text)
  column = slice(shown[0].index("bytes"), shown[0].index("piece"))
  assert bytes.fromhex("".join(row[column] for row in rows)) == text.encode()
  assert shown[-1] == "decodes to the same text"
  assert shown[-2].startswith(f"{len(rows)} tokens, {len(text.encode())} bytes, ")
  assert code == 0 and all(line.isprintable() for line in shown)


def test_what_is_exported_gives_the_same_ids_in_the_other_library(run, tmp_path, capsys):
  tokenizers = pytest.importorskip("tokenizers", reason="needs: pip install tokenizers")
  out = tmp_path / "new" / "hf"
  code, told, _ = said(capsys, "export", f"--tokenizer={run}", f"--out={out}")
  assert (code, told.strip()) == (
    0, f"wrote {out}: tokenizer.json, tokenizer_config.json, chat_template.jinja; 271 ids, "
    "llm_jax's chat template",
  )  # fmt: skip
  assert sorted(p.name for p in out.parent.rglob("*")) == [
    "chat_template.jinja", "hf", "tokenizer.json", "tokenizer_config.json",
  ]  # fmt: skip
  ours, theirs = tool.load(str(run)), tokenizers.Tokenizer.from_file(str(out / "tokenizer.json"))
  theirs.encode_special_tokens = True
  assert said(capsys, "adopt", f"--model={out}", f"--out={tmp_path / 'back'}")[0] == 0
  back = Tokenizer.load(tmp_path / "back")
  for text in TEXTS:
    ids = ours.encode(text)
    assert theirs.encode(text, add_special_tokens=False).ids == ids == back.encode(text)
  assert tool.load(str(out / "tokenizer.json")).encode(TEXTS[1]) == ours.encode(TEXTS[1])


def test_a_model_of_others_is_adopted_with_the_tokens_that_are_named(foreign, tmp_path, capsys):
  code, out, _ = said(capsys, "adopt", f"--model={foreign}", f"--out={tmp_path / 'a'}")
  assert code == 0
  assert f"wrote {tmp_path / 'a'}: 274 ids, 4 of them added" in out
  assert [line.split() for line in out.splitlines()[4:6]] == [
    ["eos", "2", "</s>"], ["system", "270", "<|system|>", "(added)"],
  ]  # fmt: skip
  library = sentencepiece.SentencePieceProcessor(model_file=str(foreign))
  assert Tokenizer.load(tmp_path / "a").encode("a banana") == library.encode("a banana")
  where = [f"--model={foreign}", f"--out={tmp_path / 'b'}"]
  assert said(capsys, "adopt", *where, "--special=eos=<s>", "--special=pad=</s>")[0] == 0
  coder = Tokenizer.load(tmp_path / "b")
  assert (coder.eos_id, coder.pad_id) == (1, 2)
  assert "chat template: llm_jax" in out
  where = [f"--model={foreign}", f"--out={tmp_path / 'c'}", "--template=llama-2"]
  code, out, _ = said(capsys, "adopt", *where)
  assert (code, Tokenizer.load(tmp_path / "c").template) == (0, "llama-2")
  assert "270 ids, 0 of them added" in out and "end              2  </s>" in out


def test_one_of_ours_is_copied_to_the_bit(run, tmp_path, capsys):
  assert said(capsys, "adopt", f"--model={run}", f"--out={tmp_path / 'copy'}")[0] == 0
  for file in (run / "tokenizer").iterdir():
    assert file.read_bytes() == (tmp_path / "copy" / file.name).read_bytes()


@pytest.mark.parametrize(
  ("words", "says"),
  [
    ("report --tokenizer=RUN --source=x=NEW/none", 'there is no "NEW/none"; give a prepared run'),
    ("report --tokenizer=RUN --source=x=RUN --source=x=RUN", "a source of this name already"),
    ("report --tokenizer=NEW/none --source=RUN", "no tokenizer NEW/none"),
    ("report --tokenizer=RUN --source=RUN/../in.jsonl --text=txt", 'did you mean "text"?'),
    ("show --tokenizer=NEW text", "no tokenizer in NEW"),
    ("export --tokenizer=RUN --out=RUN", "--out=RUN is there already"),
    ("export --tokenizer=FOREIGN/lossy.model --out=NEW/x/y", "cannot be exported exactly"),
    ("adopt --model=FOREIGN/fruit.model --out=RUN/tokenizer", "is there already"),
    ("adopt --model=FOREIGN/fruit.model --out=NEW/x/y --special=eos", "want NAME=TOKEN"),
    ("adopt --model=FOREIGN/fruit.model --out=NEW/x/y --special=eso=a", 'did you mean "eos"?'),
    ("adopt --model=FOREIGN/fruit.model --out=NEW/x/y --special=eos=</S>", 'mean "</s>"?'),
    ("adopt --model=NEW/none --out=NEW/x/y", "no tokenizer NEW/none"),
    ("adopt --model=FOREIGN/fruit.model --out=NEW/x/y --template=zefyr", 'mean "zephyr"?'),
    ("adopt --model=FOREIGN/fruit.model --out=NEW/x/y --template=gemma", "which the chat template"),
  ],
)
def test_bad_input_is_one_line_and_leaves_nothing(run, foreign, tmp_path, capsys, words, says):
  lossy = foreign.with_name("lossy.model")
  if not lossy.exists():
    proto = tool.files.ModelProto.FromString(foreign.read_bytes())
    proto.normalizer_spec.remove_extra_whitespaces = True
    lossy.write_bytes(proto.SerializeToString())
  places = {"RUN": run, "NEW": tmp_path, "FOREIGN": foreign.parent}
  for name, place in places.items():
    words, says = words.replace(name, str(place)), says.replace(name, str(place))
  before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
  code, out, err = said(capsys, *words.split())
  assert (code, out) == (2, "")
  assert err.startswith("error: ") and err.count("\n") == 1 and says in err
  assert not any(tmp_path.iterdir())
  assert before == {p: p.stat().st_mtime_ns for p in run.rglob("*")}
