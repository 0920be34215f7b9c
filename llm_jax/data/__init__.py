"""Text on the left, batches on the right; numpy, never jax."""
