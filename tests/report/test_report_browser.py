"""What the page does in a browser: charts, axes, meanings, and files that are saved from it."""

import pathlib
import struct
import xml.etree.ElementTree

import pytest

from llm_jax import report
from llm_jax.report import compare, tables

BROWSER = pathlib.Path("/usr/bin/chromium")
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
pytestmark = [
  pytest.mark.long,
  pytest.mark.skipif(not BROWSER.exists(), reason=f"{BROWSER} is not installed"),
]


@pytest.fixture(scope="module")
def browser():
  flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
  with playwright.sync_playwright() as started:
    found = started.chromium.launch(executable_path=str(BROWSER), args=flags)
    yield found
    found.close()


@pytest.fixture
def opened(browser):
  """Opens pages, and at the end looks whether anything was complained of or fetched."""
  complaints, fetched, contexts = [], [], []

  def open_page(path, **how):
    contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | how))
    page = contexts[-1].new_page()
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: fetched.append(request.url))
    page.goto(path.as_uri())
    return page

  yield open_page
  for context in contexts:
    context.close()
  assert complaints == []
  assert {url.split(":")[0] for url in fetched} <= {"file", "data", "blob"}


def saved(page, button):
  """Presses a button on the keyboard; returns the name of the file and its bytes."""
  with page.expect_download() as waiting:
    button.focus()
    page.keyboard.press("Enter")
  page.wait_for_timeout(120)  # A browser lets no page save more than ten files a second.
  return waiting.value.suggested_filename, pathlib.Path(waiting.value.path()).read_bytes()


def test_every_table_is_saved_as_the_command_line_writes_it(opened, workdir):
  path = report.build(workdir)
  page = opened(path)
  wanted = tables.tables(path.read_text())
  buttons = page.locator(".exported .export button").all()
  assert len(buttons) == len(wanted) > 10
  found = dict(saved(page, button) for button in buttons)
  assert found == {
    f"quickstart-{name}.csv": tables.as_csv(rows).encode() for name, rows in wanted.items()
  }


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["panel", "still"])
def test_a_chart_is_saved_as_a_picture(opened, workdir, theme, kind):
  page = opened(report.build(workdir), color_scheme=theme)
  for figure in page.locator(f"figure.{kind}:visible").all()[:4]:
    name, svg = saved(page, figure.get_by_role("button", name="SVG"))
    root = xml.etree.ElementTree.fromstring(svg)
    width, height = (round(float(root.get(side))) for side in ("width", "height"))
    title = figure.locator("figcaption b").text_content()
    assert name.endswith(".svg") and title in svg.decode()
    assert b"var(" not in svg and b"color-mix" not in svg and b"NaN" not in svg
    back = root.find("{http://www.w3.org/2000/svg}rect").get("fill")
    assert (int(back[5:].split(",")[0]) > 128) == (theme == "light")
    name, png = saved(page, figure.get_by_role("button", name="PNG"))
    assert png.startswith(b"\x89PNG") and name.endswith(".png")
    assert struct.unpack(">II", png[16:24]) == pytest.approx((2 * width, 2 * height), abs=2)


def test_a_chart_is_saved_as_it_is_seen(opened, workdir):
  page = opened(report.build(workdir))
  figure = page.locator("figure.panel").first
  page.click("[data-axis=k]")
  page.click("#log-x")
  _, text = saved(page, figure.get_by_role("button", name="CSV"))
  head, first, *_ = text.decode().splitlines()
  assert head == "tokens,train,held out" and float(first.split(",")[0]) > 10_000
  assert "tokens" in figure.locator(".where").text_content()
  _, svg = saved(page, figure.get_by_role("button", name="SVG"))
  assert ">tokens<" in svg.decode()


def test_buttons_are_quiet_until_they_are_looked_for(opened, workdir):
  path = report.build(workdir)
  page = opened(path)
  box = page.locator("figure.panel").first.locator(".export")
  opacity = "element => getComputedStyle(element).opacity"
  page.mouse.move(0, 0)
  assert box.evaluate(opacity) == "0"
  box.locator("button").first.focus()
  page.wait_for_timeout(300)
  assert box.evaluate(opacity) == "1"
  touched = opened(path, has_touch=True, is_mobile=True, viewport={"width": 390, "height": 800})
  assert touched.locator(".export").first.evaluate(opacity) == "1"
  assert touched.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_title_with_the_focus_says_what_is_drawn(opened, workdir):
  page = opened(report.build(workdir))
  figure = page.locator("figure.panel").first
  assert not figure.locator(".says").is_visible()
  figure.locator(".term").focus()
  assert figure.locator(".says").is_visible()
  assert "What the optimizer minimises" in figure.locator(".says").text_content()


def test_runs_of_different_lengths_are_drawn_in_one_chart(opened, workdir, second, tmp_path):
  page = opened(compare.build([workdir, second], tmp_path / "comparison.html"))
  figure = page.locator("figure.panel").first
  for axis in ("x", "k", "t"):
    page.click(f"[data-axis={axis}]")
    _, text = saved(page, figure.get_by_role("button", name="CSV"))
    head, *rows = (line.split(",") for line in text.decode().splitlines())
    assert head[1:] == [f"{workdir.parent.name}/quickstart", "other/quickstart"]
    assert all(any(row[1:]) for row in rows) and sum(bool(row[2]) for row in rows) >= 40
  assert figure.locator("canvas").count() == 1


def test_a_stage_alone_has_a_page_that_runs(opened, stage):
  page = opened(report.build(stage))
  assert page.locator("figure.panel:visible canvas").count() >= 12
