"""Affine forms in one scalar: what a value can be while t runs over a small interval.

On [t0, t1] put t = tm + rho s with s in [-1, 1]. A form encloses a tensor v that depends on s:

    |v(s) - centre - slope s - bend (s^2 - 1/2)| <= radius + ulps u m,    m = |centre| + |slope| + |bend| + radius,

entry by entry, where u = 2^-53 and `ulps` counts roundings that were not yet added to the radius: multiplication by a
weight matrix adds them in the same product that carries the radius, so that most rounding is free. A negative `ulps`
is headroom: the next elementwise operation may round without saying so. Only weights on curves have a `bend`. A slope,
bend or radius that is None is zero. All tensors are float64. Sums of products may be taken in any order, with or
without fused operations; matrix products by Strassen's or Winograd's scheme are not covered (torch uses neither in
float64 on the CPU).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

UNIT = 2.0**-53
HEADROOM = -8
"""The `ulps` of a form whose radius already holds more rounding than one elementwise operation makes."""

Contraction = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x, weight, bias) -> a sum of products plus a bias; ``torch.nn.functional.linear``, say."""


@final
class Form:
    """Centre, slope, bend and radius; a value that is read by many operations is never written to.

    >>> x = Form(torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    >>> float(x.size()), round(float(rectified(x).centre), 9), rectified(x).slope
    (1.0, 0.25, tensor([0.5000], dtype=torch.float64))
    """

    __slots__ = ("_size", "bend", "centre", "radius", "slope", "ulps")

    def __init__(
        self,
        centre: Tensor,
        slope: Tensor | None = None,
        radius: Tensor | None = None,
        ulps: float = 0.0,
        bend: Tensor | None = None,
    ) -> None:
        self.centre, self.slope, self.radius, self.ulps, self.bend = centre, slope, radius, ulps, bend
        self._size: Tensor | None = None

    @property
    def constant(self) -> bool:
        """Whether nothing depends on s."""
        return self.slope is None and self.bend is None

    def parts(self) -> tuple[Tensor | None, ...]:
        """Centre, slope, radius, bend."""
        return self.centre, self.slope, self.radius, self.bend

    def size(self) -> Tensor:
        """m = |centre| + |slope| + |bend| + radius, a new tensor."""
        out = self.centre.abs()
        for part in (self.slope, self.bend):
            if part is not None:
                out += part.abs()
        return out if self.radius is None else out.add_(self.radius)

    def reach(self) -> Tensor:
        """|centre| + |slope| + |bend| / 2, the largest value but for the radius; computed once, for weights."""
        if self._size is None:
            out = self.centre.abs() if self.slope is None else self.centre.abs().add_(self.slope.abs())
            self._size = out if self.bend is None else out.add_(self.bend.abs(), alpha=0.5)
        return self._size

    def flat(self) -> Form:
        """The same without a bend: |s^2 - 1/2| <= 1/2."""
        if self.bend is None:
            return self
        # the bend's share of m goes from 1 to at most 1, in the radius, so that the ulps stay
        radius = self.bend.abs().mul_(0.5) if self.radius is None else self.radius + self.bend.abs().mul_(0.5)
        return Form(self.centre, self.slope, radius, 2 * self.ulps + 4 if self.ulps > 0 else self.ulps + 4)

    def settled(self) -> Form:
        """The same without a bend, with all rounding in the radius and headroom for one more operation."""
        x = self.flat()
        if x.ulps <= HEADROOM / 2:
            return x
        radius = x.size().mul_((max(x.ulps, 0.0) + 16) * UNIT)
        return Form(x.centre, x.slope, radius if x.radius is None else radius.add_(x.radius), HEADROOM)


def _plus(*terms: Tensor | None) -> Tensor | None:
    """The sum of the terms that are there."""
    total = None
    for term in terms:
        if term is not None:
            total = term if total is None else total + term
    return total


def _times(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return None if a is None or b is None else a * b


# -- sums and products


def contract(f: Contraction, terms: int, x: Form, w: Form, b: Form | None = None) -> Form:
    """A sum of `terms` products x w, plus b: a linear layer or a convolution, or two activations multiplied.

    With w = W + s D + (s^2 - 1/2) Q + e and x = c0 + s c1 + rho, |e| <= E, |rho| <= r:

        centre = W c0 + D c1 / 2 + b,    slope = W c1 + D c0 + b',
        radius = |D c1 + Q c0| / 2 + |Q c1| / 2 + (|W| + |D| + |Q| / 2)(r + g m) + E m + (the bias's own),

    because s^2 - 1/2 and s (s^2 - 1/2) stay within 1/2 of zero. g holds every rounding: 2 `terms` u for the four
    products and the radius, the ulps of the arguments, and 64 u for the sums and for the headroom of the result.
    """
    x, b = x.flat(), None if b is None else b.flat()
    b0, b1, spread = (None, None, None) if b is None else (b.centre, b.slope, b.radius)
    g = (2 * terms + max(x.ulps, 0.0) + max(w.ulps, 0.0) + (0.0 if b is None else max(b.ulps, 0.0)) + 64) * UNIT
    centre = f(x.centre, w.centre, b0)
    slope = bent = None
    if x.slope is not None:
        slope = f(x.slope, w.centre, b1)
    elif w.slope is None and b1 is not None:
        slope = f(torch.zeros_like(x.centre), w.centre, b1)
    if w.slope is not None:
        slope = f(x.centre, w.slope, b1) if slope is None else slope.add_(f(x.centre, w.slope, None))
        if x.slope is not None:
            bent = f(x.slope, w.slope, None)
            centre.add_(bent, alpha=0.5)
    size = x.size()
    rounding = size * g if x.radius is None else torch.add(x.radius, size, alpha=g)
    if b is not None:
        spread = b.size().mul_(g) if spread is None else spread + b.size().mul_(g)
    radius = f(rounding, w.reach(), spread)
    if w.bend is not None:
        bent = f(x.centre, w.bend, None) if bent is None else bent.add_(f(x.centre, w.bend, None))
        if x.slope is not None:
            radius.add_(f(x.slope, w.bend, None).abs_(), alpha=0.5)
    if bent is not None:
        radius.add_(bent.abs_(), alpha=0.5)
    if w.radius is not None:
        radius.add_(f(size, w.radius * (1 + 2.0**-20), None))  # the factor: the ulps of w, over its radius
    return Form(centre, slope, radius, HEADROOM)


def add(a: Form, b: Form, scale: float = 1.0) -> Form:
    """a + scale b, with broadcasting. Each settled argument brings more headroom than the sum rounds away."""
    a, b = a.settled(), scaled(b, scale).settled()
    centre, slope = a.centre + b.centre, _plus(a.slope, b.slope)
    if slope is not None and slope.shape != centre.shape:  # one argument is broadcast, and the other has no slope
        slope = slope.expand(centre.shape).contiguous()
    return Form(centre, slope, _plus(a.radius, b.radius), HEADROOM / 2)


def scaled(x: Form, factor: float) -> Form:
    """factor x, for an exact number."""
    if factor == 1:
        return x
    c0, c1, r, q = (None if p is None else p * factor for p in x.parts())
    return Form(c0 if c0 is not None else x.centre, c1, None if r is None else r.abs(), x.ulps + 2, q)


def multiply(a: Form, b: Form) -> Form:
    """a b, entry by entry with broadcasting; s^2 = 1/2 + (s^2 - 1/2) puts half of slope x slope into the centre."""
    a, b = a.settled(), b.settled()
    centre, both = a.centre * b.centre, _times(a.slope, b.slope)
    if both is not None:
        centre.add_(both, alpha=0.5)
    size = b.size()
    radius = torch.mul(a.size(), size).mul_(32 * UNIT)
    if a.radius is not None:
        radius.add_(a.radius * size)
    if b.radius is not None:
        radius.add_(a.reach() * b.radius)
    if both is not None:
        radius.add_(both.abs(), alpha=0.5)
    slope = _plus(_times(a.slope, b.centre), _times(a.centre, b.slope))
    return Form(centre, slope, radius, HEADROOM / 2)


def average(f: Callable[[Tensor], Tensor], terms: int, x: Form) -> Form:
    """A sum of `terms` entries with fixed weights that are not negative: a mean, a sum, an average pooling."""
    x = x.flat()
    rounding = x.size().mul_((terms + max(x.ulps, 0.0) + 32) * UNIT)
    radius = f(rounding if x.radius is None else rounding.add_(x.radius))
    return Form(f(x.centre), None if x.slope is None else f(x.slope), radius, HEADROOM)


def moved(f: Callable[[Tensor], Tensor], x: Form, padded: Callable[[Tensor], Tensor] | None = None) -> Form:
    """An operation that only moves, repeats or drops entries; `padded` is the one for all parts but the centre."""
    g = padded or f
    slope, radius, bend = (None if p is None else g(p) for p in (x.slope, x.radius, x.bend))
    return Form(f(x.centre), slope, radius, x.ulps, bend)


def joined(f: Callable[[Sequence[Tensor]], Tensor], several: Sequence[Form]) -> Form:
    """Concatenation or stacking of forms."""
    columns = list(zip(*(x.parts() for x in several), strict=True))

    def part(column: Sequence[Tensor | None]) -> Tensor | None:
        if all(p is None for p in column):
            return None
        return f([torch.zeros_like(x.centre) if p is None else p for p, x in zip(column, several, strict=True)])

    c0, c1, r, q = (part(column) for column in columns)
    if c0 is None:
        raise ValueError("nothing to join")
    return Form(c0, c1, r, max(x.ulps for x in several), q)


# -- piecewise linear functions


def rectified(x: Form, leak: float = 0.0) -> Form:
    """max(v, 0) + leak min(v, 0), 0 <= leak <= 1: between the chord over the range and the chord less its height.

    On [lo, hi] with lo < 0 < hi the chord of max(v, 0) has the slope k = hi / (hi - lo), and max(v, 0) - k v is between
    0 and -k lo; the middle is taken, and half of it added to the radius.
    """
    x = x.settled()
    if x.constant:
        return _monotone(lambda v: torch.where(v > 0, v, leak * v), x)
    factor, offset = _chord(x.centre, _spread(x))
    if leak:
        factor.mul_(1 - leak).add_(leak)
        offset.mul_(1 - leak)
    return _lined(x, factor, offset)


def _spread(x: Form) -> Tensor:
    """How far a settled form strays from its centre."""
    if x.radius is None:
        raise ValueError("a settled form has a radius")
    return x.radius if x.slope is None else x.slope.abs().add_(x.radius)


def _chord(centre: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """The slope of the chord of max(v, 0) over centre +- width, and half its greatest height above the function."""
    above = (centre + width).clamp_(min=0)
    below = (width - centre).clamp_(min=0)
    factor = above / (above + below).clamp_(min=1e-300)
    return factor, below.mul_(factor).mul_(0.5)


def _lined(x: Form, factor: Tensor, offset: Tensor) -> Form:
    """factor x + offset +- offset; both terms are at most the new size, so that their rounding is a few ulps."""
    slope = None if x.slope is None else factor * x.slope
    radius = offset if x.radius is None else torch.addcmul(offset, factor, x.radius)
    return Form(torch.addcmul(offset, factor, x.centre), slope, radius, 12)


def _monotone(f: Callable[[Tensor], Tensor], x: Form) -> Form:
    """A function that is monotone and has a slope of at most 1, of a constant: the centre's image."""
    return Form(f(x.centre), None, x.radius, 4)


def piecewise(f: Callable[[Tensor], Tensor], breaks: Sequence[float], x: Form) -> Form:
    """A continuous function that is linear between `breaks`: the chord over the range, and its exact deviation."""
    x = x.settled()
    width = _spread(x)
    lo, hi = x.centre - width, x.centre + width
    low, high = f(lo), f(hi)
    factor = (high - low) / (hi - lo).clamp_(min=1e-300)
    gaps = [low - factor * lo, high - factor * hi]
    for point in breaks:
        at = lo.clamp(min=point).minimum(hi)
        gaps.append(f(at) - factor * at)
    top, bottom = torch.stack(gaps).amax(0), torch.stack(gaps).amin(0)
    rounding = (lo.abs() + hi.abs()) * (1 + factor.abs()) + low.abs() + high.abs()
    radius = (top - bottom) * 0.5 + rounding * (32 * UNIT)
    if x.radius is not None:
        radius.addcmul_(factor.abs(), x.radius)
    slope = None if x.slope is None else factor * x.slope
    return Form(torch.addcmul((top + bottom) * 0.5, factor, x.centre), slope, radius, HEADROOM / 2)


def maximum(a: Form, b: Form) -> Form:
    """max(a, b) = a + max(b - a, 0), by the chord of the difference: (1 - k) a + k b, and half the chord's height."""
    a, b = a.settled(), b.settled()
    gap = b.centre - a.centre
    radii = (a.radius, b.radius)
    width = _plus(*radii)
    if width is None:
        raise ValueError("a settled form has a radius")
    c1 = _plus(b.slope, None if a.slope is None else -a.slope)
    width = (width if c1 is None else width + c1.abs()).mul_(1 + 8 * UNIT).add_(gap.abs(), alpha=8 * UNIT)
    factor, offset = _chord(gap, width)
    rest = 1 - factor

    def mixed(p: Tensor | None, q: Tensor | None) -> Tensor | None:
        return _plus(_times(rest, p), _times(factor, q))

    centre, slope, radius = mixed(a.centre, b.centre), mixed(a.slope, b.slope), mixed(*radii)
    if centre is None or radius is None:
        raise ValueError("a form has a centre")
    return Form(centre + offset, slope, radius + offset, 40)
