"""Layers of one or few units: of one unit a half is none, which leaves a constant network, and no claim is lower."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import isthmus as im
from isthmus.training.fit import Recipe
from tests.problems import Problem, classify, perceptron

F64 = torch.float64
METHODS: dict[str, im.Connector] = {
    "gates": im.Dropout(masks=20),
    "greedy, every vertex": im.Dropout(masks=20, search="greedy", scale="each", every_vertex=True),
    "a third": im.Dropout(masks=3, keep=1 / 3, search="random", scale="layer"),
    "noise": im.NoiseDropout(draws=3),
    "noise, bernoulli": im.NoiseDropout(draws=3, counts="bernoulli"),
    "narrow": im.Narrow(draws=2, recipe=im.Recipe(steps=20)),
    "narrow, one unit": im.Narrow(width=1, draws=2, p=0.5, counts="bernoulli", recipe=im.Recipe(steps=20)),
    "subnetwork": im.Subnetwork(draws=2, inner=im.Trained(recipe=im.Recipe(steps=20), hub_steps=20)),
    "subnetwork, own": im.Subnetwork(
        subsets="own", inner=im.Trained(recipe=im.Recipe(steps=20), hub_steps=20, init="dropout", masks=4)
    ),
    "mean field": im.MeanField(),
    "mean field, opposite": im.MeanField("random", "opposite"),
}


def claimed(stats: Any) -> float:
    """What the theorem of a method says of its path, from the parts that its stats hold."""
    if "dropped" in stats:
        return max(row["loss"] for end in "ab" for row in stats["dropped"][end])
    if "halved" in stats:
        return max(row["loss"] for row in stats["halved"])
    if "subnetworks" in stats:
        return stats["limited_by"]["loss"]
    return max(stats["noise"]["constructed"]["max_loss"], *(stats["noise"][end]["max_loss"] for end in "ab"))


# -- networks of two weights, where the lowest level of all paths can be computed


def one_unit(x: list[float], y: list[float]) -> im.Objective:
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False)).double()
    return im.Objective(net, "mse", (torch.tensor(x, dtype=F64)[:, None], torch.tensor(y, dtype=F64)[:, None]))


def point(w: float, v: float) -> im.Params:
    return {"0.weight": torch.tensor([[w]], dtype=F64), "2.weight": torch.tensor([[v]], dtype=F64)}


def lowest_level(loss: Callable[[Tensor, Tensor], Tensor], a: tuple[int, int], b: tuple[int, int], n: int) -> float:
    """The least maximum of the loss along paths on the grid of n x n weights in [-2, 2]^2: Dijkstra with maxima."""
    axis = torch.linspace(-2, 2, n, dtype=F64)
    value = loss(axis[:, None].expand(n, n), axis[None].expand(n, n)).tolist()
    best, queue = {a: value[a[0]][a[1]]}, [(value[a[0]][a[1]], a)]
    while queue:
        level, (i, j) = heapq.heappop(queue)
        if (i, j) == b:
            return level
        for p in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
            if 0 <= min(p) and max(p) < n and (new := max(level, value[p[0]][p[1]])) < best.get(p, inf):
                best[p] = new
                heapq.heappush(queue, (new, p))
    raise AssertionError("a grid is connected")


@pytest.mark.parametrize(
    ("x", "y", "ends", "level"),
    [
        ([1.0, -1.0], [1.0, 1.0], ((1.0, 1.0), (-1.0, 1.0)), 1.0),
        ([1.0, -0.5, 2.0], [1.0, 0.5, 1.5], ((1.0, 1.0), (-1.5, 1.0)), 3.5 / 3),
        ([1.0, -1.0], [1.0, -1.0], ((1.0, 1.0), (-1.0, -1.0)), 1.0),
    ],
)
def test_no_claim_is_below_the_lowest_level_of_all_paths(x, y, ends, level):
    """Every path passes w = 0, where the network is the constant 0."""
    objective, (a, b) = one_unit(x, y), (point(*end) for end in ends)
    n = 81
    cells = [(round((w + 2) / 4 * (n - 1)), round((v + 2) / 4 * (n - 1))) for w, v in ends]

    def loss(w: Tensor, v: Tensor) -> Tensor:
        return torch.stack([(v * (w * p).relu() - q).square() for p, q in zip(x, y, strict=True)]).mean(0)

    true = lowest_level(loss, cells[0], cells[1], n)
    assert true == pytest.approx(level)
    assert max(objective.loss(a), objective.loss(b)) < true
    table = im.theory(objective, a, b, masks=3, draws=2, steps=20)
    assert len(table.bounds) >= 3
    assert all(bound >= true - 1e-12 for bound in table.bounds.values())
    for method in METHODS.values():
        connection = im.connect(objective, a, b, method)
        assert claimed(connection.stats) >= true - 1e-12
        assert im.profile(objective, connection.path, 21).max >= true - 1e-9
    for end in (a, b):
        found = im.dropout_stability(objective, end, masks=3)
        assert found.loss + found.epsilon == pytest.approx(level)
        assert [len(units) for units in found.layers[0].kept.values()] == [0]
        assert im.dropout_bounds(objective, end, draws=3).at(1).loss == pytest.approx(level)
        assert im.pattern_stability(objective, end, 0).dropped_loss == pytest.approx(level)
        assert im.subnetwork_bounds(objective, end, draws=2, recipe=Recipe(steps=5)).at(0).loss == pytest.approx(level)


# -- deeper networks


def convolutional(first: int, second: int, *, norm: bool) -> Problem:
    module = nn.Sequential(
        nn.Conv2d(1, first, 3, padding=1),
        nn.BatchNorm2d(first) if norm else nn.Identity(),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(9 * second, 5),
        nn.ReLU(),
        nn.Linear(5, 4),
    )
    return classify(f"channels {first}, {second}, {norm}", module, (1, 8, 8))


def plain(widths: list[int], *, bias: bool = True) -> Problem:
    return classify(str(widths), perceptron(widths, bias=bias), (5,))


NETWORKS: dict[str, Callable[[], Problem]] = {
    **{str(w): partial(plain, w) for w in ([5, 1, 4], [5, 3, 1, 4], [5, 1, 3, 4], [5, 1, 1, 4], [5, 3, 2, 4])},
    "no biases": partial(plain, [5, 3, 1, 4], bias=False),
    "channels 1, 3, norm": partial(convolutional, 1, 3, norm=True),
    "channels 3, 1": partial(convolutional, 3, 1, norm=False),
    "channels 1, 1, norm": partial(convolutional, 1, 1, norm=True),
}


@pytest.fixture(scope="module")
def problem(request: pytest.FixtureRequest) -> Problem:
    return NETWORKS[request.param]()


# every other method on a network, and the others on the next one
@pytest.mark.parametrize(
    ("problem", "name"),
    [(network, name) for i, network in enumerate(NETWORKS) for name in [*METHODS][i % 2 :: 2]],
    indirect=["problem"],
)
def test_paths_through_layers_without_units_are_proved_to_be_as_low_as_claimed(problem, name):
    connection = im.connect(problem.objective, problem.a, problem.b, METHODS[name])
    assert connection.outcome.ok
    if "noise" in connection.stats:
        losses = [problem.objective.loss(p) for p in connection.path.knots[1:-1]]
        assert max(losses) == pytest.approx(connection.stats["noise"]["constructed"]["max_loss"])
        inner = im.Path(connection.path.segments[1:-1])
        bound = max(losses)
    else:
        inner = connection.path
        bound = max(claimed(connection.stats), problem.objective.loss(problem.a), problem.objective.loss(problem.b))
    certificate = im.certify(problem.objective, inner)
    assert certificate.proved
    assert certificate.bound <= bound * (1 + 1e-7)


@pytest.mark.parametrize("problem", NETWORKS, indirect=True)
def test_measurements_and_the_table_speak_of_layers_without_units(problem):
    objective, a, b = problem.objective, problem.a, problem.b
    for keep, widths in ((0.5, {1: 0, 2: 1, 3: 1, 5: 2}), (1 / 3, {1: 0, 2: 0, 3: 1, 5: 1}), (0.1, {})):
        found = im.dropout_stability(objective, a, keep=keep, masks=3)
        for layer in found.layers:
            assert [len(v) for v in layer.kept.values()] == [
                widths.get(found.widths[l], 0) for l in range(layer.entry, len(found.widths) - 1)
            ]
            full = objective.loss(found.vertices()[layer.entry])
            assert full == pytest.approx(layer.loss, rel=1e-9)
    small = im.pattern_stability(objective, a, {l: [] for l in range(1, len(found.widths) - 1)})
    biases = a.get(f"{[k for k in a if k.endswith('weight')][-1].removesuffix('.weight')}.bias")
    constant = torch.zeros(24, 4, dtype=F64) if biases is None else biases.expand(24, 4)
    assert small.dropped_loss == pytest.approx(float(nn.functional.cross_entropy(constant, objective.data[1])))
    table = im.theory(objective, a, b, masks=2, draws=2, steps=5, examples=6)
    assert {"Theorem 1", "Theorem 4.1", "Corollary 4.2"} <= {name.rpartition(", ")[2] for name in table.bounds}
