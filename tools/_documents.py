"""The documents that a tool reads: files and folders, pages of HTML as their main text."""

from collections import Counter
from collections.abc import Iterator, Sequence

from llm_jax.data import crawl
from llm_jax.data.documents import Document
from llm_jax.errors import UserError


def read(
  sources: Sequence[str],
  extractor: str,
  lost: Counter[str],
  options: crawl.Options = crawl.DEFAULTS,
) -> Iterator[Document]:
  """Yields the documents of `sources`; counts in `lost` why pages gave none.

  Raises:
    UserError: if a source cannot be read, or there is no such extractor.
  """
  for source in sources:
    for raw in crawl.read(source, options=options):
      text = raw.body
      if raw.html:
        try:
          text = crawl.extract(raw.body, extractor)
        except UserError:
          raise
        except TimeoutError:
          lost["extractor timed out"] += 1
          continue
        except Exception as e:  # One broken page must not stop a crawl; it is on record.
          lost[f"extractor failed: {type(e).__name__}"] += 1
          continue
        if not text.strip():
          lost["no main text"] += 1
          continue
      yield Document(raw.id, text, raw.url, raw.source)


def told(lost: Counter[str]) -> str:
  """Returns a line that says what `read` could not use; "" if nothing."""
  reasons = ", ".join(f"{n:,} {reason}" for reason, n in sorted(lost.items()))
  return f"pages left out: {reasons}\n" if lost else ""
