"""Published recipes: every step exists, in the paper's order, and good prose comes through."""

import importlib
import pathlib
import re

import pytest

from llm_jax import config
from llm_jax.data.documents import Document
from llm_jax.data.pipeline import steps

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "configs" / "data"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")
ORDER = {
  "c4": "same_address c4_lines c4_page repeated_lines c4_page language",
  "gopher": "language gopher_quality gopher_repetition exact_duplicates duplicates",
  "refinedweb": "blocked_urls extract without_addresses language gopher_repetition gopher_quality "
  "refinedweb_page refinedweb_lines duplicates repeated_substrings same_address",
  "fineweb": "extract language gopher_repetition gopher_quality c4_lines c4_page fineweb "
  "duplicates mask_pii",
  "gpt3": "quality duplicates",
  "llama1": "repeated_lines language quality",
}
PROSE = """\
The ship left the harbour of Cork before sunrise, and nobody on the shore saw us go. We carried \
timber, some old maps, and ten barrels of oil which the owner had bought from a widow in Cadiz.

By noon the wind had turned to the north. It would have been wise to wait, but the captain never \
spoke about his plans, and those who had sailed with him before knew better than to ask. "You will \
have your money," he said to me once, "and that is all you need to know."

After nine days we came upon an island that was on none of our maps. There were goats on the hills \
and a small white house near the water. An old woman stood at the door with a lamp in her hand, \
although it was the middle of the day. What did she want? Nobody could tell, for she used words \
that were strange even to the cook, who had been everywhere.

I have thought of that lamp many times since. Winter was near, the bread was gone, and we had to \
leave with the tide. When I looked back, the house seemed to be empty, and the goats were quiet.
"""


def module(name):
  return importlib.import_module(f"configs.data.{name}")


def called(spec):
  return spec.partition("(")[0]


@pytest.mark.parametrize("name", NAMES)
def test_every_step_of_a_recipe_is_one(name):
  cfg = module(name).get_config()
  assert type(cfg) is config.Prepare
  assert len(steps.recipe(cfg.recipe)) == len(cfg.recipe)
  order = ORDER[name].split()
  assert [c for c in map(called, cfg.recipe) if c in order] == order


@pytest.mark.parametrize("name", NAMES)
def test_good_prose_comes_through(name):
  document = Document("x", PROSE, "https://example.com/a-voyage")
  for step in steps.recipe(module(name).get_config().recipe):
    if step.kind == "text":
      text = step.run(document.text)
      assert len(text.split()) > 0.9 * len(document.text.split()), step.name
      document = Document("x", text, document.url)
    elif step.kind == "document" and called(step.name) != "quality":  # That needs a model.
      assert step.run(document) is None, step.name


@pytest.mark.parametrize("name", NAMES)
def test_the_header_has_the_command(name):
  text = module(name).__doc__
  path = f"configs/data/{name}.py"
  commands = re.findall(rf"python -m experiments\.prepare --config={re.escape(path)}(:\S+)?", text)
  assert commands[0] == "" and commands[1]
  assert "The same:" in text and "Different, and why:" in text and "arXiv:" in text
  variant = module(name).get_config(commands[1][1:])
  assert variant.recipe != module(name).get_config().recipe
  assert any(commands[1][1:] in spec for spec in variant.recipe)


@pytest.mark.parametrize("name", ["refinedweb", "fineweb"])
def test_block_lists_are_files_of_the_folder(name, tmp_path):
  for kind in ("domains", "urls", "strict", "hard", "soft"):
    (tmp_path / f"{kind}.txt").write_text(f"blocked{kind}.org\n" if kind != "hard" else "awful\n")
  (tmp_path / "soft.txt").write_text("meh\n")
  first = steps.resolve(module(name).get_config(str(tmp_path)).recipe[0])
  assert first.run(Document("x", PROSE, "http://a.blockeddomains.org/")) == "url: domain"
  assert first.run(Document("x", PROSE, "http://a.org/awful")) == "url: hard word"
  assert first.run(Document("x", PROSE, "http://a.org/")) is None


def test_c4s_words_come_before_its_page_rules(tmp_path):
  path = tmp_path / "words.txt"
  path.write_text("harbour\n")
  recipe = module("c4").get_config(str(path)).recipe
  assert [called(spec) for spec in recipe][3:6] == ["c4_lines", "c4_words", "c4_page"]
  assert steps.resolve(recipe[4]).run(Document("x", PROSE)) == "c4: listed word"
