"""A prepared corpus to packed rows, which any number of runs and processes read.

python -m experiments.pack --workdir=runs/rows --config.prepared=runs/quickstart/prepare
"""

from experiments import _launch

if __name__ == "__main__":
  _launch.main("pack")
