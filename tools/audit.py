"""Known vulnerabilities of the packages that this project asks for: `make audit`.

python -m tools.audit

A table of advisories is always compared with constraints.txt, the lower bounds of pyproject.toml
and what is installed. Then pip-audit (extra `audit`) looks up what constraints.txt pins. Where it
cannot, for want of a network or of an index that knows advisories, one line says so: no failure.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import pathlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = pathlib.Path(__file__).resolve().parents[1]
_SECONDS = 300  # That pip-audit may take.


class Advisory(NamedTuple):
  """What is wrong with older releases of a package.

  Attributes:
    package: its canonical name.
    fixed: the first release without it.
    name: of the advisory.
    what: can happen.
  """

  package: str
  fixed: str
  name: str
  what: str


# Of packages that are asked for, or come with them; the newest one of each that is known here.
ADVISORIES = (
  Advisory("filelock", "3.20.3", "CVE-2026-22701", "a lock file that is a link is written through"),
  Advisory("h11", "0.16.0", "CVE-2025-43859", "request smuggling by chunks"),
  Advisory("jinja2", "3.1.6", "CVE-2025-27516", "a template leaves the sandbox"),
  Advisory("lxml-html-clean", "0.4.0", "CVE-2024-52595", "scripts survive cleaning"),
  Advisory("protobuf", "6.31.1", "CVE-2025-4565", "nested messages end the process"),
  Advisory("pyarrow", "14.0.1", "CVE-2023-47248", "a file runs code"),
  Advisory("requests", "2.32.4", "CVE-2024-47081", "credentials go to another host"),
  Advisory("scikit-learn", "1.5.0", "CVE-2024-5206", "training text stays in a vectorizer"),
  Advisory("setuptools", "78.1.1", "CVE-2025-47273", "a download is written anywhere"),
  Advisory("starlette", "1.3.1", "CVE-2026-54282", "a path is not what is checked; also ranges"),
  Advisory("torch", "2.10", "CVE-2026-24747", "weights_only=True corrupts memory"),
  Advisory("tqdm", "4.66.3", "CVE-2024-34062", "arguments of its program run code"),
  Advisory("transformers", "5.3", "CVE-2026-4372", "a config.json runs code"),
  Advisory("urllib3", "2.7.0", "CVE-2026-44431", "a small reply unpacks to any size"),
)


def main(argv: list[str] | None = None) -> int:
  """Prints what is known; returns 1 if a package has a known vulnerability."""
  argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  ).parse_args(argv)
  found = [*outdated(ROOT), *looked_up(ROOT / "constraints.txt")]
  for line in found:
    print(line)
  if not found:
    print(f"audit: no vulnerability is known; {len(ADVISORIES)} advisories were compared")
  return int(bool(found))


def outdated(root: pathlib.Path) -> Iterator[str]:
  """Yields a line for each place of a source tree, or package here, that is behind an advisory."""
  for advisory in ADVISORIES:
    why = f"{advisory.name} ({advisory.what}) is fixed in {advisory.package} {advisory.fixed}"
    for place, version in _versions(root, advisory.package):
      if Version(version) < Version(advisory.fixed):
        yield f"{place}: {why}, and {version} is allowed"


def _versions(root: pathlib.Path, package: str) -> Iterator[tuple[str, str]]:
  """Yields (place, lowest version) wherever a package is named, and if so, what is installed."""
  project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
  own = project["project"]
  asked = [
    *own["dependencies"],
    *(x for each in own["optional-dependencies"].values() for x in each),
  ]
  pinned = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
  lists = {
    "constraints.txt": [line for line in pinned if line and not line.startswith("#")],
    "pyproject.toml": asked,
    "pyproject.toml, build-system": project["build-system"]["requires"],
  }
  runs = False
  for place, lines in lists.items():
    for requirement in map(Requirement, lines):
      if canonicalize_name(requirement.name) == package:
        runs = runs or "build" not in place
        lowest = [s.version for s in requirement.specifier if s.operator in (">=", "==", "~=")]
        yield place, lowest[0] if lowest else "0"
  if runs:
    try:
      yield "installed here", importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      return


def looked_up(pins: pathlib.Path) -> list[str]:
  """Returns a line for each vulnerability that pip-audit finds; says so if it could not look."""
  if importlib.util.find_spec("pip_audit") is None:
    print("audit: pip-audit is not installed (extra audit): only the table was compared")
    return []
  command = [sys.executable, "-m", "pip_audit", "--progress-spinner=off", "--desc=off"]
  command += ["--format=json", "--no-deps", "--disable-pip", f"--requirement={pins}"]
  try:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    packages = json.loads(done.stdout)["dependencies"]
  except (subprocess.TimeoutExpired, ValueError, KeyError, TypeError):
    print("audit: pip-audit could not ask for advisories: only the table was compared")
    return []
  return _judged(packages)


def _judged(packages: list[dict]) -> list[str]:
  """The lines of a report of pip-audit, which takes an index without advisories for good news."""
  known = [package for package in packages if "skip_reason" not in package]
  skipped = len(packages) - len(known)
  if skipped:
    print(f"audit: of {len(packages)} packages pip-audit could look up {len(known)} here")
  return [
    f"constraints.txt: {package['name']} {package['version']}: {found['id']}, fixed in "
    f"{', '.join(found['fix_versions']) or 'no release'}"
    for package in known
    for found in package["vulns"]
  ]


if __name__ == "__main__":
  sys.exit(main())
