"""Readers of raw sources, format by format; `llm_jax.data.crawl` is their front."""
