"""Pages that stay open: while a run goes on, and while one thing is asked after another."""

import shutil

import pytest

from tests.serve import browsing

playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra browser")
expect, pytestmark = playwright.expect, browsing.MARKS


def _grow(workdir, step):
  """Lets a stage go on by one step, as a run that trains does all the time."""
  stage = workdir / "dpo"
  stage.mkdir(exist_ok=True)
  (stage / "config.json").write_text('{"steps": 100}')
  with open(stage / "metrics.jsonl", "a") as f:
    f.write(f'{{"step": {step}, "rewards/margins": {step}.5}}\n')


@pytest.fixture
def growing(workdir):
  yield lambda step: _grow(workdir, step)
  shutil.rmtree(workdir / "dpo", ignore_errors=True)


def _row(tab, step):
  return tab.page.locator(".stage-row.running").filter(has_text=f"{step}.5")


def test_a_run_that_goes_on_disturbs_no_page(tab, growing):
  section = tab.open("next")
  section.locator(".token").first.wait_for()
  asked = lambda: sum(url.endswith("/api/next") for url in tab.asked)  # noqa: E731
  tab.page.wait_for_timeout(300)
  before = asked()
  growing(1)
  expect(tab.page.locator("#run-state")).to_contain_text("running: DPO")
  assert asked() == before
  tab.open("pipeline")
  _row(tab, 1).wait_for()
  summary = tab.page.locator(".stage-row[data-stage=dpo] summary")
  summary.focus()
  growing(2)
  _row(tab, 2).wait_for()
  assert tab.page.evaluate("document.activeElement.tagName") == "SUMMARY"
  tab.check()


def test_every_step_is_taken_however_fast_they_come(tab):
  section = tab.open("next")
  section.locator(".token").first.wait_for()
  section.get_by_label("Temperature").fill("2")
  tab.slow("/api/next", 200)
  for _ in range(5):
    section.get_by_role("button", name="Step").click()
  expect(section.locator(".tail .drawn, .tail .control")).to_have_count(5)
  tab.check()


def test_a_text_that_changes_ends_the_run_of_the_old_one(tab):
  section = tab.open("next")
  section.locator(".token").first.wait_for()
  run = section.get_by_role("button", name="Run")
  tab.slow("/api/next", 150)  # Between the token of one step and the answer to the next.
  run.click()
  section.locator(".tail .drawn, .tail .control").first.wait_for()
  section.get_by_label("Context").fill("What is os.path?")
  run.wait_for()
  expect(section.locator(".tail .drawn, .tail .control")).to_have_count(0)
  run.click()
  stop = section.get_by_role("button", name="Stop")
  stop.click()
  run.click()
  section.locator(".tail .drawn, .tail .control").nth(1).wait_for(state="attached")
  tab.check()


def test_what_is_shown_is_of_what_was_typed_last(tab):
  section = tab.open("data")
  section.locator(".piece").first.wait_for()
  tab.slow("slow slow", 700)  # The first text's tokens come last.
  section.get_by_label("Any text").fill("slow slow slow slow")
  tab.page.wait_for_timeout(250)
  section.get_by_label("Any text").fill("a")
  tab.page.wait_for_timeout(1000)
  assert section.locator(".piece").count() <= 2
  section = tab.open("reward")
  section.get_by_label("First answer").fill("Count all the rows.")
  section.get_by_role("button", name="Score").click()
  section.locator(".big").first.wait_for()
  section.get_by_label("First answer").fill("Count")
  expect(section.locator(".big")).to_have_count(0)
  tab.check()


def test_a_tab_that_nobody_sees_holds_no_connection(tab, growing):
  tab.open("pipeline")
  events = lambda: sum("/api/events" in url for url in tab.asked)  # noqa: E731
  see = """hidden => {
    Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
  }"""
  before = events()
  tab.page.evaluate(see, True)
  growing(3)
  tab.page.wait_for_timeout(1500)
  assert _row(tab, 3).count() == 0
  tab.page.evaluate(see, False)
  _row(tab, 3).wait_for()
  assert events() == before + 1
  tab.check()


def test_any_fragment_leads_to_a_page(tab):
  tab.page.goto(f"{tab.home}/#constructor")
  tab.page.locator("#pipeline .stage-row").first.wait_for()
  tab.check()


def test_a_zoom_stays_while_curves_grow(tab, growing):
  section = tab.open("training")
  section.get_by_label("Only").fill("loss")
  plot = section.locator(".panel .u-over").first
  plot.wait_for()
  box = plot.bounding_box()
  y = box["y"] + box["height"] / 2
  shot = lambda: section.locator(".panel canvas").first.screenshot()  # noqa: E731
  whole = shot()
  tab.page.mouse.move(box["x"] + 0.3 * box["width"], y)
  tab.page.mouse.down()
  tab.page.mouse.move(box["x"] + 0.6 * box["width"], y, steps=5)
  tab.page.mouse.up()
  tab.page.mouse.move(0, 0)
  tab.page.wait_for_timeout(300)
  zoomed, marked = shot(), section.locator(".panel canvas").first.evaluate_handle("c => c")
  assert zoomed != whole
  growing(4)
  tab.page.wait_for_function("canvas => !canvas.isConnected", arg=marked)
  tab.page.wait_for_timeout(500)
  assert shot() == zoomed
  tab.check()


def test_an_example_that_comes_late_leaves_what_was_typed(tab):
  tab.page.goto(f"{tab.home}/#pipeline")
  tab.page.locator(".stage-row").first.wait_for()
  tab.slow("/api/examples", 500)
  section = tab.open("reward")
  section.get_by_label("First answer").fill("Typed in the meantime.")
  expect(section.get_by_label("Question")).not_to_have_value("")
  assert section.get_by_label("First answer").input_value() == "Typed in the meantime."
  tab.check()
