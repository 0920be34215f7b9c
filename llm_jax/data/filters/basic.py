"""Simple bounds on a text, and edits that any recipe may want."""

import re

from llm_jax.data.documents import Document

_ADDRESS = re.compile(
  r"(?:\b(?:https?|ftp)://|\bwww\.(?=\w))[^\s<>\"]*[^\s<>\"'.,;:!?)\]}]", re.IGNORECASE
)
_NEWLINES = re.compile(r"\n{3,}")


def length(document: Document, least: int = 200, most: int = 0) -> str | None:
  """Bounds the number of characters; `most` 0: no bound."""
  if len(document.text) < least:
    return "too short"
  return "too long" if most and len(document.text) > most else None


def letters(document: Document, least: float = 0.6) -> str | None:
  """Wants a fraction of letters among the characters that are no white space."""
  marks = "".join(document.text.split())
  alphabetic = sum(map(str.isalpha, marks))
  return "few letters" if alphabetic < least * len(marks) or not marks else None


def without_addresses(text: str) -> str:
  """Takes web addresses out of the text, and blank lines beyond one.

  RefinedWeb's formatting after extraction (Penedo et al. 2023, arXiv:2306.01116, section 3.1). An
  address starts with http://, https://, ftp:// or www.; punctuation behind it stays, and so does a
  name alone, such as example.com: it may be what the sentence is about.
  """
  if "://" in text or "www." in text.lower():
    text = _ADDRESS.sub("", text)
  return _NEWLINES.sub("\n\n", text)
