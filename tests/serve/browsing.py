"""A real browser on the pages of the playground; nothing here needs it to be installed."""

import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MARKS = [
  pytest.mark.long,
  pytest.mark.xdist_group("browser"),
  pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed"),
]
QUIET = (
  "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync",
  "--disable-component-update", "--no-first-run",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser():
  """Chromium, started; of modules that are skipped where Playwright is not installed."""
  from playwright import sync_api

  with sync_api.sync_playwright() as started:
    opened = started.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
    yield opened
    opened.close()


class Tab:
  """A tab that remembers what went wrong in it, and what it asked of whom."""

  def __init__(self, browser, port, theme="light", width=1280):
    self.home = f"http://127.0.0.1:{port}"
    self.context = browser.new_context(
      color_scheme=theme, viewport={"width": width, "height": 900}, accept_downloads=True
    )
    self.context.set_default_timeout(20_000)
    self.page, self.wrong, self.asked = self.context.new_page(), [], []
    self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
    self.page.on("request", lambda request: self.asked.append(request.url))
    self.page.on(
      "console",
      lambda said: self.wrong.append(said.text) if said.type in ("error", "warning") else None,
    )

  def open(self, name):
    self.page.goto(f"{self.home}/#{name}")
    self.page.locator(f"#{name} h2").wait_for()
    return self.page.locator(f"#{name}")

  def slow(self, mark, milliseconds):
    """Lets answers to requests wait whose address or body has the mark."""
    self.page.evaluate(
      """([mark, wait]) => {
        const own = window.fetch;
        window.fetch = async (path, given) => {
          const reply = await own(path, given);
          if (!(path + given?.body).includes(mark)) return reply;
          await new Promise((done) => setTimeout(done, wait));
          given?.signal?.throwIfAborted();
          return reply;
        };
      }""",
      [mark, milliseconds],
    )

  def check(self):
    """Nothing went wrong, and nothing was asked of anyone else."""
    assert self.wrong == []
    assert all(url.startswith((self.home, "data:", "blob:")) for url in self.asked), self.asked


@pytest.fixture
def tab(browser, page):
  """A new tab, on the server of `page`."""
  opened = Tab(browser, page.port)
  yield opened
  opened.context.close()
