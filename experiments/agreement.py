"""How often a reward model, a score or a judge prefers what people prefer, by source.

python -m experiments.agreement --workdir=runs/agreement --config.data='("llmbar.json",)'
python -m experiments.agreement --workdir=runs/judged --config=configs/agreement.py:judge
"""

from experiments import _launch

if __name__ == "__main__":
  _launch.main("agreement")
