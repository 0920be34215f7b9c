"""GPT-3's Common Crawl (Brown et al. 2020, arXiv:2005.14165, appendix A): a classifier decides.

python -m tools.train_quality --good=books.jsonl --raw=crawl/ --out=runs/quality
python -m experiments.prepare --config=configs/data/gpt3.py --config.source=crawl/ \\
  --workdir=runs/gpt3
python -m experiments.prepare --config=configs/data/gpt3.py:runs/my_quality ...
Result: corpus/ dropped/ tokenizer/ tokens/ manifest.json, whose funnel has a row for each step.

The paper: 45 TB of compressed text in 41 monthly dumps became 570 GB, 410 billion tokens, of which
GPT-3 read 60 % of its mixture (the rest: WebText2, two sets of books, Wikipedia).

The same: logistic regression on hashed words tells curated documents from raw ones, and a document
stays if a Pareto variable (alpha 9) exceeds 1 - score; near duplicates after that.

Different, and why:
  classifier: it has to be trained on your own curated text (first command), for the paper's
    (WebText, Wikipedia, books) cannot be shipped. The folder is the variant; runs/quality without
    one, and the run says so if there is none;
  text: the paper does not say how it got text from pages; trafilatura;
  draw: by the document's hash, so that a run can be repeated;
  near duplicates: the paper's 10 MinHashes of the classifier's features (about a tenth of the data
    went) and their bound, which it does not print; here word 5-grams and 0.8, compared;
  test sets: the paper cut 13-grams of its test sets out, with 200 characters around them. Add
    "without_overlap(index='runs/index')" to the recipe for that (python -m tools.decontaminate).
"""

from llm_jax import config


def get_config(model: str = "runs/quality") -> config.Prepare:
  """Returns the recipe; `model`: the folder of a trained quality model."""
  return config.Prepare(
    recipe=(
      "extract(extractor='trafilatura')",
      f"quality(model={model!r}, keep='pareto', alpha=9.0)",
      "duplicates(threshold=0.8)",
    )
  )
