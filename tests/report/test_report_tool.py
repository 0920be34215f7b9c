"""The command that rebuilds a report."""

from tools import report as tool


def test_it_prints_the_path(workdir, capsys):
  assert tool.main([f"--workdir={workdir}"]) == 0
  assert capsys.readouterr().out.strip() == str(workdir / "report.html")


def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys):
  assert tool.main([f"--workdir={tmp_path / 'none'}"]) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and error.count("\n") == 1
