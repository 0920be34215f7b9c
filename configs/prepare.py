"""The documentation of this Python as a cleaned, deduplicated, tokenised corpus.

python -m experiments.prepare --workdir=runs/prepare
Result: corpus/ dropped/ tokenizer/ tokens/ questions/ manifest.json; about a minute on 2 cores.

The recipe is for pages of API documentation. Their headings are signatures, their examples code,
and what they say about one function they say about the next in the same words. So of the published
rules:
  left out: C4's "{" (dictionaries in examples), "ends in a full stop" (signatures do not), "three
    sentences" (fields have no full stop);
  wider, after a look at what they dropped: mean word length 12 (`ignore_index=True`), words with a
    letter 0.6 (operators, numbers), repeated n-grams 3 times (at 1.5 times, 5-grams alone dropped
    29 % of the text, the best pages: every parameter is described again), repeated lines 1.5 times
    and 0.3 of the characters ("Returns:"), short lines 0.8, newlines 0.5 a word;
  as published: word count, symbols, bullets, ellipses, stop words, lines that end a sentence.
"""

from llm_jax import config

RECIPE = (
  "extract(extractor='blocks')",
  "repair",
  "whitespace",
  "rulers",
  "documentation",
  "same_address",
  "common_lines(fraction=0.01)",
  "whitespace",
  "duplicates(threshold=0.8)",
  "repeated_paragraphs",
  "without_bare_signatures",
  "length(least=200)",
  "letters(least=0.6)",
  "c4_page(braces=False, most_chars=1_000_000, sentences=1)",
  "gopher_quality(mean_length=(3, 12), with_letter=0.6)",
  "gopher_repetition(scale=1.5, gram_scale=3.0)",
  "fineweb(short=0.8, repeated=0.3, newlines=0.5)",
)


def get_config() -> config.Prepare:
  """Returns the default of `experiments.prepare`."""
  cfg = config.Prepare()
  cfg.source = "pydocs"
  cfg.max_bytes = 12_000_000
  cfg.recipe = RECIPE
  cfg.vocab_size = 4096
  return cfg
