import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encdec_train.report.svg import Series, line_chart, score_strip, smooth, thin, tick_text, ticks


def test_points_are_placed_between_the_axes():
    svg = line_chart([Series("loss", [(0, 1.0), (10, 3.0), (20, 2.0)], "train")], "step", "loss", (416, 200))
    points = ET.fromstring(svg).find("polyline").get("points").split()
    # 42 + 16 pixels on the left, 14 on the right, 10 above, 40 below; y has 4% of its range of room at both ends
    xs, ys = zip(*((float(a), float(b)) for a, b in (p.split(",") for p in points)), strict=True)
    assert xs == (58.0, 230.0, 402.0)
    assert ys == pytest.approx([160 - 150 * share for share in (0.08 / 2.16, 2.08 / 2.16, 1.08 / 2.16)], abs=0.06)


def test_values_that_are_not_finite_are_left_out_and_nothing_is_drawn_of_nothing():
    assert line_chart([Series("a", [(1, math.nan), (2, math.inf)], "train"), Series("b", [], "raw")], "x", "y") == ""
    svg = line_chart([Series("a", [(1, math.nan), (2, 5.0), (3, 6.0)], "train")], "x", "y")
    assert len(ET.fromstring(svg).find("polyline").get("points").split()) == 2


def test_a_single_point_is_a_dot_with_its_value():
    svg = ET.fromstring(line_chart([Series("loss", [(7, 2.5)], "train")], "step", "nats"))
    assert svg.find("polyline") is None
    assert svg.find("circle/title").text == "loss, step 7: 2.5"


def test_names_are_escaped():
    svg = line_chart([Series('<a b="c">', [(1, 1.0)], "train")], "<x>", "<y>")
    assert "<a" not in svg
    assert ET.fromstring(svg).get("aria-label") == '<a b="c"> over <x>'


@pytest.mark.parametrize(
    ("low", "high", "about", "expected"),
    [
        (0, 10, 5, [0, 2, 4, 6, 8, 10]),
        (1.9, 4.1, 5, [2, 2.5, 3, 3.5, 4]),
        (0, 5e-5, 4, [0, 2e-5, 4e-5]),
        (-1, 1, 4, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round(low, high, about, expected):
    assert ticks(low, high, about) == pytest.approx(expected)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 10))
def test_ticks_lie_inside_and_are_not_too_many(low, width, about):
    found = ticks(low, low + width, about)
    assert len(found) <= about + 2
    assert all(low - width / 1e3 <= value <= low + width * 1.001 for value in found)


@pytest.mark.parametrize(
    ("value", "step", "text"),
    [(0.0, 0.5, "0"), (2.0, 1, "2"), (2.5, 0.5, "2.5"), (0.25, 0.05, "0.25"), (5e-5, 1e-5, "5e-5"),
     (2.5e-5, 5e-6, "2.5e-5"), (1.5e-3, 5e-4, "1.5e-3"), (0.5001, 1e-4, "0.5001"),
     (1500, 500, "1.5k"), (1200, 200, "1,200"), (2e6, 1e6, "2M"), (-40, 20, "-40")],
)  # fmt: skip
def test_tick_text(value, step, text):
    assert tick_text(value, step) == text


def test_smoothing_keeps_a_constant_and_does_not_lag_behind_a_line():
    assert [y for _, y in smooth([(x, 3.0) for x in range(100)])] == pytest.approx([3.0] * 100)
    line = smooth([(x, float(x)) for x in range(1000)])
    assert [y for _, y in line[200:800]] == pytest.approx(range(200, 800), abs=0.01)


def test_smoothing_removes_noise():
    noise = np.random.default_rng(0).normal(size=5000)
    # An exponential average over n points has a variance of about 1/(2n); the mean of two sides about half of that.
    smoothed = [y for _, y in smooth(list(enumerate(noise)))][500:-500]
    assert 0.03 < float(np.std(smoothed)) < 0.09


def test_smoothing_of_nothing():
    assert smooth([]) == []


def test_thinning_keeps_spikes_ends_and_order():
    points = [(float(x), 0.0) for x in range(10_000)]
    points[5_000], points[7_777] = (5_000.0, 9.0), (7_777.0, -9.0)
    kept = thin(points, 100)
    assert len(kept) <= 100
    assert (5_000.0, 9.0) in kept
    assert (7_777.0, -9.0) in kept
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    assert kept == sorted(kept)
    assert thin(points[:50], 100) == points[:50]


def test_a_strip_places_scores_and_clamps_what_is_off_the_scale():
    svg = ET.fromstring(score_strip(50.0, [40.0, 60.0], {"copy": 0.0, "random": 130.0}, size=216))
    interval = svg.find("line[@class='interval']")
    assert (interval.get("x1"), interval.get("x2")) == ("88.0", "128.0")
    assert svg.find("line[@class='mark']").get("x1") == "108.0"
    assert [(ring.get("cx"), ring.find("title").text) for ring in svg.findall("circle")] == [
        ("8.0", "copy 0.00"),
        ("208.0", "random 130.00"),
    ]
    assert not re.search("interval", score_strip(1.0, None, {}))
