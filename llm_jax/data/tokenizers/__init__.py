"""Kinds of tokenizers behind `llm_jax.data.tokenizer`, their files, training and export."""
