"""Quality: features against a plain count, planted signals, negative controls, rules and files."""

import collections
import json
import math
import random
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.data import quality, words
from llm_jax.data.documents import Document
from llm_jax.data.quality import features, model, training
from llm_jax.errors import UserError

COMMON = [f"{a}{b}" for a in "bdfgklmnpr" for b in "aeiou"]
ONES = np.ones(features.BUCKETS, np.float32)
EVEN = quality.Model(ONES, 0.0, 1.0, 0.0, np.zeros(1), {})


def documents(rng, count, vocabulary=COMMON, extra=(), name="d", size=60):
  """Random words, of which one in six is from `extra`."""
  return [
    Document(
      f"{name}{i}",
      " ".join(
        rng.choice(extra) if extra and not rng.randrange(6) else rng.choice(vocabulary)
        for _ in range(rng.randint(size // 2, 2 * size))
      ),
    )
    for i in range(count)
  ]


@pytest.fixture(scope="module")
def classes():
  rng = random.Random(0)
  good = documents(rng, 300, extra=["whence", "thus"], name="g")
  return good, documents(rng, 500, extra=["click", "cart"], name="r")


@pytest.fixture(scope="module")
def trained(classes):
  return quality.train(*classes)


@pytest.fixture
def folder(trained, tmp_path):
  quality.save(tmp_path / "model", trained)
  return str(tmp_path / "model")


def fixed(tmp_path, score):
  """A model that gives every document this score."""
  weights = np.zeros(features.BUCKETS, np.float32)
  logit = math.log(score / (1 - score))
  path = tmp_path / f"fixed{score}"
  quality.save(path, quality.Model(weights, logit, 1.0, 0.0, np.array([logit]), {}))
  return str(path)


def counted(text):
  """The features of a text of one passage, counted in a dictionary."""
  hashes = words.split([text.casefold()]).hashes
  both = [*hashes.tolist(), *words.grams(hashes, 2).tolist()]
  found = collections.Counter(h >> 64 - features.BITS for h in both)
  values = {bucket: 1 + math.log(n) for bucket, n in found.items()}
  norm = math.sqrt(sum(v * v for v in values.values()))
  return {bucket: v / norm for bucket, v in values.items()}


texts = st.lists(
  st.lists(st.sampled_from(["a", "B", "Ça", "x_1", ",", "語"]), max_size=40).map(" ".join),
  max_size=5,
)


@given(texts)
def test_features_are_the_counts(sample):
  found = features.features(sample)
  assert found.firsts.tolist() == list(range(len(sample) + 1))
  for n, text in enumerate(sample):
    own = found.rows == n
    got = dict(zip(found.columns[own].tolist(), found.values[own].tolist(), strict=True))
    assert got == pytest.approx(counted(text), rel=1e-5)


def test_long_texts_are_cut_into_equal_passages():
  size = features.PASSAGE
  lengths = [0, 1, size, size + 1, 5 * size - 3]
  found = features.features([" ".join(f"w{i}" for i in range(n)) for n in lengths])
  assert np.diff(found.firsts).tolist() == [1, 1, 1, 2, 5]
  # Words and pairs are all different: 2 n - 1 entries in a passage of n words, collisions apart.
  sizes = (np.bincount(found.rows, minlength=int(found.firsts[-1])) + 1) // 2
  assert sizes[2] in range(size - 2, size + 1)
  assert np.ptp(sizes[5:]) <= 3
  norms = np.bincount(found.rows, found.values**2, int(found.firsts[-1]))
  assert norms[1:] == pytest.approx(1, rel=1e-5)
  assert norms[0] == 0


def test_a_score_is_the_documents_own(trained, classes):
  sample = [d.text for d in classes[0][:5] + classes[1][:5]] + ["", "whence " * 3000]
  alone = [trained.scores([text])[0] for text in sample]
  assert trained.scores(sample) == pytest.approx(alone, rel=1e-12)
  assert trained.scores(sample[::-1])[::-1] == pytest.approx(alone, rel=1e-12)
  assert trained.scores([]).shape == (0,)


def test_a_planted_signal_is_found(trained, classes):
  test = trained.facts["test"]
  assert test["auc"] > 0.99
  assert test["accuracy"] > 0.95
  assert test["brier"] < 0.05
  assert test["calibration_error"] < 0.1
  assert test["kept"]["threshold 0.5"]["good"] > 0.9 > 0.1 > test["kept"]["threshold 0.5"]["raw"]
  rng = random.Random(9)
  unseen = documents(rng, 50, extra=["whence", "thus"])
  assert quality.transfer(trained, unseen) > 0.99
  assert quality.transfer(trained, documents(rng, 50, extra=["click", "cart"])) < 0.65


def test_without_a_signal_the_model_is_at_chance_and_says_so():
  rng = random.Random(1)
  made = quality.train(documents(rng, 1200, name="a"), documents(rng, 1200, name="b"))
  test = made.facts["test"]
  assert abs(test["auc"] - 0.5) < 0.1
  assert abs(test["accuracy"] - 0.5) < 0.1
  # Calibration has seen that it knows nothing.
  assert test["brier"] == pytest.approx(0.25, abs=0.01)


def test_near_copies_never_stand_in_two_parts():
  """Each document has an edited copy of the same random label: a leak would be learnt by heart."""
  rng = random.Random(2)
  sides = []
  for name in "ab":
    base = documents(rng, 400, [f"{a}{b}" for a in COMMON for b in COMMON], name=name, size=100)
    copies = [Document(d.id + "x", d.text + " bye") for d in base]
    sides.append(base + copies)
  made = quality.train(*sides)
  assert made.facts["documents"]["largest_group"] == 2
  assert abs(made.facts["test"]["auc"] - 0.5) < 0.13
  apart = training.PARTS
  data = training._collect(*sides, 0, 10_000)
  parts, _ = training._parts(data, 0)
  place = dict(zip(data.texts, parts.tolist(), strict=True))
  assert all(place[t] == place[t + " bye"] for t in data.texts if t + " bye" in place)
  assert np.bincount(parts) / len(parts) == pytest.approx(list(apart.values()), abs=0.05)


def test_order_does_not_matter_and_the_seed_does(trained, classes):
  again = quality.train(classes[0][::-1], iter(classes[1][::-1]))
  assert (again.weights == trained.weights).all()
  assert again.facts == trained.facts
  assert quality.train(*classes, seed=1).facts["test"] != trained.facts["test"]


def test_duplicates_count_once_and_for_the_curated_class(classes):
  good, raw = classes
  copies = [Document("c", good[0].text.upper()), *raw[:3], Document("e", " \n. ")]
  made = quality.train(good, raw + copies, most=450)
  assert made.facts["documents"]["good"] == {"read": 300, "empty": 0, "duplicates": 0, "used": 300}
  assert made.facts["documents"]["raw"] == {"read": 505, "empty": 1, "duplicates": 4, "used": 450}


def test_platt_scaling_finds_the_line_and_stays_finite():
  rng = np.random.default_rng(0)
  labels = np.repeat([0, 1], 20_000)
  # Normal logits of equal variance: the log-odds are a line, slope 2 / 1, crossing at 1.
  logits = rng.normal(2.0 * labels, 1.0)
  slope, offset = training._platt(logits, labels)
  assert (slope, offset) == pytest.approx((2.0, -2.0), rel=0.05)
  slope, _ = training._platt(np.array([-1.0, -0.9, 0.9, 1.0]), np.array([0, 0, 1, 1]))
  assert 0 < slope < 10
  assert training._platt(-logits, labels) == (0.0, 0.0)


def test_classes_weigh_the_same(trained, classes):
  more = quality.train(classes[0][:100], classes[1]).facts["test"]
  assert more["good"] < more["raw"] / 2
  assert sum(b["weight"] for b in more["calibration"]) == pytest.approx(1)
  assert sum(b["weight"] * b["curated"] for b in more["calibration"]) == pytest.approx(0.5)


@pytest.mark.parametrize("score", [0.05, 0.5, 0.9])
def test_pareto_keeps_the_expected_share(tmp_path, score):
  path = fixed(tmp_path, score)
  sample = [Document(str(i), f"text {i}") for i in range(3000)]
  kept = [d for d in sample if quality.quality(d, path, alpha=3.0) is None]
  expected = (2 - score) ** -3.0
  assert len(kept) / 3000 == pytest.approx(
    expected, abs=4 * math.sqrt(expected * (1 - expected) / 3000)
  )


def test_the_draw_is_the_documents_own(tmp_path):
  path = fixed(tmp_path, 0.8)
  sample = [Document(str(i), f"text {i}") for i in range(300)]
  fates = [quality.quality(d, path) for d in sample]
  random.seed(3)
  np.random.seed(3)
  assert [quality.quality(d, path) for d in sample[::-1]] == fates[::-1]
  assert [quality.quality(d, path, seed=1) for d in sample] != fates
  assert set(fates) == {None, "quality: score 0.8 to 0.9"}


def test_top_keeps_its_fraction_of_the_sample(trained, folder):
  size = len(trained.sample)
  for fraction in (0.1, 0.5, 1.0):
    kept = (trained.sample >= trained.bound(fraction)).mean()
    assert kept == pytest.approx(fraction, abs=1 / size)
  raw = documents(random.Random(5), 300, extra=["click", "cart"])
  kept = np.mean([quality.quality(d, folder, keep="top", fraction=0.5) is None for d in raw])
  assert kept == pytest.approx(0.5, abs=0.2)
  with pytest.raises(UserError, match="calibration sample has"):
    quality.quality(raw[0], folder, keep="top", fraction=0.001)


def test_threshold_and_the_bucket_of_the_reason(tmp_path):
  document = Document("x", "text")
  path = fixed(tmp_path, 0.25)
  assert quality.quality(document, path, keep="threshold") == "quality: score 0.2 to 0.3"
  assert quality.quality(document, path, keep="threshold", least=0.25 - 1e-9) is None
  path = fixed(tmp_path, 1 - 1e-12)
  assert quality.quality(document, path, keep="threshold", least=1.0) == "quality: score 0.9 to 1.0"


def test_files_keep_the_scores_and_hold_no_code(trained, folder, classes):
  stored = quality.load(folder)
  assert quality.load(folder) is stored
  sample = [d.text for d in classes[0][:20]]
  assert (stored.scores(sample) == trained.scores(sample)).all()
  assert stored.facts["test"] == json.loads(json.dumps(trained.facts["test"]))
  quality.save(folder, stored)
  assert (quality.load(folder).scores(sample) == trained.scores(sample)).all()


def test_a_model_trained_again_is_read_again(folder, trained):
  before = quality.load(folder)
  quality.save(folder, quality.Model(trained.weights, 3.0, 1.0, 0.0, trained.sample, {}))
  assert quality.load(folder).bias == 3.0 != before.bias


@pytest.mark.parametrize(
  ("damage", "reason"),
  [
    (lambda p: (p / "model.npz").unlink(), "no model.npz"),
    (lambda p: (p / "model.json").write_text("{"), "damaged"),
    (lambda p: (p / "model.json").write_text("[]"), "damaged"),
    (lambda p: (p / "model.npz").write_bytes(b"x"), "SHA-256"),
    (lambda p: rewrite(p, version=99), "format 99"),
    (lambda p: rewrite(p, "weights", np.zeros(5, np.float32)), "not the arrays"),
    (lambda p: rewrite(p, "line", np.array([0.0, np.nan, 0.0])), "not the arrays"),
    (lambda p: rewrite(p, "sample", np.zeros((2, 2))), "a row of float64"),
    (lambda p: rewrite(p, "sample", np.array([1, 2])), "a row of float64"),
  ],
)
def test_damaged_files_end_in_one_line(folder, tmp_path, damage, reason):
  damage(tmp_path / "model")
  with pytest.raises(UserError, match=reason) as error:
    quality.load(folder)
  assert "\n" not in str(error.value)
  assert "train_quality" in str(error.value)


def rewrite(path, name="", array=None, version=model.VERSION):
  """Files that fit each other and are wrong all the same."""
  facts, arrays = model.artifacts.load(path, "model", model.VERSION, {}, "")
  arrays = arrays | ({name: array} if name else {})
  model.artifacts.save(path, "model", version, facts, arrays)


def test_bad_arguments_end_in_one_line(folder, classes):
  document = Document("x", "text")
  with pytest.raises(UserError, match='did you mean "top"'):
    quality.quality(document, folder, keep="topp")
  with pytest.raises(UserError, match="alpha > 0"):
    quality.quality(document, folder, alpha=0.0)
  with pytest.raises(UserError, match="train it with"):
    quality.quality(document, folder + "x")
  with pytest.raises(UserError, match="good: .* different documents for the"):
    quality.train(classes[0][:20], classes[1])


def test_training_says_what_to_install(classes, monkeypatch):
  monkeypatch.setitem(sys.modules, "sklearn", None)
  with pytest.raises(UserError, match="pip install scikit-learn"):
    quality.train(*classes)


@settings(max_examples=25)
@given(st.text(max_size=200), st.text(max_size=20))
def test_any_text_has_a_score(text, name):
  assert 0 < EVEN.scores([text])[0] <= 1
  assert quality._draw(Document(name, text), 9.0, 0) >= 0
