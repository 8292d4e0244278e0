"""Pictures that share axes: nothing is cut off, everything has its own name; labels cover nothing."""

from __future__ import annotations

import warnings
from dataclasses import replace
from itertools import combinations
from pathlib import Path as File
from typing import Any

import numpy as np
import pytest
import torch

import isthmus as im
from isthmus.comparison import Comparison, ComparisonRow
from isthmus.evaluate import Band, Profile
from isthmus.evaluate.band import Range
from isthmus.graph import MinimaGraph
from isthmus.graph.minima import Edge, Minimum
from isthmus.plot.stability import loss_axis

figures = pytest.importorskip("matplotlib.figure")
Text = pytest.importorskip("matplotlib.text").Text
BUMP = np.exp(-(((np.linspace(0, 1, 41) - 0.5) / 0.18) ** 2))


def profile(losses: Any) -> Profile:
    loss = torch.tensor(losses)
    return Profile(torch.linspace(0, 1, len(loss)), torch.zeros(len(loss)).long(), loss, 0 * loss, len(loss))


HIGH, LOW = profile(0.02 + 3.03 * BUMP), profile(0.3 + BUMP)


def banded(width: float) -> Profile:
    """HIGH with a test set, whose band reaches below 0 at the ends."""
    loss = HIGH.loss * 1.1
    ends = Range(0.0, 1.0)
    band = Band(HIGH.t, loss, loss - width, loss + width, ends, None, 0.95, 100)
    return replace(HIGH, test=replace(HIGH, loss=loss, population=band))


def axes(columns: int = 1, **options: Any) -> Any:
    return figures.Figure(figsize=(6.4 * columns, 4.2), layout="constrained").subplots(1, columns, **options)


def words(ax: Any) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("several", [(HIGH, LOW), (LOW, HIGH), (LOW, profile(0.01 * BUMP), HIGH)])
def test_the_second_profile_does_not_cut_off_the_first(several):
    ax = axes()
    for one in several:
        one.plot(ax)
    low, top = ax.get_ylim()
    for one in several:
        assert low <= one.loss.min() <= one.loss.max() < top
    assert len(set(words(ax))) == len(words(ax))
    curves = [line for line in ax.get_lines() if len(line.get_xdata()) > 1]
    assert len({line.get_color() for line in curves}) == len(several)


def test_profiles_are_told_apart_by_their_labels():
    ax = axes()
    HIGH.plot(ax, label="naive")
    LOW.plot(ax, label="aligned")
    assert words(ax) == ["naive: max 3.05", "aligned: max 1.3"]
    banded(0.5).plot(ax, label="third")
    assert words(ax)[2:] == ["third: max 3.05", "third, test set", "third, 0.95 band, population (asymptotic)"]
    found = im.barrier(*_pair(), num_points=3)
    found.plot(ax, label="barrier")
    assert any(one.startswith("barrier: max") for one in words(ax))
    with pytest.raises(im.InputError, match="label: expected text or None, got int"):
        HIGH.plot(ax, label=3)  # type: ignore[arg-type]


def test_bands_and_certificates_have_labels_and_colours_of_their_own():
    objective, a, b = _pair()
    certificate = im.certify(objective, im.connect(objective, a, b), budget=0)
    ax = axes()
    HIGH.plot(ax)
    certificate.plot(ax, label="the line")
    band = banded(0.5).test
    assert band is not None
    assert band.population is not None
    band.population.plot(ax, label="band")
    assert any(one.startswith("the line, ") for one in words(ax))
    assert "band, 100 test examples" in words(ax)
    coloured = [line.get_color() for line in ax.get_lines() if "max" in line.get_label() or "," in line.get_label()]
    assert ax.get_lines()[0].get_color() not in coloured


def _pair() -> tuple[im.Objective, Any, Any]:
    objective = im.Objective(torch.nn.Linear(2, 2, bias=False), data=(torch.eye(2), torch.tensor([0, 1])))
    return objective, {"weight": torch.eye(2)}, {"weight": 2 * torch.eye(2)}


@pytest.mark.parametrize("several", [(HIGH, LOW), (LOW, HIGH), (profile(0.3 + 0 * BUMP), HIGH)])
def test_panels_that_share_their_axis_show_both(several):
    panels = axes(2, sharey=True)
    for one, ax in zip(several, panels, strict=True):
        one.plot(ax)
    low, top = panels[0].get_ylim()
    assert (low, top) == panels[1].get_ylim()
    for one in several:
        assert low <= one.loss.min() <= one.loss.max() < top


def test_an_axis_that_was_logarithmic_is_linear_for_a_negative_loss():
    ax = axes()
    HIGH.plot(ax)
    assert ax.get_yscale() == "log"
    profile(LOW.loss.numpy() - 1).plot(ax)
    assert ax.get_yscale() == "linear"
    assert ax.get_ylim()[0] == pytest.approx(1.08 * (float(LOW.loss.min()) - 1))  # a mark there is not cut
    assert ax.get_ylim()[1] > 3.05


def test_vertical_lines_have_no_say_in_the_heights():
    ax = axes()
    ax.axvline(0.5)
    loss_axis(ax, np.array([0.001, 0.002]))
    assert ax.get_ylim()[1] < 0.01


def test_the_band_ends_at_the_bottom_of_a_logarithmic_axis():
    ax = axes()
    banded(0.5).plot(ax)
    assert ax.get_yscale() == "log"
    (filled,) = ax.collections

    def lowest() -> float:
        return float(filled.get_paths()[0].vertices[:, 1].min())

    assert lowest() == ax.get_ylim()[0] > 0
    assert ax.get_ylim()[1] > 3.05 * 1.1 + 0.5
    before = lowest()
    profile(0.002 + 0.01 * BUMP).plot(ax)  # the bottom falls, and the band with it
    assert lowest() == ax.get_ylim()[0] < before
    profile(BUMP - 2).plot(ax)
    assert lowest() == float(HIGH.loss.min() * 1.1 - 0.5)


def compared(rows: list[tuple[str, float, float]]) -> Comparison:
    point = {"w": torch.zeros(1)}
    way = im.Connection(im.Path.through([point, {"w": torch.ones(1)}]), point, im.Outcome.CONSTRUCTED)
    tests, cost = (None, None, None), (False, None, "", way)
    made = [ComparisonRow(name, "C", True, rise, rise, rise, *tests, passes, *cost) for name, rise, passes in rows]
    return Comparison(tuple(made), {}, None)


CROWD = [("Linear", 2.1, 0.0), ("Dropout", 0.9, 0.0), ("NoiseDropout", 0.95, 0.0), ("Aligned(Linear)", 0.9, 1.0)]
CROWD += [("Bezier", 0.0, 300.0), ("PolyChain", 0.001, 320.0), ("AutoNEB", 0.0, 310.0), ("Aligned(Bezier)", 0.0, 290.0)]


def test_a_comparison_shows_no_negative_half_and_no_name_on_another():
    ax = axes()
    compared(CROWD).plot(ax)
    assert ax.get_ylim()[0] == 0
    assert ax.get_ylim()[1] > 2.1
    ax.figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in ax.texts]  # without the thin lines to their points
    assert len(boxes) == len(CROWD)
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    assert not any("$" in tick.get_text() for tick in [*ax.get_xticklabels(), *ax.get_yticklabels()])


def test_a_comparison_keeps_what_lies_below_0_and_names_what_is_not_finite():
    ax = axes()
    compared([("Linear", -0.1, 1.0), ("Bezier", float("inf"), 9.0)]).plot(ax)
    assert ax.get_ylim()[0] < -0.1
    assert "Bezier" in ax.get_title()


@pytest.mark.parametrize("count", [3, 6, 12])
def test_no_line_of_a_tree_runs_through_a_height(count):
    draws = np.random.default_rng(count)
    minima = tuple(Minimum(f"m{k}", float(v), 0.0) for k, v in enumerate(draws.uniform(0.02, 0.05, count)))
    rest = (0.05, 0, None, None, "CONSTRUCTED", True, 1.0, None)
    edges = [Edge(i, j, float(draws.uniform(0.06, 0.2)), *rest, f"{i}{j}") for i, j in combinations(range(count), 2)]
    tree, _ = panels = axes(2)
    tree.figure.set_size_inches(7.5 + 0.75 * count, 3.6 + 0.3 * count)
    MinimaGraph(minima, tuple(edges), File()).plot(panels)
    tree.figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in tree.texts]
    assert len(boxes) == count - 1
    for line in tree.get_lines():
        path = tree.transData.transform_path(line.get_path())
        assert not any(path.intersects_bbox(box, filled=False) for box in boxes if len(path.vertices) == 2)
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))


def test_a_matching_without_sweeps_is_told_in_words():
    objective, a, b = _own()
    for matching, said in ((im.ActivationMatching(), ["activations: inner product"]), (im.Given(), [])):
        panels = axes(2)
        found = im.align(objective, a, b, matching)
        assert all(len(run.trace) < 2 for run in found.runs)
        found.plot(panels)
        (text,) = panels[1].texts
        assert text.get_text().startswith("there was no search by sweeps")
        assert all(one in text.get_text() for one in said)
        assert not panels[1].lines


def _own() -> tuple[im.Objective, Any, Any]:
    torch.manual_seed(0)
    a, b = (torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3)) for _ in range(2))
    return im.Objective(a, data=(torch.randn(12, 4), torch.arange(12) % 3)), a, b
