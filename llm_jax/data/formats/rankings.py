"""K answers to one prompt with ranks or ratings: UltraFeedback, Nectar, and lists in general."""

from collections.abc import Iterator, Sequence
from typing import Any

from llm_jax.data.formats import fields, transcripts
from llm_jax.data.formats.fields import Row
from llm_jax.data.formats.schema import UNRANKED, Format, Ranking, Reason

_PROMPTS = ("prompt", "instruction", "question", "query")
_LISTS = ("completions", "responses", "answers", "outputs", "candidates")
_TEXTS = ("response", "answer", "text", "content", "output", "completion")
_RANK = ("rank",)
_RATING = ("overall_score", "score", "rating", "reward")
_RANKS = ("ranks", "rank", "ranking")
_RATINGS = ("scores", "ratings", "rewards", "score", "rating")


def by_rating(ratings: Sequence[float]) -> tuple[float, ...]:
  """Returns ranks of ratings: how many are better, so that equal ratings are a tie."""
  better: dict[float, float] = {}
  for place, rating in enumerate(sorted(ratings, reverse=True)):
    better.setdefault(rating, float(place))
  return tuple(better[rating] for rating in ratings)


def _answers(row: Row) -> tuple[list[tuple[str, Any]], bool]:
  """Returns (answer, rank or rating) of all answers, and whether they are ratings."""
  name = fields.needed(row, _LISTS)
  found = row[name]
  if not isinstance(found, list):
    raise ValueError(f'"{name}" must be a list, not {type(found).__name__}')
  if any(isinstance(value, dict) for value in found):
    return _objects(found, name)
  texts = [fields.checked(text, f'{name}"[{i}]') for i, text in enumerate(found)]
  by = fields.needed(row, (*_RANKS, *_RATINGS))
  values = row[by]
  if not isinstance(values, list) or len(values) != len(texts):
    raise ValueError(f'"{by}" must be a list of {len(texts)} numbers, one for each of "{name}"')
  return list(zip(texts, values, strict=True)), by not in _RANKS


def _objects(found: list[Any], name: str) -> tuple[list[tuple[str, Any]], bool]:
  keys = [fields.named(x, (*_RANK, *_RATING)) for x in found if isinstance(x, dict)]
  by = next(filter(None, keys), "")
  if not by:
    raise ValueError(f'"{name}" have no "rank" and no "score"')
  pairs = []
  for i, value in enumerate(found):
    if not isinstance(value, dict):
      raise ValueError(f'"{name}"[{i}] must be an object with a "response" and a "{by}"')
    pairs.append((fields.text(value, *_TEXTS), value.get(by)))
  return pairs, by not in _RANK


def _ranking(row: Row) -> Iterator[Ranking | Reason]:
  name = fields.needed(row, _PROMPTS)
  prompt = transcripts.prompt(row[name], name)
  found, rated = _answers(row)
  ranked = [(text, value) for text, value in found if value is not None]
  yield from [UNRANKED] * (len(found) - len(ranked))
  answers = tuple(text for text, _ in ranked)
  what = "rating" if rated else "rank"
  values = tuple(fields.number(value, what) for _, value in ranked)
  ranks = by_rating(values) if rated else values
  yield Ranking(prompt, answers, ranks, values if rated else None, source=fields.source(row))


def _fits(row: Row) -> bool:
  found = row.get(fields.named(row, _LISTS))
  if not fields.named(row, _PROMPTS) or not isinstance(found, list) or not found:
    return False
  if isinstance(found[0], dict):
    return bool(fields.named(found[0], _TEXTS) and fields.named(found[0], (*_RANK, *_RATING)))
  return isinstance(row.get(fields.named(row, (*_RANKS, *_RATINGS))), list)


RANKINGS = Format(
  "rankings",
  '{"prompt" | "instruction", "responses" | "answers": [text, ...], "ranks" | "scores": [number,'
  ' ...]}; or "completions" | "answers": [{"response" | "answer", "rank" | "overall_score"}, ...]',
  ("prompt", "responses", "ranks"),
  _fits,
  {"rankings": _ranking},
)
