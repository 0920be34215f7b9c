"""Supervised fine-tuning on instruction pairs.

python -m experiments.sft --workdir=runs/sft
"""

from experiments import _launch

if __name__ == "__main__":
  _launch.main("sft")
