"""Sampling answers from a decoder."""

from llm_jax.generate.sampler import Rollout, rollout_to_batch, sample

__all__ = ["Rollout", "rollout_to_batch", "sample"]
