"""Equivalent spellings of one function: whatever reads a chain of layers answers the same for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from math import isclose
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn, relu

import isthmus as im
from isthmus.premises.mean_field import multilayer_premises, two_layer_premises
from isthmus.premises.memorisation import memorisation, separability
from isthmus.structure.chain import Chain, chain_of
from isthmus.training.fit import Recipe
from tests.problems import blobs, random_params

Forward = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    """Layers c, d, e in the order in which a `forward` reads them."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        for name, layer in zip("cdefg", layers, strict=False):
            self.add_module(name, layer)


@cache
def spelt(forward: Forward) -> type[Net]:
    """A class for every spelling: two networks of one class are exported once."""
    return type("Spelt", (Net,), {"forward": forward})


def drop(x: Tensor) -> Tensor:
    return F.dropout(x, 0.5, training=False)


def pool(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 2)


def two() -> list[nn.Module]:
    return [nn.Conv2d(1, 6, 3), nn.Linear(24, 4)]


def three() -> list[nn.Module]:
    return [nn.Conv2d(1, 6, 3), nn.Linear(24, 10), nn.Linear(10, 4)]


def averaged() -> list[nn.Module]:
    return [nn.Conv2d(1, 8, 2), nn.Linear(8, 4)]


def linear() -> list[nn.Module]:
    return [nn.Conv2d(1, 12, 3), nn.Linear(48, 4)]


def shallow() -> list[nn.Module]:
    return [nn.Linear(16, 9), nn.Linear(9, 4)]


def perceptron() -> list[nn.Module]:
    return [nn.Linear(16, 9), nn.Linear(9, 8), nn.Linear(8, 4)]


# the first of each family is the plain one; images of 4 x 4 pixels, 2 x 2 behind the convolutions with kernel 3
FAMILIES: dict[str, tuple[Callable[[], list[nn.Module]], dict[str, Forward]]] = {
    "two layers": (
        two,
        {
            "relu, flatten": lambda n, x: n.d(relu(n.c(x)).flatten(1)),
            "flatten, relu": lambda n, x: n.d(relu(n.c(x).flatten(1))),
            "relu, flatten, dropout": lambda n, x: n.d(drop(relu(n.c(x)).flatten(1))),
            "relu, flatten, relu": lambda n, x: n.d(relu(relu(n.c(x)).flatten(1))),
            "view, relu": lambda n, x: n.d(relu(n.c(x).view(x.shape[0], -1))),
            "relu, view": lambda n, x: n.d(relu(n.c(x)).view(-1, 24)),
            "flatten twice": lambda n, x: n.d(relu(n.c(x).flatten(2)).flatten(1)),
            "there and back": lambda n, x: n.d(relu(n.c(x).flatten(1)).reshape(-1, 6, 4).contiguous().flatten(1)),
            "in place": lambda n, x: n.d(torch.relu_(n.c(x).flatten(1))),
        },
    ),
    "three layers": (
        three,
        {
            "relu, pool, flatten": lambda n, x: n.e(relu(n.d(pool(relu(n.c(x))).flatten(1)))),
            "AlexNet": lambda n, x: n.e(drop(relu(n.d(drop(pool(relu(n.c(x))).flatten(1)))))),
            "flatten, identity": lambda n, x: n.e(relu(n.d(pool(relu(n.c(x))).view(len(x), -1).clone()))),
        },
    ),
    "averaged": (
        averaged,
        {
            "mean": lambda n, x: n.d(relu(n.c(x)).mean((2, 3))),
            "mean of rows": lambda n, x: n.d(relu(n.c(x)).flatten(2).mean(2)),
            "mean of viewed rows": lambda n, x: n.d(relu(n.c(x).view(-1, 8, 9)).mean(-1)),
            "mean, kept": lambda n, x: n.d(drop(relu(n.c(x)).mean((2, 3), keepdim=True).flatten(1))),
            "mean, squeezed": lambda n, x: n.d(relu(n.c(x)).mean((2, 3), keepdim=True).squeeze(-1).squeeze(-1)),
        },
    ),
    "pooled": (
        averaged,
        {
            "pool, flatten": lambda n, x: n.d(F.adaptive_avg_pool2d(relu(n.c(x)), 1).flatten(1)),
            "pool, flatten, dropout": lambda n, x: n.d(drop(F.adaptive_avg_pool2d(relu(n.c(x)), 1).flatten(1))),
            "pool, squeeze": lambda n, x: n.d(F.adaptive_avg_pool2d(relu(n.c(x)), 1).squeeze(-1).squeeze(-1)),
        },
    ),
    "linear": (
        linear,
        {
            "flatten": lambda n, x: n.d(n.c(x).flatten(1)),
            "flatten, dropout": lambda n, x: n.d(drop(n.c(x).flatten(1))),
            "flatten twice": lambda n, x: n.d(n.c(x).flatten(2).flatten(1)),
        },
    ),
    "shallow": (
        shallow,
        {
            "flatten": lambda n, x: n.d(relu(n.c(x.flatten(1)))),
            "dropout, view": lambda n, x: n.d(drop(relu(n.c(drop(x).view(-1, 16))))),
        },
    ),
    "perceptron": (
        perceptron,
        {
            "flatten": lambda n, x: n.e(relu(n.d(relu(n.c(x.flatten(1)))))),
            "flatten again": lambda n, x: n.e(relu(n.d(relu(n.c(x.flatten(1)).flatten(1))).view(len(x), 8))),
            "dropout, flatten": lambda n, x: n.e(relu(n.d(drop(relu(n.c(drop(x).flatten(1))))))),
        },
    ),
}  # fmt: skip

FUNCTIONS: dict[str, Callable[[im.Objective, im.Params, im.Params], Any]] = {
    "dropout_stability": lambda o, a, b: im.dropout_stability(o, a, masks=4),
    "dropout_stability, gates": lambda o, a, b: im.dropout_stability(o, a, masks=20, search="gates"),
    "dropout_stability, each": lambda o, a, b: im.dropout_stability(o, a, masks=4, scale="each", search="magnitude"),
    "vertices": lambda o, a, b: im.dropout_stability(o, a, masks=3).vertices(),
    "noise_stability": lambda o, a, b: im.noise_stability(o, a, draws=2),
    "pattern_stability": lambda o, a, b: im.pattern_stability(o, a, 3),
    "subnetwork_bounds": lambda o, a, b: im.subnetwork_bounds(o, a, draws=2, recipe=Recipe(steps=6)),
    "dropout_bounds": lambda o, a, b: im.dropout_bounds(o, a, draws=3),
    "separability": lambda o, a, b: separability(o, a),
    "separability, argmax": lambda o, a, b: separability(o, a, kind="argmax"),
    "memorisation": lambda o, a, b: memorisation(o, a),
    "sublevel_conditions": lambda o, a, b: im.sublevel_conditions(o, a, b),
    "two_layer_premises": lambda o, a, b: two_layer_premises(o, time=1.0),
    "multilayer_premises": lambda o, a, b: multilayer_premises(o, time=1.0),
    "theory": lambda o, a, b: im.theory(o, a, b, masks=3, draws=2, steps=6, examples=8),
    "descend": lambda o, a, b: im.descend(o, a, 1e-3),
}  # fmt: skip
SHORT: dict[type[im.Connector], dict[str, Any]] = {
    im.Dropout: {"masks": 5},
    im.NoiseDropout: {"draws": 3},
    im.Narrow: {"width": 2, "recipe": Recipe(steps=6), "draws": 3},
    im.Subnetwork: {"inner": im.Trained(Recipe(steps=6), hub_steps=6, effort=0.0), "draws": 2},
    im.MeanField: {},
    im.Sublevel: {},
    im.DeepLinear: {},
    im.TwoLayerReLU: {"units": 2, "recipe": Recipe(steps=6)},
}
"""The methods that read chains, with options that make them quick."""


@cache
def problem(family: str, spelling: str, loss: str = "cross_entropy") -> tuple[im.Objective, im.Params, im.Params]:
    layers, spellings = FAMILIES[family]
    net = spelt(spellings[spelling])(layers()).double().eval()
    x, y = blobs(12, (1, 4, 4), 4)
    objective = im.Objective(net, loss, (x, F.one_hot(y).double() if loss == "mse" else y))
    return objective, random_params(net, 1), random_params(net, 2)


def plain(value: Any) -> Any:
    """Nested lists and numbers, without chains (which hold the names of the nodes) and times."""
    if isinstance(value, Tensor):
        return value.double().tolist()
    if isinstance(value, im.Path):
        return [plain(knot) for knot in value.knots]
    if isinstance(value, Chain | im.Objective | Enum) or value is None:
        return type(value).__name__
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value) if f.name != "seconds"}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items() if k != "objective"}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


def answer(call: Callable[[], Any]) -> Any:
    """What a call returns, or the refusal without the place where the user wrote the operation."""
    try:
        return plain(call())
    except im.IsthmusError as e:
        return type(e).__name__, str(e)


def differing(p: Any, q: Any, where: str = "") -> list[str]:
    """The places where two plain values differ by more than rounding."""
    if isinstance(p, dict) and isinstance(q, dict) and p.keys() == q.keys():
        return [d for k in p for d in differing(p[k], q[k], f"{where}.{k}")]
    if isinstance(p, list) and isinstance(q, list) and len(p) == len(q):
        return [d for k, (v, w) in enumerate(zip(p, q, strict=True)) for d in differing(v, w, f"{where}[{k}]")]
    if isinstance(p, float) and isinstance(q, float | int):
        same = isclose(p, q, rel_tol=1e-7, abs_tol=1e-9) or (p != p and q != q)
    else:
        same = p == q
    return [] if same else [f"{where}: {p} != {q}"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_chains_of_all_spellings_are_the_same(family: str) -> None:
    found = []
    for spelling in FAMILIES[family][1]:
        chain = chain_of((o := problem(family, spelling)[0]).program, o.structure)
        names = [[n.op.split(".")[1] for n in layer.nodes if n.op != "aten.mean.dim"] for layer in chain.layers]
        same = {"view": "flatten", "reshape": "flatten", "squeeze": "flatten"}
        found.append((chain.widths, [[same.get(n, n) for n in layer] for layer in names]))
    if family != "averaged":  # there the mean is over one or two axes, and what is left is flat or not
        assert all(f == found[0] for f in found)
    assert all(f[0] == found[0][0] for f in found)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", [*FUNCTIONS, *(m.__name__ for m in SHORT)])
def test_every_reader_of_chains_gives_the_same_for_all_spellings(family: str, name: str) -> None:
    def ask(spelling: str) -> Any:
        objective, a, b = problem(family, spelling)
        if name in FUNCTIONS:
            return answer(lambda: FUNCTIONS[name](objective, a, b))
        kind = next(m for m in SHORT if m.__name__ == name)
        if kind is im.TwoLayerReLU:  # whose lassos are quick for squares
            objective, a, b = problem(family, spelling, "mse")
        return answer(lambda: im.connect(objective, a, b, kind(**SHORT[kind])))

    first, *rest = FAMILIES[family][1]
    expected = ask(first)
    for spelling in rest:
        assert differing(expected, ask(spelling)) == [], spelling


PREPARED: dict[str, Callable[[Tensor], Tensor]] = {
    "scaled": lambda x: (x - 0.5) / 0.25,
    "rectified": lambda x: relu(x - 0.5),
}


def nothing(x: Tensor) -> Tensor:
    return x


@cache
def after(before: Callable[[Tensor], Tensor]) -> Forward:
    return lambda n, x: n.e(relu(n.d(relu(n.c(before(x).flatten(1))))))


@pytest.mark.parametrize("how", PREPARED)
@pytest.mark.parametrize(
    "name", ["separability", "memorisation", "sublevel_conditions", "two_layer_premises", "Sublevel", "Subnetwork"]
)
def test_what_a_network_does_to_its_input_may_as_well_be_done_to_the_data(how: str, name: str) -> None:
    """Rectifying merges samples: what tells them apart before does not after."""
    x, y = blobs(12, (1, 4, 4), 4)
    x[1:3, :, 1:] = -x[1:3, :, 1:].abs()
    x[1:3, :, :1] = -1.0

    def ask(before: Callable[[Tensor], Tensor], data: Tensor) -> Any:
        net = spelt(after(before))([nn.Linear(16, 26), nn.Linear(26, 28), nn.Linear(28, 4)]).double()
        objective = im.Objective(net, data=(data, y))
        a, b = random_params(net, 1), random_params(net, 2)
        if name in FUNCTIONS:
            return answer(lambda: FUNCTIONS[name](objective, a, b))
        method = im.Sublevel(prove=False) if name == "Sublevel" else im.Subnetwork(inner=im.Separated())
        return answer(lambda: im.connect(objective, a, b, method))

    assert differing(ask(nothing, PREPARED[how](x)), ask(PREPARED[how], x)) == []


def test_normalising_flattened_pixels_is_refused_by_name_and_of_single_pixels_is_not() -> None:
    for kernel, pixels in ((3, 4), (4, 1)):
        net = nn.Sequential(
            nn.Conv2d(1, 6, kernel), nn.Flatten(), nn.BatchNorm1d(6 * pixels), nn.ReLU(), nn.Linear(6 * pixels, 4)
        )
        net = net.double().eval()
        objective = im.Objective(net, data=blobs(12, (1, 4, 4), 4))
        if pixels == 1:
            assert im.dropout_stability(objective, random_params(net, 1), masks=3).widths == (1, 6, 4)
            continue
        with pytest.raises(im.UnsupportedError, match="acts on flattened pixels, and the units of a chain are whole"):
            im.dropout_stability(objective, random_params(net, 1), masks=3)


def test_flattened_pixels_of_a_convolution_that_ends_the_network_are_not_taken_for_its_channels() -> None:
    net = nn.Sequential(nn.Conv2d(1, 5, 2), nn.ReLU(), nn.Conv2d(5, 2, (3, 2)), nn.Flatten()).double()
    objective = im.Objective(net, data=blobs(12, (1, 4, 4), 4))
    for call in (separability, memorisation):
        with pytest.raises(im.UnsupportedError, match="its 2 channels have 2 pixels each"):
            call(objective, random_params(net, 1))
