"""The functions that Nguyen 2019 sketches, their components, minima and curvature, by another route."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

import isthmus as im
from isthmus.papers.nguyen2019.jobs import Sketch
from isthmus.papers.nguyen2019.sketches import (
    SKETCHES,
    curvature,
    descend_from,
    figure_1,
    figure_3_left,
    figure_3_right,
    figure_5,
    gradient_5,
    label,
    local_minima,
)


def test_components_are_those_of_another_labelling():
    g = np.random.default_rng(0)
    for shape in ((50,), (30, 40), (7, 8, 9)):
        inside = g.random(shape) < 0.55
        found: Any = ndimage.label(inside)
        mine, (theirs, count) = label(inside), found
        assert mine.max() == count
        pairs = set(zip(mine.ravel().tolist(), theirs.ravel().tolist(), strict=True))
        assert len(pairs) == len({p for p, _ in pairs}) == len({q for _, q in pairs})
    assert label(np.zeros((3, 3), bool)).max() == 0


def test_minima_and_curvature_of_known_functions():
    x = np.linspace(-2, 2, 41)
    bowl = x[:, None] ** 2 + x[None] ** 2
    assert local_minima(bowl) == [(20, 20)]
    assert local_minima(-bowl) == []
    assert curvature(bowl) < 0
    assert curvature(-bowl) > 0
    assert curvature(x) == pytest.approx(0, abs=1e-12)


def test_the_sketched_functions_are_what_their_formulas_promise():
    t = np.linspace(-6, 6, 2001)
    slopes = np.diff(figure_3_left(t)) / np.diff(t)
    top = np.arcsinh(-0.25)
    assert np.all(slopes[t[1:] < top] > 0)
    assert np.all(slopes[t[:-1] > top] < 0)
    assert figure_3_left(-40.0) == pytest.approx(0.5)
    assert figure_3_right(0.0) == 0
    assert figure_3_right(40.0) == pytest.approx(0.5)
    assert float(figure_3_right(np.arccosh(2.5))) == pytest.approx(0.9)
    # Figure 1: a disc in u = 1 - x, v = y - x^2
    x, y = np.meshgrid(np.linspace(-2, 2, 20), np.linspace(-1, 3, 20))
    np.testing.assert_allclose(figure_1(x, y), (1 - x) ** 2 + (y - x**2) ** 2)
    assert figure_1(0.0, 1.0) > (figure_1(-1.0, 1.0) + figure_1(1.0, 1.0)) / 2 - 1e-12
    # Figure 5: its gradient, and no way out of |y| < 1
    for point in ((0.3, 0.2), (2.0, -1.7), (1.0, 1.9)):
        p, q = (float(v) for v in gradient_5(*point))
        h = 1e-6
        dx = (figure_5(point[0] + h, point[1]) - figure_5(point[0] - h, point[1])) / (2 * h)
        dy = (figure_5(point[0], point[1] + h) - figure_5(point[0], point[1] - h)) / (2 * h)
        assert (p, q) == pytest.approx((float(dx), float(dy)), rel=1e-6)
    run = descend_from((0.5, 0.4), steps=2000)
    assert run["f"][-1] > 1
    assert max(map(abs, run["y"])) <= 0.4
    assert all(p > q for p, q in pairwise(run["f"]))


def test_infima_and_boxes_agree():
    """On a box the functions come within what counts as near of their infimum."""
    for name, sketch in SKETCHES.items():
        axes = [np.linspace(low, high, 201) for low, high in sketch.box]
        values = sketch.function(*np.meshgrid(*axes, indexing="ij"))
        assert -1e-12 <= values.min() - sketch.infimum < 0.02, name
    with pytest.raises(im.InputError, match="figure"):
        Sketch("6")
