"""One JAX codebase for the whole life of a language model, from a crawl to an aligned model."""

__version__ = "0.1.0"
