"""Decoders and their heads: flax.linen modules with logical axis names, pure in their params."""
