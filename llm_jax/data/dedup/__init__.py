"""Exact and near duplicates: LSH proposes, exact comparison decides, every removal has a reason.

    normalise -> same hash? exact duplicate
              -> word 5-grams -> MinHash bands -> candidate pairs -> exact Jaccard >= threshold
              -> clusters -> one stays; the others go if verified against it

The result depends on neither the order of the documents nor the number of workers: of two
duplicates the longer text stays, then the one of the smaller id. Against another corpus, whatever
is there stays there, and its copies go from here.
"""

from llm_jax.data.dedup.files import check, deduplicate
from llm_jax.data.dedup.search import Decision, Result, decide, find, near_duplicates

__all__ = ["Decision", "Result", "check", "decide", "deduplicate", "find", "near_duplicates"]
