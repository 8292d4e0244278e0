"""Everything runs on the device of the objective, and gives the numbers of the host: on a pretended device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import isthmus as im
from isthmus.premises.memorisation import memorisation, separability
from tests.laws.test_methods import QUICK, own_problem
from tests.pretended_device import DEVICE
from tests.problems import (
    Problem,
    blobs,
    classify,
    convolutional,
    deep_linear,
    made_once,
    odd_widths,
    perceptron,
    random_params,
    tanh_regression,
    two_layers,
    wide_relu,
    wide_then_narrow,
)

STEPS = im.Recipe(steps=10, batch=8)


def there(x: Tensor) -> Tensor:
    return x.to(DEVICE)


def moved(problem: Problem) -> Problem:
    """The problem on the device."""
    a, b = ({k: there(v) for k, v in p.items()} for p in (problem.a, problem.b))
    return replace(problem, objective=problem.objective.on(tree_map(there, problem.objective.data)), a=a, b=b)


def plain(found: Any) -> Any:
    """What was found, on the host."""
    return tree_map(lambda v: v.cpu() if isinstance(v, Tensor) else v, found)


@made_once
def wide_tanh() -> Problem:
    """Two classes of few examples, which half of the units memorise and separate."""
    module = perceptron([4, 24, 24, 2]).double()
    objective = im.Objective(module, "cross_entropy", blobs(16, (4,), 2))
    return Problem("memorised", objective, random_params(module, 1), random_params(module, 2))


@made_once
def narrow_batchnorm() -> Problem:
    module = nn.Sequential(nn.Linear(5, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4))
    return classify("batchnorm", module, (5,))


def path_of(p: Problem, method: im.Connector, **options: Any) -> tuple[Problem, im.Connection]:
    found = im.connect(p.objective, p.a, p.b, method, seed=1, **options)
    devices = {v.device for knot in found.path.knots for v in knot.values()}
    assert devices == {p.objective.device}
    return found


def connected(method: im.Connector) -> Callable[[Problem], Any]:
    return lambda p: list(path_of(p, method).path.knots)


def profiled(**options: Any) -> Callable[[Problem], Any]:
    def values(p: Problem) -> Any:
        line = im.connect(p.objective, p.a, p.b).path
        found = im.profile(p.objective, line, 7, **options)
        return found.t, found.loss, found.error

    return values


def certified(method: im.Connector) -> Callable[[Problem], Any]:
    def values(p: Problem) -> Any:
        found = path_of(p, method)
        proof = im.certify(p.objective, found, budget=2000)
        assert im.verify_certificate(p.objective, found.path, proof) == []
        return [s.bound for s in proof.segments]

    return values


def on_ends(ask: Callable[..., Any], *more: Any, **options: Any) -> Callable[[Problem], Any]:
    def values(p: Problem) -> Any:
        return [ask(p.objective, end, *more, **options).to_dict() for end in (p.a, p.b)]

    return values


CASES: dict[str, tuple[Callable[[], Problem], Callable[[Problem], Any]]] = {
    **{
        kind.__name__: (lambda kind=kind: own_problem(kind, 1), connected(QUICK.get(kind) or kind()))
        for kind in im.METHODS
    },
    "convolutional dropout": (convolutional, connected(im.Dropout(masks=2))),
    "convolutional subnetwork": (convolutional, connected(im.Subnetwork(draws=2, inner=im.Trained(recipe=STEPS)))),
    "subnetwork, own": (odd_widths, connected(im.Subnetwork(subsets="own", draws=2, inner=im.Trained(recipe=STEPS, init="dropout")))),
    "subnetwork, search": (odd_widths, connected(im.Subnetwork(fraction="search", inner=im.Trained(recipe=STEPS)))),
    "memorised": (wide_tanh, connected(im.Subnetwork(inner=im.Memorised(), draws=2))),
    "separated": (wide_tanh, connected(im.Subnetwork(inner=im.Separated(), draws=2))),
    "sublevel wide": (wide_relu, connected(im.Sublevel())),
    "sublevel narrow": (wide_then_narrow, connected(im.Sublevel())),
    "two layer lasso": (lambda: own_problem(im.TwoLayerReLU, 1), connected(im.TwoLayerReLU(units=3, attempts=1, recipe=STEPS))),
    "dropout random": (odd_widths, connected(im.Dropout(masks=2, search="random"))),
    "profile": (odd_widths, profiled()),
    "profile tol": (odd_widths, profiled(tol=1e-2)),
    "profile conv": (convolutional, profiled()),
    "profile tanh": (tanh_regression, profiled()),
    "profile screen": (odd_widths, profiled(screen="bf16")),
    **{f"profile {bn}": (narrow_batchnorm, profiled(bn=bn)) for bn in ("interpolate", "recompute", "keep")},
    "certify": (two_layers, certified(im.Linear())),
    "certify conv": (convolutional, certified(im.Linear())),
    "certify bn": (narrow_batchnorm, certified(im.Linear())),
    "certify tanh": (tanh_regression, certified(im.Linear())),
    "certify dropout": (odd_widths, certified(im.Dropout(masks=2))),
    "certify sublevel": (wide_relu, certified(im.Sublevel())),
    "dropout stability": (odd_widths, on_ends(im.dropout_stability, masks=4)),
    "dropout stability conv": (convolutional, on_ends(im.dropout_stability, masks=4)),
    "dropout stability greedy": (odd_widths, on_ends(im.dropout_stability, masks=4, search="greedy")),
    "pattern": (odd_widths, lambda p: vars(im.pattern_stability(p.objective, p.a, 3))),
    "noise": (odd_widths, on_ends(im.noise_stability, draws=2, examples=5)),
    "noise conv": (convolutional, on_ends(im.noise_stability, draws=2, examples=5)),
    "subnetwork bounds": (odd_widths, on_ends(im.subnetwork_bounds, draws=2, recipe=STEPS, masks=2)),
    "dropout bounds": (odd_widths, on_ends(im.dropout_bounds, draws=3)),
}
