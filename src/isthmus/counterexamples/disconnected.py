"""Two global minima that no path of low loss connects (Kuditipudi et al. 2019, Theorem 4 and Lemma 6)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import torch
from torch import Tensor, nn

from isthmus.counterexamples.barrier import LowestBarrier, analytic_bound, multistart, one_unit
from isthmus.errors import InputError
from isthmus.objective import Objective
from isthmus.params import Params
from isthmus.shown import one_line


@one_line
@dataclass(frozen=True, eq=False)
class Disconnected:
    """The data set of Theorem 4, the two minima, and how high every path between them must rise.

    `objective`: f(x) = w^T relu(A x) with h hidden units, no biases, one output, and the squared loss
    mean_i (f(x_i) - y_i)^2. `minima`: first the network with h active units, w = (1, .., 1), then the teacher with two,
    w = (1, -1, 0, ..); both have loss exactly 0.

    Why paths must rise: all w_i start positive and w_2 ends negative. Where the first of them reaches 0, at most
    h - 1 units with positive w are left, which by homogeneity is a sum of h - 1 units with w = 1. So the maximum on any
    path is at least B_h = min over a_1 .. a_{h-1} of mean_i (sum_u relu(a_u . x_i) - y_i)^2, and Lemma 6 says that it
    is positive.

    `h`, `k`, `l`, `m`, `n`: hidden units, and the ends of the blocks of examples.
    """

    h: int
    k: int
    l: int
    m: int
    n: int
    objective: Objective
    minima: tuple[Params, Params]

    @property
    def lower_bound(self) -> float:
        """A proved number: every continuous path between the minima has a point of at least this loss.

        For h = 2 it is B_2 itself; for more units a quantitative form of Lemma 6, well below B_h.
        """
        return self.barrier.value if self.h == 2 else float(analytic_bound(self.h, self.k, self.l, self.m, self.n))

    @property
    def exact(self) -> Fraction | None:
        """B_2 as a rational number; None for h > 2."""
        return self.barrier.exact

    @cached_property
    def barrier(self) -> LowestBarrier:
        """B_h: for h = 2 the global minimum, exactly; else the best of many local minimisations, an upper estimate."""
        x, y = integers(self.h, self.k, self.l, self.m, self.n)
        return one_unit(x, y) if self.h == 2 else multistart(x, y, self.h - 1)


def disconnected(
    h: int = 2, k: int | None = None, l: int | None = None, m: int | None = None, n: int | None = None
) -> Disconnected:
    """The data set of Theorem 4 for h hidden units, with 1 <= i <= n examples in blocks that end at k, l, m, n.

    Default: k, l, m, n = h + 1, 2h + 2, 2h + 5, 3h + 6. Admissible: k >= h, l - k > h, m - l >= 2, n - m >= h. The
    printed definition of the entries and of their range contains errors; this is the data set that its proof uses.

    `h`: hidden units, at least 2. `k`, `l`, `m`, `n`: ends of the blocks. Errors: ``InputError`` for numbers for which
    the proof does not hold.

    Source: Kuditipudi et al. 2019, Theorem 4, appendix C; the bound B_h on every path is not in the paper.

    >>> example = disconnected()
    >>> [example.objective.loss(p) for p in example.minima], round(example.lower_bound, 7)
    ([0.0, 0.0], 0.0417962)
    """
    k = h + 1 if k is None else k
    l = k + h + 1 if l is None else l
    m = l + 3 if m is None else m
    n = m + h + 1 if n is None else n
    _check(h, k, l, m, n)
    rows, labels = integers(h, k, l, m, n)
    x = torch.tensor(rows, dtype=torch.float64)
    y = torch.tensor(labels, dtype=torch.float64)[:, None]
    net = nn.Sequential(nn.Linear(h + 2, h, bias=False), nn.ReLU(), nn.Linear(h, 1, bias=False)).double()
    return Disconnected(h, k, l, m, n, Objective(net, "mse", (x, y)), (_many(h), _two(h)))


def _check(h: int, k: int, l: int, m: int, n: int) -> None:
    """Refuse numbers for which the proof does not hold, naming the condition."""
    for name, value in (("h", h), ("k", k), ("l", l), ("m", m), ("n", n)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise InputError(name, expected="a whole number", got=repr(value))
    if h < 2:
        raise InputError("h", expected="at least 2 hidden units, which the teacher has", got=h)
    for what, have, least in (("k", k, h), ("l - k", l - k, h + 1), ("m - l", m - l, 2), ("n - m", n - m, h)):
        if have < least:
            raise InputError(what, expected=f"at least {least} for h = {h}", got=f"{have} (k, l, m, n = {k, l, m, n})")


def integers(h: int, k: int, l: int, m: int, n: int) -> tuple[list[list[int]], list[int]]:
    """X [n, h + 2] and y [n] as whole numbers.

    >>> integers(2, 3, 6, 8, 10)[0][:5]
    [[1, 0, 1, -1], [2, 1, -1, 1], [3, 2, 1, -1], [4, 3, 0, 1], [5, 4, 1, 0]]
    """
    x = [[_entry(i, j, h, k, l, m) for j in range(1, h + 3)] for i in range(1, n + 1)]
    return x, [int(i <= l) for i in range(1, n + 1)]


def _entry(i: int, j: int, h: int, k: int, l: int, m: int) -> int:
    if i <= l and j <= 2:
        return i if j == 1 else i - 1
    if i <= l:
        return _first(i, j - 2, h, k)
    if i <= m:
        return -1 if j <= 2 and (i - l - j) % 2 == 0 else 0
    return -1 if j > 2 and (i - m - (j - 2)) % h == 0 else 0


def _first(i: int, j: int, h: int, k: int) -> int:
    """The entries of the first rows behind their first two."""
    if (i - j) % h == 0:
        return 1
    return -1 if i <= k else 0


def _many(h: int) -> Params:
    A = torch.zeros(h, h + 2, dtype=torch.float64)
    A[:, 2:] = torch.eye(h)
    return _network(A, torch.ones(1, h, dtype=torch.float64))


def _two(h: int) -> Params:
    A, w = torch.zeros(h, h + 2, dtype=torch.float64), torch.zeros(1, h, dtype=torch.float64)
    A[0, 0] = A[1, 1] = w[0, 0] = 1
    w[0, 1] = -1
    return _network(A, w)


def _network(A: Tensor, w: Tensor) -> Params:
    return {"0.weight": A, "2.weight": w}
