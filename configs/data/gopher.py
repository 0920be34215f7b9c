"""MassiveWeb (Rae et al. 2021, arXiv:2112.11446, appendix A.1): simple rules and no classifier.

python -m experiments.prepare --config=configs/data/gopher.py --config.source=crawl/ \\
  --workdir=runs/gopher
python -m experiments.prepare --config=configs/data/gopher.py:runs/index ...
Result: corpus/ dropped/ tokenizer/ tokens/ manifest.json, whose funnel has a row for each step.

The paper: 1.9 TB of English pages, half of what Gopher read; its rules became everybody's.

The same: every bound of table A1 and of the list of quality rules, and their order: language,
quality, repetition, exact duplicates, near duplicates, test sets.

Different, and why:
  text and safety: their extractor and Google's SafeSearch are not public; trafilatura, and no
    filter for adult pages but what the variants of the other recipes offer;
  language: the paper does not name its model; here RefinedWeb's bound with py3langid;
  near duplicates: word 5-grams for 13-grams, at the same Jaccard similarity of 0.8, which exact
    comparison confirms; the paper removes one of a pair at random, this the later;
  test sets: the paper drops what resembles a test document (13-grams, Jaccard 0.8). Here an index
    of the n-grams of test sets, as the variant (second command; python -m tools.decontaminate
    makes one), and a page with any of them goes. Without it the step is left out.
"""

from llm_jax import config

RECIPE = (
  "extract(extractor='trafilatura')",
  "language(code='en', least=0.65)",
  "gopher_quality",
  "gopher_repetition",
  "exact_duplicates",
  "duplicates(threshold=0.8)",
)


def get_config(index: str = "") -> config.Prepare:
  """Returns the recipe; `index`: a folder of test sets' n-grams, "": leave that rule out."""
  rest = (f"decontaminate(index={index!r})",) if index else ()
  return config.Prepare(recipe=RECIPE + rest)
