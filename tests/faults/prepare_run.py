"""`experiments.prepare` with small shards, so that a small corpus has work for several workers."""

from experiments import _launch
from llm_jax.data.pipeline import inputs

if __name__ == "__main__":
  inputs._PLAIN = 200_000
  _launch.main("prepare")
