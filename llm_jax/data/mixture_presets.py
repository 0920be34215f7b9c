"""Mixtures as published: weights of sources, and how often each was read."""

import dataclasses
from collections.abc import Mapping

from llm_jax.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Preset:
  """A published mixture.

  Attributes:
    name: of it.
    paper: where the figures are from.
    weights: source -> percent of the training tokens, as printed; rounding may leave them off 100.
    epochs: source -> passes over it, as printed.
    sizes: source -> its size, in `unit`.
    unit: what sizes are counted in.
    tokens: tokens of the training run; 0: the paper gives none.
    note: where the paper's own figures do not agree.
  """

  name: str
  paper: str
  weights: Mapping[str, float]
  epochs: Mapping[str, float]
  sizes: Mapping[str, float]
  unit: str
  tokens: float
  note: str = ""


def preset(name: str) -> Preset:
  """Returns the mixture "gpt3", "llama1" or "pile".

  Raises:
    UserError: for another name.
  """
  if name not in _PRESETS:
    raise UserError(f'unknown mixture "{name}"{nearest(name, _PRESETS)}')
  return _PRESETS[name]


def _preset(
  name: str,
  paper: str,
  rows: Mapping[str, tuple[float, float, float]],
  unit: str,
  tokens: float,
  note: str = "",
) -> Preset:
  weights, epochs, sizes = ({key: row[i] for key, row in rows.items()} for i in range(3))
  return Preset(name, paper, weights, epochs, sizes, unit, tokens, note)


# Each row: weight in percent, epochs, size.
_GPT3 = {
  "common_crawl": (60, 0.44, 410e9),
  "webtext2": (22, 2.9, 19e9),
  "books1": (8, 1.9, 12e9),
  "books2": (8, 0.43, 55e9),
  "wikipedia": (3, 3.4, 3e9),
}
_LLAMA1 = {
  "common_crawl": (67, 1.10, 3300),
  "c4": (15, 1.06, 783),
  "github": (4.5, 0.64, 328),
  "wikipedia": (4.5, 2.45, 83),
  "books": (4.5, 2.23, 85),
  "arxiv": (2.5, 1.06, 92),
  "stackexchange": (2, 1.03, 78),
}
_PILE = {
  "pile_cc": (18.11, 1.0, 227.12),
  "pubmed_central": (14.40, 2.0, 90.27),
  "books3": (12.07, 1.5, 100.96),
  "openwebtext2": (10.01, 2.0, 62.77),
  "arxiv": (8.96, 2.0, 56.21),
  "github": (7.59, 1.0, 95.16),
  "freelaw": (6.12, 1.5, 51.15),
  "stackexchange": (5.13, 2.0, 32.20),
  "uspto": (3.65, 2.0, 22.90),
  "pubmed_abstracts": (3.07, 2.0, 19.26),
  "pg19": (2.17, 2.5, 10.88),
  "opensubtitles": (1.55, 1.5, 12.98),
  "wikipedia": (1.53, 3.0, 6.38),
  "dm_mathematics": (1.24, 2.0, 7.75),
  "ubuntu_irc": (0.88, 2.0, 5.52),
  "bookcorpus2": (0.75, 1.5, 6.30),
  "europarl": (0.73, 2.0, 4.59),
  "hackernews": (0.62, 2.0, 3.90),
  "youtube_subtitles": (0.60, 2.0, 3.73),
  "philpapers": (0.38, 2.0, 2.38),
  "nih_exporter": (0.30, 2.0, 1.89),
  "enron": (0.14, 2.0, 0.88),
}
_PRESETS = {
  "gpt3": _preset(
    "gpt3",
    "Brown et al. 2020, table 2.2 (arXiv:2005.14165)",
    _GPT3,
    "tokens",
    300e9,
    "Weights add up to 101, and 300e9 tokens at 22 % are 3.5 epochs of WebText2, not 2.9.",
  ),
  "llama1": _preset(
    "llama1", "Touvron et al. 2023, table 1 (arXiv:2302.13971)", _LLAMA1, "GB", 1.4e12
  ),
  "pile": _preset("pile", "Gao et al. 2020, table 1 (arXiv:2101.00027)", _PILE, "GiB", 0),
}
