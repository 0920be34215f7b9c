"""From a source to tokens: what is written, that it is repeatable, that failures leave nothing."""

import gzip
import json
import random

import pytest

from configs import prepare as pydocs_config
from llm_jax import config
from llm_jax.data import corpus, crawl, packing, pydocs, tokenizer
from llm_jax.data.pipeline import engines, recipe
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
  assert not (out / ".building").exists()
  with pytest.raises(UserError, match="vocab_size=400"):
    prepare.run(settings(source, vocab_size=500), out)


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
  ],
)
def test_bad_settings_are_found_first(source, tmp_path, change, says):
  with pytest.raises(UserError, match=says):
    prepare.run(settings(source, **change), tmp_path / "out")
  assert not (tmp_path / "out").exists()


def run_recipe(specs, source, tmp_path, **options):
  with engines.Local() as engine:
    made = recipe.run(specs, source, tmp_path / "work", engine, **options)
  return made, list(prepare._documents(made.documents))


def test_a_page_that_breaks_the_extractor_is_on_record(tmp_path, monkeypatch):
  def broken(html, extractor):
    raise RecursionError

  monkeypatch.setattr(crawl, "extract", broken)
  (tmp_path / "in").mkdir()
  (tmp_path / "in" / "a.html").write_text("<p>x")
  (tmp_path / "in" / "b.txt").write_text(page(3))
  made, documents = run_recipe(("extract", "repair"), tmp_path / "in", tmp_path)
  assert [d.source for d in documents] == ["b.txt"]
  (drop,) = prepare._rows(made.drops[0])
  assert drop["reason"] == "extractor failed: RecursionError"


def test_html_without_extraction_is_an_error(tmp_path):
  (tmp_path / "a.html").write_text("<p>x")
  with pytest.raises(UserError, match="no extract"):
    run_recipe(("repair",), tmp_path / "a.html", tmp_path)
