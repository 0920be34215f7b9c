"""PPO against a reward model, with a critic and a frozen reference.

python -m experiments.ppo --workdir=runs/ppo
"""

from experiments import _launch

if __name__ == "__main__":
  _launch.main("ppo")
