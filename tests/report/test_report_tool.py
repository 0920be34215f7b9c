"""The command that makes reports, comparisons and files of them."""

import csv

import pytest

from tools import report as tool


def test_it_prints_the_path(workdir, capsys):
  assert tool.main([f"--workdir={workdir}"]) == 0
  assert capsys.readouterr().out.strip() == str(workdir / "report.html")


def test_it_compares_runs_and_exports_what_it_shows(workdir, second, tmp_path, capsys):
  page, files = tmp_path / "both.html", tmp_path / "files"
  words = ["--runs", str(workdir), str(second), f"--out={page}", f"--export={files}"]
  assert tool.main(words) == 0
  said = capsys.readouterr().out.splitlines()
  assert said[0] == str(page) and said[1].endswith(" files")
  with (files / "differences.csv").open(newline="") as file:
    assert ["seed", "0", "1"] in list(csv.reader(file))
  assert (files / "dpo-loss.svg").is_file()


@pytest.mark.parametrize(
  "words",
  [
    ["--workdir=none"],
    ["--runs"],
    ["--runs", "{run}"],
    ["--runs", "{run}", "{run}/"],
    ["--runs", "{run}", "none"],
    ["--runs", "{run}", "{second}", "--out=none/page.html"],
    ["--runs", "{run}", "{second}", "--workdir={run}"],
    ["--workdir={run}", "--out=page.html"],
    ["--workdir={run}", "--export={run}/config.json"],
  ],
)
def test_bad_input_is_one_line_and_exit_code_2(
  workdir, second, words, tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  assert tool.main([word.format(run=workdir, second=second) for word in words]) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and error.count("\n") == 1
  assert not list(tmp_path.glob("*.html"))
