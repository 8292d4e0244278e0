"""The figures of Shevchenko and Mondelli 2020: what is drawn is what was given."""

from __future__ import annotations

from math import nan
from typing import Any

import numpy as np
import pytest

from isthmus.errors import InputError
from isthmus.papers.shevchenko2020.drawing import changes_of_error, during_training, falling, path_and_weights
from isthmus.plot import save_figure

NAMES = ("loss", "half loss", "error", "half error")
TRAINING = {"t": [0.0, 0.5, 1.0], **{n: [0.8, 0.2, 0.1] for n in NAMES}, **{f"{n} sd": [0.1, nan, 0.02] for n in NAMES}}
POINTS = {"x": [100, 200, 400], "mean": [0.4, 0.2, 0.1], "deviation": [0.5, 0.05, nan]}
CURVE = {"t": [0.0, 0.5, 1.0], "loss": [0.1, 0.4, 0.2], "error": [0.02, 0.03, 0.02]}
WEIGHTS = [{"name": "0.weight", "edges": [0.0, 1.0, 3.0], "a": [6, 4], "b": [0, 8]}]


def ys(line: Any) -> list[float]:
    return list(line.get_ydata())


def test_training_has_losses_above_and_errors_in_percent_below(tmp_path):
    figure: Any = during_training({"N = 1": TRAINING, "N = 2": TRAINING})
    axes = np.array(figure.axes).reshape(2, 2)
    assert [ys(line) for line in axes[0, 0].lines] == [TRAINING["loss"], TRAINING["half loss"]]
    assert ys(axes[1, 1].lines[0]) == pytest.approx([80, 20, 10])
    assert axes[0, 1].get_title() == "N = 2"
    band = axes[0, 0].collections[0].get_paths()[0].vertices
    assert float(band[:, 1].max()) == pytest.approx(0.9)
    files = [save_figure(during_training({"a": TRAINING}), tmp_path / f"{k}.png").read_bytes() for k in "ab"]
    assert files[0] == files[1]
    with pytest.raises(InputError, match="at least one"):
        during_training({})


def test_falling_curves_keep_their_colours_and_bars_stay_above_zero():
    panels = {"one": {"start": POINTS, "end": POINTS}, "two": {"end": POINTS}}
    figure: Any = falling(panels, "N", "change")
    first, second = figure.axes[:2]
    bars = {c.get_label(): c for c in first.containers}
    assert ys(bars["start"].lines[0]) == POINTS["mean"]
    assert bars["end"].lines[0].get_color() == second.containers[0].lines[0].get_color()
    assert bars["end"].lines[0].get_color() != bars["start"].lines[0].get_color()
    low, high = bars["start"].lines[1]
    assert ys(low) == pytest.approx([0.04, 0.15, 0.1])
    assert ys(high) == pytest.approx([0.9, 0.25, 0.1])
    (rate,) = [line for line in first.lines if line.get_label().startswith("c sqrt")]
    shape = np.sqrt(np.log(POINTS["x"]) / np.array(POINTS["x"]))
    ratio = np.array(ys(rate)) / shape
    assert np.ptp(ratio) < 1e-12
    assert np.mean(np.log(ys(rate))) == pytest.approx(np.mean(np.log(POINTS["mean"])))
    bare: Any = falling(panels, "N", "y", False)
    assert len(bare.axes[0].lines) == len(first.lines) - 1


def test_a_path_stands_under_what_is_allowed_beside_the_weights_of_its_ends():
    figure: Any = path_and_weights(CURVE, {**CURVE, "error": [0.02, 0.9, 0.02]}, 0.05, WEIGHTS, "title")
    first, second = figure.axes[:2]
    line, path, allowed = first.lines
    assert ys(line) == pytest.approx([2, 90, 2])
    assert ys(path) == pytest.approx([2, 3, 2])
    assert ys(allowed) == pytest.approx([5, 5])
    assert first.get_yscale() == "log", "the straight line is far above"
    assert path_and_weights(CURVE, CURVE, 0.05, WEIGHTS).axes[0].get_yscale() == "linear"
    densities = [p.get_data().values.tolist() for p in second.patches]
    assert densities == [pytest.approx([0.6, 0.2]), pytest.approx([0.0, 0.5])]
    edges = [float(k) for k in range(6)]
    tails = {"name": "w", "edges": edges, "a": [1, 500, 500, 500, 1], "b": [1, 500, 500, 500, 0]}
    assert path_and_weights(CURVE, CURVE, 0.05, [tails]).axes[1].get_xlim() == (1.0, 4.0)
    with pytest.raises(InputError, match="at least one"):
        path_and_weights(CURVE, CURVE, 0.05, [])


def test_changes_of_error_have_a_curve_per_task():
    figure: Any = changes_of_error({"mnist": POINTS, "cifar10": {**POINTS, "mean": [4.0, 0.0, 1.0]}})
    (panel,) = figure.axes
    assert [c.get_label() for c in panel.containers] == ["mnist", "cifar10"]
    assert ys(panel.containers[1].lines[0]) == [4.0, 1.0], "a logarithmic axis leaves out zero"
    with pytest.raises(InputError, match="at least one"):
        changes_of_error({})
