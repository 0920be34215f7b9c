"""Online DPO: pairs of the policy's own answers, drawn while it learns.

python -m experiments.online_dpo --workdir=runs/online_dpo
"""

from experiments import _launch

if __name__ == "__main__":
  _launch.main("online_dpo")
