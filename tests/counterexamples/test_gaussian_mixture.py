"""Section 2.3.1 of Freeman and Bruna, repaired."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

import isthmus as im
from isthmus.counterexamples.gaussian_mixture import rank_one_risk
from isthmus.objective.data import single
from isthmus.params import lerp

example = im.counterexamples.gaussian_mixture()


def test_the_sample_is_what_it_says():
    large = im.counterexamples.gaussian_mixture(0.1, examples=20000, seed=3)
    x, y = single(large.objective.data[0]), large.objective.data[1]
    for z, half in ((1.0, slice(0, None, 2)), (-1.0, slice(1, None, 2))):
        deviation = (x[half] - torch.tensor([z, 0.0])) / 0.1
        torch.testing.assert_close(deviation.mean(0), torch.zeros(2).double(), atol=0.04, rtol=0)
        torch.testing.assert_close(deviation.T @ deviation / 10000, torch.eye(2).double(), atol=0.06, rtol=0)
        direction = torch.tensor([1.0, z]).double() / 2**0.5
        torch.testing.assert_close(y[half, 0], z * (deviation @ direction))


def test_both_networks_have_small_risk_and_exchanged_units():
    one, two = example.minima
    assert max(example.objective.loss(p) for p in example.minima) < 1e-25
    assert torch.equal(one["0.weight"], two["0.weight"][[1, 0]])
    wide = [im.counterexamples.gaussian_mixture(s) for s in (0.3, 0.2)]
    risks = [e.objective.loss(e.minima[0]) for e in wide]
    assert risks[0] > 1e-4 > risks[1]  # components that overlap: the risk falls with the covariance
    assert example.side(one) > 0 > example.side(two)


def test_rank_one_networks_have_risk_one_half_under_the_distribution():
    assert example.population_bound == Fraction(1, 2)
    large = im.counterexamples.gaussian_mixture(0.1, examples=20000, seed=1)
    assert large.lower_bound == pytest.approx(0.5, abs=0.02)
    # the bound itself, for any function of u . x: what is left of the variance, averaged over the two directions
    n = torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double() / 2**0.5
    for angle in torch.linspace(0, torch.pi, 50).double():
        u = torch.stack([angle.cos(), angle.sin()])
        assert float((1 - (n @ u).square()).mean()) == pytest.approx(0.5, abs=1e-12)


def test_no_network_of_rank_one_beats_the_estimate_on_the_sample():
    x, y = single(example.objective.data[0]), example.objective.data[1]
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        angle = float(torch.rand((), generator=generator)) * 3.2
        assert rank_one_risk(x, y, angle) >= example.lower_bound - 1e-9
    for _ in range(20):  # and by gradient descent, in the network itself
        u, c = (torch.randn(k, generator=generator, dtype=torch.float64) for k in (2, 2))
        params = {
            "0.weight": 10 * c[:, None] * u,
            "2.weight": torch.ones(1, 2).double(),
            "2.bias": torch.zeros(1).double(),
        }
        hidden = torch.cat([(x @ params["0.weight"].T).relu(), torch.ones(len(x), 1).double()], 1)
        best = torch.linalg.lstsq(hidden, y, driver="gelsd").solution
        params |= {"2.weight": best[:2].T.contiguous(), "2.bias": best[2]}
        assert example.objective.loss(params) >= example.lower_bound - 1e-9


def test_the_zero_network_shows_that_the_printed_example_cannot_hold():
    """Y = (X - mu) Z as printed has mean square 2 sigma^2: no risk of 1/2 anywhere near it."""
    x, _ = single(example.objective.data[0]), example.objective.data[1]
    z = torch.tensor([1.0, -1.0]).double().repeat(len(x) // 2)[:, None]
    printed = (x - torch.cat([z, 0 * z], 1)) * z
    assert float(printed.square().sum(1).mean()) == pytest.approx(2 * 0.1**2, rel=0.2)


def test_the_string_ends_as_not_connected_below_the_threshold():
    method = im.StringSampling(0.4, depth=6, recipe=im.Recipe(lr=0.02, steps=400, batch=400))
    assert example.threshold > 0.45
    connection = im.connect(example.objective, *example.minima, method)
    assert not connection.outcome.ok
    top = im.profile(example.objective, connection.path, 101).max
    assert top >= example.lower_bound
    one, two = example.minima
    assert max(example.objective.loss(lerp(one, two, k / 100)) for k in range(101)) >= example.lower_bound


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"sigma": 0.5}, "sigma"),
        ({"sigma": 0.0}, "sigma"),
        ({"examples": 9}, "examples"),
        ({"examples": 2}, "examples"),
    ],
)
def test_bad_numbers_are_refused(options, match):
    with pytest.raises(im.InputError, match=match):
        im.counterexamples.gaussian_mixture(**options)
