"""Known vulnerabilities: none in what this project asks for, and those that are there are found."""

import json
import subprocess
import types

import pytest

from tools import audit

PROJECT = """
[build-system]
requires = ["setuptools{build}"]
[project]
dependencies = ["tqdm{asked}", "numpy>=2"]
[project.optional-dependencies]
web = ["starlette[full]>=0.1", "jinja2"]
"""


def test_nothing_that_this_project_asks_for_is_known_to_be_vulnerable():
  assert list(audit.outdated(audit.ROOT)) == []


@pytest.mark.parametrize(
  ("build", "asked", "pinned", "wrong"),
  [
    (">=80", ">=4.66.3", "urllib3==2.7.0", []),
    (">=77", ">=4.66.3", "urllib3==2.7.0", ["pyproject.toml, build-system"]),
    (">=80", ">=4.66", "urllib3==2.7.0", ["pyproject.toml"]),
    (">=80", "", "urllib3==2.7.0", ["pyproject.toml"]),
    (">=80", "<9,>=4.67", "Urllib3==2.6.3\nlxml_html_clean==0.3", ["constraints.txt"] * 2),
  ],
)
def test_what_is_behind_an_advisory_is_found(tmp_path, build, asked, pinned, wrong):
  (tmp_path / "pyproject.toml").write_text(PROJECT.format(build=build, asked=asked))
  (tmp_path / "constraints.txt").write_text(f"# pins\n{pinned}\n")
  found = [line for line in audit.outdated(tmp_path) if "starlette" not in line]
  found = [line for line in found if "jinja2" not in line]
  assert [line.partition(": CVE-")[0] for line in found] == wrong
  lines = list(audit.outdated(tmp_path))
  assert any("starlette 1.3.1, and 0.1 is allowed" in line for line in lines)
  assert any("jinja2 3.1.6, and 0 is allowed" in line for line in lines)


def test_what_is_installed_is_compared(monkeypatch):
  monkeypatch.setattr(audit.importlib.metadata, "version", lambda name: "0.0.1")
  places = {line.partition(": CVE-")[0] for line in audit.outdated(audit.ROOT)}
  assert places == {"installed here"}


def report(*packages):
  return types.SimpleNamespace(stdout=json.dumps({"dependencies": [*packages]}))


BAD = {"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]}
GOOD = {"name": "b", "version": "1", "vulns": []}
UNKNOWN = {"name": "c", "skip_reason": "not found on PyPI"}


def offline(*given, **more):
  return types.SimpleNamespace(stdout="")


def late(*given, **more):
  raise subprocess.TimeoutExpired("pip-audit", 300)


@pytest.mark.parametrize(
  ("run", "code", "said"),
  [
    (lambda *given, **more: report(GOOD), 0, "no vulnerability is known"),
    (lambda *given, **more: report(GOOD, BAD), 1, "a 1: PYSEC-1, fixed in 2"),
    # An index that knows no advisories is taken for good news by pip-audit.
    (lambda *given, **more: report(UNKNOWN, UNKNOWN), 0, "could look up 0 here"),
    (offline, 0, "could not ask for advisories"),
    (late, 0, "could not ask for advisories"),
  ],
)
def test_pip_audit_fails_for_what_it_finds_and_never_for_the_network(
  monkeypatch, capsys, run, code, said
):
  monkeypatch.setattr(audit.importlib.util, "find_spec", lambda name: True)
  monkeypatch.setattr(audit.subprocess, "run", run)
  assert audit.main([]) == code
  assert said in capsys.readouterr().out


def test_without_pip_audit_the_table_is_compared_and_that_is_said(monkeypatch, capsys):
  monkeypatch.setattr(audit.importlib.util, "find_spec", lambda name: None)
  assert audit.main([]) == 0
  assert "pip-audit is not installed" in capsys.readouterr().out
  monkeypatch.setattr(audit, "outdated", lambda root: iter(["one"]))
  assert audit.main([]) == 1
