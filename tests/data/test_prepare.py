"""From a source to tokens: what is written, that it is repeatable, that failures leave nothing."""

import dataclasses
import gzip
import json
import random
import re

import pytest

from configs import prepare as pydocs_config
from llm_jax import config
from llm_jax.data import corpus, crawl, extraction, packing, pydocs, tokenizer
from llm_jax.data.documents import Document
from llm_jax.data.pipeline import engines, inputs, recipe
from llm_jax.data.tokenizers import shares
from llm_jax.errors import UserError
from llm_jax.stages import prepare

SYLLABLES = "ba den fil gor hu jek lam nost pri ras tev wyn zo mul kep dra".split()


def page(i):
  rng = random.Random(i)
  words = ["".join(rng.choices(SYLLABLES, k=3)) for _ in range(120)]
  lines = [f"The {' '.join(words[k : k + 10])} and what is to be had." for k in range(0, 120, 10)]
  return "\n\n".join(lines)


@pytest.fixture
def source(tmp_path):
  path = tmp_path / "in.jsonl"
  rows = [{"id": f"d{i}", "text": page(i), "url": f"u{i}"} for i in range(40)]
  rows += [
    dict(rows[0], id="copy", url="v"),
    dict(rows[1], url="w", text="again"),
    {"id": "s", "text": "short"},
  ]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def settings(path, **changes):
  recipe = pydocs_config.RECIPE
  fields = {"source": str(path), "recipe": recipe, "vocab_size": 400, "workers": 1}
  return config.Prepare(**(fields | {"validation": 0.25} | changes))


def test_everything_is_written_once(source, tmp_path):
  cfg, out = settings(source), tmp_path / "out"
  manifest = prepare.run(cfg, out)
  rows = {row["step"]: row for row in manifest["funnel"]}
  assert rows["same_address"]["dropped"] == {"same address or id": 1}
  assert rows["duplicates(threshold=0.8)"]["dropped"] == {"exact duplicate": 1}
  assert rows["length(least=200)"]["dropped"] == {"too short": 1}
  drops = [json.loads(x) for x in (out / "dropped" / "dropped.jsonl").read_text().splitlines()]
  # Of equal texts the smaller id stays, so that the order of the source does not matter.
  assert {d["id"]: d.get("kept") for d in drops} == {"d1": None, "d0": "copy", "s": None}
  coder = tokenizer.Tokenizer.load(out / "tokenizer")
  for split, counts in manifest["splits"].items():
    docs = list(corpus.read(out, split))
    tokens = packing.TokenSource(out / "tokens" / split)
    assert counts["documents"] == len(docs) == len(tokens) > 0
    assert counts["bytes"] == sum(len(d.text.encode()) for d in docs)
    assert counts["tokens"] == int((tokens.lengths - 1).sum())
    assert coder.decode(tokens[0]) == docs[0].text
    assert (tokens[0][0], tokens[0][-1]) == (coder.bos_id, coder.eos_id)
  assert manifest["funnel"][-1]["tokens"] == sum(c["tokens"] for c in manifest["splits"].values())
  assert manifest == prepare.run(cfg, out) == prepare.run(settings(source, workers=2), out)
  (out / ".building/work").mkdir(parents=True)  # As of a kill in the last moment.
  assert manifest == prepare.run(cfg, out)
  assert not (out / ".building").exists()
  with pytest.raises(UserError, match="config.vocab_size is 400 there and 500 now"):
    prepare.run(settings(source, vocab_size=500), out)


def test_no_secret_of_the_config_is_in_the_manifest(source, tmp_path):
  secret = "abcdefghij0123456789"
  folder = tmp_path / f"token={secret}"
  folder.mkdir()
  cfg = settings(source.rename(folder / "in.jsonl"))
  prepare.run(cfg, tmp_path / "out")
  assert secret not in (tmp_path / "out" / "manifest.json").read_text()
  assert prepare.run(cfg, tmp_path / "out")["config"]["source"].endswith("token=[redacted]")


def test_the_same_source_gives_the_same_bytes(source, tmp_path):
  for name, workers in (("a", 1), ("b", 2)):
    prepare.run(settings(source, workers=workers), tmp_path / name)
  for name in (
    "tokenizer/tokenizer.model",
    "dropped/dropped.jsonl",
    "tokens/train/00000.array_record",
    "manifest.json",
  ):
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.long
def test_the_embedded_corpus_has_questions(tmp_path, monkeypatch):
  names = ("textwrap", "bisect", "heapq", "shlex", "string", "statistics", "fnmatch", "glob")
  listed = [m for m in pydocs.modules() if m.name in names or m.topic]
  monkeypatch.setattr(pydocs, "modules", lambda seed: listed)
  cfg = pydocs_config.get_config()
  cfg.vocab_size, cfg.workers, cfg.validation = 600, 1, 0.3
  manifest = prepare.run(cfg, tmp_path / "out")
  assert manifest["questions"]["train"] > 5
  assert len(manifest["before_after"]) == recipe.EXAMPLES
  assert "<html" in manifest["before_after"][0]["before"].lower()
  assert manifest["inputs"][0]["path"] == "pydocs.warc.gz"
  assert (tmp_path / "out" / "questions" / "validation.jsonl").exists()


@pytest.mark.parametrize("rows", [0, 1])
def test_too_little_text_is_an_error_and_leaves_nothing(tmp_path, rows):
  path = tmp_path / "in.jsonl"
  path.write_text("".join(json.dumps({"text": page(i)}) + "\n" for i in range(rows)))
  with pytest.raises(UserError, match="no document for the"):
    prepare.run(settings(path), tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_a_cut_source_leaves_nothing(tmp_path):
  path = tmp_path / "in.jsonl.gz"
  path.write_bytes(gzip.compress(json.dumps({"text": page(1)}).encode() + b"\n")[:-9])
  with pytest.raises(UserError, match="in.jsonl.gz: broken"):
    prepare.run(settings(path), tmp_path / "out")
  assert not (tmp_path / "out").exists()


def of_other_columns(path, rows=60):
  """A table whose text is not in "text"; returns the texts by their keys."""
  table = [
    {"key": f"k{i}", "link": f"https://a/{i}", "text": "no", "body": page(i)} for i in range(rows)
  ]
  if path.suffix == ".parquet":
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.Table.from_pylist(table), path, row_group_size=7)
  else:
    path.write_text("".join(json.dumps(row) + "\n" for row in table))
  return {row["key"]: row["body"] for row in table}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("size", [10_000, 8_000_000])
def test_columns_of_other_names_reach_the_corpus(tmp_path, monkeypatch, suffix, size):
  monkeypatch.setattr(inputs, "_PLAIN", size)
  texts = of_other_columns(tmp_path / f"in{suffix}")
  assert (len(inputs.plan(tmp_path / f"in{suffix}")) > 1) == (size == 10_000)
  reader = config.Reader(text="body", id="key", url="link")
  cfg = settings(tmp_path / f"in{suffix}", recipe=("same_address",), reader=reader)
  cfg.workers = 2 if suffix == ".jsonl" and size == 10_000 else 1
  manifest = prepare.run(cfg, tmp_path / "out")
  found = [d for split in ("train", "validation") for d in corpus.read(tmp_path / "out", split)]
  assert {d.id: d.text for d in found} == texts
  assert {d.url for d in found} == {f"https://a/{i}" for i in range(60)}
  assert manifest == prepare.run(cfg, tmp_path / "out")
  assert manifest["config"]["reader"]["text"] == "body"


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_column_that_is_missing_is_named_with_the_field(tmp_path, suffix):
  of_other_columns(tmp_path / f"in{suffix}")
  cfg = settings(tmp_path / f"in{suffix}", reader=config.Reader(text="bodi"))
  missing = r'no column "bodi" \(config\.reader\.text\); did you mean "body"\?'
  with pytest.raises(UserError, match=missing):
    prepare.run(cfg, tmp_path / "out")
  if suffix == ".jsonl":  # Also if lines may be lost: the first of them says so.
    cfg.max_lost = 5
    says = 'no column "bodi" 60.*more than config.max_lost=5; the first: in.jsonl, .*' + missing
    with pytest.raises(UserError, match=f"60 of 60 records cannot be read .{says}"):
      prepare.run(cfg, tmp_path / "out")
    (left,) = (tmp_path / "out").iterdir()
    rows = [json.loads(line) for line in left.read_text().splitlines()]
    assert left.name == "quarantine.jsonl" and len(rows) == 60
    assert [rows[1][key] for key in ("file", "where")] == ["in.jsonl", "line 2"]
    assert rows[1]["start"].startswith('{"key": "k1", ')
  else:
    assert not (tmp_path / "out").exists()


def test_a_record_over_the_cap_is_lost(source, tmp_path):
  with source.open("a") as f:
    f.write(json.dumps({"id": "long", "text": page(99) * 9}) + "\n")
  cfg = settings(source, max_lost=1, reader=config.Reader(max_bytes=5_000))
  manifest = prepare.run(cfg, tmp_path / "out")
  assert manifest["funnel"][0]["dropped"] == {"cannot be read": 1}
  assert "over the cap of 5,000 bytes" in manifest["drop_samples"][0]["sample"]
  cfg.max_lost = 0
  with pytest.raises(UserError, match=r"5,000 bytes; raise config\.reader\.max_bytes"):
    prepare.run(cfg, tmp_path / "other")


def test_records_that_cannot_be_read_are_put_aside_within_a_budget(source, tmp_path, monkeypatch):
  rows = source.read_bytes().splitlines()
  rows[5:5], rows[30:30] = [b"{"], [b'{"text": "\xff"}', b'{"text": 3}']
  source.write_bytes(b"\n".join(rows))
  out, made, kept = tmp_path / "out", [], []
  with pytest.raises(UserError, match=r"in.jsonl:6: .*; mend it, or let some .*config.max_lost$"):
    prepare.run(settings(source), out)
  assert not out.exists()
  says = (
    r'3 of 46 records cannot be read \("text" must be a string, got int 1, not UTF-8 1, want a '
    r"JSON object 1\), which is more than config.max_lost=0.06; the first: in.jsonl, line 6: "
  )
  with pytest.raises(UserError, match=says):
    prepare.run(settings(source, max_lost=0.06), out)
  for size in (8_000_000, 5_000):
    monkeypatch.setattr(inputs, "_PLAIN", size)
    for most in (3, 0.07):
      made.append(prepare.run(settings(source, max_lost=most), out))
      kept.append((out / "quarantine.jsonl").read_bytes())
      out = tmp_path / f"out{len(made)}"
  assert len(inputs.plan(source)) > 1 and len(set(kept)) == 1
  found = [json.loads(line) for line in kept[0].splitlines()]
  assert [row["where"] for row in found] == ["line 6", "line 31", "line 32"]
  assert found[0]["start"] == "{" and made[0]["funnel"][0]["dropped"] == {"cannot be read": 3}
  assert sum(made[0]["lost"].values()) == 3 and made[0]["lost"] == made[3]["lost"]
  assert made[0] == made[1]


def test_the_readers_defaults_are_written_once_more():
  assert crawl.Options(**dataclasses.asdict(config.Reader())) == crawl.DEFAULTS


@pytest.mark.parametrize(
  ("change", "says"),
  [
    ({"source": "/no/such"}, "there is no"),
    ({"recipe": ("repiar",)}, 'did you mean "repair"'),
    ({"recipe": ("length(lest=3)",)}, 'did you mean "least"'),
    ({"engine": "locl"}, 'did you mean "local"'),
    ({"validation": 0.0}, "config.validation"),
    ({"recipe": ("duplicates(threshold=2.0)",)}, "threshold"),
    ({"workers": 0}, "config.workers"),
    ({"reader": config.Reader(text="")}, "config.reader.text must name a column"),
    ({"reader": config.Reader(max_bytes=0)}, "config.reader.max_bytes must be at least 1, got 0"),
    ({"reader": config.Reader(max_ratio=float("nan"))}, "config.reader.max_ratio must be above 0"),
  ],
)
def test_bad_settings_are_found_first(source, tmp_path, change, says):
  with pytest.raises(UserError, match=says):
    prepare.run(settings(source, **change), tmp_path / "out")
  assert not (tmp_path / "out").exists()


@pytest.fixture
def library(tmp_path):
  """Two books and a crawl, with letters of their own."""
  texts = {"books/a": "ox yx", "books/b": "ox yx", "web": "uv wv"}
  for name, words in texts.items():
    path = tmp_path / "library" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"id": f"{name}{i}", "text": f"{words} {page(f'{name}{i}')}"} for i in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return tmp_path / "library"


def shared(library, *weights, **changes):
  own = config.Tokenizer(max_bytes=8_000, weights=weights)
  return settings(library, recipe=("same_address",), tokenizer=own, vocab_size=320, **changes)


def test_a_tokenizer_learns_from_shares_of_its_sources(library, tmp_path):
  cfg = shared(library, "books/*=3", "*=1")
  manifest = prepare.run(cfg, tmp_path / "out")
  meta = json.loads((tmp_path / "out" / "tokenizer" / "tokenizer.json").read_text())
  assert {name: s["asked_bytes"] for name, s in meta["sources"].items()} == {
    "books/*": 6_000, "*": 2_000,
  }  # fmt: skip
  for sample in meta["sources"].values():
    assert 0 <= sample["bytes"] - sample["asked_bytes"] < 1_600  # Whole documents.
  # The list in the manifest is the tuple of the config, and the first pattern counts.
  assert prepare.run(cfg, tmp_path / "out") == manifest
  assert manifest == prepare.run(dataclasses.replace(cfg, workers=2), tmp_path / "again")
  with pytest.raises(UserError, match="no file is left for"):
    prepare.run(shared(library, "*=1", "books/*=3"), tmp_path / "other")


@pytest.mark.parametrize(
  ("weights", "says"),
  [
    (("books/*=2",), 'no pattern matches "web.jsonl"; add one'),
    (("books/*=2", "web*=1", "wiki*=1"), 'no file is left for "wiki*"'),
    (("books/*=2", "*"), 'want "pattern=weight" with a weight above 0, got "*"'),
    (("*=0",), 'want "pattern=weight" with a weight above 0, got "*=0"'),
    (("*=inf",), 'want "pattern=weight" with a weight above 0, got "*=inf"'),
    (("*=1", "*=2"), '"*" has two weights'),
  ],
)
def test_weights_and_files_must_match_before_anything_is_read(library, tmp_path, weights, says):
  with pytest.raises(UserError, match=re.escape(f"config.tokenizer.weights: {says}")) as error:
    prepare.run(shared(library, *weights), tmp_path / "out")
  assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_weights_of_what_is_left_are_checked_too(library, tmp_path):
  cfg = shared(library, "books/*=3", "*=1")
  (library / "web.jsonl").write_text('{"text": "short"}\n')
  cfg.recipe = ("length(least=200)",)
  with pytest.raises(UserError) as error:
    prepare.run(cfg, tmp_path / "out")
  assert str(error.value).startswith('source "*" has a weight, but no text')
  cfg.tokenizer.adopt = "anything"
  with pytest.raises(UserError, match="weights or config.tokenizer.adopt, not both"):
    prepare.run(cfg, tmp_path / "out")
  cfg.tokenizer = config.Tokenizer(template="chatml")
  with pytest.raises(UserError, match="template=chatml needs control tokens"):
    prepare.run(cfg, tmp_path / "out")


def test_sources_that_are_no_files_are_checked_by_their_documents():
  document = Document("x", "text", source="hf:org/name#train")
  (found,) = shares.grouped([document], shares.parse(("hf:*=2",)))
  assert (found.source, found.text) == ("hf:*", "text")
  with pytest.raises(UserError, match='no pattern matches "hf:org/name#train"'):
    list(shares.grouped([document], {"web*": 1.0}))


def run_recipe(specs, source, tmp_path, **options):
  with engines.Local() as engine:
    made = recipe.run(specs, source, tmp_path / "work", engine, **options)
  return made, list(prepare._documents(made.documents))


def test_a_page_that_breaks_the_extractor_is_on_record(tmp_path, monkeypatch):
  def broken(*_):
    raise RecursionError

  monkeypatch.setattr(crawl, "extract", broken)
  (tmp_path / "in").mkdir()
  (tmp_path / "in" / "a.html").write_text("<p>x")
  (tmp_path / "in" / "b.txt").write_text(page(3))
  made, documents = run_recipe(("extract", "repair"), tmp_path / "in", tmp_path)
  assert [d.source for d in documents] == ["b.txt"]
  (drop,) = prepare._rows(made.drops[0])
  assert drop["reason"] == "extractor failed: RecursionError"


def test_a_page_that_takes_too_long_is_on_record(tmp_path, monkeypatch):
  def slow(html):
    while "slow" in html:
      pass
    return html

  monkeypatch.setitem(extraction._EXTRACTORS, "blocks", slow)
  (tmp_path / "in").mkdir()
  (tmp_path / "in" / "a.html").write_text("<p>slow")
  (tmp_path / "in" / "b.html").write_text("<p>fast")
  step = "extract(extractor='blocks', seconds=0.1)"
  made, documents = run_recipe((step,), tmp_path / "in", tmp_path)
  assert [d.source for d in documents] == ["b.html"]
  (drop,) = prepare._rows(made.drops[0])
  assert (drop["step"], drop["reason"]) == (step, "extractor timed out")
  assert made.funnel[1].dropped == {"extractor timed out": 1}
  with pytest.raises(UserError, match="seconds must be 0 or more, got -1"):
    run_recipe(("extract(seconds=-1)",), tmp_path / "in", tmp_path / "other")


def test_html_without_extraction_is_an_error(tmp_path):
  (tmp_path / "a.html").write_text("<p>x")
  with pytest.raises(UserError, match="no extract"):
    run_recipe(("repair",), tmp_path / "a.html", tmp_path)
