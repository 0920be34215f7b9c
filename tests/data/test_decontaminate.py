"""Decontamination against brute force: what is found, what is never flagged, what is said."""

import gzip
import json
import lzma
import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.data import artifacts, decontaminate, words
from llm_jax.data.decontaminate import index as index_module
from llm_jax.data.decontaminate import overlap, sources
from llm_jax.data.documents import Document
from llm_jax.errors import UserError

VOCABULARY = [f"{a}{b}{c}" for a in "bdfgkl" for b in "aeiou" for c in "prstvz"]


def passage(rng, size=40, vocabulary=VOCABULARY):
  return rng.choices(vocabulary, k=size)


def doc(text, name="d"):
  return Document(name, text)


def build(folder, rows, n=13, least=8, name="set"):
  """An index of one set with these rows; a row is a text or a list of texts."""
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / "rows.jsonl"
  path.write_text("".join(json.dumps({"x": row}) + "\n" for row in rows), encoding="utf-8")
  decontaminate.build([decontaminate.Source(name, str(path))], folder / "index", n, least)
  return str(folder / "index")


def plain(text):
  """Words by a regular expression, for ASCII."""
  return re.findall("[a-z0-9]+", text.lower())


def brute(text, rows, n, least):
  """(word, words of the n-gram) of everything protected in `text`, by comparing all with all."""
  protected = set()
  for row in rows:
    own = [plain(t) for t in row]
    whole = sum(own, [])
    protected |= {tuple(whole[i : i + n]) for i in range(len(whole) - n + 1)}
    protected |= {tuple(part) for part in (*own, whole) if least <= len(part) < n}
  tokens = plain(text)
  return {
    (i, " ".join(gram))
    for gram in protected
    for i in range(len(tokens) - len(gram) + 1)
    if tuple(tokens[i : i + len(gram)]) == gram
  }


def found(text, folder):
  index = decontaminate.load(folder)
  hits = overlap.find([text], index)
  return {
    (w, index.gram(g).decode())
    for w, g in zip(hits.words.tolist(), hits.grams.tolist(), strict=True)
  }


few = st.lists(st.sampled_from(["a", "B", "c"]), max_size=12).map(" ".join)
row_lists = st.lists(st.lists(few, min_size=1, max_size=3), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(row_lists, st.lists(few, max_size=4).map("; ".join), st.integers(2, 6), st.integers(1, 4))
def test_what_is_found_is_what_brute_force_finds(tmp_path_factory, rows, text, n, least):
  folder = build(tmp_path_factory.mktemp("i"), rows, n, least)
  assert found(text, folder) == brute(text, rows, n, min(least, n))


def test_equal_hashes_of_different_words_change_nothing(tmp_path, monkeypatch):
  rng = random.Random(0)
  rows = [[" ".join(passage(rng, 9, "abc"))] for _ in range(20)]
  texts = [" ".join(passage(rng, 60, "abc")) for _ in range(10)]
  for n in (3, 5):
    honest = [found(t, build(tmp_path / f"{n}", rows, n, 3)) for t in texts]
    with monkeypatch.context() as patch:
      grams = words.grams
      patch.setattr(words, "grams", lambda h, k, grams=grams: grams(h, k) % np.uint64(2))
      folder = build(tmp_path / f"collide{n}", rows, n, 3)
      assert len(np.unique(decontaminate.load(folder).tables[0].grams)) == 2
      assert [found(t, folder) for t in texts] == honest
  assert any(honest)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_planted_row_is_found_wherever_it_stands(planted, data):
  folder, rows = planted
  row = data.draw(st.sampled_from(rows))
  other = " ".join(passage(random.Random(0), 30, [w + "x" for w in VOCABULARY]))
  before, after = (data.draw(st.sampled_from(["", other])) for _ in range(2))
  case = data.draw(st.sampled_from([str.lower, str.upper, str.title]))
  marks = st.sampled_from([" ", "\n", ", ", " -- ", "\u2019 ", "_", " *", "\u00a0", "...\n\n"])
  written = "".join(case(w) + data.draw(marks) for w in row.split())
  text = f"{before} {written} {after}"
  assert decontaminate.decontaminate(doc(text), folder) == "contaminated: set"


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
  rng = random.Random(7)
  rows = [" ".join(passage(rng, size)) for size in (8, 12, 13, 14, 40, 200)]
  return build(tmp_path_factory.mktemp("planted"), rows), rows


def test_one_word_changed_in_every_run_hides_a_row(planted):
  folder, rows = planted
  for row in rows:
    tokens = row.split()
    for first in range(min(13, len(tokens))):
      changed = [w + "y" if i % 13 == first else w for i, w in enumerate(tokens)]
      assert decontaminate.decontaminate(doc(" ".join(changed)), folder) is None
    if len(tokens) > 13:
      # Every fourteenth word leaves a whole run of thirteen.
      changed = [w + "y" if i % 14 == 0 else w for i, w in enumerate(tokens)]
      assert decontaminate.decontaminate(doc(" ".join(changed)), folder)


def test_nothing_else_is_flagged(planted):
  folder, rows = planted
  rng = random.Random(8)
  for row in rows:
    shuffled = row.split()
    rng.shuffle(shuffled)
    assert decontaminate.decontaminate(doc(" ".join(shuffled)), folder) is None
    assert decontaminate.decontaminate(doc(" ".join(row.split()[::-1])), folder) is None
  for _ in range(50):
    assert decontaminate.decontaminate(doc(" ".join(passage(rng, 300))), folder) is None
  assert decontaminate.decontaminate(doc(""), folder) is None


def test_words_do_not_run_from_one_document_or_row_into_the_next(planted, tmp_path):
  folder, rows = planted
  half = rows[2].split()
  texts = [" ".join(half[:6]), " ".join(half[6:])]
  index = decontaminate.load(folder)
  assert len(overlap.find(texts, index).words) == 0
  assert len(overlap.find([" ".join(half)], index).words) == 1
  both = build(tmp_path, [rows[2], rows[4]])
  seam = rows[2].split()[6:] + rows[4].split()[:6]
  assert decontaminate.decontaminate(doc(" ".join(seam)), both) is None
  joined = build(tmp_path / "joined", [[rows[2], rows[4]]])
  assert decontaminate.decontaminate(doc(" ".join(seam)), joined)


def test_compatible_characters_are_the_same(tmp_path):
  row = "the \ufb01rst caf\u00e9 of stra\u00dfe und \uff37eg lies by my_house on top of it"
  folder = build(tmp_path, [row])
  written = "THE FIRST CAFE\u0301 OF STRASSE UND WEG LIES BY MY HOUSE ON TOP OF IT"
  assert decontaminate.decontaminate(doc(written), folder)
  chinese = "\u5929\u5730\u7384\u9ec4\u5b87\u5b99\u6d2a\u8352\u65e5\u6708\u76c8\u6603\u8fb0\u5bbf"
  folder = build(tmp_path / "c", [chinese])
  assert decontaminate.decontaminate(doc(f"\u8bf4{chinese[:13]}\u3002"), folder)
  assert decontaminate.decontaminate(doc(f"\u8bf4{chinese[:12]}\u3002"), folder) is None


def test_short_texts_are_whole_or_counted(tmp_path):
  rng = random.Random(1)
  short = [passage(rng, size) for size in (7, 8, 12)]
  folder = build(tmp_path, [" ".join(t) for t in short] + ["", [" ".join(short[0]), "yes indeed"]])
  facts = decontaminate.load(folder).facts["sets"][0]
  assert (facts["rows"], facts["short"], facts["unprotected"]) == (5, 3, 2)
  flagged = [decontaminate.decontaminate(doc(" ".join(t)), folder) for t in short]
  assert [bool(f) for f in flagged] == [False, True, True]
  assert decontaminate.decontaminate(doc(" ".join(short[2][:-1])), folder) is None
  # A row of two short texts is protected where they follow each other.
  assert decontaminate.decontaminate(doc(" ".join(short[0]) + ": yes, indeed"), folder)


def test_runs_of_numbers_are_protected_on_demand(tmp_path):
  numbers, mixed = " ".join(["0", "17"] * 10), " ".join(map(str, range(12))) + " apples"
  path = tmp_path / "a.jsonl"
  path.write_text("".join(json.dumps({"x": text}) + "\n" for text in (numbers, mixed)))
  sets = [decontaminate.Source("a", str(path))]
  assert decontaminate.build(sets, tmp_path / "i")["sets"][0]["unprotected"] == 1
  assert decontaminate.decontaminate(doc(numbers), str(tmp_path / "i")) is None
  assert decontaminate.decontaminate(doc(mixed), str(tmp_path / "i"))
  assert decontaminate.build(sets, tmp_path / "n", numbers=True)["sets"][0]["unprotected"] == 0
  assert decontaminate.decontaminate(doc(numbers), str(tmp_path / "n"))


def test_most_and_share(planted, tmp_path):
  folder, rows = planted
  quoted = doc(" ".join(rows[5].split()[50:66]))  # Sixteen words: four runs of thirteen.
  assert decontaminate.decontaminate(quoted, folder, most=3)
  assert decontaminate.decontaminate(quoted, folder, most=4) is None
  assert decontaminate.decontaminate(quoted, folder, share=16 / 200)
  assert decontaminate.decontaminate(quoted, folder, share=17 / 200) is None
  apart = doc(quoted.text + " . other words . " + " ".join(rows[5].split()[100:114]))
  assert decontaminate.decontaminate(apart, folder, share=30 / 200)
  assert decontaminate.decontaminate(apart, folder, share=31 / 200) is None
  with pytest.raises(UserError, match="share in"):
    decontaminate.decontaminate(quoted, folder, share=1.5)


@settings(max_examples=60, deadline=None)
@given(row_lists, few)
def test_shares_of_rows_are_those_of_marked_words(tmp_path_factory, rows, text):
  index = decontaminate.load(build(tmp_path_factory.mktemp("s"), rows, 3, 2))
  grams = overlap.find([text], index).grams
  marked = np.zeros(len(index.words) - 1, bool)
  for g in grams:
    for place in index.places[index.bounds[g] : index.bounds[g + 1]]:
      marked[place : place + index.sizes[g]] = True
  spans = zip(index.rows[:-1], index.rows[1:], strict=True)
  expected = [marked[a:b].mean() if b > a else 0.0 for a, b in spans]
  assert overlap.shares(grams, index) == pytest.approx(expected)
  hits = overlap.places(grams, index)
  assert overlap.covered(grams, hits, index) == pytest.approx(np.array(expected)[hits.rows])


def test_the_reason_names_the_set_with_most_of_it(tmp_path):
  rng = random.Random(2)
  first, second = " ".join(passage(rng, 13)), " ".join(passage(rng, 20))
  for name, text in (("one", first), ("two", second)):
    (tmp_path / f"{name}.jsonl").write_text(json.dumps({"q": text}))
  decontaminate.build(decontaminate.expand(str(tmp_path)), tmp_path / "i")
  folder = str(tmp_path / "i")
  text = f"{first}. {second}"
  assert decontaminate.decontaminate(doc(text), folder) == "contaminated: two"
  assert decontaminate.decontaminate(doc(text), folder, most=7) == "contaminated: two"
  assert decontaminate.decontaminate(doc(text), folder, most=9) is None
  assert decontaminate.decontaminate(doc(first), folder) == "contaminated: one"


def test_frequent_grams_are_passed_over(planted, tmp_path):
  _, rows = planted
  folder = build(tmp_path, rows)
  corpus = [doc(rows[4] + " " + rows[4], f"a{i}") for i in range(3)] + [doc(rows[5], "b")]
  with pytest.raises(UserError, match="count a corpus"):
    decontaminate.decontaminate(corpus[0], folder, frequent=2)
  counted = decontaminate.count(corpus, folder, "test")
  # Twice in a document is once; 28 runs of row 4, 188 of row 5.
  assert counted == {"corpus": "test", "documents": 4, "found": 28 + 188}
  assert decontaminate.load(folder).facts["counted"] == counted
  assert decontaminate.decontaminate(corpus[0], folder, frequent=2) is None
  assert decontaminate.decontaminate(corpus[0], folder, frequent=3)
  assert decontaminate.decontaminate(corpus[3], folder, frequent=1)
  assert decontaminate.count([], folder)["found"] == 0
  assert decontaminate.decontaminate(corpus[0], folder, frequent=1)


def test_cutting_leaves_no_gram_and_the_rest_as_it_was(planted):
  folder, rows = planted
  rng = random.Random(3)
  # Characters that become longer or shorter, and white space that becomes another one.
  noise = [
    *VOCABULARY[:60],
    "\ufb03ne",
    "\u0130x",
    "\u00bd",
    "e\u0301",
    "_b_",
    "a\u00a0b",
    "\u2026",
  ]
  left, right = (" ".join(passage(rng, 300, noise)) for _ in range(2))
  text = f"{left} >>{rows[4].upper()}<< {right}"
  assert decontaminate.decontaminate(doc(text), folder)
  cut = decontaminate.without_overlap(text, folder)
  first, second = cut.split("\n\n")
  assert left.startswith(first) and right.endswith(second)
  assert 190 <= len(left) - len(first) <= 220 and 190 <= len(right) - len(second) <= 220
  exact = decontaminate.without_overlap(text, folder, window=0)
  assert exact == f"{left}\n\n{right}"
  assert decontaminate.decontaminate(doc(cut), folder) is None
  assert decontaminate.without_overlap(cut, folder) == cut
  assert decontaminate.without_overlap(left, folder) is left


def test_cutting_drops_short_pieces_and_shredded_texts(planted):
  folder, rows = planted
  long = " ".join(passage(random.Random(4), 200))
  assert decontaminate.without_overlap(rows[4], folder) == ""
  text = f"{rows[4]} {long} {rows[5]} and so on"
  assert decontaminate.without_overlap(text, folder, window=0) == long
  shredded = f" {rows[2]} ".join([long] * 11)
  assert decontaminate.without_overlap(shredded, folder, window=0) == ""
  assert decontaminate.without_overlap(shredded, folder, window=0, pieces=11).count(long) == 11


def test_the_report_says_which_rows_and_where(planted, tmp_path):
  _, rows = planted
  folder = build(tmp_path, [*rows, "too short", rows[4]])
  part = " ".join(rows[5].split()[:20])
  corpus = [
    doc("nothing here", "a"),
    doc(part, "b"),
    doc(f"{rows[4]}. {part}", "c"),
    doc(rows[0], "d"),
  ]
  for workers in (1, 2):
    made = decontaminate.report(corpus, folder, workers=workers)
    assert (made["documents"], made["contaminated"]) == (4, 3)
    assert made["bytes"] == sum(len(d.text) for d in corpus)
    (own,) = made["sets"]
    expected = {"rows": 8, "unprotected": 1, "hit": 4, "share": 0.5, "dirty": 3, "documents": 3}
    assert {key: own[key] for key in expected} == expected
    hits = [(r["row"], r["share"], r["documents"], r["document"]) for r in made["rows"]]
    assert hits == [(0, 1.0, 1, "d"), (4, 1.0, 1, "c"), (5, 0.1, 2, "b"), (7, 1.0, 1, "c")]
    assert made["rows"][2]["gram"] == " ".join(part.split()[:13])
    assert [r["row"] for r in own["examples"]] == [0, 4, 7, 5]


def test_rows_of_every_format(tmp_path):
  rows = [
    {"q": "Is it?", "a": {"b": ["yes", "no, sir"]}, "n": 3, "u": "https://a.org/b"},
    {"q": ""},
  ]
  (tmp_path / "a.jsonl").write_text("\n\n".join(map(json.dumps, rows)) + "\n")
  (tmp_path / "b.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
  (tmp_path / "c.json").write_text(json.dumps({"version": 1, "data": rows}))
  (tmp_path / "c1.json.xz").write_bytes(lzma.compress("\n".join(map(json.dumps, rows)).encode()))
  (tmp_path / "d.csv").write_text('q,a\n"Is it?","yes,\nno"\n')
  (tmp_path / "e.tsv").write_text("q\ta\nIs it?\tyes\n")
  (tmp_path / "f.txt").write_text("Is it?\n\nyes")
  (tmp_path / "g.html").write_text("<html><body><p>Is it indeed so?</p></body></html>")
  (tmp_path / "x.bin").write_text("no set")
  sets = decontaminate.expand(str(tmp_path), "all")
  assert [s.name for s in sets] == [f"all/{name}" for name in ("a", "b", "c", "c1", *"defg")]
  read = [list(sources.rows(s)) for s in sets]
  assert all(r == [["Is it?", "yes", "no, sir"], [""]] for r in read[:4])
  assert read[4:7] == [[["Is it?", "yes,\nno"]], [["Is it?", "yes"]], [["Is it?\n\nyes"]]]
  assert read[7][0][0].strip() == "Is it indeed so?"
  (named,) = decontaminate.expand(str(tmp_path / "c.json"), fields=("a.b",))
  with pytest.raises(UserError, match='c.json, row 2: no field "a.b"'):
    list(sources.rows(named))
  assert next(sources.rows(named)) == ["yes", "no, sir"]


@pytest.mark.parametrize(
  ("name", "content", "reason"),
  [
    ("a.jsonl", b'{"a": "b"}\n{', "a.jsonl, line 2: not JSON"),
    ("a.json", b'{"a": [], "b": []}', "one list"),
    ("a.json", b"[" * 100_000, "a.json: "),
    ("a.jsonl", b"\xff", "not UTF-8"),
    ("a.json.gz", b"no", "cannot be read"),
    ("a.jsonl", b"", "no rows"),
    ("a.csv", b'a\n"b" c"\n', "correct the file"),
  ],
)
def test_broken_sets_end_in_one_line(tmp_path, name, content, reason):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(UserError, match=re.escape(reason)) as error:
    decontaminate.build(decontaminate.expand(str(tmp_path)), tmp_path / "i")
  assert "\n" not in str(error.value)


def test_bad_arguments_end_in_one_line(tmp_path, planted):
  source = decontaminate.Source("a", str(tmp_path / "a.jsonl"))
  for sets, n, least in (
    ([], 13, 8),
    ([source, source], 13, 8),
    ([source], 1, 8),
    ([source], 13, 0),
  ):
    with pytest.raises(UserError, match="want n from 2"):
      decontaminate.build(sets, tmp_path / "i", n, least)
  with pytest.raises(UserError, match="no such evaluation set"):
    decontaminate.expand(str(tmp_path / "none"))
  with pytest.raises(UserError, match="no file that ends"):
    decontaminate.expand(str(tmp_path))
  with pytest.raises(UserError, match="build it with"):
    decontaminate.decontaminate(doc("x"), str(tmp_path / "none"))


def test_damaged_files_end_in_one_line(tmp_path, planted):
  facts, arrays = artifacts.load(planted[0], "index", index_module.VERSION, {}, "")
  for name, value in (("places", arrays["places"][1:]), ("places", arrays["places"] + 10**6)):
    artifacts.save(tmp_path, "index", index_module.VERSION, facts, arrays | {name: value})
    with pytest.raises(UserError, match="do not fit each other"):
      decontaminate.load(tmp_path)
  (tmp_path / "index.npz").write_bytes(b"PK")
  with pytest.raises(UserError, match="SHA-256"):
    decontaminate.load(tmp_path)


def test_the_same_sets_make_the_same_bytes(tmp_path, planted):
  folders = [build(tmp_path / name, planted[1]) for name in "ab"]
  files = [(tmp_path / name / "index" / "index.npz").read_bytes() for name in "ab"]
  assert files[0] == files[1]
  assert decontaminate.load(folders[0]) is decontaminate.load(folders[0])
