"""The band: its directions, where its pivots are, what a step may move, and what it reaches."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.connectors.base import Task
from isthmus.connectors.curves.losses import CurveLosses
from isthmus.connectors.curves.setting import CurveSetting
from isthmus.connectors.neb.spacing import between, gaps, places, with_new
from isthmus.connectors.neb.tangent import across, tangent
from isthmus.connectors.neb.train import ElasticBand
from isthmus.params import distance, equal
from isthmus.training.fit import Recipe
from tests.evaluate.networks import Residual
from tests.problems import blobs, odd_widths, permuted, random_params

QUICK = im.AutoNEB(cycles=((8, 3), (8, 2)), recipe=Recipe(lr=None, batch=8))

# -- the direction of the band; the steps to the middle point and from it are (2, 0) and (0, 1)

CASES = [
    ("rising", (1, 2, 5), (0, 1)),
    ("falling", (5, 2, 1), (2, 0)),
    ("maximum, right higher", (1, 5, 4), (2 * 1, 1 * 4)),  # differences 4 and 1: the larger weight to the right
    ("maximum, left higher", (4, 5, 1), (2 * 4, 1 * 1)),
    ("minimum, right higher", (2, 1, 5), (2 * 1, 1 * 4)),
    ("minimum, left higher", (5, 1, 2), (2 * 4, 1 * 1)),
    ("maximum, neighbours equal", (1, 2, 1), (2, 1)),
    ("flat", (1, 1, 1), (2, 1)),
    ("level on the left, then up", (1, 1, 3), (0, 1)),  # differences 0 and 2
    ("level on the right, from above", (3, 1, 1), (2, 0)),
]


@pytest.mark.parametrize(("losses", "wanted"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_the_tangent_of_every_case(losses, wanted):
    points = [torch.tensor(p, dtype=torch.float64) for p in ([0, 0], [2, 0], [2, 1])]
    wanted = np.array(wanted, dtype=float)
    assert tangent(points, losses, "henkelman").numpy() == pytest.approx(wanted / np.linalg.norm(wanted))
    assert tangent(points, losses, "central").numpy() == pytest.approx(np.array([2, 1]) / 5**0.5)


def test_a_point_on_its_neighbours_has_no_direction():
    points = [torch.ones(3)] * 3
    assert not tangent(points, [1.0, 2.0, 1.0], "henkelman").any()
    assert torch.equal(across(torch.ones(3), torch.zeros(3)), torch.ones(3))


# -- where pivots are


def band_of(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(6, generator=g, dtype=torch.float64) for _ in range(n)]


@pytest.mark.parametrize("shares", [[0.25] * 4, [1, 5, 0.5, 2]])
def test_spread_pivots_lie_on_the_old_band_with_the_shares_of_its_length(shares):
    points = band_of(5)
    at = places(points, shares)
    new = between(points, at)
    assert len(new) == 3
    lengths = [float((q - p).norm()) for p, q in pairwise(points)]
    for (gap, where), point, share in zip(at, new, np.cumsum(shares), strict=False):
        assert 0 <= where <= 1
        start, end = points[gap], points[gap + 1]
        assert float((point - start).norm() + (end - point).norm()) == pytest.approx(lengths[gap], rel=1e-12)
        arc = sum(lengths[:gap]) + float((point - start).norm())
        assert arc == pytest.approx(sum(lengths) * share / sum(shares), rel=1e-12)


def test_pivots_that_coincide_can_be_spread():
    point = torch.ones(2)
    assert between([point] * 4, places([point] * 4, [1.0] * 3)) == [pytest.approx(point)] * 2
    line = [torch.tensor([v]) for v in (0.0, 0.0, 3.0, 3.0)]
    assert [float(p) for p in between(line, places(line, [1.0] * 3))] == pytest.approx([1, 2])


SCREENED = {0.0: 1, 0.1: 1.5, 0.25: 2, 0.3: 2.5, 0.5: 1, 0.6: 1.05, 0.75: 3, 0.9: 2.9, 1.0: 1}


@pytest.mark.parametrize(
    ("rule", "target", "wanted"),
    [("peak", 0.0, [1]), ("peak", 2.6, []), ("highest", 0.0, [3, 1, 0])],
    ids=["above both pivots", "but not above the target", "above the chord"],
)
def test_new_pivots_go_where_the_loss_asks_for_them(rule, target, wanted):
    # gap 0 is a little above its chord, gap 1 has a peak of 2.5, gap 2 is below its chord, gap 3 far above
    found = gaps(SCREENED, 5, rule, target)
    assert [gap for gap, _ in found] == wanted
    assert all(0 < where < 1 for _, where in found)


def test_a_divided_gap_keeps_the_band_and_its_length():
    points, shares = band_of(3), [0.5, 0.5]
    new, parts = with_new(points, shares, [(1, 0.25)])
    assert [len(new), *parts] == [4, 0.5, 0.125, 0.375]
    assert torch.equal(new[2], torch.lerp(points[1], points[2], 0.25))


# -- steps


def band(p, method):
    task = Task(p.objective, p.a, p.b, torch.Generator().manual_seed(0))
    return ElasticBand(method, CurveSetting.of(task, method.recipe, method.target, method.bn))


@pytest.mark.parametrize(
    "recipe", [Recipe(lr=None, batch=8), Recipe("sgd", lr=0.1, batch=8, weight_decay=0.1)], ids=str
)
@pytest.mark.parametrize("rule", ["henkelman", "central"])
def test_no_step_moves_a_pivot_along_the_band(monkeypatch, recipe, rule):
    monkeypatch.setattr("isthmus.connectors.neb.train._SPREAD", 10**6)
    found = band(permuted(), replace(QUICK, cycles=((12, 3),), recipe=recipe, tangent=rule))
    seen = []
    real = ElasticBand._moved

    def watched(self, before, now, kept):
        raw = {k: v.clone() for k, v in now.items()}
        real(self, before, now, kept)
        for k, unit in zip(now, self.tangents, strict=True):
            update, whole = now[k] - before[k], raw[k] - before[k]
            seen.append(float(torch.dot(update, unit).abs() / update.norm()))
            assert float(unit.norm()) == pytest.approx(1)
            assert float((update - whole).norm()) <= float(whole.norm())

    monkeypatch.setattr(ElasticBand, "_moved", watched)
    found.run()
    assert len(seen) == 36
    assert max(seen) < 1e-9


def test_spreading_takes_the_momenta_along(monkeypatch):
    found = band(permuted(), QUICK)
    a, b = found.setting.vectors
    now = {f"pivot {i}": torch.lerp(a, b, t) for i, t in enumerate((0.1, 0.2, 0.3), 1)}
    before = {k: v.clone() for k, v in now.items()}
    kept = {k: (i + 1.0) * torch.ones_like(a) for i, k in enumerate(now)}
    found.means, found.shares, found.step = [1.0, 2.0, 3.0], [0.25] * 4, 9
    found.tangents = [torch.zeros_like(a)] * 3
    found._moved(before, now, [kept])
    for i, v in enumerate(now.values(), 1):
        assert torch.allclose(v, torch.lerp(a, b, i / 4), rtol=1e-12)
    # on the old band 1/4 is the middle of the second and third pivot, 1/2 and 3/4 lie between the last and the end
    assert [float(v[0]) for v in kept.values()] == pytest.approx([2.5, 3 * 5 / 7, 3 * 2.5 / 7])
    end = found.setting.ends[1]
    assert found.means == pytest.approx([2.5, 3 * 5 / 7 + end * 2 / 7, 3 * 2.5 / 7 + end * 4.5 / 7])


def test_all_pivots_of_a_step_see_one_batch_and_the_ends_are_run_once(monkeypatch):
    p = permuted()
    batches, wholes = [], []
    batch, every = CurveLosses.batch, CurveLosses.all

    def watched(self, point, index):
        batches.append(index.tolist())
        return batch(self, point, index)

    def measured(self, point):
        wholes.append([equal(point, end) for end in (p.a, p.b)])
        return every(self, point)

    monkeypatch.setattr(CurveLosses, "batch", watched)
    monkeypatch.setattr(CurveLosses, "all", measured)
    im.connect(p.objective, p.a, p.b, replace(QUICK, cycles=((5, 4),)))
    assert len(batches) == 20
    assert all(row == batches[4 * (i // 4)] for i, row in enumerate(batches))
    assert np.sum(wholes, 0).tolist() == [1, 1]


def test_a_step_goes_down_the_running_means_across_the_band():
    """The tangent is told by running means; a pivot's gradient is that of its loss without the part along it."""
    p = permuted()
    found = band(p, QUICK)
    a, b = found.setting.vectors
    pivots = {f"pivot {i}": torch.lerp(a, b, i / 4).requires_grad_() for i in (1, 2, 3)}
    index = [torch.arange(4), torch.arange(4, 12)]
    seen = [[found._slope(v, i / 4, part) for i, v in enumerate(pivots.values(), 1)] for part in index]
    _, total = (found._batch_loss(pivots, part) for part in index)
    assert found.means == pytest.approx([0.9 * one[0] + 0.1 * two[0] for one, two in zip(*seen, strict=True)])
    grads = torch.autograd.grad(total, list(pivots.values()))
    for grad, (_, slope), unit in zip(grads, seen[1], found.tangents, strict=True):
        assert float(torch.dot(grad, unit).abs()) < 1e-12 * float(slope.norm())
        assert torch.allclose(grad + torch.dot(slope, unit) * unit, slope, rtol=1e-10)


@pytest.mark.parametrize(("spacing", "wanted"), [("equal", [1 / 5] * 5), ("loss", [0.05, 0.05, 0.1, 0.1, 0.7])])
def test_as_many_pivots_are_put_in_as_a_cycle_says(monkeypatch, spacing, wanted):
    found = band(permuted(), replace(QUICK, spacing=spacing))
    a, b = found.setting.vectors
    found.shares = [0.1, 0.2, 0.7]
    monkeypatch.setattr(ElasticBand, "_gaps", lambda self, pivots: [(1, 0.5), (0, 0.5), (2, 0.5)])
    more = found._inserted([torch.lerp(a, b, 0.1), torch.lerp(a, b, 0.3)], 2)
    assert found.shares == pytest.approx(wanted)
    lengths = [float((q - p).norm()) for p, q in pairwise([a, *more, b])]
    assert np.array(lengths) / sum(lengths) == pytest.approx(wanted)


# -- the method


@pytest.mark.parametrize("spacing", ["equal", "loss"])
@pytest.mark.parametrize("insertion", ["peak", "highest"])
def test_a_band_is_far_below_the_line(spacing, insertion):
    p = permuted()
    found = im.connect(p.objective, p.a, p.b, replace(QUICK, spacing=spacing, insertion=insertion))
    line, measured = (im.profile(p.objective, v, 17) for v in (im.connect(p.objective, p.a, p.b), found))
    assert measured.max < 0.5 * line.max
    assert found.info.max == pytest.approx(measured.max, rel=0.1)
    assert found.outcome.ok == (found.info.max <= found.info.target)
    rows = found.info.history
    assert rows[0]["max"] == pytest.approx(line.max, rel=0.1)
    assert found.info.max == min(row["max"] for row in rows if row["confirmed"])
    assert found.info.gradient_steps == sum(8 * pivots for pivots in (3, found.info.pivots))
    lengths = [s.length for s in found.path.segments]
    assert len(lengths) == found.info.pivots + 1 == len(found.labels)


def test_it_ends_where_no_gap_asks_for_a_pivot_and_at_the_target():
    p = permuted()
    line = im.connect(p.objective, p.a, p.b)
    top = im.profile(p.objective, line, 17).max
    done = im.connect(p.objective, p.a, p.b, replace(QUICK, target=2 * top))
    assert done.outcome.ok
    assert done.info.gradient_steps == 0
    same = im.connect(p.objective, p.a, {**p.a}, QUICK)
    assert same.outcome.ok
    with pytest.raises(im.InputError, match="target: expected at least the larger end's loss"):
        im.connect(p.objective, p.a, p.b, replace(QUICK, target=-1.0))


def test_the_recipe_is_a_budget_for_all_cycles():
    p = permuted()
    found = im.connect(p.objective, p.a, p.b, replace(QUICK, recipe=Recipe(lr=None, batch=8, steps=12, check=4)))
    assert found.info.gradient_steps == 8 * 3 + 4 * found.info.pivots
    assert [row["step"] for row in found.info.history] == [0, 4, 8, 12]


def test_statistics_are_recomputed_at_knots_and_settle_at_the_ends():
    x, y = blobs(24, (1, 8, 8), 4)
    objective = im.Objective(Residual().double().eval(), data=(x, y))
    a, b = (random_params(Residual(), seed) for seed in (1, 2))
    found = im.connect(objective, a, b, replace(QUICK, cycles=((6, 2),)))
    assert equal(found.path.start, objective.check(a))
    assert equal(found.path.end, objective.check(b))
    assert len(found.path) == found.info.statistics["pieces"] + 2
    assert found.labels[0] == "the statistics of the start settle"


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"cycles": ()}, "cycles"),
        ({"cycles": ((10, 0),)}, "cycles"),
        ({"cycles": ((0, 3),)}, "cycles"),
        ({"cycles": (10, 3)}, "cycles"),
        ({"cycles": 3}, "cycles"),
        ({"recipe": None}, "recipe: expected a Recipe"),
        ({"tangent": "upwind"}, "tangent"),
        ({"spacing": "even"}, "spacing"),
        ({"insertion": "middle"}, "insertion"),
        ({"bn": "freeze"}, "bn"),
        ({"recipe": Recipe("lbfgs")}, "recipe"),
    ],
)
def test_options_that_do_not_fit_are_refused(wrong, what):
    with pytest.raises(im.InputError, match=what):
        im.AutoNEB(**wrong)


def test_the_line_is_returned_where_training_makes_it_worse():
    p = odd_widths()
    wild = replace(QUICK, recipe=Recipe(lr=10.0, batch=8, schedule="constant"))
    found = im.connect(p.objective, p.a, p.b, wild)
    line = im.connect(p.objective, p.a, p.b)
    assert found.info.max == pytest.approx(im.profile(p.objective, line, 65).max, rel=1e-2)
    assert found.path.length == pytest.approx(distance(p.a, p.b))


def test_where_the_line_is_not_finite_is_said():
    """A NaN in the middle of the line: training does not begin."""
    x = torch.ones(4, 1)
    loss = lambda out, y: ((out - y).square() + torch.where((out - 1.5).abs() < 0.02, torch.nan, 0.0)).sum(1)
    objective = im.Objective(nn.Linear(1, 1, bias=False), loss, (x, torch.zeros(4, 1)))
    a, b = ({"weight": v * torch.ones(1, 1)} for v in (2.0, 1.0))
    for method in (im.Bezier(), im.AutoNEB()):
        found = im.connect(objective, a, b, method)
        assert found.outcome is im.Outcome.NOT_FINITE
        assert (found.info.max, found.info.t) == (float("inf"), 0.5)
        assert found.message.startswith("the loss is not finite at t = 0.5 on the straight line")
        with pytest.raises(im.OutcomeError, match=r"not finite at t = 0\.5 on the straight line"):
            im.connect(objective, a, b, method, throw=True)
    assert im.connect(objective, a, a).message == str(im.Outcome.CONSTRUCTED)


@pytest.mark.parametrize("method", [im.Bezier(), im.PolyChain(), im.AutoNEB()], ids=lambda m: type(m).__name__)
def test_an_objective_without_examples_is_refused(method):
    net = nn.Linear(2, 2)
    numbers = im.Objective(net, evaluate=lambda params: {"loss": 1.0})
    with pytest.raises(im.UnsupportedError, match="evaluate= gives only the loss"):
        im.connect(numbers, net, nn.Linear(2, 2), method)
