"""GRPO and its relatives: several answers to a prompt, scored and set against each other.

python -m experiments.grpo --workdir=runs/grpo
"""

from experiments import _launch

if __name__ == "__main__":
  _launch.main("grpo")
