"""The documentation of this Python as a cleaned, deduplicated, tokenised corpus.

python -m experiments.prepare --workdir=runs/prepare
Result: corpus/ dropped/ tokenizer/ tokens/ questions/ manifest.json; about a minute on 2 cores.
"""

from llm_jax import config


def get_config() -> config.Prepare:
  """Returns the default of `experiments.prepare`."""
  cfg = config.Prepare()
  cfg.source = "pydocs"
  cfg.max_bytes = 12_000_000
  cfg.vocab_size = 4096
  return cfg
