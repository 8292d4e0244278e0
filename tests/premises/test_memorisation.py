"""Corollary 4.3's and 4.4's assumptions: each one made to hold and to fail by hand."""

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.premises.general_position import position
from isthmus.premises.memorisation import memorisation, separability
from tests.problems import blobs, classify, perceptron, random_params, small_convnet


def moment_curve(N, d):
    """Points (t, t^2, ..., t^d): at most d on any hyperplane."""
    t = torch.linspace(-1, 1, N, dtype=torch.float64)
    return torch.stack([t**k for k in range(1, d + 1)], 1)


def test_the_moment_curve_is_in_general_position_and_loses_it_by_one_point():
    x = moment_curve(12, 4)
    assert position(x).generic
    p = position(torch.cat([x, x[:1]]))
    assert (p.generic, p.distinct, p.coinciding) == (False, False, 1)
    flat = x.clone()
    flat[:5, 2] = 0.25
    assert position(flat).most_on_hyperplane == 5
    assert not position(flat).generic


def test_a_hyperplane_that_is_no_coordinate_plane_is_found_by_subsets():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(20, 3, generator=g, dtype=torch.float64)
    x[:, 2] = x[:, 0] + x[:, 1]
    assert position(x, subsets=0).generic
    p = position(x, subsets=5)
    assert not p.generic
    assert p.smallest <= 1e-10
    assert position(x[:3]).generic, "at most d points are always in general position"


@pytest.mark.parametrize(("subsets", "tolerance"), [(-1, 1e-10), (5, 0.0)])
def test_position_checks_its_arguments(subsets, tolerance):
    with pytest.raises(im.InputError, match="subsets, tolerance"):
        position(torch.eye(3), subsets=subsets, tolerance=tolerance)


def regression(widths, N=12):
    x = moment_curve(N, widths[0])
    module = perceptron(widths).double()
    return im.Objective(module, "mse", (x, x[:, :1])), random_params(module, 1)


@pytest.mark.parametrize(
    ("wide", "last", "allowed"), [(16, 16, 16), (15, 16, 8), (16, 15, 8), (64, 40, 160), (7, 99, 0)]
)
def test_the_number_of_examples_that_the_widths_allow(wide, last, allowed):
    objective, a = regression([3, 5, wide, last, 1])
    m = memorisation(objective, a)
    assert m.allowed == allowed
    assert ("A1" in m.failing) == (allowed < 12)
    assert m.failing.get("A1", 12 - allowed) == 12 - allowed
    assert m.room == {
        0: 2 * ((wide // 2 + 1) // 2) * (last // 2 // 2),
        1: 2 * ((wide // 2 + 1) // 2) * (last // 2 // 2),
        2: -(-wide // 2) * (last // 2 // 2),
    }
    assert [len(m.held[l]) for l in (1, 2, 3)] == [4, -(-wide // 2), -(-last // 2)]


def test_general_position_fails_where_units_are_off_and_holds_where_all_are_on():
    objective, a = regression([3, 5, 6, 16, 1])
    on = dict(a)
    g = torch.Generator().manual_seed(0)
    on |= {
        k: torch.randn(v.shape, generator=g, dtype=torch.float64) for k, v in a.items() if k in ("0.weight", "2.weight")
    }
    on |= {"0.bias": torch.full((5,), 9.0).double(), "2.bias": torch.full((6,), 99.0).double()}
    # three features of affine functions of three coordinates: still the moment curve, up to an affine map
    assert memorisation(objective, on).features[2].generic
    off = on | {"2.bias": torch.full((6,), -99.0).double()}
    m = memorisation(objective, off)
    assert m.features[2].most_on_hyperplane == 12
    assert m.failing["A2"] == 12 - 3


def test_the_set_for_general_position_is_the_one_that_repeats_values_least():
    objective, a = regression([3, 5, 6, 16, 1])
    bias = torch.tensor([99.0, -99.0, 99.0, -99.0, -99.0, 99.0]).double()
    assert memorisation(objective, a | {"2.bias": bias}).held[2].tolist() == [0, 2, 5]


def test_equal_features_and_equal_inputs_are_counted():
    objective, a = regression([3, 5, 16, 16, 1])
    dead = a | {"0.bias": torch.full((5,), -99.0).double()}
    assert memorisation(objective, dead).failing["A3, layer 1"] == 11
    alive = a | {"0.bias": torch.full((5,), 9.0).double()}
    assert "A3, layer 1" not in memorisation(objective, alive).failing
    x, y = objective.data
    assert isinstance(x, torch.Tensor)
    twice = objective.on((torch.cat([x, x[:2]]), torch.cat([y, y[:2]])))
    assert memorisation(twice, a).failing["distinct inputs"] == 2


def test_separability_layer_by_layer():
    """The first layer keeps the blobs apart, the second maps every example to 0."""
    problem = classify("wide", perceptron([5, 40, 40, 4]), (5,))
    found = separability(problem.objective, problem.a)
    assert [s.separable for s in found.values()] == [True, True, True]
    blind = problem.a | {"2.bias": torch.full((40,), -99.0).double()}
    found = separability(problem.objective, blind)
    assert [found[l].separable for l in range(3)] == [True, True, False]
    assert list(separability(problem.objective, blind, layers=[2])) == [2]


def test_an_output_layer_without_bias_has_only_hyperplanes_through_the_origin():
    """The gap in the proof: one feature, 1 or 2, is separable, but the classifier W f of these classes is constant."""
    for bias in (True, False):
        module = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 2, bias=bias)).double()
        x = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
        a = random_params(module, 0) | {"0.weight": torch.ones(4, 1).double(), "0.bias": torch.zeros(4).double()}
        found = separability(im.Objective(module, data=(x, torch.tensor([0, 1]))), a)
        assert found[1].separable is bias


def test_convolutional_features_are_tested_flattened():
    problem = classify("convolutional", small_convnet(), (1, 8, 8))
    m = memorisation(problem.objective, problem.a)
    assert m.features[1].dimension == 6 * 16
    assert m.features[2].dimension == 3 * 4
    assert set(separability(problem.objective, problem.a)) == {0, 1, 2, 3}


def test_misuse_is_refused():
    problem = classify("small", perceptron([5, 9, 8, 4]), (5,))
    with pytest.raises(im.InputError, match=r"held\[2\]: expected at most 8 unit numbers, got none"):
        memorisation(problem.objective, problem.a, {1: torch.arange(4)})
    with pytest.raises(im.InputError, match=r"layers: expected some of 0 \.\. 2"):
        separability(problem.objective, problem.a, layers=[3])
    x, _ = blobs(8, (5,), 2)
    objective = im.Objective(perceptron([5, 9, 8, 4]).double(), "mse", (x, torch.zeros(8, 4, dtype=torch.float64)))
    with pytest.raises(im.UnsupportedError, match="one class number per example"):
        separability(objective, problem.a)
