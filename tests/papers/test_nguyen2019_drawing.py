"""The figures of Nguyen 2019: what is drawn is what was given."""

from __future__ import annotations

from typing import Any

import pytest

from isthmus.errors import InputError
from isthmus.papers.nguyen2019.drawing import against_samples, descents, paths, sketches
from isthmus.plot import save_figure

LINE = {
    "levels": [0.5, 1.5], "components": [2, 1], "bad": [1, 0], "axes": [[0.0, 1.0, 2.0]], "values": [0.0, 1.0, 0.5],
    "runs": [],
}  # fmt: skip
PLANE = {
    "levels": [0.5, 1.5], "components": [1, 1], "bad": [0, 0], "axes": [[0.0, 1.0, 2.0], [0.0, 1.0]],
    "values": [[0.0, 1.0], [1.0, 2.0], [0.5, 3.0]], "runs": [{"x": [0.0, 1.5], "y": [0.0, 0.5], "f": [0.0, 1.0]}],
}  # fmt: skip


def xy(line: Any) -> tuple[list[float], list[float]]:
    return list(line.get_xdata()), list(line.get_ydata())


def test_sketches_show_the_function_and_count_components(tmp_path):
    figure: Any = sketches({"Figure 3": LINE, "Figure 5": PLANE})
    graph, plane, left, right = figure.axes
    assert (graph.get_title(), plane.get_title()) == ("Figure 3", "Figure 5")
    assert xy(graph.lines[0]) == (LINE["axes"][0], LINE["values"])
    assert xy(plane.lines[0]) == ([0.0, 1.5], [0.0, 0.5])
    assert xy(left.lines[0]) == (LINE["levels"], [2, 1])
    assert xy(left.lines[1]) == (LINE["levels"], [1, 0])
    assert xy(right.lines[1]) == (LINE["levels"], [0, 0])
    many: Any = sketches({f"Figure {k}": LINE for k in range(6)})
    assert sum(a.get_visible() for a in many.axes) == 12
    files = [save_figure(sketches({"Figure 5": PLANE}), tmp_path / f"{k}.png").read_bytes() for k in range(2)]
    assert files[0] == files[1]
    with pytest.raises(InputError, match="surveys"):
        sketches({})


def test_paths_stand_beside_the_straight_line_and_the_higher_end():
    curve = {"t": [0.0, 0.5, 1.0], "loss": [0.2, 0.2, 0.3]}
    line = {"t": [0.0, 0.5, 1.0], "loss": [0.2, 0.9, 0.3]}
    figure: Any = paths(
        {"one": {"straight line": line, "path": curve}, "two": {"path": curve}, "three": {"path": line}}
    )
    assert [a.get_title() for a in figure.axes if a.get_visible()] == ["one", "two", "three"]
    grey, path, top = figure.axes[0].lines
    assert xy(grey) == (line["t"], line["loss"])
    assert xy(path) == (curve["t"], curve["loss"])
    assert grey.get_color() == "#7f868d" != path.get_color()
    assert list(top.get_ydata()) == [0.3, 0.3]
    with pytest.raises(InputError, match="panels"):
        paths({})


def test_quantities_against_the_number_of_samples():
    figure: Any = against_samples({"growth": {"Theorem 3.2": [(40, 2.0), (100, 3.0)], "Theorem 5.1": [(40, 4.0)]}})
    (axes,) = figure.axes
    assert axes.get_title() == "growth"
    x, y = xy(axes.lines[0])
    assert y == [2.0, 3.0]
    assert x == pytest.approx([40 / 1.06, 100 / 1.06])
    assert xy(axes.lines[1]) == ([40.0], [4.0])
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert [t.get_text() for t in axes.get_xticklabels()] == ["40", "100"]
    with pytest.raises(InputError, match="table"):
        against_samples({})


def test_descents_go_down_to_what_can_be_drawn():
    down = {"t": [0.0, 1.0], "loss": [1.0, 0.0]}
    figure: Any = descents({"net": {"mse": down, "hinge": down}, "other": {"mse": down}})
    first, second = figure.axes
    assert xy(first.lines[0]) == ([0.0, 1.0], [1.0, 1e-32])
    assert first.get_yscale() == "log"
    assert first.lines[0].get_color() == second.lines[0].get_color() != first.lines[1].get_color()
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["mse", "hinge"]
    with pytest.raises(InputError, match="panels"):
        descents({})
