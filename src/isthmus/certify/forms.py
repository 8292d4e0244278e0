"""Affine forms in one scalar: what a value can be while t runs over a small interval.

On [t0, t1] put t = tm + rho s with s in [-1, 1]. A form encloses a tensor v that depends on s:

    |v(s) - centre - slope s - bend (s^2 - 1/2)| <= radius + ulps u m,    m = |centre| + |slope| + |bend| + radius,

entry by entry, where u = 2^-53 and `ulps` counts roundings that were not yet added to the radius: multiplication by a
weight matrix adds them in the same product that carries the radius, so that most rounding is free. A negative `ulps`
is headroom: the next elementwise operations may round as often without saying so. Only weights on curves have a `bend`.
A slope, bend or radius that is None is zero. All tensors are float64. Sums of products may be taken in any order, with
or without fused operations; matrix products by Strassen's or Winograd's scheme are not covered (torch uses neither in
float64 on the CPU).

**Underflow.** fl(x y) = x y (1 + d) + e with |d| <= u and |e| <= 2^-1074: no relative error covers e. Every form may be
off by another 2^-1066 without saying so; this holds for weights on a path and for whatever is only moved. Every rule
that multiplies makes more than this of what it reads and of what it loses, and adds `TINY` to its radius: before the
product with weights, because they may be as large as 1e308, and behind it. A sum of n products loses at most n 2^-1074
<= TINY / 16 for n <= 2^30. Weights count as `FAINT` larger than they are, so that g m (|W| + FAINT) covers the
2^-1066 m that they leave unsaid. A settled form leaves nothing unsaid. Quotients that underflow are not used. Overflow
makes infinities or NaN, and these stay until the bound, which is then none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import final

import torch
from torch import Tensor

UNIT = 2.0**-53
HEADROOM = -8
"""The `ulps` of a form whose radius already holds more rounding than one elementwise operation makes."""
TINY = 2.0**-1040
"""What every rule that multiplies adds to its radius for underflow."""
FAINT = 1e-305
"""How much larger weights are taken to be, for what their own entries lost to underflow."""
NARROW = 2.0**-1000
"""Quotients below which a chord is taken to be flat."""

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
        """|centre| + |slope| + |bend| / 2 + FAINT, above all values but for the radius; computed once, for weights."""
        if self._size is None:
            out = self.centre.abs().add_(FAINT)
            for part, share in ((self.slope, 1.0), (self.bend, 0.5)):
                if part is not None:
                    out.add_(part.abs(), alpha=share)
            self._size = out
        return self._size

    def flat(self) -> Form:
        """The same without a bend: |s^2 - 1/2| <= 1/2."""
        if self.bend is None:
            return self
        # the bend's share of m goes from 1 to at most 1, in the radius, so that the ulps stay
        radius = self.bend.abs().mul_(0.5).add_(TINY)
        radius = radius if self.radius is None else radius.add_(self.radius)
        return Form(self.centre, self.slope, radius, 2 * self.ulps + 4 if self.ulps > 0 else self.ulps + 4)

    def settled(self) -> Form:
        """The same without a bend, with all rounding in the radius and headroom for one more operation."""
        x = self.flat()
        if x.ulps <= HEADROOM / 2 and x.radius is not None:
            return x
        radius = x.size().mul_((max(x.ulps, 0.0) + 16) * UNIT).add_(TINY)
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
        radius = |D c1 + Q c0| / 2 + |Q c1| / 2 + (|W| + |D| + |Q| / 2)(r + g m + TINY) + E m + (the bias's own) + TINY,

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
    rounding = (size * g if x.radius is None else torch.add(x.radius, size, alpha=g)).add_(TINY)
    if b is not None:
        own = b.size().mul_(g).add_(TINY)
        spread = own if spread is None else own.add_(spread)
    radius = f(rounding, w.reach(), spread)
    if b is None:
        radius.add_(TINY)
    if w.bend is not None:
        bent = f(x.centre, w.bend, None) if bent is None else bent.add_(f(x.centre, w.bend, None))
        if x.slope is not None:
            radius.add_(f(x.slope, w.bend, None).abs_(), alpha=0.5)
    if bent is not None:
        radius.add_(bent.abs_(), alpha=0.5)
    if w.radius is not None:
        # the factor: the ulps of w, over its radius; the term: what is lost of either where they are denormal
        radius.add_(f(size, (w.radius * (1 + 2.0**-20)).add_(TINY), None))
    return Form(centre, slope, radius, HEADROOM)


def add(a: Form, b: Form, scale: float = 1.0) -> Form:
    """a + scale b, with broadcasting. The sum rounds away part of the smaller headroom of its settled arguments."""
    a, b = a.settled(), scaled(b, scale).settled()
    centre, slope = a.centre + b.centre, _plus(a.slope, b.slope)
    if slope is not None and slope.shape != centre.shape:  # one argument is broadcast, and the other has no slope
        slope = slope.expand(centre.shape).contiguous()
    return Form(centre, slope, _plus(a.radius, b.radius), max(a.ulps, b.ulps) + 2)


def scaled(x: Form, factor: float) -> Form:
    """factor x, for an exact number."""
    if factor == 1:
        return x
    c0, c1, q = (None if p is None else p * factor for p in (x.centre, x.slope, x.bend))
    return Form(present(c0), c1, _scaled_radius(x, abs(factor)), x.ulps + 2, q)


def divided(x: Form, divisor: float) -> Form:
    """x / divisor, for an exact number."""
    c0, c1, q = (None if p is None else p / divisor for p in (x.centre, x.slope, x.bend))
    # the reciprocal rounds, and so does the product with it
    return Form(
        present(c0), c1, _scaled_radius(x, abs(1 / divisor) * (1 + 4 * UNIT) if divisor else inf), x.ulps + 2, q
    )


def _scaled_radius(x: Form, factor: float) -> Tensor:
    """`factor` times the radius, and times what the form leaves unsaid."""
    lost = TINY * max(1.0, factor)
    return torch.full_like(x.centre, lost) if x.radius is None else (x.radius * factor).add_(lost)


def present(part: Tensor | None) -> Tensor:
    """The part of a form that is always there."""
    if part is None:
        raise ValueError("a settled form has a centre and a radius")
    return part


def multiply(a: Form, b: Form) -> Form:
    """a b, entry by entry with broadcasting; s^2 = 1/2 + (s^2 - 1/2) puts half of slope x slope into the centre."""
    a, b = a.settled(), b.settled()
    centre, both = a.centre * b.centre, _times(a.slope, b.slope)
    if both is not None:
        centre.add_(both, alpha=0.5)
    size = b.size()
    radius = torch.mul(a.size(), size).mul_(32 * UNIT).add_(TINY)
    if a.radius is not None:
        radius.add_(a.radius * size)
    if b.radius is not None:
        radius.add_(a.reach() * b.radius)
    if both is not None:
        radius.add_(both.abs(), alpha=0.5)
    slope = _plus(_times(a.slope, b.centre), _times(a.centre, b.slope))
    return Form(centre, slope, radius, HEADROOM / 2)


def average(f: Callable[[Tensor], Tensor], terms: int, x: Form) -> Form:
    """A sum of `terms` entries with fixed weights of one sign: a mean, a sum, an average pooling."""
    x = x.flat()
    rounding = x.size().mul_((terms + max(x.ulps, 0.0) + 32) * UNIT).add_(TINY)
    radius = f(rounding if x.radius is None else rounding.add_(x.radius)).abs().add_(TINY)
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
    return Form(present(c0), c1, r, max(x.ulps for x in several), q)


# -- piecewise linear functions


def rectified(x: Form, leak: float = 0.0) -> Form:
    """max(v, 0) + leak min(v, 0), 0 <= leak <= 1: between the chord over the range and the chord less its height.

    On [lo, hi] with lo < 0 < hi the chord of max(v, 0) has the slope k = hi / (hi - lo), and max(v, 0) - k v is between
    0 and -k lo; the middle is taken, and half of it added to the radius.
    """
    x = x.settled()
    if x.constant:
        return _monotone(lambda v: torch.where(v > 0, v, leak * v), x)
    factor, offset = _chord(x.centre, half_width(x))
    if leak:
        factor.mul_(1 - leak).add_(leak)
        offset.mul_(1 - leak)
    return _lined(x, factor, offset)


def half_width(x: Form) -> Tensor:
    """How far a settled form strays from its centre."""
    radius = present(x.radius)
    return radius if x.slope is None else x.slope.abs().add_(radius)


def _chord(centre: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """The slope of the chord of max(v, 0) over centre +- width, and half its greatest height above the function.

    Where the slope would underflow, or the range is a point, the line is flat: max(v, 0) is between 0 and the range's
    upper end.
    """
    above = (centre + width).clamp_(min=0)
    below = (width - centre).clamp_(min=0)
    total = above + below
    factor = above / total
    flat = (factor < NARROW) | (total == 0)
    height = torch.where(flat, above, below.mul_(factor))
    return factor.masked_fill_(flat, 0.0), height.mul_(0.5)


def _lined(x: Form, factor: Tensor, offset: Tensor) -> Form:
    """factor x + offset +- offset; both terms are at most the new size, so that their rounding is a few ulps."""
    slope = None if x.slope is None else factor * x.slope
    centre = torch.addcmul(offset, factor, x.centre)
    radius = offset.add_(TINY)
    return Form(centre, slope, radius if x.radius is None else radius.addcmul_(factor, x.radius), 12)


def _monotone(f: Callable[[Tensor], Tensor], x: Form) -> Form:
    """A function that is monotone and has a slope of at most 1, of a constant: the centre's image."""
    return Form(f(x.centre), None, x.radius, 4)


def piecewise(f: Callable[[Tensor], Tensor], breaks: Sequence[float], x: Form) -> Form:
    """A continuous function that is linear between `breaks`: the chord over the range, and its exact deviation."""
    x = x.settled()
    width = half_width(x)
    lo, hi = x.centre - width, x.centre + width
    low, high = f(lo), f(hi)
    # any factor will do, because the deviation from its line is computed
    factor = ((high - low) / (hi - lo)).masked_fill_(hi - lo < NARROW, 0.0)
    gaps = [low - factor * lo, high - factor * hi]
    for point in breaks:
        at = lo.clamp(min=point).minimum(hi)
        gaps.append(f(at) - factor * at)
    top, bottom = torch.stack(gaps).amax(0), torch.stack(gaps).amin(0)
    rounding = (lo.abs() + hi.abs()) * (1 + factor.abs()) + low.abs() + high.abs()
    radius = (top - bottom) * 0.5 + rounding * (32 * UNIT) + TINY
    if x.radius is not None:
        radius.addcmul_(factor.abs(), x.radius)
    slope = None if x.slope is None else factor * x.slope
    return Form(torch.addcmul((top + bottom) * 0.5, factor, x.centre), slope, radius, HEADROOM / 2)


def maximum(a: Form, b: Form) -> Form:
    """max(a, b) = a + max(b - a, 0), by the chord of the difference: (1 - k) a + k b, and half the chord's height."""
    a, b = a.settled(), b.settled()
    gap = b.centre - a.centre
    radii = (a.radius, b.radius)
    width = present(_plus(*radii))
    c1 = _plus(b.slope, None if a.slope is None else -a.slope)
    width = (width if c1 is None else width + c1.abs()).mul_(1 + 8 * UNIT).add_(gap.abs(), alpha=8 * UNIT)
    factor, offset = _chord(gap, width)
    rest = 1 - factor

    def mixed(p: Tensor | None, q: Tensor | None) -> Tensor | None:
        return _plus(_times(rest, p), _times(factor, q))

    centre, radius = present(mixed(a.centre, b.centre)), present(mixed(*radii))
    return Form(centre + offset, mixed(a.slope, b.slope), radius.add_(offset).add_(TINY), 40)
