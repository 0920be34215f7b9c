"""A crawl or the embedded documentation, cleaned, deduplicated and tokenised.

python -m experiments.prepare --workdir=runs/prepare
"""

from experiments import _launch

if __name__ == "__main__":
  _launch.main("prepare")
