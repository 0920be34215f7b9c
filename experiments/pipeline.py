"""Everything in order: prepare, pretrain, SFT, reward, DPO, PPO, evaluation, report.

python -m experiments.pipeline --workdir=runs/quickstart
"""

from experiments import _launch

if __name__ == "__main__":
  _launch.main("pipeline")
