"""One block after another moves: what each segment may change, the arc, the halving, and what it reaches."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.connectors.base import Task
from isthmus.connectors.curves.setting import CurveSetting
from isthmus.connectors.layer_wise import _Walk, on_arc
from isthmus.data import load
from isthmus.params import equal
from isthmus.pipeline import train
from isthmus.training.fit import Recipe
from tests.evaluate.networks import Residual
from tests.problems import Problem, blobs, made_once, perceptron, permuted, random_params

QUICK = im.LayerWise(moves=3, halvings=0, recipe=Recipe(lr=None, steps=40, batch=64, beta2=0.95))


@made_once
def digits():
    """Two trained perceptrons; the straight line between them is high."""
    held = load("digits").flat().subset(400, None)
    x, y = held.x_train.double(), held.y_train
    return trained("digits", lambda: perceptron([64, 24, 24, 10]), x, y)


def trained(name, make, x, y, steps=300):
    ends = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        ends.append(train(make().double(), (x, y), Recipe(lr=1e-2, steps=steps, batch=64), seed=seed).params)
    return Problem(name, im.Objective(make().double().eval(), data=(x, y)), *ends)


def connected(method=QUICK, problem=None):
    problem = problem or digits()
    return problem, im.connect(problem.objective, problem.a, problem.b, method)


@cache
def quickly():
    return connected()


def block(params, name):
    return {k: v for k, v in params.items() if k.startswith(f"{name}.")}


def test_a_segment_moves_one_block_and_those_above_it():
    problem, found = quickly()
    assert found.labels == ("0 moves",) * 3 + ("2 moves",) * 3 + ("4 moves",) * 3
    names = ["0", "2", "4"]
    for label, segment in zip(found.labels, found.path.segments, strict=True):
        moving = names.index(label.split()[0])
        for below in names[:moving]:
            assert equal(block(segment.start, below), block(problem.b, below))
            assert equal(block(segment.end, below), block(problem.b, below))
        assert not equal(block(segment.start, names[moving]), block(segment.end, names[moving]))
    assert equal(block(found.path.segments[2].end, "0"), block(problem.b, "0"))


def test_the_first_block_keeps_its_norms_and_goes_the_same_angle_in_every_step():
    problem, found = connected(replace(QUICK, moves=4))
    points = [p["0.weight"] for p in found.path.knots[:5]]
    sizes = [float(p.norm()) for p in points]
    assert sizes == pytest.approx(torch.linspace(sizes[0], sizes[-1], 5).tolist(), rel=1e-6)
    cosines = [float((p * q).sum() / p.norm() / q.norm()) for p, q in pairwise(points)]
    assert cosines == pytest.approx([cosines[0]] * 4, rel=1e-9)
    assert equal({"w": points[-1]}, {"w": problem.b["0.weight"]})


def test_the_norm_on_an_arc_moves_evenly_and_where_there_is_no_arc_it_is_the_line():
    p, q = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 1.0])
    assert [float(on_arc(p, q, t).norm()) for t in (0, 0.25, 0.5, 1)] == pytest.approx([3, 2.5, 2, 1])
    assert torch.equal(on_arc(p, q, 1.0), q)
    for other in (-2 * p, p.clone(), torch.zeros(2)):
        torch.testing.assert_close(on_arc(p, other, 0.25), torch.lerp(p, other, 0.25))


def test_the_path_is_far_below_the_straight_line_and_the_largest_loss_is_what_it_says():
    problem, found = connected(replace(QUICK, moves=6, recipe=replace(QUICK.recipe, steps=100)))
    line = im.profile(problem.objective, im.connect(problem.objective, problem.a, problem.b)).max
    dense = im.profile(problem.objective, found, 16 * len(found.path) + 1).max
    assert found.info.max <= 0.2 * line
    assert found.info.max <= dense <= found.info.max * 1.05


def test_following_is_what_makes_it_low():
    """With steps of training that move nothing, only the block moves."""
    _, trained = quickly()
    _, alone = connected(replace(QUICK, recipe=replace(QUICK.recipe, lr=1e-12)))
    assert trained.info.max < 0.7 * alone.info.max


def test_a_given_rate_is_that_of_the_weights():
    """Adam's first step moves every weight by its rate."""
    problem = digits()
    task = Task(problem.objective, problem.a, problem.b, torch.Generator().manual_seed(0))
    method = im.LayerWise(recipe=Recipe(lr=1e-3, steps=1, batch=400))
    walk = _Walk.start(method, CurveSetting.of(task, method.recipe, None, "recompute"))
    there = walk._followed(problem.a, walk.blocks[0])
    moved = torch.cat([(there[k] - problem.a[k]).flatten() for k in walk.blocks[0].later]).abs()
    assert float(moved.max()) == pytest.approx(1e-3, rel=1e-3)
    assert float(moved.median()) == pytest.approx(1e-3, rel=1e-3)


def test_a_step_whose_loss_is_above_the_target_is_halved_as_often_as_allowed():
    _, found = connected(replace(QUICK, moves=2, halvings=2))
    rows = [row for row in found.info.blocks if row["block"] == "0"]
    steps = [q - p for p, q in pairwise([0.0, *(row["at"] for row in rows)])]
    assert rows[-1]["at"] == 1
    assert set(steps) <= {0.5, 0.25, 0.125}
    assert steps == sorted(steps, reverse=True)
    assert all(row["max"] <= found.info.target for row, step in zip(rows, steps, strict=True) if step > 0.125)


def test_each_step_knows_the_largest_loss_on_it():
    """Looked for at quarters, on some examples in a fast precision: here on all of them."""
    problem, found = quickly()
    steps = zip(found.info.blocks, found.path.segments, strict=False)  # the last block moves alone, in a straight line
    for row, segment in steps:
        losses = [problem.objective.loss(segment.at(t)) for t in (0.25, 0.5, 0.75, 1.0)]
        assert row["max"] == pytest.approx(max(losses), rel=1e-4)
        assert min(losses) < 0.99 * max(losses)


def test_the_last_layer_moves_alone_and_that_is_proved_to_add_nothing():
    problem, found = quickly()
    certificate = im.certify(problem.objective, found, budget=0)
    for segment, bounds in list(zip(found.path.segments, certificate.segments, strict=True))[-3:]:
        ends = max(problem.objective.loss(segment.start), problem.objective.loss(segment.end))
        assert bounds.claim == "convex"
        assert bounds.bound == pytest.approx(ends, rel=1e-6)


def test_a_straight_line_that_is_low_enough_is_taken():
    problem = permuted()
    near = {k: v * 1.0001 for k, v in problem.a.items()}
    found = im.connect(problem.objective, problem.a, near, QUICK)
    assert found.labels == ("straight",)
    assert found.outcome is im.Outcome.CONSTRUCTED
    assert found.info.gradient_steps == 0


def test_blocks_of_the_users_move_in_their_order_and_what_they_leave_out_moves_last():
    blocks = {"top": ["4.weight", "4.bias"], "bottom": ["0.weight", "0.bias"]}
    problem, found = connected(replace(QUICK, moves=1, blocks=blocks))
    assert found.labels == ("top moves", "bottom moves", "the rest moves")
    assert equal(block(found.path.segments[0].end, "4"), block(problem.b, "4"))
    for wrong in ({"a": ["5.weight"]}, {"a": []}, {}, {"a": ["0.weight"], "b": ["0.weight"]}):
        with pytest.raises(im.InputError, match="names of tensors, each in one block"):
            connected(replace(QUICK, blocks=wrong))


@pytest.mark.parametrize("norm", [nn.Identity(), nn.BatchNorm1d(6)], ids=["plain", "batch norm"])
def test_between_a_network_and_itself_every_segment_has_its_label(norm):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 6), norm, nn.ReLU(), nn.Linear(6, 2)).double().eval()
    objective = im.Objective(module, "cross_entropy", blobs(12, (3,), 2))
    a = {k: v.clone() for k, v in module.state_dict().items()}
    found = im.connect(objective, a, {k: v.clone() for k, v in a.items()}, im.LayerWise(moves=2))
    assert "straight" in found.stats["segments"]
    assert len(found.stats["segments"]) == len(found.path)
    assert found.outcome.ok


def test_batchnorm_gives_a_plain_path_with_statistics_of_its_own():
    images, y = blobs(60, (1, 8, 8), 4)
    problem, found = connected(problem=trained("residual", Residual, images, y, steps=100))
    assert found.labels[0] == "the statistics of the start settle"
    assert len(found.labels) == len(found.path)
    assert {"first moves", "inner moves", "norm moves", "last moves"} >= set(found.labels[1:-1])
    highest = im.profile(problem.objective, found, 8 * len(found.path) + 1, bn="interpolate").max
    ends = [problem.objective.loss(p) for p in (found.path.start, found.target)]
    assert highest == pytest.approx(max(found.info.max, *ends), rel=0.1)


def test_tied_tensors_move_together_and_shared_ones_stay():
    def make():
        net = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 6, bias=False)).double()
        net[3].weight = net[0].weight
        return net

    x = torch.arange(6)
    problem = trained("tied", make, x, x.flip(0))
    problem.b["1.bias"] = problem.a["1.bias"]
    _, found = connected(replace(QUICK, moves=6, recipe=replace(QUICK.recipe, steps=200)), problem)
    assert len(found.path) > 1
    for knot in found.path.knots:
        assert torch.equal(knot["0.weight"], knot["3.weight"])
        assert torch.equal(knot["1.bias"], problem.a["1.bias"])


def test_ends_between_which_the_loss_is_not_finite_are_not_called_connected():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    x, y = blobs(8, (2,), 2)
    objective = im.Objective(net, lambda out, y: torch.where(out.abs().sum(-1) > 1e-6, 1.0, torch.inf), (x, y))
    a = random_params(net, 1)
    b = {**a, "2.weight": -a["2.weight"], "2.bias": -a["2.bias"]}
    found = im.connect(objective, a, b, QUICK)
    assert found.outcome is im.Outcome.NOT_FINITE


def test_a_loss_that_may_be_negative_is_followed_as_any_other():
    problem = digits()
    x, y = problem.objective.source.held()
    lower = im.Objective(
        problem.objective.skeleton, lambda out, y: nn.functional.cross_entropy(out, y, reduction="none") - 5.0, (x, y)
    )
    target = max(problem.objective.loss(p) for p in (problem.a, problem.b)) + 1e-3
    _, found = connected(replace(QUICK, target=target))
    below = im.connect(lower, problem.a, problem.b, replace(QUICK, target=target - 5))
    assert below.info.gradient_steps == found.info.gradient_steps > 0
    assert below.info.max + 5 == pytest.approx(found.info.max, rel=1e-6)
