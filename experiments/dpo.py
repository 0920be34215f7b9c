"""Direct preference optimisation and its relatives.

python -m experiments.dpo --workdir=runs/dpo
"""

from experiments import _launch

if __name__ == "__main__":
  _launch.main("dpo")
