"""Published recipes for web text, as lists of steps (llm_jax/data/steps.py)."""
