"""Languages: the fast walk gives the package's answers, and a sample the answer of the whole."""

import functools
import json
import lzma
import pathlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.data.documents import Document
from llm_jax.data.filters import language, languages
from llm_jax.errors import UserError

# The first article of the Universal Declaration of Human Rights.
TEXTS = {
  "en": "All human beings are born free and equal in dignity and rights. They are endowed with "
  "reason and conscience and should act towards one another in a spirit of brotherhood.",
  "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft "
  "und Gewissen begabt und sollen einander im Geist der Brüderlichkeit begegnen.",
  "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués "
  "de raison et de conscience et doivent agir les uns envers les autres dans un esprit fraternel.",
  "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como "
  "están de razón y conciencia, deben comportarse fraternalmente los unos con los otros.",
  "it": "Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti. Essi sono dotati di "
  "ragione e di coscienza e devono agire gli uni verso gli altri in spirito di fratellanza.",
  "ru": "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены "
  "разумом и совестью и должны поступать в отношении друг друга в духе братства.",
  "zh": "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
  "ja": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
  "el": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
}


PARTS = st.sampled_from([*TEXTS.values(), "a", "\u00df", "\u0130", "X Y", "12", "\ud800", "\n"])


@functools.cache
def package():
  """The package's own classifier."""
  identifier = pytest.importorskip("py3langid.langid").LanguageIdentifier
  return identifier.from_model_file("data/model.npz.xz", norm_probs=True)


@pytest.mark.parametrize("code", TEXTS)
def test_languages_are_told_apart(code):
  found, probability = languages.detect(TEXTS[code])
  assert found == code and probability > 0.65
  assert language(Document("x", TEXTS[code]), code=code) is None
  assert language(Document("x", TEXTS[code]), code="sv") == f"language: {code}"


@settings(deadline=None, max_examples=150)
@given(
  st.lists(
    st.sampled_from([*TEXTS.values(), "a", "\u00df", "\u0130", "X Y", "12", "\ud800", "\n"]),
    min_size=1,
  )
)
def test_answers_are_the_packages(parts):
  text = "".join(parts)
  found, probability = languages.detect(text, sample=0)
  code, expected = package().classify(text)
  if found == "und":
    assert expected < 0.02  # The package gives the first of equals.
  else:
    ranked = dict(package().rank(text))
    assert probability == pytest.approx(expected, abs=1e-3)
    assert found == code or ranked[found] == pytest.approx(expected, abs=1e-3)


def test_length_does_not_matter_to_the_walk():
  text = TEXTS["de"] * 3
  for n in (*range(8, 40), 100, 250):
    code, expected = package().classify(text[:n])
    assert languages.detect(text[:n], sample=0) == (code, pytest.approx(expected, abs=1e-3))


def test_a_long_text_is_judged_by_its_start_middle_and_end():
  text = TEXTS["de"] * 40
  assert languages.sampled(text, 0) == languages.sampled(text, len(text)) == text
  parts = languages.sampled(text, 300).split("\n")
  assert [len(part) for part in parts] == [100, 100, 100]
  assert text.startswith(parts[0]) and text.endswith(parts[2]) and parts[1] in text
  assert languages.detect(TEXTS["de"] * 40 + TEXTS["en"] * 80)[0] == "en"
  assert languages.detect(TEXTS["de"] * 80 + TEXTS["en"] * 40)[0] == "de"


@pytest.mark.parametrize("text", ["", " \n", "\u2603"])
def test_what_says_nothing_is_undetermined(text):
  assert languages.detect(text) == ("und", 0.0)
  assert language(Document("x", text)) == "language: und"


def test_the_probability_has_a_bound():
  text = Document("x", TEXTS["en"][:12])
  _, probability = languages.detect(text.text)
  assert language(text, least=probability) is None
  assert language(text, least=probability + 1e-6) == "language: unsure of en"


def test_a_language_that_the_model_does_not_know_is_an_error():
  with pytest.raises(UserError, match="does not know 'english'; it knows ace, af"):
    language(Document("x", "a"), code="english")


def test_a_sample_gives_the_answer_of_the_whole():
  """On real books and pages: with the default sample no page changes sides."""
  folder = pathlib.Path(__file__).resolve().parents[2].parent / "shared" / "data"
  path = folder / "web_article_extraction" / "pages.jsonl.xz"
  if not path.exists():
    pytest.skip("needs web_article_extraction, which is not shipped")
  with lzma.open(path, "rt", encoding="utf-8") as file:
    texts = [json.loads(line)["gold"] for line in file]
  sides = [
    [language(Document("x", t), sample=n) is None for t in texts] for n in (0, languages.SAMPLE)
  ]
  assert sides[0] == sides[1] and sum(sides[0]) > 150
