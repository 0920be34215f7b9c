"""The noun of the data room: a document, its identity and its split."""

import dataclasses
import hashlib

SPLITS = ("train", "validation")


@dataclasses.dataclass(frozen=True)
class Document:
  """A piece of text with an address.

  Attributes:
    id: unique in its corpus.
    text: Unicode, lines end in a newline.
    url: address of the page that it came from; "" if it has none.
    source: where it was read from (a file's name).
  """

  id: str
  text: str
  url: str = ""
  source: str = ""


def identity(text: str) -> str:
  """Returns 16 hex digits that name `text` (an address or a whole document)."""
  return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def split_of(url: str, seed: int, fraction: float) -> str:
  """Returns "train" or "validation" for a page's address, the same in every corpus.

  Args:
    url: address of a page (or a document's id if it has none).
    seed: another seed draws another split.
    fraction: expected fraction of addresses in "validation", in [0, 1].
  """
  digest = hashlib.blake2b(f"{seed}:{url}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
  return "validation" if int.from_bytes(digest, "big") < fraction * 2**64 else "train"
