"""Lengths against thresholds, and shortening a string inside its level set."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.params import equal
from tests.connectors.strings.strings import LEVEL, highest, quadratic, quick
from tests.problems import random_params


def test_a_straightened_string_is_shorter_and_still_below():
    objective, a, b = quadratic()
    path = im.connect(objective, a, b, quick()).path
    found = im.straighten(objective, path, LEVEL)
    assert found.before == path.normalized_length
    assert 1 <= found.after == found.path.normalized_length < 0.99 * found.before
    assert found.maximum <= LEVEL
    assert highest(objective, found.path) <= LEVEL
    assert equal(found.path.start, path.start)
    assert equal(found.path.end, path.end)
    # at a level where the straight line is below, it is what is left
    line = highest(objective, im.Path.through([a, b]))
    assert len(im.straighten(objective, path, 1.01 * line).path) == 1


def bowl():
    """(|w|^2 - 1)^2 by a custom loss: the level sets are rings."""
    module = nn.Linear(2, 1, bias=False).double()
    data = (torch.eye(2).double()[None].repeat(1, 1, 1), torch.zeros(1, 1).double())
    return im.Objective(module, lambda out, y: (out.square().sum((1, 2)) - 1).square(), data)


def at(x: float, y: float) -> im.Params:
    return {"weight": torch.tensor([[x, y]]).double()}


def test_round_a_hole_the_way_becomes_the_tangent_string():
    objective = bowl()
    level = (1 - 0.8**2) ** 2  # the hole has radius 0.8
    path = im.Path.through([at(1, 0), at(0.8, 0.8), at(0.0, 1.1), at(-0.8, 0.8), at(-1, 0)])
    found = im.straighten(objective, path, level, points=5, passes=8)
    assert highest(objective, found.path) <= level
    # two tangents and the arc between them: by hand
    arc = torch.pi - 2 * torch.acos(torch.tensor(0.8)).item()
    shortest = (2 * (1 - 0.8**2) ** 0.5 + 0.8 * arc) / 2
    assert shortest <= found.after <= 1.05 * shortest
    assert found.before > 1.2 * shortest


def test_what_cannot_be_straightened_is_refused():
    objective = bowl()
    with pytest.raises(im.InputError, match="segments below"):
        im.straighten(objective, im.Path.through([at(1, 0), at(-1, 0)]), 0.1)
    with pytest.raises(im.InputError, match="straight segments"):
        im.straighten(objective, im.Path((im.Curve((at(1, 0), at(1, 1), at(0, 1))),)), 1.0)
    with pytest.raises(im.InputError, match="passes, tol"):
        im.straighten(objective, im.Path.through([at(1, 0), at(1, 0.1)]), 0.1, passes=0)


def test_geometry_is_one_string_per_threshold_from_high_to_low():
    objective, a, b = quadratic()
    found = im.geometry(objective, a, b, [LEVEL, 0.1, 1e-2], method=quick())
    assert [level.threshold for level in found.levels] == [0.1, 1e-2, LEVEL]
    assert all(level.connected for level in found.levels)
    assert found.levels[0].beads == 0
    assert found.levels[0].normalized_length == 1.0
    beads = [level.beads for level in found.levels]
    lengths = [level.normalized_length for level in found.levels]
    assert beads == sorted(beads)
    assert lengths == sorted(lengths)
    assert lengths[-1] > 1.02
    for level, connection in zip(found.levels, found.connections, strict=True):
        alone = im.connect(objective, a, b, quick(threshold=level.threshold))
        assert all(equal(p, q) for p, q in zip(alone.path.knots, connection.path.knots, strict=True))
        assert highest(objective, connection.path, 61) <= level.threshold
        assert level.straightened is not None
        assert 1 <= level.straightened <= level.normalized_length
    assert found.to_markdown().count("\n") == 4
    assert found.to_dict()["levels"][2]["beads"] == beads[2]


def test_geometry_takes_string_methods_and_says_what_did_not_connect():
    example = im.counterexamples.permutation()
    method = quick(batch=3, steps=300, patience=2)
    found = im.geometry(example.objective, *example.minima, [0.3, 0.05], method=method)
    assert [level.connected for level in found.levels] == [True, False]
    assert found.levels[1].straightened is None
    assert "not" not in found.to_markdown().splitlines()[2]
    assert found.levels[1].outcome.lower().replace("_", " ") in found.to_markdown()
    objective, a, b = quadratic()
    with pytest.raises(im.InputError, match="string sampling method"):
        im.geometry(objective, a, b, [0.1], method=im.Linear())  # type: ignore[arg-type]
    with pytest.raises(im.InputError, match="thresholds"):
        im.geometry(objective, a, b, [])


def test_what_is_said_of_a_straightened_path_is_about_the_statistics_that_it_moves():
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).double().eval()
    objective = im.Objective(module, "mse", (torch.eye(2).double(), torch.eye(2).double()))
    points = [random_params(module, seed) for seed in (1, 2, 3)]
    level = 1.01 * highest(objective, im.Path.through(points), 201)
    found = im.straighten(objective, im.Path.through(points), level)
    measured = im.profile(objective, found, 201)
    assert measured.bn == "interpolate"
    assert measured.max <= level
    assert measured.max == pytest.approx(found.maximum, rel=0.01)
