"""Paths with statistics that move between knots: how many pieces they are in."""

from __future__ import annotations

from math import inf

import isthmus as im
from isthmus.connectors.curves.statistics import settle
from tests.evaluate.networks import Residual
from tests.problems import classify


def test_there_are_no_more_pieces_than_the_tolerance_asks_for():
    p = classify("normalised", Residual(), (1, 8, 8))
    line = im.Path.through([p.a, p.b])
    one = settle(p.objective, line, inf, "line")
    two = settle(p.objective, line, 0.999 * one.deviation, "line")
    assert len(one.path) == 3
    assert len(two.path) > 3
    assert two.deviation <= 0.999 * one.deviation
