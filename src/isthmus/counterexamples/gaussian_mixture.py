"""Two Gaussian components, two units, and the same network with its units exchanged (Freeman and Bruna 2017, 2.3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import cos, pi, sin

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from isthmus.errors import InputError
from isthmus.objective import Objective
from isthmus.objective.data import single
from isthmus.params import Params
from isthmus.shown import one_line

_ANGLES = 2048
"""Directions on which the smallest risk of rank one is first looked for."""


@one_line
@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """A sample of the mixture, and two networks of small risk whose units bisect it in exchanged order.

    X = mu_Z + sigma xi with Z = +-1, mu_Z = (Z, 0), xi standard normal; Y = Z n_Z . (X - mu_Z) / sigma, with the
    orthogonal directions n_(+-1) = (1, +-1) / sqrt 2: a number of variance 1. The network is
    f(x) = v . relu(W x) + c with two units, and `minima` have the rows n_1 / sigma and -n_(-1) / sigma in the two
    orders: each unit is positive on one component, whose Y it computes, and its line through the origin separates it
    from the other component.

    As printed, Y = (X - mu_Z) Z shrinks with the covariance, so that the zero network too gets arbitrarily small risk
    (2 sigma^2), and the 1/2 of the paper cannot hold; with Y in units of sigma, and one direction for each
    component, both of its claims do. Exchanging the units changes the sign of det W, so every path meets a W of rank
    at most one, a function of one direction u . x. Its risk is at least the variance of Y that u does not show:
    1/2 (1 - (n_1 . u)^2) + 1/2 (1 - (n_(-1) . u)^2) = 1/2 (`population_bound`, proved for the distribution).

    `sigma`: the spread of the components. `objective`: the network on the sample.
    """

    sigma: float
    objective: Objective
    minima: tuple[Params, Params]
    population_bound: Fraction = Fraction(1, 2)

    @cached_property
    def lower_bound(self) -> float:
        """The smallest loss on the sample with a W of rank one, which every path reaches: a numerical estimate.

        For one direction u the functions are c + alpha relu(u . x) + beta relu(-u . x), a least squares problem; its
        minimum over the angle of u is taken from a grid and refined; not proved by interval arithmetic. It strays from
        1/2 as samples do (0.476, 0.500, 0.486 for 100, 400, 2000 examples).
        """
        x, y = single(self.objective.data[0]), self.objective.data[1]
        grid = [k * pi / _ANGLES for k in range(_ANGLES)]
        values = [rank_one_risk(x, y, angle) for angle in grid]
        best = min(values)
        for k in sorted(range(_ANGLES), key=values.__getitem__)[:8]:
            ends = (grid[k] - pi / _ANGLES, grid[k] + pi / _ANGLES)
            found = minimize_scalar(
                lambda angle: rank_one_risk(x, y, angle), bounds=ends, method="bounded", options={"xatol": 1e-10}
            )
            best = min(best, float(found.fun))  # type: ignore[attr-defined]
        return best

    @property
    def threshold(self) -> float:
        """Below it no string should connect the minima: `lower_bound`."""
        return self.lower_bound

    def side(self, params: Params) -> float:
        """det W, in units of 1 / sigma^2: its sign differs at the two minima.

        >>> example = gaussian_mixture(examples=8)
        >>> [round(example.side(p), 9) for p in example.minima]
        [1.0, -1.0]
        """
        return float(torch.linalg.det(params["0.weight"])) * self.sigma**2


def rank_one_risk(x: Tensor, y: Tensor, angle: float) -> float:
    """The smallest mean square of y - (c + alpha relu(s) + beta relu(-s)) with s = u . x, u at that angle.

    >>> x = torch.tensor([[-2.0, 0.0], [-1.0, 5.0], [1.0, 7.0], [3.0, 0.0]]).double()
    >>> y = 1 + 2 * x[:, :1].relu() - 4 * (-x[:, :1]).relu()
    >>> round(rank_one_risk(x, y, 0.0), 9)
    0.0
    """
    s = x @ torch.tensor([cos(angle), sin(angle)], dtype=x.dtype)
    design = torch.stack([torch.ones_like(s), s.relu(), (-s).relu()], 1)
    solved = torch.linalg.lstsq(design, y, driver="gelsd").solution
    return float((design @ solved - y).square().mean())


def gaussian_mixture(sigma: float = 0.1, *, examples: int = 400, seed: int = 0) -> GaussianMixture:
    """A sample of the mixture, half of it from each component, drawn from `seed`.

    The risk of the minima is that of the points beyond a line at distance 1 / (sqrt 2 sigma) standard deviations from
    the middle of their component (7 for the default), so it goes to 0 with `sigma`. Errors: sigma outside (0, 0.3],
    fewer than eight examples, an odd number of them.

    `examples`: an even number of them.

    Source: Freeman and Bruna 2017, section 2.3.1, repaired (see ``GaussianMixture``).

    >>> example = gaussian_mixture()
    >>> [round(example.objective.loss(p), 20) for p in example.minima], 0.45 < example.lower_bound < 0.55
    ([0.0, 0.0], True)
    """
    if not 0 < sigma <= 0.3:
        raise InputError("sigma", expected="a number in (0, 0.3]: components that a line separates", got=sigma)
    if isinstance(examples, bool) or examples != int(examples) or examples < 8 or examples % 2:
        raise InputError("examples", expected="an even whole number >= 8", got=examples)
    generator = torch.Generator().manual_seed(seed)
    z = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(examples // 2)[:, None]
    xi = torch.randn(examples, 2, generator=generator, dtype=torch.float64)
    n = torch.cat([torch.ones_like(z), z], 1) / 2**0.5
    x = torch.cat([z, torch.zeros_like(z)], 1) + sigma * xi
    y = z * (n * xi).sum(1, keepdim=True)
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1)).double()
    W = torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64) / (2**0.5 * sigma)
    ends = tuple(
        {
            "0.weight": W[order].clone(),
            "2.weight": torch.ones(1, 2, dtype=torch.float64),
            "2.bias": torch.tensor([-1 / (2**0.5 * sigma)], dtype=torch.float64),
        }
        for order in ([0, 1], [1, 0])
    )
    return GaussianMixture(sigma, Objective(module, "mse", (x, y)), (ends[0], ends[1]))
