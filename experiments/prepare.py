"""Raw sources to a cleaned, deduplicated, tokenised corpus, and a report on it.

python -m experiments.prepare --workdir=runs/prepare
"""

import pathlib

from experiments import _launch


def report(workdir: str) -> None:
  """Writes report.html and says where it is."""
  from llm_jax import report

  print(f"report: {pathlib.Path(report.build(workdir)).resolve().as_uri()}", flush=True)


if __name__ == "__main__":
  _launch.main("prepare", after=report)
