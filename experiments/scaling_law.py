"""A scaling law of one's own: a sweep of small models, Chinchilla's fit to it, and its plot.

python -m experiments.scaling_law --workdir=runs/scaling_law
python -m experiments.scaling_law --workdir=runs/scaling_law --config.budgets='("1e12", "2e12")'
"""

from experiments import _launch


def _plot(workdir: str) -> None:
  from llm_jax.report import scaling

  print(f"see {scaling.build(workdir)}", flush=True)


if __name__ == "__main__":
  _launch.main("scaling_law", after=_plot)
