"""From the files of a run to one self-contained page: `report.build(workdir)`."""

from llm_jax.report.page import build

__all__ = ["build"]
