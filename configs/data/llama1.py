"""LLaMA's Common Crawl (Touvron et al. 2023, arXiv:2302.13971, section 2.1): CCNet and references.

python -m tools.train_quality --good=references.jsonl --raw=crawl/ --out=runs/quality
python -m experiments.prepare --config=configs/data/llama1.py --config.source=crawl/ \\
  --workdir=runs/llama1
python -m experiments.prepare --config=configs/data/llama1.py:runs/my_quality ...
Result: corpus/ dropped/ tokenizer/ tokens/ manifest.json, whose funnel has a row for each step.

The paper: 3.3 TB from five dumps of 2017 to 2020, 67 % of the mixture (the rest: C4, GitHub,
Wikipedia, books, arXiv, Stack Exchange). CCNet (Wenzek et al. 2020, arXiv:1911.00359) drops lines
that repeat, tells languages apart and scores pages with a language model; then a linear classifier
drops what does not look like a page that Wikipedia cites.

The same: the steps and their order, one copy of each line, a linear classifier.

Different, and why:
  text: from HTML, all blocks but those of links, if the source is not WET already;
  lines: compared without case and white space, in the whole corpus; CCNet also without digits,
    accents and punctuation, and within groups of shards;
  language: py3langid for fastText, with CCNet's bound of 0.5;
  language model: CCNet's 5-gram models of Wikipedia are not shipped and have no step here; the
    classifier after it has to do more;
  classifier: train it on pages that Wikipedia cites, against raw ones (first command); neither can
    be shipped. The folder is the variant; runs/quality without one, and the run says so if there is
    none. The paper does not print a bound; here a probability of 0.5.
"""

from llm_jax import config


def get_config(model: str = "runs/quality") -> config.Prepare:
  """Returns the recipe; `model`: the folder of a trained quality model."""
  return config.Prepare(
    recipe=(
      "extract(extractor='blocks')",
      "repeated_lines",
      "language(code='en', least=0.5)",
      f"quality(model={model!r}, keep='threshold', least=0.5)",
    )
  )
