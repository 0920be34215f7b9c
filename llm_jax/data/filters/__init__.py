"""Per-document steps that tell natural text from the rest, and edits of its lines.

A rule takes a `document` and returns the reason to drop it or None; an edit takes a `text` and
returns one. Thresholds are the papers' unless a keyword says otherwise; a page that lies exactly on
a bound stays.
"""

from llm_jax.data.filters.basic import length, letters, without_addresses
from llm_jax.data.filters.c4 import c4_lines, c4_page, c4_words, mc4_paragraphs
from llm_jax.data.filters.gopher import gopher_quality, gopher_repetition
from llm_jax.data.filters.languages import language
from llm_jax.data.filters.pii import mask_pii
from llm_jax.data.filters.urls import blocked_urls
from llm_jax.data.filters.web import fineweb, nemo, refinedweb_lines, refinedweb_page

__all__ = [
  "blocked_urls",
  "c4_lines",
  "c4_page",
  "c4_words",
  "fineweb",
  "gopher_quality",
  "gopher_repetition",
  "language",
  "length",
  "letters",
  "mask_pii",
  "mc4_paragraphs",
  "nemo",
  "refinedweb_lines",
  "refinedweb_page",
  "without_addresses",
]
