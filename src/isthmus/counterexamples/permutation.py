"""Three points, three units, and the same network with two units exchanged (Freeman and Bruna 2017, appendix D.1)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import pi

import torch
from torch import Tensor, nn

from isthmus.errors import InputError
from isthmus.objective import Objective
from isthmus.objective.data import single
from isthmus.params import Params
from isthmus.shown import one_line


@one_line
@dataclass(frozen=True, eq=False)
class Permutation:
    """The task x_1, x_2, x_3 -> x_2, x_3, x_1 of a 2-3-2 ReLU network without biases, and two of its solutions.

    `minima`: rows w_u = x_u and columns v_u = y_u, and the same with units 1 and 2 exchanged; both have loss 0 up to
    rounding. The loss is the mean of the squares over the three points and the two outputs.

    Why paths must rise to `lower_bound` = 1/12: let H = relu(X W^T), 3 points x 3 units. Exchanging two units changes
    the sign of det H, so on every path there is a network with det H = 0, whose columns, which are not negative, span
    at most a plane. If n is its unit normal, the entries of n are not all of one sign, hence (sum of n)^2 <= 2. The
    columns of Y are orthogonal to (1, 1, 1), with length^2 3/2 and orthogonal to one another, so the squares of the
    part of Y outside the plane add up to 3/2 (1 - (sum of n)^2 / 3) >= 1/2, and no output weights get below 1/2 / 6.
    1/12 is also the infimum over all networks with two units (``two_units``): it is approached, and not attained.

    `objective`: the network on the three points. `exact`: `lower_bound` as a fraction.
    """

    objective: Objective
    minima: tuple[Params, Params]
    exact: Fraction = Fraction(1, 12)

    @property
    def lower_bound(self) -> float:
        """A proved number: every continuous path between the minima has a point of more than this loss."""
        return float(self.exact)

    @property
    def threshold(self) -> float:
        """The infimum of the loss over networks with one unit less: below it, the minima are not connected."""
        return float(self.exact)

    def side(self, params: Params) -> float:
        """det H: of one sign on each connected part of the networks below the threshold.

        >>> example = permutation()
        >>> [round(example.side(p), 9) for p in example.minima]
        [1.0, -1.0]
        """
        hidden = (single(self.objective.data[0]) @ params["0.weight"].T).relu()
        return float(torch.linalg.det(hidden))

    def two_units(self, r: float = 0.01) -> Params:
        """A network whose third unit is zero, with loss (1 - (2 - r)^2 / (3 (2 + r^2))) / 4, which falls to 1/12.

        >>> example = permutation()
        >>> round(example.objective.loss(example.two_units(0.001)), 6)
        0.0835
        """
        if not 0 < r < float("inf"):
            raise InputError("r", expected="a number > 0", got=r)
        x, y = single(self.objective.data[0]), self.objective.data[1]
        # hidden units that are (r, 0, 1) and (0, r, 1) on the three points; X^T X = 3/2, and X z = 0 for z = (1, 1, 1)
        z = torch.tensor([[r, -1 - r, 1.0], [-1 - r, r, 1.0], [0.0, 0.0, 0.0]], dtype=x.dtype)
        W = z @ x * 2 / 3
        H = (x @ W.T).relu()[:, :2]
        V = torch.linalg.lstsq(H, y).solution.T
        return {"0.weight": W, "2.weight": torch.cat([V, torch.zeros(2, 1).to(V)], 1)}


def permutation() -> Permutation:
    """Three points at 120 degrees, mapped cyclically, and the two solutions that differ by an exchange of units.

    Source: Freeman and Bruna 2017, appendix D.1, where the string does not connect them; the value 1/12 and its proof
    are not in the paper.

    >>> example = permutation()
    >>> [example.objective.loss(p) < 1e-30 for p in example.minima], example.exact
    ([True, True], Fraction(1, 12))
    """
    angle = torch.arange(3, dtype=torch.float64) * (2 * pi / 3)
    x = torch.stack([angle.cos(), angle.sin()], 1)
    y = x[[1, 2, 0]]
    module = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False)).double()
    swapped = [1, 0, 2]
    return Permutation(
        Objective(module, "mse", (x, y)), (_network(x, y), _network(x[swapped].clone(), y[swapped].clone()))
    )


def _network(rows: Tensor, columns: Tensor) -> Params:
    return {"0.weight": rows.clone(), "2.weight": columns.T.contiguous()}
