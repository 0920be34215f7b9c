"""Extraction: what is main text, time limits in every kind of thread, pages too hard to parse."""

import collections
import concurrent.futures
import json
import lzma
import math
import multiprocessing
import pathlib
import re
import signal
import threading
import time

import pytest

from llm_jax.data import crawl, extraction
from llm_jax.data.readers.deadline import limited
from llm_jax.errors import UserError

GOLD = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data" / "web_article_extraction"
SENTENCE = "A sentence about the matter at hand, which is of some length. "
PARAGRAPHS = "".join(f"<p>{i}. {SENTENCE * 4}</p>" for i in range(3))
MENU = "<nav>" + "<a href=/x>some link</a> " * 30 + "</nav>"
ARTICLE = f"<html><body>{MENU}<article>{PARAGRAPHS}</article><footer>Terms</footer></body></html>"
EXTRACTORS = ["trafilatura", "blocks", "resiliparse"]


@pytest.fixture(params=EXTRACTORS)
def extractor(request):
  if request.param == "resiliparse":
    pytest.importorskip("resiliparse")
  return request.param


def test_an_article_is_found(extractor):
  text = crawl.extract(ARTICLE, extractor)
  assert text.count("matter at hand") == 12
  assert "some link" not in text and "Terms" not in text


def test_pages_that_are_none_have_no_text(extractor):
  for page in ("", " ", "\0", "<", "<!--", "<html>", "plain words", "{}", "<?xml?>", "\ud800"):
    assert len(crawl.extract(page, extractor)) <= 20, page


def test_where_doubt_left_a_crumb_the_rest_is_found(monkeypatch):
  answers = {"favor_precision": "crumb", "favor_recall": "all of the text"}

  def answer(tree, **options):
    return next(text for option, text in answers.items() if options.get(option))

  monkeypatch.setattr("trafilatura.extract", answer)
  assert crawl.extract(ARTICLE) == "all of the text"
  answers["favor_recall"] = "crumbs"  # Not twice as long: then no doubt is better.
  assert crawl.extract(ARTICLE) == "crumb"
  answers.update(favor_precision="x" * 3000, favor_recall="y" * 9000)  # No crumb.
  assert crawl.extract(ARTICLE) == "x" * 3000
  assert crawl.extract("<html><body><p>few words</p>") == "x" * 3000
  answers.update(favor_precision="few words")  # All that the page has.
  assert crawl.extract("<html><body><p>few words</p>") == "few words"


def test_the_same_page_gives_the_same_text_whatever_came_before(extractor):
  other = ARTICLE.replace("matter", "thing")
  first = crawl.extract(ARTICLE, extractor)
  for _ in range(3):  # Extractors that remember paragraphs would drop them now.
    crawl.extract(other, extractor)
    assert crawl.extract(ARTICLE, extractor) == first


def test_an_unknown_extractor_is_an_error():
  with pytest.raises(UserError, match='no extractor "trafilatur"; did you mean "trafilatura"'):
    crawl.extract(ARTICLE, "trafilatur")


@pytest.mark.parametrize(
  ("page", "says"),
  [
    ("x" * 1001, "a page of 1,001 characters, over the cap of 1,000"),
    ("<p " + " ".join(f"a{i}" for i in range(2000)) + ">", "more than 1,000 attributes"),
    ("<p " + "".join(f"a{i}='1'" for i in range(2000)) + ">", "more than 1,000 attributes"),
    ("<div>" * 20_000, "nested more than 5,000 deep"),
    ("<x><br>" * 6000 + "</x>" * 6000, "nested more than 5,000 deep"),
  ],
)
def test_pages_that_parsers_would_need_minutes_for_are_refused(extractor, page, says):
  cap = 1000 if page[0] == "x" else extraction.MAX_CHARS
  with pytest.raises(extraction.PageTooLarge, match=says):
    crawl.extract(page, extractor, max_chars=cap)


def test_long_pages_and_large_images_are_not_refused(extractor):
  image = f'<img src="data:image/png;base64,{"Ab/+" * 20_000}" alt="{"word " * 9000}">'
  rows = "<table>" + "<tr><td>1<td>2" * 3000 + "</table>" + "<br>" * 9000 + "<p>x" * 9000
  assert "matter at hand" in crawl.extract(ARTICLE.replace("<p>", image + "<p>"), extractor)
  crawl.extract(ARTICLE.replace("</article>", rows + "</article>"), extractor, seconds=60)


def spin(page=""):
  """Never ends, and swallows what it can."""
  while True:
    try:
      time.sleep(0.001)
    except Exception:  # noqa: S112 # What extractors do.
      continue


def swallow(page=""):
  """Takes the first interruption for something else."""
  try:
    spin()
  except BaseException:
    spin()


def timed(fn, *args, seconds=0.1):
  """Returns how long it took until the error, or the result."""
  begin = time.monotonic()
  try:
    return limited(fn, *args, seconds=seconds)
  except TimeoutError as e:
    assert str(e) == f"not done after {seconds:g} s"
    return time.monotonic() - begin


def in_thread(fn, *args):
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    return pool.submit(fn, *args).result(30)


def directly(fn, *args):
  return fn(*args)


def in_process(fn, *args):
  context = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
    first = pool.submit(fn, *args).result(60)
    assert pool.submit(timed, len, "abc").result(60) == 3  # The process lives.
    return first


@pytest.mark.parametrize("place", [directly, in_thread, in_process])
def test_a_page_that_never_ends_is_ended(place):
  before = threading.active_count()
  assert 0.1 <= place(timed, spin) < 5
  assert threading.active_count() == before


@pytest.mark.parametrize("place", [directly, in_thread])
def test_code_that_swallows_the_first_interruption_is_ended_too(place):
  assert 0.1 <= place(timed, swallow) < 5


@pytest.mark.parametrize("place", [directly, in_thread])
def test_results_and_errors_come_through(place):
  assert place(timed, len, "abc") == 3
  with pytest.raises(ZeroDivisionError):
    place(timed, lambda: 1 / 0)
  assert place(lambda: limited(len, "abc", seconds=0)) == 3
  assert place(lambda: limited(len, "abc", seconds=math.inf)) == 3


def test_a_regular_expression_that_never_ends_is_ended_in_the_main_thread():
  assert 0.1 <= timed(re.fullmatch, r"(a|a)*b", "a" * 40) < 5


def test_what_was_there_before_is_there_after():
  heard = []
  old = signal.signal(signal.SIGALRM, lambda *_: heard.append(1))
  try:
    signal.setitimer(signal.ITIMER_REAL, 1.5)
    begin = time.monotonic()
    timed(spin)
    assert not heard
    while not heard and time.monotonic() < begin + 20:
      time.sleep(0.05)
    assert heard == [1] and time.monotonic() > begin + 1.4  # Somebody else's alarm still rings.
    assert timed(len, "") == 0
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
  finally:
    signal.signal(signal.SIGALRM, old)


def test_extract_has_a_time_limit(monkeypatch):
  monkeypatch.setitem(extraction._EXTRACTORS, "blocks", spin)
  with pytest.raises(TimeoutError, match="not done after 0.1 s"):
    crawl.extract("<p>x", "blocks", seconds=0.1)


def shingles(text, n=4):
  words = re.findall(r"\w+", text)
  grams = [tuple(words[i : i + n]) for i in range(max(len(words) - n + 1, 1))] if words else []
  return collections.Counter(grams)


@pytest.mark.slow
def test_f1_on_pages_with_known_articles():
  if not GOLD.exists():
    pytest.skip("needs web_article_extraction beside the repository (../shared/data)")
  precision, recall = [], []
  with lzma.open(GOLD / "pages.jsonl.xz", "rt") as lines:
    for line in lines:
      page = json.loads(line)
      found, gold = shingles(crawl.extract(page["html"])), shingles(page["gold"])
      hits = (found & gold).total()
      precision.append(hits / max(found.total(), 1))
      recall.append(hits / max(gold.total(), 1))
  p, r = sum(precision) / len(precision), sum(recall) / len(recall)
  assert 2 * p * r / (p + r) >= 0.955
