"""From the files of a run to one self-contained page: `report.build(workdir)`.

`report.compare.build(workdirs, target)` is a page on several runs, and `report.export(workdir,
directory)` writes the tables and the charts of a page as files.
"""

from llm_jax.report import compare
from llm_jax.report.page import build, export

__all__ = ["build", "compare", "export"]
