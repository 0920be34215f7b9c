"""FineWeb (Penedo et al. 2024, arXiv:2406.17557, section 3): 15 trillion tokens, every step tested.

python -m experiments.prepare --config=configs/data/fineweb.py --config.source=crawl/ \\
  --workdir=runs/fineweb
python -m experiments.prepare --config=configs/data/fineweb.py:lists ...
Result: corpus/ dropped/ tokenizer/ tokens/ manifest.json, whose funnel has a row for each step.

The paper: 96 dumps of Common Crawl, each deduplicated by itself, for which run this once a dump;
each step was kept because small models trained on its result were better.

The same: the steps and their order, Gopher's bounds, C4's rules without that on the end of lines,
FineWeb's own three rules, masks for emails and public IP addresses. Where the paper and the code
that made the data (datatrove, examples/fineweb.py) differ, the code is followed, since it made the
data: three words a line and five sentences a page in C4's rules, 0.01 of the characters in repeated
lines (paper: 0.1), 0.3 newlines a word (not in the paper), an apostrophe ends a sentence.

Different, and why:
  addresses: the lists (UT1's adult domains and addresses, and three lists of words) are third
    parties' and not shipped. Give a folder as the variant (second command) with domains.txt,
    urls.txt, strict.txt (words also inside words), hard.txt and soft.txt. Without it the step is
    left out;
  text: trafilatura as for the other recipes, not tuned to precision;
  language: py3langid for fastText, which would have to be fetched; the same bound;
  words: between white space, for a trained word splitter; sentences by their marks;
  near duplicates: the paper's 14 bands of 8 hashes target a Jaccard similarity of 0.75 and are
    believed; here what they propose is compared and goes from 0.75 on;
  masks: one for each kind, the first of the paper's two and six.
"""

from llm_jax import config

RECIPE = (
  "extract(extractor='trafilatura')",
  "language(code='en', least=0.65)",
  "gopher_repetition",
  "gopher_quality",
  "c4_lines(terminal=False, least_words=3)",
  "c4_page(sentences=5)",
  r"""fineweb(repeated=0.01, marks='.?!"\'')""",
  "duplicates(threshold=0.75)",
  "mask_pii(email='email@example.com', ip='22.214.171.124', phone='', card='', account='')",
)


def get_config(lists: str = "") -> config.Prepare:
  """Returns the recipe; `lists`: a folder of block lists, "": leave that step out."""
  first = ()
  if lists:
    files = {name: f"{lists}/{name}.txt" for name in ("domains", "urls", "strict", "hard", "soft")}
    first = (f"blocked_urls({', '.join(f'{k}={v!r}' for k, v in files.items())})",)
  return config.Prepare(recipe=first + RECIPE)
