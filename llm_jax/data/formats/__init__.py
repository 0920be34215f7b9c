"""Files of post-training data, in the formats that people have, to one schema.

    table = formats.read("talks.json.gz", "conversations")
    table.items, table.format, table.rows, table.drops

A format is a `Format` in the module of its family (dialogues, instructions, trees, pairs,
comparisons, labels, rankings), and has a place in `FORMATS` in read.py. `schema.py` says what is
made of a row, `settle.py` what of it cannot be learned from, and docs/posttraining.md how the rows
of each format look.
"""

from llm_jax.data.formats.files import Row, bad_row, read_rows, refuse
from llm_jax.data.formats.instructions import final_number
from llm_jax.data.formats.read import FORMATS, detect, read, read_conversations, read_preferences
from llm_jax.data.formats.schema import (
  KINDS,
  Conversation,
  Format,
  Labelled,
  Messages,
  Preference,
  Ranking,
  Table,
)

__all__ = [
  "FORMATS",
  "KINDS",
  "Conversation",
  "Format",
  "Labelled",
  "Messages",
  "Preference",
  "Ranking",
  "Row",
  "Table",
  "bad_row",
  "detect",
  "final_number",
  "read",
  "read_conversations",
  "read_preferences",
  "read_rows",
  "refuse",
]
