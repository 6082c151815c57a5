"""Small pieces of the page: numbers, ticks, intervals, shared words, escaping."""

import math

import numpy as np
import pytest

from policylong.report import evidence, facts, health, words
from policylong.report.axes import nice_ticks
from policylong.report.markup import element, escape
from policylong.report.roots import LEVELS, shade


def test_wilson_interval_is_the_textbooks():
  # Wilson's interval solves (p - rate)^2 = z^2 p (1 - p) / n: both ends must satisfy it.
  for accepted, pairs in ((10, 100), (1, 40), (299, 300)):
    for p in facts.wilson(accepted, pairs):
      assert (p - accepted / pairs) ** 2 == pytest.approx(1.959964**2 * p * (1 - p) / pairs, rel=1e-9)
  assert facts.wilson(0, 50)[0] == 0.0 and facts.wilson(50, 50)[1] == pytest.approx(1.0, abs=1e-12)
  assert facts.wilson(10, 100) == pytest.approx((0.0552, 0.1744), abs=5e-5)


def test_ticks_are_round_evenly_spaced_and_inside():
  for low, high in ((0, 1), (0.013, 0.021), (2.6, 3.9), (-0.5, 1), (1, 48), (0, 1e6)):
    ticks = nice_ticks(low, high)
    steps = np.diff(ticks)
    assert low - 1e-9 <= ticks[0] and ticks[-1] <= high + 1e-9 and 2 <= len(ticks) <= 6
    assert np.allclose(steps, steps[0])
    mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-9)
    assert any(math.isclose(mantissa, value, rel_tol=1e-6) for value in (1, 2, 5))


def test_shades_rise_with_entropy_and_stay_in_range():
  levels = [shade(entropy, 8.0) for entropy in np.linspace(0, 20, 500)]
  assert levels == sorted(levels) and levels[0] == 0 and levels[-1] == LEVELS - 1
  assert shade(math.nan, 8.0) is None and shade(0.0, 0.0) == 0


def test_numbers_are_written_one_way():
  assert words.count(12345) == "12,345" and words.count(None) == words.count(math.nan) == "–"
  assert words.count(np.int64(3)) == "3" and words.decimal(np.float32(0.5)) == "0.50"
  assert words.decimal(-0.004) == "0.00" and words.decimal(-1.5, 1) == "−1.5"
  assert words.share(0.051) == "5.1%" and words.share(0.0023) == "0.23%" and words.share(0) == "0.0%"
  assert words.threshold(0.2) == "0.2" and words.threshold(0.21349) == "0.213"


PIECES = ["In", " 1887", " the", " storm", " took", " the", " boats", " of", " Trond", "vik", "."]


@pytest.mark.parametrize(("position", "text", "shared"), [
    (3, "Long after the storm took all, they rebuilt.", "the storm took"),
    (3, "In 1887 the storm took the boats of Trondvik.", "In 1887 the storm took the boats of Trondvik."),
    (5, "They feared them and they took them.", None),  # " the" is not in " them"
    (5, "They took the ferry.", "took the"),
    (8, "The coopers of Trondvik asked.", "of Trondvik"),
    (8, "Nothing of the kind.", None),
    (10, "A full stop.", None)])  # too short to mean anything
def test_shared_words_are_the_longest_run_up_to_the_anchor(position, text, shared):
  run = evidence.shared_run(PIECES, position, text)
  assert (run and text[run[0]:run[1]].strip()) == shared


def test_an_excerpt_holds_the_shared_run_in_bold():
  text = "x" * 1000 + " the storm took " + "y" * 1000
  run = evidence.shared_run(PIECES, 3, text)
  cut = evidence.excerpt(text, run, 100)
  assert "<b> the storm took </b>" in cut and cut.startswith("… ") and cut.endswith(" …")
  assert evidence.excerpt("short", None, 100) == "short"


def test_plain_text_is_escaped_once_and_markup_is_left_alone():
  inner = element("b", "<i>&")
  assert inner == "<b>&lt;i&gt;&amp;</b>"
  assert element("p", inner, class_='a"b') == '<p class="a&quot;b"><b>&lt;i&gt;&amp;</b></p>'
  assert escape("\x00\ud800\n") == "\u2400\ufffd\n"


@pytest.mark.parametrize(("own", "control", "word"), [
    ((40, 400), (1, 400), "much"), ((20, 400), (4, 400), "some"), ((12, 400), (10, 400), "little"),
    ((2, 160), (0, 240), "little"),  # of few pairs it is not known
    ((30, 400), (0, 400), "much"), ((0, 400), (0, 400), "little")])
def test_how_much_there_was_to_find(own, control, word):
  groups = {name: {"accepted": accepted, "pairs": pairs, "rate": accepted / pairs}
            for name, (accepted, pairs) in (("own", own), ("control", control))}
  found, told = health.to_find({"acceptance": groups})
  assert found == word and f"of {control[1]} pairs" in told
  assert health.to_find({}) is None
