"""Rejection sampling: fine-tuning on the best of the policy's own answers.

python -m experiments.rejection --workdir=runs/rejection
"""

from experiments import _launch

if __name__ == "__main__":
  _launch.main("rejection")
