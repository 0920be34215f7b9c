"""RefinedWeb (Penedo et al. 2023, arXiv:2306.01116, section 3 and appendix G): the web alone.

python -m experiments.prepare --config=configs/data/refinedweb.py --config.source=crawl/ \\
  --workdir=runs/refinedweb
python -m experiments.prepare --config=configs/data/refinedweb.py:lists ...
Result: corpus/ dropped/ tokenizer/ tokens/ manifest.json, whose funnel has a row for each step.

The paper: 5 trillion tokens of English from Common Crawl, an eighth of its documents. Filters that
a person can read, no classifier but that of languages, and two kinds of deduplication.

The same: the steps and their order, Gopher's bounds, the line-wise corrections and the 5 % of words
above which they drop the page, 50 tokens for a repeated substring, the sources left out because
curated sets have them.

Different, and why:
  addresses: the lists are not published. Give a folder as the variant (second command) with
    domains.txt (theirs: 4.6 million domains of UT1), strict.txt, hard.txt and soft.txt (DCLM has
    reconstructed the words). Without it only the curated sources are left out, by the list that
    DCLM made from the paper;
  language: py3langid for fastText (CCNet's), which would have to be fetched; the same bound;
  line-wise: the paper's list of phrases is not printed, only its three examples, which are used;
  near duplicates: the paper's 450 bands of 20 hashes propose from a Jaccard similarity of about
    0.74 on and are believed; here what is proposed is compared, and goes from 0.8 on (Lee et al.
    2022, arXiv:2107.06499, whom the paper follows, want 0.8 of edit similarity);
  substrings: of 50 words, for 50 tokens of a BPE: about a third longer.
"""

from llm_jax import config

CURATED = (
  "arxiv.org", "askubuntu.com", "courtlistener.com", "exporter.nih.gov", "github.com",
  "irclogs.ubuntu.com", "mathoverflow.net", "ncbi.nlm.nih.gov", "news.ycombinator.com",
  "reddit.com", "stackapps.com", "stackexchange.com", "stackoverflow.com", "statmt.org",
  "uspto.gov", "wikipedia.org",
)  # fmt: skip
RECIPE = (
  f"blocked_urls(hosts={CURATED!r})",
  "extract(extractor='trafilatura')",
  "without_addresses",
  "language(code='en', least=0.65)",
  "gopher_repetition",
  "gopher_quality",
  "refinedweb_page",
  "refinedweb_lines",
  "duplicates(threshold=0.8)",
  "repeated_substrings(tokens=50)",
  "same_address",
)


def get_config(lists: str = "") -> config.Prepare:
  """Returns the recipe; `lists`: a folder of block lists, "": none but the curated sources."""
  first = ()
  if lists:
    files = {name: f"{lists}/{name}.txt" for name in ("domains", "strict", "hard", "soft")}
    first = (f"blocked_urls({', '.join(f'{k}={v!r}' for k, v in files.items())})",)
  return config.Prepare(recipe=first + RECIPE)
