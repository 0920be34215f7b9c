"""Quality as a classifier sees it: how much a document looks like curated text.

The recipe is GPT-3's (Brown et al. 2020, arXiv:2005.14165, appendix A): logistic regression on
hashed words tells curated documents from raw ones, and a document stays if a Pareto variable is
larger than 1 - score, so that some of what the model does not like is kept. DCLM (Li et al. 2024,
arXiv:2406.11794) keeps the best tenth instead. `python -m tools.train_quality` makes the model.
"""

import hashlib

from llm_jax.data.documents import Document
from llm_jax.data.quality.model import Model, load, save
from llm_jax.data.quality.training import train, transfer
from llm_jax.errors import UserError, nearest

__all__ = ["Model", "load", "quality", "save", "train", "transfer"]
KEEP = ("pareto", "top", "threshold")


def quality(
  document: Document,
  model: str,
  keep: str = "pareto",
  alpha: float = 9.0,
  fraction: float = 0.1,
  least: float = 0.5,
  seed: int = 0,
) -> str | None:
  """Keeps documents that look like the curated ones that `model` was trained on.

  Args:
    document: to judge. The same one (id and text) meets the same fate in every run.
    model: folder of a trained model.
    keep: the rule.
      "pareto": stay if a Pareto draw, P(X > x) = (1 + x)^-alpha, exceeds 1 - score. Of documents
        with score s, (2 - s)^-alpha stay: all at 1, a fifth of a percent at 0.
      "top": stay among the best `fraction` of the raw documents that calibrated the model.
      "threshold": stay if the score is at least `least`.
    alpha: of "pareto"; GPT-3 chose 9 so that the kept scores resemble those of their WebText.
    fraction: of "top", in (0, 1]; DCLM keeps 0.1.
    least: of "threshold", a probability.
    seed: of the draw; another seed keeps others.

  Raises:
    UserError: if there is no such rule or model, or a number is out of its range.
  """
  if keep not in KEEP:
    raise UserError(f'quality: there is no rule keep="{keep}"{nearest(keep, KEEP)}')
  if alpha <= 0 or not 0 <= least <= 1:
    raise UserError(f"quality: want alpha > 0 and least in [0, 1], got {alpha} and {least}")
  trained = load(model)
  logits = trained.logits([document.text])
  score = float(trained.calibrated(logits)[0])
  if keep == "top":
    stays = float(logits[0]) >= trained.bound(fraction)
  elif keep == "threshold":
    stays = score >= least
  else:
    stays = _draw(document, alpha, seed) > 1 - score
  low = min(int(10 * score), 9)
  return None if stays else f"quality: score 0.{low} to {(low + 1) / 10:.1f}"


def _draw(document: Document, alpha: float, seed: int) -> float:
  """Returns the document's own Pareto variable, the inverse of (1 + x)^-alpha at a hash."""
  name = f"{seed}:{document.id}:{document.text}".encode("utf-8", "surrogatepass")
  digest = hashlib.blake2b(name, digest_size=8).digest()
  uniform = (int.from_bytes(digest, "big") + 1) / 2**64
  return uniform ** (-1 / alpha) - 1
