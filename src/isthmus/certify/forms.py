"""Affine forms in one scalar: what a value can be while t runs over a small interval.

On [t0, t1] put t = tm + rho s with s in [-1, 1]. A form encloses a tensor v that depends on s:

    |v(s) - centre - slope s - bend (s^2 - 1/2)| <= radius + ulps u m,    m = |centre| + |slope| + |bend| + radius,

entry by entry, where u = 2^-53 and `ulps` counts roundings that were not yet added to the radius: multiplication by a
weight matrix adds them in the same product that carries the radius, so that most rounding is free. A negative `ulps`
is headroom: the next elementwise operations may round as often without saying so.
A slope, bend or radius that is None is zero. All tensors are float64. Sums of products may be taken in any order, with
or without fused operations; matrix products by Strassen's or Winograd's scheme are not covered (torch uses neither in
float64 on the CPU).

**Underflow.** fl(x y) = x y (1 + d) + e with |d| <= u and |e| <= 2^-1074: no relative error covers e. Every form may be
off by another 2^-1066 without saying so; this holds for weights on a path and for whatever is only moved. Every rule
that multiplies makes more than this of what it reads and of what it loses, and adds `TINY` to its radius: before the
product with weights, because they may be as large as 1e308, and behind it. A sum of n products loses at most n 2^-1074
<= TINY / 16 for n <= 2^30. Weights count as `FAINT` larger than they are, so that g m (|W| + FAINT) covers the
2^-1066 m that they leave unsaid. A settled form leaves nothing unsaid. Quotients that underflow are not used. Overflow
makes infinities or NaN, and so does a value that may not be defined, as the logarithm of what may be negative. These
stay until the bound, which is then none, also where the next function is bounded: the loss as evaluated may be NaN.

**Masks.** Entries that are -infinity in a network's own constants are `dropped` ones: the parts hold zeros there. They
can be moved, added to and scaled up, and a softmax leaves them out; every other rule refuses them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from isthmus.certify.origins import UNIT, Norm, Origin, follow, norms_like, same
from isthmus.errors import UnsupportedError

HEADROOM = -8
"""The `ulps` of a form whose radius already holds more rounding than one elementwise operation makes."""
TINY = 2.0**-1040
"""What every rule that multiplies adds to its radius for underflow."""
FAINT = 1e-305
"""How much larger weights are taken to be, for what their own entries lost to underflow."""
NARROW = 2.0**-1000
"""Quotients below which a chord is taken to be flat."""


class Refused(Exception):
    """Why a rule does not cover this use of its operation."""


class Open(Refused):
    """A choice that is not the same for all that a form stands for; it may be on a smaller interval."""


class Undecided(UnsupportedError):
    """The operation whose choice is open on an interval."""


@final
class Form:
    """Centre, slope, bend and radius; a value that is read by many operations is never written to.

    Where remainders are followed back (``origins.py``) it has an `origin`, and may have a `ball`: bounds of the norm of
    the remainder along the axes on which it has the size 1. A weight has `norm`: given a norm, bounds of it for the
    centre and for how far the weight moves away from there.

    >>> from isthmus.certify.kinks import rectified
    >>> x = Form(torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    >>> float(x.size()), round(float(rectified(x).centre), 9), rectified(x).slope
    (1.0, 0.25, tensor([0.5000], dtype=torch.float64))
    """

    __slots__ = ("_size", "ball", "bend", "centre", "dropped", "norm", "origin", "radius", "slope", "ulps")

    def __init__(
        self,
        centre: Tensor,
        slope: Tensor | None = None,
        radius: Tensor | None = None,
        ulps: float = 0.0,
        bend: Tensor | None = None,
        dropped: Tensor | None = None,
        origin: Origin | None = None,
    ) -> None:
        self.centre, self.slope, self.radius, self.ulps, self.bend = centre, slope, radius, ulps, bend
        self.dropped, self.origin = dropped, origin
        self.ball: Tensor | None = None
        self.norm: Callable[[Norm], tuple[float, float]] | None = None
        self._size: Tensor | None = None

    @property
    def constant(self) -> bool:
        """Whether nothing depends on s."""
        return self.slope is None and self.bend is None

    @property
    def exact(self) -> bool:
        """Whether it is its centre and nothing else."""
        return self.constant and self.radius is None and self.dropped is None and self.ulps <= 0

    def parts(self) -> tuple[Tensor | None, ...]:
        """Centre, slope, radius, bend, dropped."""
        return self.centre, self.slope, self.radius, self.bend, self.dropped

    def kept(self) -> Form:
        """The same, with the zeros that stand in the place of dropped entries."""
        if self.dropped is None:
            return self
        return Form(self.centre, self.slope, self.radius, self.ulps, self.bend, origin=self.origin)

    def refuse_dropped(self) -> None:
        """Masks are no numbers."""
        if self.dropped is not None:
            raise Refused("entries of -infinity have a rule only where a softmax reads them")

    def size(self) -> Tensor:
        """m = |centre| + |slope| + |bend| + radius, a new tensor."""
        out = self.centre.abs()
        for part in (self.slope, self.bend):
            if part is not None:
                out += part.abs()
        return out if self.radius is None else out.add_(self.radius)

    def reach(self) -> Tensor:
        """|centre| + |slope| + |bend| / 2 + FAINT, above all values but for the radius; computed once, for weights."""
        if self._size is None:
            self.refuse_dropped()
            out = self.centre.abs().add_(FAINT)
            for part, share in ((self.slope, 1.0), (self.bend, 0.5)):
                if part is not None:
                    out.add_(part.abs(), alpha=share)
            self._size = out
        return self._size

    def flat(self) -> Form:
        """The same without a bend: |s^2 - 1/2| <= 1/2."""
        self.refuse_dropped()
        if self.bend is None:
            return self
        # the bend's share of m goes from 1 to at most 1, in the radius, so that the ulps stay
        fresh = self.bend.abs().mul_(0.5).add_(TINY)
        radius = plus(fresh, self.radius)
        ulps = 2 * self.ulps + 4 if self.ulps > 0 else self.ulps + 4
        return Form(self.centre, self.slope, radius, ulps, origin=follow(lambda: fresh, (self, same)))

    def settled(self) -> Form:
        """The same without a bend, with all rounding in the radius and headroom for one more operation."""
        return self.flat().rounded()

    def rounded(self) -> Form:
        """The same with all rounding in the radius and headroom for one more operation."""
        self.refuse_dropped()
        if self.ulps <= HEADROOM / 2 and self.radius is not None:
            return self
        fresh = self.size().mul_((max(self.ulps, 0.0) + 16) * UNIT).add_(TINY)
        origin = follow(lambda: fresh, (self, same))
        out = Form(self.centre, self.slope, plus(fresh, self.radius), HEADROOM, self.bend, origin=origin)
        if self.ball is not None:
            out.ball = self.ball + norms_like(fresh, self.ball)
        return out


def plus(*terms: Tensor | None) -> Tensor | None:
    """The sum of the terms that are there."""
    total = None
    for term in terms:
        if term is not None:
            total = term if total is None else total + term
    return total


def times(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The product, where both factors are there."""
    return None if a is None or b is None else a * b


def strayed(x: Form) -> Tensor | None:
    """How far the polynomial of a form strays from its centre: |slope| + |bend| / 2."""
    bend = None if x.bend is None else x.bend.abs().mul_(0.5)
    return plus(None if x.slope is None else x.slope.abs(), bend)


def present(part: Tensor | None) -> Tensor:
    """The part of a form that is always there."""
    if part is None:
        raise ValueError("a settled form has a centre and a radius")
    return part


def half_width(x: Form) -> Tensor:
    """How far a settled or rounded form strays from its centre."""
    out = present(x.radius)
    for part, share in ((x.slope, 1.0), (x.bend, 0.5)):
        if part is not None:
            out = torch.add(out, part.abs(), alpha=share)
    return out


def beyond(x: Form) -> tuple[Tensor, Tensor]:
    """With x = c + d of a rounded form: how far d may be from slope s, and d^2 from slope^2 s^2."""
    own = present(x.radius) if x.bend is None else torch.add(present(x.radius), x.bend.abs(), alpha=0.5)
    return own, own.square() if x.slope is None else own * (2 * x.slope.abs() + own)


def known(x: Form) -> Tensor:
    """0 where something is known of an entry, NaN where nothing is: it overflowed, or may have no value."""
    return x.size().mul_(0.0)


def cut(x: Form, low: Tensor | float, high: Tensor | float) -> Form:
    """The same values, known to be in [low, high] as well; entries whose radius is more than that are these constants.

    Ends that are NaN make an entry NaN: whatever the function, nothing is known where nothing was (``known``).

    >>> wide = Form(torch.zeros(1, dtype=torch.float64), None, torch.full((1,), 9.0, dtype=torch.float64))
    >>> x = cut(wide, 0.0, 1.0)
    >>> float(x.centre), round(float(x.radius), 9)
    (0.5, 0.5)
    """
    x = x.rounded()
    low, high = (torch.as_tensor(v, dtype=torch.float64, device=x.centre.device) for v in (low, high))
    middle, half = (low + high) * 0.5, (high - low) * 0.5 + (low.abs() + high.abs()) * (8 * UNIT) + TINY
    better = ~(present(x.radius) <= half)  # also where nothing is known
    slope, bend = (None if p is None else p.masked_fill(better, 0.0) for p in (x.slope, x.bend))
    radius = torch.where(better, half, present(x.radius))
    origin = follow(lambda: torch.where(better, half, 0.0), (x, lambda g: g.masked_fill(better, 0.0)))
    return Form(torch.where(better, middle, x.centre), slope, radius, x.ulps, bend, origin=origin)
