"""`prepare` killed at random moments and started again makes what an uninterrupted run makes."""

import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from llm_jax import config
from llm_jax.stages import prepare

ROOT = pathlib.Path(__file__).resolve().parents[2]
SYLLABLES = "ba den fil gor hu jek lam nost pri ras tev wyn zo mul kep dra".split()


def page(rng):
  words = ["".join(rng.choices(SYLLABLES, k=3)) for _ in range(200)]
  return "\n\n".join(f"The {' '.join(words[k : k + 10])} and so on." for k in range(0, 200, 10))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """Five files of pages, a tenth of them copies, a tenth of them nearly so."""
  rng = random.Random(0)
  pages = [page(rng) for _ in range(2000)]
  pages += pages[:200] + [p.replace("fil", "fol", 3) for p in pages[200:400]]
  rng.shuffle(pages)
  folder = tmp_path_factory.mktemp("source")
  for i in range(5):
    rows = [json.dumps({"text": text}) + "\n" for text in pages[i::5]]
    (folder / f"{i}.jsonl").write_text("".join(rows))
  return folder


def command(source, out):
  words = ["-m", "tests.faults.prepare_run", f"--workdir={out}", f"--config.source={source}"]
  return [sys.executable, *words, "--config.vocab_size=600", "--config.validation=0.1"]


def digests(out):
  """Of all that is made; the times of a run and its records differ, as they should."""
  skipped = {"timing.json", "report.html", "info.json", "config.json", "overrides.json"}
  files = sorted(p for p in out.rglob("*") if p.is_file() and p.name not in skipped)
  return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def killed(source, out, rng, seconds):
  """Starts, kills the whole group after a while, and says whether there was something to kill."""
  process = subprocess.Popen(
    command(source, out), cwd=ROOT, start_new_session=True,
    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
  )  # fmt: skip
  time.sleep(rng.uniform(0.5, seconds))
  running = process.poll() is None
  if running:
    os.killpg(process.pid, signal.SIGKILL)
  process.wait()
  return running


@pytest.mark.long
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_runs_lose_and_double_nothing(source, tmp_path, kills):
  start = time.monotonic()
  subprocess.run(command(source, tmp_path / "whole"), cwd=ROOT, check=True, capture_output=True)
  seconds = time.monotonic() - start
  rng, hit, tries = random.Random(kills), 0, 0
  while hit < kills:
    tries += 1
    out = tmp_path / f"killed{tries}"
    # Runs that are killed again and again must still come to an end: later kills come later.
    while hit < kills and killed(source, out, rng, seconds):
      hit += 1
    subprocess.run(command(source, out), cwd=ROOT, check=True, capture_output=True)
    assert digests(out) == digests(tmp_path / "whole")
    assert not (out / ".building").exists()


class Killed(BaseException):
  """Nobody handles it: what is on disk is what a kill would leave."""


@pytest.mark.long
def test_a_kill_at_each_point_of_the_end_is_gone_on_from(source, tmp_path, monkeypatch):
  """Before each move and removal in the results, and amid the removals."""
  part = tmp_path / "part.jsonl"
  part.write_text("".join((source / "0.jsonl").read_text().splitlines(keepends=True)[:60]))
  cfg = config.Prepare(source=str(part), vocab_size=400, workers=1, validation=0.25)
  prepare.run(cfg, tmp_path / "whole")
  whole = digests(tmp_path / "whole")
  kills = 0
  while True:
    out, points = tmp_path / f"killed{kills}", _Points(kills)
    with monkeypatch.context() as patch:
      patch.setattr(pathlib.Path, "replace", points.before(pathlib.Path.replace, out))
      patch.setattr(shutil, "rmtree", points.before(shutil.rmtree, out, amid=True))
      try:
        prepare.run(cfg, out)
        break
      except Killed:
        kills += 1
    prepare.run(cfg, out)
    assert digests(out) == whole, points.at
  assert kills >= 9  # Six files and folders are moved in, the rest is removed.


class _Points:
  """Counts operations in a directory, and is killed at one of them."""

  def __init__(self, number):
    self.left, self.at = number, ""

  def before(self, do, root, amid=False):
    def done(path, *args, **options):
      if root in pathlib.Path(path).parents:
        for half in (False, True)[: 1 + amid]:
          self.left -= 1
          if self.left < 0:
            self.at = f"{do.__name__} {path} {half}"
            if half:
              _half(pathlib.Path(path))
            raise Killed
      return do(path, *args, **options)

    return done


def _half(folder):
  """Removes every second file, the first one too."""
  for file in sorted(p for p in folder.rglob("*") if p.is_file())[::2]:
    file.unlink()
