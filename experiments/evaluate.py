"""Measures the policies of a finished pipeline on held-out questions.

python -m experiments.evaluate --workdir=runs/evaluate
"""

from experiments import _launch

if __name__ == "__main__":
  _launch.main("evaluate")
