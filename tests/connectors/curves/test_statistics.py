"""What is said of trained curves: how many pieces statistics move in, what is screened, which curve is the best."""

from __future__ import annotations

from math import inf

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.connectors.base import Task
from isthmus.connectors.curves.losses import CurveLosses
from isthmus.connectors.curves.shape import Bernstein
from isthmus.connectors.curves.statistics import settle
from isthmus.connectors.curves.train import CurveTraining
from isthmus.evaluate.batchnorm import refresh, statistics
from isthmus.params import distance, lerp
from isthmus.training.fit import Ended, Fitted
from tests.evaluate.networks import Residual
from tests.problems import classify, random_params, two_layers


def test_there_are_no_more_pieces_than_the_tolerance_asks_for():
    p = classify("normalised", Residual(), (1, 8, 8))
    line = im.Path.through([p.a, p.b])
    one = settle(p.objective, line, inf, ["line"])
    two = settle(p.objective, line, 0.999 * one.deviation, ["line"])
    assert len(one.path) == 3
    assert len(two.path) > 3
    assert two.deviation <= 0.999 * one.deviation


def test_statistics_move_at_constant_speed_on_the_pieces_of_a_curve():
    p = classify("normalised", Residual(), (1, 8, 8))
    drawn = random_params(p.objective.skeleton, 3)
    middle = {k: drawn[k] if v.is_floating_point() else v for k, v in p.a.items()}
    bent = im.Path((im.Curve((p.a, middle, p.b)),))
    parts = settle(p.objective, bent, inf, ["curve"]).path.segments[1:-1]
    names = [k for k in statistics(p.objective) if "running" in k]
    for part in parts:
        half, even = part.at(0.5), lerp(part.start, part.end, 0.5)
        assert all(torch.allclose(half[k], even[k], rtol=1e-12) for k in names)
        assert not any(torch.equal(part.start[k], part.end[k]) for k in names)


def test_pieces_are_looked_at_beside_their_middles():
    """On three examples statistics turn fast: in the middle of the line they are right by chance."""
    torch.manual_seed(0)
    x, y = torch.randn(3, 4, dtype=torch.float64), torch.arange(3)
    module = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)).double().eval()
    objective = im.Objective(module, data=(x, y))
    line = im.Path.through([random_params(module, seed) for seed in (0, 1)])
    found = settle(objective, line, 0.02, ["line"])
    parts = found.path.segments[1:-1]
    points = [part.at(k / 12) for part in parts for k in range(13)]
    off = [abs(objective.loss(p) - objective.loss(refresh(objective, p))) for p in points]
    assert found.points == 7
    assert found.deviation <= 0.02
    assert max(off) <= 0.03


def test_the_place_of_the_largest_loss_is_one_of_the_path_in_pieces():
    """On pieces of different lengths the t of the curve is another one."""
    torch.manual_seed(0)
    x, y = torch.randn(3, 4, dtype=torch.float64), torch.arange(3)
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)).double().eval()
    objective = im.Objective(module, data=(x, y))
    a, b = (random_params(module, seed) for seed in (0, 1))
    for method in (
        im.Bezier(recipe=im.Recipe(lr=None, epochs=2)),
        im.PolyChain(bends=4, recipe=im.Recipe(lr=None, epochs=2)),
    ):
        found = im.connect(objective, a, b, method)
        assert found.info.statistics["pieces"] > 3
        point = refresh(objective, found.path.at(found.info.t))
        assert objective.loss(point) == pytest.approx(found.info.max, rel=1e-9)


def test_points_are_screened_on_examples_of_all_classes():
    """The first 2,000 of sorted data are of one class."""
    x = torch.eye(2, dtype=torch.float64).repeat_interleave(4000, 0)
    objective = im.Objective(nn.Linear(2, 2, bias=False), data=(x, x.argmax(1)))
    point = {"weight": torch.tensor([[3.0, 1.0], [0.0, 0.0]], dtype=torch.float64)}
    assert CurveLosses.of(objective, "recompute", "own").few(point) == pytest.approx(objective.loss(point), rel=0.05)


def test_the_line_is_returned_where_it_turns_out_to_be_lower():
    """A few examples may show the line to be higher than it is on all."""
    p = two_layers()
    task = Task(p.objective, p.a, p.b, torch.Generator().manual_seed(0))
    training = CurveTraining.start(
        task, Bernstein(3), im.Recipe(lr=0.1), focus=1.0, draws=1, target=None, bn="recompute"
    )
    bends = training.setting.straight(training.shape, "bend")
    line = training.setting.highest(training.shape, bends).loss
    moved = {k: v + 1 for k, v in bends.items()}
    for share, is_line in ((0.99, False), (1.0, True), (1.01, True)):
        reached = share * line
        training.history = [{"max": 1.02 * line, "t": 0.5}, {"max": reached, "t": 0.25}]
        found = training._best(Fitted(moved, reached, 1, Ended.BUDGET))
        assert (distance(found.control[1], lerp(p.a, p.b, 0.5)) < 1e-9) == is_line
        assert found.highest.loss == pytest.approx(min(line, reached))


@pytest.mark.parametrize("number", [3, 5, 2])
def test_no_example_is_left_alone_with_statistics_of_its_own(number):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).double().eval()
    data = torch.randn(number, 3).double(), torch.arange(number) % 2
    objective = im.Objective(module, "cross_entropy", data, memory=1)
    ends = [random_params(module, seed) for seed in (1, 2)]
    found = im.connect(objective, ends[0], ends[1], im.Bezier(recipe=im.Recipe(lr=None, epochs=2, batch=4)))
    assert found.info.max > 0
