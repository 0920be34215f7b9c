"""The split depends on the address and the seed alone."""

from llm_jax.data import documents


def test_a_page_is_in_one_split_forever():
  urls = [f"https://a.invalid/{i}" for i in range(4000)]
  held = [u for u in urls if documents.split_of(u, 0, 0.1) == "validation"]
  assert 320 < len(held) < 480
  assert held == [u for u in urls if documents.split_of(u, 0, 0.1) == "validation"]
  assert set(held) <= {u for u in urls if documents.split_of(u, 0, 0.2) == "validation"}
  assert held != [u for u in urls if documents.split_of(u, 1, 0.1) == "validation"]


def test_extreme_fractions():
  assert documents.split_of("x", 0, 0.0) == "train"
  assert documents.split_of("x", 0, 1.0) == "validation"
