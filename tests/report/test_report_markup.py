"""Number formats, escaping and ticks."""

import math

import pytest

from llm_jax.report.figures import Axes, Point, points, ticks
from llm_jax.report.markup import count, el, esc, percent, real, seconds, size
from llm_jax.report.page import as_json


@pytest.mark.parametrize(
  ("show", "value", "text"),
  [
    (count, 11492, "11 492"),
    (count, 1_378_944, "1.38 M"),
    (count, 999_999, "1000 k"),
    (count, 0, "0"),
    (count, None, "–"),
    (size, 17.2e6, "17.2 MB"),
    (size, 870_000, "870 kB"),
    (seconds, 59.7, "1 min 00 s"),
    (seconds, 3.14, "3.1 s"),
    (seconds, 3725, "1 h 02 min"),
    (percent, 0.0314, "3.1 %"),
    (percent, math.nan, "–"),
    (real, -2.614, "−2.61"),
    (real, 0.0031, "0.00310"),
    (real, 12345.6, "12346"),
    (real, True, "–"),
    (real, "7", "–"),
  ],
)
def test_formats(show, value, text):
  assert show(value).replace("\u00a0", " ") == text


def test_html_is_escaped_once():
  inner = el("b", "<&>", title='"')
  assert inner == '<b title="&quot;">&lt;&amp;&gt;</b>'
  assert esc(inner) == inner
  assert el("i", inner, "<") == f"<i>{inner}&lt;</i>"


def test_json_cannot_close_a_script():
  text = as_json({"</script>": "<!--&"})
  assert "<" not in text and ">" not in text and "&" not in text


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 17), (0.26, 0.331), (5, 5), (1e-5, 3e-5)])
def test_ticks_cover_the_range_and_are_round(low, high):
  found, (first, last) = ticks(low, high)
  assert first <= low and last >= high and 3 <= len(found) <= 8
  steps = [b - a for a, b in zip(found, found[1:], strict=False)]
  assert max(steps) == pytest.approx(min(steps))


def test_labels_do_not_cover_each_other():
  axes = Axes((0, 10), (0, 10))
  marks = [Point(5, 5, "SFT"), Point(5.6, 5.1, "DPO"), Point(9.9, 9.9, "PPO")]
  text = points(axes, marks)
  places = [part.split('x="')[1].split('"')[0] for part in text.split("<text")[1:]]
  assert len(set(places)) == 3
