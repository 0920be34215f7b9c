"""Every page of the playground, used as a person would, in a real browser.

Screenshots are kept in the directory that LLM_JAX_SCREENSHOTS names, if it is set.
"""

import os
import pathlib
import re
import shutil

import pytest

from llm_jax.serve import judging
from tests.serve import browsing

playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra browser")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs the extra browser")
expect, pytestmark = playwright.expect, browsing.MARKS

PAGES = ("pipeline", "data", "next", "compare", "reward", "training", "scaling")
LOOKS = [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390)]


def test_the_pipeline_is_followed_live(tab, workdir):
  section = tab.open("pipeline")
  assert section.locator(".stage-row.done").count() == 6
  assert tab.page.locator("#run-state").inner_text() == "6 of 6 stages done"
  stage = workdir / "dpo"
  stage.mkdir()
  try:
    (stage / "config.json").write_text('{"steps": 10}')
    (stage / "metrics.jsonl").write_text('{"step": 5, "rewards/margins": 1.25}\n')
    row = section.locator(".stage-row.running")
    row.wait_for()
    assert "1.25" in row.inner_text() and "50" in row.inner_text()
  finally:
    shutil.rmtree(stage)
  section.locator(".stage-row.running").wait_for(state="detached")
  row = section.locator(".stage-row[data-stage=sft]")
  row.locator("summary").click()
  with tab.context.expect_page() as opened:
    row.get_by_role("link", name="metrics.jsonl").click()
  expect(opened.value.locator("body")).to_contain_text('"step"')
  tab.check()


def test_another_run_can_be_looked_at(tab):
  tab.open("pipeline")
  tab.page.get_by_label("Run", exact=True).select_option("other")
  expect(tab.page.locator(".stage-row")).to_have_count(1)
  tab.check()


def test_scripts_of_documents_are_shown_as_text(tab):
  section = tab.open("data")
  section.get_by_text("too short").click()
  sample = section.locator("pre").filter(has_text="<script>").first
  sample.wait_for()
  assert "window.hit" in sample.inner_text()
  assert tab.page.evaluate("window.hit") is None and section.locator("pre img").count() == 0
  section.get_by_text("2 alike").click()
  section.locator("mark.kept").wait_for()
  assert section.locator("mark.kept").inner_text() == "large"
  assert section.locator("mark.gone").inner_text() == "small"
  section.get_by_label("Any text").fill("<img src=x onerror='window.hit = 1'>")
  section.locator(".piece").nth(3).wait_for()
  tab.page.wait_for_timeout(300)
  assert tab.page.evaluate("window.hit") is None and section.locator(".pieces img").count() == 0
  tab.check()


def test_tokens_are_looked_at_appended_and_taken_back(tab):
  section = tab.open("next")
  section.locator(".token").first.wait_for()
  section.get_by_label("Context").fill("What does count rows do?")
  section.get_by_label("Model").select_option("ppo")
  tab.page.wait_for_timeout(500)  # Until the distribution is that of this model and this text.
  tail = section.locator(".tail .drawn, .tail .control")
  first = section.locator(".token").first
  word = first.locator("code").inner_text().replace("␣", " ")
  first.click()
  tail.first.wait_for()
  assert tail.first.inner_text().strip() == word.strip()
  section.get_by_role("button", name="Step").click()
  tail.nth(1).wait_for()
  section.get_by_role("button", name="Undo").click()
  tail.nth(1).wait_for(state="detached")
  section.get_by_role("button", name="Clear").click()
  tail.first.wait_for(state="detached")
  tab.check()


def test_sliders_shape_the_distribution(tab):
  section = tab.open("next")
  section.locator(".token").first.wait_for()
  kept = section.locator(".facts div").filter(has_text="tokens kept").locator("dd")
  all_of_them = kept.inner_text()
  section.get_by_label("Top-p").fill("0.05")
  section.locator(".token.cut").first.wait_for()
  expect(kept).not_to_have_text(all_of_them)
  section.get_by_label("Temperature").fill("0.05")
  expect(section.locator(".token .num").first).to_have_text(re.compile("100.0"))
  section.get_by_role("button", name="Run").click()
  section.locator(".tail .drawn, .tail .control").first.wait_for()
  stop = section.get_by_role("button", name="Stop")
  if stop.count():
    stop.click()
  section.get_by_role("button", name="Run").wait_for()
  tab.check()


def test_answers_stream_side_by_side(tab):
  section = tab.open("compare")
  section.get_by_label("Prompt").fill("What does sort names do?")
  section.get_by_label("Tokens at most").fill("16")
  section.get_by_role("checkbox", name="pretrain").uncheck()
  section.get_by_role("button", name="Answer").click()
  section.locator(".answer").nth(1).wait_for()
  assert section.locator(".answer").count() == 2
  for number in range(2):
    section.locator(".answer .note").nth(number).filter(has_text="KL to sft").wait_for()
  section.get_by_label("Colour tokens by").select_option("logps")
  spans = section.locator(".answer .text span")
  heat = spans.evaluate_all("all => all.map(one => parseInt(one.style.getPropertyValue('--heat')))")
  assert max(heat) > 0
  tab.check()


def test_two_answers_are_scored_and_voted_on(tab, workdir):
  section = tab.open("reward")
  section.get_by_label("Question").fill("What does sort names do?")
  section.get_by_label("First answer").fill("Sort all the names of a train table.")
  section.get_by_label("Second answer").fill("<b>Sort</b> <script>window.hit = 1</script>")
  section.get_by_role("button", name="Score").click()
  section.locator(".big").nth(1).wait_for()
  assert "P(first preferred)" in section.locator(".verdict-line").inner_text()
  assert section.locator(".judged .text span").count() > 8
  assert section.locator(".judged b").count() == 0 and tab.page.evaluate("window.hit") is None
  section.get_by_role("button", name="The second is better").click()
  section.get_by_text("Saved: 1 vote").wait_for()
  assert (workdir / judging.VOTES).read_text().count("\n") == 1
  (workdir / judging.VOTES).unlink()
  section.get_by_label("Second answer").fill("Sort all the names of a train table.")
  section.get_by_role("button", name="The first is better").click()
  section.get_by_role("alert").filter(has_text="the same").wait_for()
  # A browser says of itself that a request was refused.
  tab.wrong = [text for text in tab.wrong if "400" not in text]
  tab.check()


def test_curves_of_two_runs_lie_on_each_other(tab):
  section = tab.open("training")
  section.locator(".panel canvas").first.wait_for()
  assert section.locator(".panel").count() >= 5
  loss = section.locator(".panel").first
  assert "tiny sft" in loss.inner_text() and "other sft" in loss.inner_text()
  section.get_by_role("checkbox", name="other").uncheck()
  section.locator(".panel").filter(has_text="other sft").first.wait_for(state="detached")
  section.get_by_role("button", name="steps").click()
  section.get_by_label("Only").fill("kl")
  section.locator("b.explained").filter(has_not_text="kl").first.wait_for(state="detached")
  assert section.locator("b.explained").first.get_attribute("title")
  section.get_by_label("Smoothing").fill("0.9")
  section.locator("figure").filter(has_text="KL against reward").wait_for()
  tab.check()


def test_a_budget_answers_to_its_sliders(tab):
  section = tab.open("scaling")
  tile = lambda name: section.locator(".tiles div").filter(has_text=name).locator("dd").first  # noqa: E731
  tile("tokens").wait_for()
  before = tile("loss to expect").inner_text()
  section.get_by_label("Time").fill("2.5")
  expect(tile("loss to expect")).not_to_have_text(before)
  section.get_by_label("You know").select_option("days")
  section.get_by_text("near the optimum").wait_for()
  assert section.get_by_label("Parameters").is_disabled()
  assert section.locator("svg text").filter(has_text="Chinchilla").count() == 1
  tab.check()


@pytest.mark.parametrize(("theme", "width"), LOOKS)
def test_every_page_is_accessible_and_fits(browser, page, theme, width):
  tab = browsing.Tab(browser, page.port, theme, width)
  shots = os.environ.get("LLM_JAX_SCREENSHOTS", "")
  try:
    for name in PAGES:
      section = tab.open(name)
      if name == "compare":
        section.get_by_role("button", name="Answer").click()
        section.get_by_role("button", name="Answer").wait_for()
        section.locator(".answer .note").filter(has_text="KL to").first.wait_for()
      if name == "reward":
        section.get_by_label("First answer").fill("Count all the rows.")
        section.get_by_role("button", name="Score").click()
        section.locator(".big").first.wait_for()
      if name == "data":
        section.get_by_text("2 alike").click()
        section.locator("mark").first.wait_for()
      tab.page.wait_for_timeout(300)
      found = axe.Axe().run(tab.page).response["violations"]
      serious = [v for v in found if v["impact"] in ("serious", "critical")]
      assert not serious, [(v["id"], [n["html"] for n in v["nodes"]][:3]) for v in serious]
      assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
      if shots:
        tab.page.screenshot(
          path=pathlib.Path(shots) / f"{name}-{theme}-{width}.png", full_page=True
        )
    tab.check()
  finally:
    tab.context.close()


def test_the_check_of_accessibility_finds_what_it_should(tab):
  tab.open("pipeline")
  tab.page.evaluate("document.querySelector('main').append(document.createElement('input'))")
  found = axe.Axe().run(tab.page).response["violations"]
  assert "label" in [v["id"] for v in found if v["impact"] in ("serious", "critical")]


def test_the_theme_is_remembered(tab):
  tab.open("pipeline")
  tab.page.get_by_role("button", name="Switch light and dark").click()
  tab.page.reload()
  assert tab.page.evaluate("document.documentElement.dataset.theme") == "dark"
  tab.check()
