"""The figures of Kuditipudi et al. 2019: what is drawn is what was given."""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np
import pytest

from isthmus.errors import InputError
from isthmus.papers.kuditipudi2019.drawing import distributions, paths, subnetworks
from isthmus.plot import save_figure

CURVE = {"t": [0.0, 0.5, 1.0], "loss": [0.1, 0.4, 0.2], "error": [0.0, 0.25, 0.1]}
POINTS = {
    "x": [0.2, 0.5], "loss": [0.1, 0.3], "loss sd": [0.01, float("nan")],
    "accuracy": [99.0, 90.0], "accuracy sd": [0.5, float("nan")],
}  # fmt: skip


def ys(line: Any) -> list[float]:
    return list(line.get_ydata())


def test_subnetworks_are_drawn_with_their_spread(tmp_path):
    figure: Any = subnetworks(POINTS, [CURVE, CURVE], {**POINTS, "x": [1, 2]}, 0.2)
    left, centre, right = figure.axes[:3]
    (bars,) = left.containers
    assert ys(bars.lines[0]) == POINTS["loss"]
    low, high = bars.lines[1]
    assert ys(low) == pytest.approx([0.09, 0.3])
    assert ys(high) == pytest.approx([0.11, 0.3])
    assert [ys(line) for line in centre.lines] == [CURVE["loss"]] * 2
    assert ys(figure.axes[4].lines[0]) == [100, 75, 90]
    assert list(right.containers[0].lines[0].get_xdata()) == [1, 2]
    anew = (subnetworks(POINTS, [CURVE], POINTS, 0.2) for _ in range(2))
    files = [save_figure(f, tmp_path / f"{k}.png").read_bytes() for k, f in enumerate(anew)]
    assert files[0] == files[1]


def test_histograms_hold_every_finite_example_and_say_how_many_are_not():
    numbers = {"with": [1.0, 2.0, 3.0, inf], "without": [2.0, 2.5, 3.0, 3.5]}
    tables = {"layer cushion": {2: numbers, 3: {"with": [inf, inf]}}, "interlayer smoothness": {2: numbers}}
    figure = distributions(tables)
    panels: Any = np.array(figure.axes).reshape(2, 2)
    for name, patches in zip(numbers, panels[0, 0].containers, strict=True):
        counts = [p.get_height() * p.get_width() for p in patches]
        assert sum(counts) == pytest.approx(1)
        finite = np.array(numbers[name])[np.isfinite(numbers[name])]
        assert sum(c > 0 for c in counts) == len(set(finite.tolist()))
    assert [t.get_text() for t in panels[0, 0].texts] == ["25 % inf"]
    assert [t.get_text() for t in panels[0, 1].texts] == ["infinite"]
    assert not panels[1, 1].texts
    single: Any = distributions({"layer cushion": {6: numbers}, "interlayer smoothness": {6: numbers}})
    titles = [panel.get_title() for panel in single.axes]
    assert titles == ["layer cushion, layer 6", "interlayer smoothness, layer 6"]
    with pytest.raises(InputError, match="at least one quantity"):
        distributions({"layer cushion": {}})


def test_paths_show_loss_and_accuracy_and_the_line_in_grey():
    figure: Any = paths({"Linear": CURVE, "Narrow": CURVE}, "a pair")
    loss, accuracy = figure.axes
    assert [line.get_label() for line in loss.lines] == ["Linear", "Narrow"]
    assert ys(loss.lines[1]) == CURVE["loss"]
    assert ys(accuracy.lines[1]) == [100, 75, 90]
    assert loss.lines[0].get_color() == "#7f868d"
    assert loss.lines[1].get_color() != "#7f868d"
    assert loss.get_yscale() == "linear"
    wide: Any = paths({"Narrow": {**CURVE, "loss": [1e-4, 1e-3, 1.0]}})
    assert wide.axes[0].get_yscale() == "log"
    assert wide.axes[0].get_ylim()[0] <= 1e-4
    assert not [t for t in wide.axes[0].get_yticklabels() if "$" in t.get_text()]
    zero: Any = paths({"Narrow": {**CURVE, "loss": [0.0, 1e-3, 1.0]}})
    assert zero.axes[0].get_yscale() == "symlog"
    with pytest.raises(InputError, match="at least one path"):
        paths({})
