"""AI feedback by principles: revised answers for SFT, or preferences with soft labels.

python -m experiments.rlaif --workdir=runs/rlaif
python -m experiments.rlaif --workdir=runs/revised --config=configs/rlaif.py:revise
"""

from experiments import _launch

if __name__ == "__main__":
  _launch.main("rlaif")
