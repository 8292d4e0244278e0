"""Outputs that are polynomials in t: linear networks, and other products of weights that move.

A network whose operations are affine in each factor has outputs that are polynomials in its weights, and so in t along
a Bezier curve (``structure/liveness.py`` finds the degree). A polynomial of degree d is known from d + 1 points. On any
sub-interval it is sum_k B_k(u) c_k with the Bernstein polynomials B_k >= 0, whose sum is 1, so that a loss that is
convex in the outputs is at most sum_k B_k(u) loss(c_k), and at most the largest loss(c_k): no network is evaluated for
it. The same holds for margins, and so for errors; a penalty is below a line (``bounds.py``), whose Bernstein
coefficients are its values.

c_k = sum_j T_kj z(t_j), with T from exact fractions. z(t_j) is a form that holds all that rounding does to it, also to
the weights at t_j: it may be off by r_j, and c_k by sum_j |T_kj| r_j and what this sum itself rounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from math import comb, cos, isfinite, pi, prod

import torch
from torch import Tensor

from isthmus.certify.affine import Interval, Motion, Reading
from isthmus.certify.bounds import Bound, Bounds, bound_of_outputs
from isthmus.certify.forms import TINY, UNIT, Form
from isthmus.structure.liveness import changed_tensors, degree

HIGHEST = 16
"""The degree up to which points tell the polynomial well: |T| grows to about 1e5."""


def degree_of(bounds: Bounds) -> int:
    """The degree of the outputs as polynomials in t; 0 where they may be none, or too much of it is to be kept."""
    reading, control = bounds.reading, bounds.reading.control
    found = (len(control) - 1) * degree(reading.program, changed_tensors(control))
    kept = 16 * (found + 1) * bounds.objective.num_examples
    if not 1 <= found <= HIGHEST or kept * _width(reading) > bounds.objective.memory:
        return 0
    return int(found)


def _width(reading: Reading) -> int:
    """The outputs of one example."""
    nodes = {n.name: n for n in reading.program.nodes}
    shape = nodes[reading.program.outputs[0].name].shape if reading.program.outputs[0].name in nodes else None
    return prod(shape[1:]) if shape else 1


class Polynomials:
    """Bounds on the loss over any interval, as ``Bounds``, for outputs that are polynomials of that degree in t."""

    def __init__(self, bounds: Bounds, degree: int) -> None:
        self.bounds, self.reading, self.degree = bounds, bounds.reading, degree
        self.means = f"the Bernstein coefficients of the outputs, polynomials in t of degree {degree},"
        # at the ends of a curve nothing is rounded; those in between crowd there, and are short fractions
        self.points = [round(512 * (1 - cos(pi * k / degree))) / 1024 for k in range(degree + 1)]

    def over(self, start: float, end: float, followed: bool = False) -> Bound:
        """The bound for t in [start, end]; where points do not tell the polynomial, that of forms."""
        with torch.no_grad():
            matrix = coefficients(self.points, start, end)
            line = self.bounds.penalty(start, end)
            several = [self._at(matrix, k, line) for k in range(self.degree + 1)]
            half = sum(line) / 2
            middle = self._at(coefficients(self.points, start + (end - start) / 2, end), 0, (half, half))
        loss = max(b.loss for b in several)
        if not isfinite(loss):
            return self.bounds.over(start, end, followed)
        unsure = torch.stack([b.unsure for b in several if b.unsure is not None]).amax(0)
        return Bound(loss, float(unsure.mean()), middle.estimate, unsure)

    def _at(self, matrix: list[list[float]], k: int, line: tuple[float, float]) -> Bound:
        """The bound where all outputs are their k-th coefficients."""
        share = k / self.degree
        penalty = (1 - share) * line[0] + share * line[1]
        return bound_of_outputs(self.bounds.objective, self._combined(matrix[k]), penalty, penalty)

    def _combined(self, weights: list[float]) -> Iterator[tuple[Form, Tensor]]:
        own = torch.tensor(weights, dtype=torch.float64)
        rounded = own.abs() * ((len(weights) + 4) * UNIT)
        for (centre, radius), y in self._values:
            own, rounded = own.to(centre.device), rounded.to(centre.device)
            off = torch.tensordot(own.abs() + rounded, radius, 1) + torch.tensordot(rounded, centre.abs(), 1)
            yield Form(torch.tensordot(own, centre, 1), None, off.mul_(1 + 1e-12).add_(TINY)), y

    @cached_property
    def _values(self) -> list[tuple[tuple[Tensor, Tensor], Tensor]]:
        """Chunk by chunk the outputs at the points, how far they may be off, and the targets."""
        runs = [list(self._outputs(t)) for t in self.points]
        found = []
        for at in zip(*runs, strict=True):
            centres, radii = zip(*(_parts(z) for z, _ in at), strict=True)
            found.append(((torch.stack(centres), torch.stack(radii)), at[0][1]))
        return found

    def _outputs(self, t: float) -> Iterator[tuple[Form, Tensor]]:
        own, point, lost = self.reading, dict(self.reading.control[0]), {}
        for name in changed_tensors(own.control):
            still = Motion([p[name].double() for p in own.control]).at(t)
            point[name], lost[name] = still.centre, still.radius
        reading = Reading(own.objective, own.program, (point, point), 0, uncertain=lost)
        return reading.outputs(Interval.between(0.0, 1.0))


def _parts(z: Form) -> tuple[Tensor, Tensor]:
    z = z.settled()
    return z.centre, torch.zeros_like(z.centre) if z.radius is None else z.radius


def coefficients(points: list[float], start: float, end: float) -> list[list[float]]:
    """Row k gives the k-th Bernstein coefficient on [start, end] of the polynomial with given values at the points.

    Those of a product of linear factors are those of prod_i ((start - t_i) + (end - t_i) x) in x, over binomials.

    >>> coefficients([0.0, 0.5, 1.0], 0.0, 1.0)
    [[1.0, 0.0, 0.0], [-0.5, 2.0, -0.5], [0.0, 0.0, 1.0]]
    """
    # whole numbers of the shortest unit, in which the quotients are exact: floats are fractions by powers of two
    ratios = [v.as_integer_ratio() for v in (start, end, *points)]
    unit = max(q for _, q in ratios)
    s, e, *at = (p * (unit // q) for p, q in ratios)
    columns = []
    for j, own in enumerate(at):
        product, scale = [1], 1
        for t in at[:j] + at[j + 1 :]:
            product = [(s - t) * p + (e - t) * q for p, q in zip([*product, 0], [0, *product], strict=True)]
            scale *= own - t
        columns.append([p / (scale * comb(len(product) - 1, k)) + 0.0 for k, p in enumerate(product)])
    return [list(row) for row in zip(*columns, strict=True)]
