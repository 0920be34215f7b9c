"""What a user reads: one line, whatever it quotes."""

import pytest

from llm_jax.errors import UserError, nearest


@pytest.mark.parametrize(
  ("given", "shown"),
  [
    ("a file.json, line 2: é 日本 😀 is odd", "a file.json, line 2: é 日本 😀 is odd"),
    ("a\nb\r\n\tc", "a b   c"),
    ("\x1b[2Jgone\x07", "\ufffd[2Jgone\ufffd"),
    ("half \ud800, hidden \u200b\u202e", "half \ufffd, hidden \ufffd\ufffd"),
    ("wide\u00a0space\u2028line", "wide space line"),
  ],
)
def test_an_error_is_one_line_that_moves_no_cursor(given, shown):
  assert str(UserError(given)) == shown and shown.isprintable()


def test_a_very_long_text_loses_its_middle():
  line = str(UserError(f"begin {'x' * 100_000} end"))
  assert len(line) < 3100 and line.startswith("begin xx") and line.endswith("xx end")
  assert str(UserError("y" * 3000)) == "y" * 3000


def test_a_long_name_takes_no_time_to_compare():
  assert nearest("spam" * 100_000, ["eggs", "ham"]) == "; there are: eggs, ham"
