"""The training documents of a prepared corpus, packed into rows of 2,048 tokens.

python -m experiments.pack --workdir=runs/rows
Result: rows/ and manifest.json with the share of padding.
"""

from llm_jax import config


def get_config() -> config.Pack:
  """Returns the default of `experiments.pack`."""
  return config.Pack()
