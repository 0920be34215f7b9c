"""C4 (Raffel et al. 2020, arXiv:1910.10683, section 2.2): lines that are sentences, once each.

python -m experiments.prepare --config=configs/data/c4.py --config.source=crawl/ --workdir=runs/c4
python -m experiments.prepare --config=configs/data/c4.py:lists/bad_words.txt ...
Result: corpus/ dropped/ tokenizer/ tokens/ manifest.json, whose funnel has a row for each step.

The paper: 806 GB of English from the text files (WET) of one Common Crawl, April 2019. Where it and
its code (TFDS's c4_utils.py) differ, the code is followed: five words a line and three sentences a
page (an older version of the paper says three and five), pages of 190,000 characters at most.

The same: the rules for lines and pages, their order, one copy of each line of the corpus, the count
of sentences again after that, the language at the end.

Different, and why:
  text: from HTML, all blocks but those of links, if the source is not WET already (WET files are
    read as they are);
  language: py3langid for langdetect; a probability of 0.99 is another bound with another model;
  sentences: counted by their marks; the paper's splitter is a trained model;
  copies: the line that stands first stays; the code keeps that of the page with the least hash;
  bad words: the paper's list (LDNOOBW) is a third party's list of slurs and not shipped: give a
    file, one word or phrase a line, as the variant (second command). Without it the step is left
    out, which keeps more pages on sex, medicine and minorities than C4 has (Dodge et al. 2021,
    arXiv:2104.08758).
"""

from llm_jax import config

RECIPE = (
  "extract(extractor='blocks')",
  "same_address",
  "length(least=1, most=190_000)",
  "c4_lines",
  "c4_page",
  "repeated_lines",
  "c4_page",  # Are three sentences left?
  "language(code='en', least=0.99)",
)


def get_config(words: str = "") -> config.Prepare:
  """Returns the recipe; `words`: a file of words that no page may have, "": leave that rule out."""
  recipe: list[str] = list(RECIPE)
  if words:
    recipe.insert(recipe.index("c4_page"), f"c4_words(words={words!r})")
  return config.Prepare(recipe=tuple(recipe))
