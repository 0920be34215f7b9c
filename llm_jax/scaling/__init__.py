"""Closed-form cost of a model; NumPy at most, never JAX."""
