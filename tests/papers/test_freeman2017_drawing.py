"""The figures of Freeman & Bruna 2017: what is drawn is what was given, and equal figures are equal files."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from isthmus.papers.freeman2017 import drawing as draw
from isthmus.plot import save_figure

OURS: dict[str, Any] = {
    "L0": [0.01, 0.1, 1.0], "length": [1.8, 1.2, 1.0], "length sd": [0.1, 0.1, 0.0], "beads": [20.0, 6.0, 3.0],
    "beads sd": [2.0, 1.0, 0.0],
}  # fmt: skip
KEPT = OURS | {"length": [1.8, 1.2, 1.0], "beads": [20.0, 6.0, 2.0]}
PAPER = {"L0": [0.01, 0.1], "length": [1.9, 1.3], "beads": [25.0, 5.0]}
NONE: dict[str, list[float]] = {"L0": [], "length": [], "beads": []}


def lines(axes) -> dict[str, Any]:
    handles, labels = axes.get_legend_handles_labels()
    found = {}
    for handle, label in zip(handles, labels, strict=True):
        line = handle if hasattr(handle, "get_ydata") else handle.lines[0]
        found[label] = np.asarray(line.get_ydata())
    return found


def test_lengths_and_beads_stand_beside_the_paper():
    left, right = draw.geometry(OURS, KEPT, PAPER, {0.01: 20.0, 0.1: 6.0}, "loss").axes
    here = "here, mean and standard deviation"
    assert set(lines(left)) == {"paper", here}  # the line kept changes no length here
    assert lines(left)[here].tolist() == OURS["length"]
    assert lines(left)["paper"].tolist() == PAPER["length"]
    assert lines(right)["line kept where below"].tolist() == KEPT["beads"]
    slope = np.log(20 / 6) / np.log(0.1)
    assert lines(right)[f"here, power law, exponent {slope:.2f}"].tolist() == [20.0, 6.0]
    assert (left.get_xlabel(), left.get_xscale(), right.get_yscale()) == ("loss", "log", "log")


def test_what_is_not_there_is_not_drawn():
    left, right = draw.geometry(OURS, OURS, NONE, None, "loss").axes
    assert len(lines(left)) == len(lines(right)) == 1
    few = {k: v[:2] for k, v in OURS.items()} | {"L0": [50.0, 60.0]}
    axes = draw.geometry(few, few, NONE, None, "error").axes[0]
    assert axes.get_xticks().tolist() == [50.0, 60.0]
    assert draw.nothing("none here").axes[0].texts[0].get_text() == "none here"


def test_gaps_below_zero_are_zero():
    points = {"m": [4, 8], "gap": [0.1, 0.0], "largest gap": [0.2, 0.0], "largest excess": [0.05, -0.1]}
    (axes,) = draw.gaps(points).axes
    found = lines(axes)
    assert found["measured, largest"].tolist() == [0.05, 0.0]
    assert found["bound, mean"].tolist() == [0.1, 0.0]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["4", "8"]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_equal_figures_are_equal_files(tmp_path, suffix):
    files = [tmp_path / f"{k}.{suffix}" for k in (1, 2)]
    for file in files:
        save_figure(draw.geometry(OURS, KEPT, PAPER, {0.01: 20.0, 0.1: 6.0}, "loss"), file)
    assert files[0].read_bytes() == files[1].read_bytes()
