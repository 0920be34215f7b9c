"""A reward model trained on preference pairs.

python -m experiments.reward --workdir=runs/reward
"""

from experiments import _launch

if __name__ == "__main__":
  _launch.main("reward")
