"""Weights in and out: folders of Hugging Face, read and written without their code."""

from llm_jax.models.interop.folder import load, save

__all__ = ["load", "save"]
