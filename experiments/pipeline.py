"""Everything in order: prepare, pretrain, SFT, reward, DPO, PPO, evaluation, report.

python -m experiments.pipeline --workdir=runs/quickstart
"""

import pathlib

from experiments import _launch


def report(workdir: str) -> None:
  """Writes report.html and says where everything is."""
  from llm_jax import report

  page = report.build(workdir)
  print(f"\nreport:  {pathlib.Path(page).resolve().as_uri()}")
  print(f"play:    python -m tools.playground --workdir={workdir}")
  print(f"figures: {pathlib.Path(workdir) / 'summary.json'}", flush=True)


if __name__ == "__main__":
  _launch.main("pipeline", after=report)
