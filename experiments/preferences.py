"""Preference pairs built from questions with a known answer.

python -m experiments.preferences --workdir=runs/preferences
"""

from experiments import _launch

if __name__ == "__main__":
  _launch.main("preferences")
