"""Decoders and their heads: flax.linen modules with logical axis names, pure functions of params."""
