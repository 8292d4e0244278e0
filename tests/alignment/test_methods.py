"""``Aligned`` and ``Renormalised`` as methods: what they gain, what they hand on, and what is at the knots."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.alignment.overlap import Overlap
from isthmus.alignment.renormalise import renormalised
from isthmus.connectors.info import CurveInfo
from isthmus.evaluate.batchnorm import refresh
from isthmus.params import Params, equal, lerp
from tests.problems import Problem, convolutional, odd_widths, permuted, two_layers, without_bias


def moments(problem: Problem, params: Params, count: int = 1000) -> list[torch.Tensor]:
    """The mean and the deviation of each unit before its activation, layer after layer."""
    module = problem.objective._materialised()
    seen: list[torch.Tensor] = []

    def look(layer: nn.Module, args: object, out: torch.Tensor) -> None:
        seen.append(torch.stack([out.mean(0), out.std(0, correction=0)]))

    hooks = [layer.register_forward_hook(look) for layer in module.modules() if isinstance(layer, nn.Linear)]
    x = problem.objective.data[0]
    assert isinstance(x, torch.Tensor)
    with torch.no_grad():
        torch.func.functional_call(module, params, x[:count])
    for hook in hooks:
        hook.remove()
    return seen[:-1]


def test_the_line_to_an_aligned_network_is_low_where_the_plain_one_is_not():
    problem = permuted()
    plain, line = (im.connect(problem.objective, problem.a, problem.b, m) for m in (im.Linear(), im.Aligned()))
    low, high = (im.profile(problem.objective, c).max for c in (line, plain))
    assert low == pytest.approx(problem.objective.loss(problem.a), rel=1e-9)
    assert high > 2 * low
    assert equal(line.target, problem.a)
    assert line.tensors["permutation/0"].tolist() == list(range(8))[::-1]
    assert line.info.alignment["distance"][1] == 0 < line.info.alignment["distance"][0]
    assert line.info.alignment["moved"] == {"0": 1.0, "2": 1.0}


def test_what_the_inner_method_says_and_needs_is_handed_on():
    problem = permuted()
    recipe = im.Recipe(lr=None, steps=10, batch=8)
    found = im.connect(problem.objective, problem.a, problem.b, im.Aligned(im.Bezier(recipe=recipe)))
    assert isinstance(found.info.inner, CurveInfo)
    assert found.info.inner.max == pytest.approx(problem.objective.loss(problem.a), rel=1e-6)
    unsure = replace_convexity(problem)
    with pytest.raises(im.InputError, match="convex"):
        im.connect(unsure, problem.a, problem.b, im.Aligned(im.Dropout()))


def replace_convexity(problem: Problem) -> im.Objective:
    return im.Objective(problem.objective._materialised(), lambda z, y: z.sum(1).sin(), problem.objective.data)


def test_dropout_chooses_its_own_units():
    problem = two_layers()
    alone, within = (
        im.connect(problem.objective, problem.a, problem.b, m) for m in (im.Dropout(), im.Aligned(im.Dropout()))
    )
    one, other = (im.profile(problem.objective, c).max for c in (alone, within))
    assert one == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize("t", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("make", [odd_widths, two_layers])
def test_units_at_a_knot_have_the_moments_between_those_of_the_ends(make, t):
    problem = make()
    (knot,) = renormalised(problem.objective, problem.a, problem.b, [t], examples=1000)
    have, a, b = (moments(problem, p) for p in (knot, problem.a, problem.b))
    for own, first, last in zip(have, a, b, strict=True):
        torch.testing.assert_close(own, torch.lerp(first, last, t), rtol=1e-9, atol=1e-9)
    if t in (0.0, 1.0):
        end = problem.b if t else problem.a
        assert all(torch.allclose(v, end[k], rtol=1e-9, atol=1e-12) for k, v in knot.items())


def test_few_examples_are_used_where_few_are_asked():
    problem = two_layers()
    (knot,) = renormalised(problem.objective, problem.a, problem.b, [0.5], examples=5)
    have, a, b = (moments(problem, p, count=5) for p in (knot, problem.a, problem.b))
    for own, first, last in zip(have, a, b, strict=True):
        torch.testing.assert_close(own, torch.lerp(first, last, 0.5), rtol=1e-9, atol=1e-9)


def test_layers_without_bias_are_scaled_only():
    problem = without_bias()
    (knot,) = renormalised(problem.objective, problem.a, problem.b, [0.5], examples=1000)
    have, a, b = (moments(problem, p) for p in (knot, problem.a, problem.b))
    for own, first, last in zip(have, a, b, strict=True):
        torch.testing.assert_close(own[1], torch.lerp(first[1], last[1], 0.5), rtol=1e-9, atol=1e-9)
    assert set(knot) == set(problem.a)


def test_with_batchnorm_the_statistics_are_those_of_the_point():
    problem = convolutional()
    found = im.connect(problem.objective, problem.a, problem.b, im.Renormalised(knots=2))
    for knot, t in zip(found.path.knots[1:-1], (1 / 3, 2 / 3), strict=True):
        want = refresh(problem.objective, lerp(problem.a, problem.b, t))
        assert all(torch.allclose(v, want[k]) for k, v in knot.items())
    assert found.stats["bn"] == "interpolate"
    assert found.labels == ("to repaired statistics", "between repaired points", "to the end")


def test_a_network_without_units_of_its_own_is_refused_by_name():
    x = torch.randn(8, 4, dtype=torch.float64)
    objective = im.Objective(nn.Linear(4, 3).double(), data=(x, torch.arange(8) % 3))
    a, b = ({"weight": torch.randn(3, 4).double(), "bias": torch.zeros(3).double()} for _ in range(2))
    with pytest.raises(im.UnsupportedError, match="no layer makes units"):
        im.connect(objective, a, b, im.Renormalised())
    with pytest.raises(im.InputError, match="knots"):
        im.Renormalised(knots=0)


def test_the_path_of_both_together_is_proved():
    problem = odd_widths()
    found = im.connect(problem.objective, problem.a, problem.b, im.Aligned(im.Renormalised()))
    certificate = im.certify(problem.objective, found, gap=0.1, budget=200)
    assert certificate.proved
    assert certificate.bound >= im.profile(problem.objective, found).max
    again = im.connect(problem.objective, problem.a, problem.b, found_method(found))
    assert equal(again.path.at(0.3), found.path.at(0.3))


def found_method(found: im.Connection) -> im.Connector:
    from isthmus.storage.methods import connector_from

    return connector_from(found.stats["method"])


def test_weights_are_compared_where_they_lie():
    """Widened copies of two whole networks would be four times their memory."""
    problem = permuted()
    a, b = ({k: v.float() for k, v in p.items()} for p in (problem.a, problem.b))
    overlap = Overlap.between(problem.objective.structure, a, b)
    assert all(overlap.a[k].data_ptr() == a[k].data_ptr() for k in overlap.of)
    wide = Overlap.between(overlap.structure, *({k: v.double() for k, v in p.items()} for p in (a, b)))
    orders = {g.name: torch.arange(g.size).flip(0) for g in overlap.structure.groups}
    moved = overlap.permuted(orders)
    assert {v.dtype for v in moved.values()} == {torch.float32}
    assert overlap.value(moved) == wide.value(wide.permuted(orders))
    for group in overlap.structure.groups:
        assert torch.equal(overlap.gram(group, moved), wide.gram(group, wide.permuted(orders)))
    even = {k: torch.full((len(v), len(v)), 1 / len(v), dtype=torch.float64) for k, v in orders.items()}
    assert overlap.value_at(even) == wide.value_at(even)


def test_by_weights_no_network_is_further_than_as_it_stands():
    """Of two networks near one start, which a start elsewhere does not find again."""
    module = im.models.seeded(lambda: nn.GRU(3, 4, 2, batch_first=True, bidirectional=True).double(), 0)
    start = module.state_dict()
    a, b = ({k: v + 0.5 * torch.randn(v.shape, generator=torch.Generator().manual_seed(s), dtype=v.dtype)
             for k, v in start.items()} for s in (11, 12))  # fmt: skip
    objective = im.Objective(module, lambda z, y: z.mean((1, 2)), (torch.zeros(2, 5, 3).double(), torch.zeros(2)))
    found = im.align(objective, a, b, im.WeightMatching())
    assert [run.start for run in found.runs] == ["barycentre", "identity"]
    assert found.distance[1] <= found.distance[0]


class Shared(nn.Module):
    """Layers of which two have one weight, or one bias."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        setattr(self.c, what, getattr(self.b, what))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.d(self.c(self.b(self.a(x).relu()).relu()).relu())


@pytest.mark.parametrize("what", ["weight", "bias"])
def test_what_two_layers_share_is_scaled_for_neither_and_stays_one_tensor(what: str) -> None:
    module, x = Shared(what).double(), torch.randn(20, 3, dtype=torch.float64)
    objective = im.Objective(module, "mse", (x, torch.zeros(20, 2, dtype=torch.float64)))
    a = {k: torch.randn_like(v) for k, v in module.state_dict().items()}
    b = {k: torch.randn_like(v) for k, v in module.state_dict().items()}
    for end in (a, b):
        end[f"c.{what}"] = end[f"b.{what}"]
    path = im.connect(objective, a, b, im.Renormalised()).path
    knot, straight = path.knots[1], {k: torch.lerp(a[k], b[k], 0.5) for k in a}
    assert torch.equal(knot[f"c.{what}"], knot[f"b.{what}"])
    assert torch.equal(knot[f"b.{what}"], straight[f"b.{what}"])
    assert not torch.equal(knot["a.weight"], straight["a.weight"])
    assert objective.loss(knot) > 0
