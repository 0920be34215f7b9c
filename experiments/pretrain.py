"""Pretraining: next-token prediction on packed documents.

python -m experiments.pretrain --workdir=runs/pretrain
"""

from experiments import _launch

if __name__ == "__main__":
  _launch.main("pretrain")
