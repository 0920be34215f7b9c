"""Weights in and out: folders of Hugging Face, read and written without their code."""

from llm_jax.models.interop.adapters import load_adapter, save_adapter
from llm_jax.models.interop.folder import Put, appearing, load, model_of, save

__all__ = ["Put", "appearing", "load", "load_adapter", "model_of", "save", "save_adapter"]
