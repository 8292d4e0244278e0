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

from collections.abc import Callable, Sequence
from math import inf
from typing import final

import torch
from torch import Tensor

from isthmus.certify.origins import Origin, Pull, by, follow, followed, holds, lazily, recorded, reduced_to, same
from isthmus.errors import UnsupportedError

UNIT = 2.0**-53
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


Contraction = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x, weight, bias) -> a sum of products plus a bias; ``torch.nn.functional.linear``, say."""


@final
class Form:
    """Centre, slope, bend and radius; a value that is read by many operations is never written to.

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
        self.norm: Callable[[Callable[[Tensor], float]], tuple[float, float]] | None = None
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
        if self.ball is not None and origin is not None:
            from isthmus.certify.balls import entrywise
            entrywise(out, self, 1.0)
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


# -- sums and products


def contract(f: Contraction, terms: int, x: Form, w: Form, b: Form | None = None) -> Form:
    """A sum of `terms` products x w, plus b: a linear layer or a convolution, or two activations multiplied.

    With w = W + s D + (s^2 - 1/2) Q + e and x = c0 + s c1 + (s^2 - 1/2) q + rho, |e| <= E, |rho| <= r:

        centre = W c0 + D c1 / 2 + Q q / 8 + b,    slope = W c1 + D c0 + (D q + Q c1) / 4 + b',
        bend = W q + D c1 + Q c0 + b'',
        radius = |D q + Q c1| / 4 + |Q q| / 8 + (|W| + |D| + |Q| / 2)(r + g m + TINY) + E m + (the bias's own) + TINY,

    because s (s^2 - 1/2) = s / 4 + (4 s^3 - 3 s) / 4 and (s^2 - 1/2)^2 = 1/8 + (8 s^4 - 8 s^2 + 1) / 8, and polynomials
    of Chebyshev stay within 1. g holds every rounding: 2 `terms` u for the products and the radius, the ulps of the
    arguments, and 64 u for the sums and for the headroom of the result.
    """
    x.refuse_dropped()
    b0, b1, b2 = (None,) * 3 if b is None else (b.centre, b.slope, b.bend)
    g = (2 * terms + sum(max(v.ulps, 0.0) for v in (x, w, b) if v is not None) + 64) * UNIT

    def summed(bias: Tensor | None, *pairs: tuple[Tensor | None, Tensor | None]) -> Tensor | None:
        both = [(p, q) for p, q in pairs if p is not None and q is not None]
        if not both and bias is not None:
            both = [(torch.zeros_like(x.centre), w.centre)]
        return _sums(f, bias, both)

    passed = [x] if followed(x, w) and holds(x) else []
    passed += [w] if w.origin is not None and w.origin.sources else []
    centre, pulls = _recorded(f, x, w, b0, passed)
    slope = summed(b1, (x.slope, w.centre), (x.centre, w.slope))
    bend = summed(b2, (x.bend, w.centre), (x.centre, w.bend))
    second = summed(None, (x.slope, w.slope))
    third = summed(None, (x.bend, w.slope), (x.slope, w.bend))
    fourth = summed(None, (x.bend, w.bend))
    centre = present(_raised(_raised(centre, second, 0.5), fourth, 0.125))
    slope, bend = _raised(slope, third, 0.25), _raised(bend, second, 1.0)
    radius = f(_left(x, g), w.reach(), None if b is None else _left(b, g)).add_(TINY)
    for part, share in ((third, 0.25), (fourth, 0.125)):
        if part is not None:
            radius.add_(part.abs_(), alpha=share)
    if w.radius is not None:
        # the factor: the ulps of w, over its radius; the term: what is lost of either where they are denormal
        radius.add_(f(x.size(), (w.radius * (1 + 2.0**-20)).add_(TINY), None))
    origin = None
    if followed(x, w, b):
        fresh = _fresh(f, terms, g, x, w, b, [(third, 0.25), (fourth, 0.125)], passed)
        origin = Origin(list(zip(passed, pulls, strict=True)), fresh, terms)
    return Form(centre, slope, radius, HEADROOM, bend, origin=origin)


def _recorded(
    f: Contraction, x: Form, w: Form, b: Tensor | None, passed: Sequence[Form]
) -> tuple[Tensor, Sequence[Pull]]:
    """The product of the centres plus a bias, and the pulls of those arguments whose remainders it passes on."""
    if not passed:
        return f(x.centre, w.centre, b), ()
    given = {id(x): x.centre, id(w): w.centre}
    ours = [id(v) for v in passed]

    def product(*parts: Tensor) -> Tensor:
        both = given | dict(zip(ours, parts, strict=True))
        return f(both[id(x)], both[id(w)], b)

    return recorded(product, *(v.centre for v in passed))


def _fresh(
    f: Contraction, terms: int, g: float, x: Form, w: Form, b: Form | None,
    open_: Sequence[tuple[Tensor | None, float]], passed: Sequence[Form],
) -> Tensor:
    """What a product adds to W rho and R c: by how much factors move away from their centres while rho is there.

    Of the rounding it takes the largest product `terms` times over, for all.
    """
    rounding = float(x.size().amax()) * g + TINY
    rounding = terms * rounding * float(w.reach().amax()) + TINY
    if b is not None:
        rounding += float(_left(b, g).amax())
    out = torch.full((), rounding, dtype=torch.float64, device=x.centre.device)
    for part, share in open_:
        if part is not None:
            out = out + part * share  # their signs were taken off
    if w.norm is None and x.radius is not None and (moving := strayed(w)) is not None:
        out = out + f(x.radius, moving, None)
    if w.radius is None:
        return out
    own = (w.radius * (1 + 2.0**-20)).add_(TINY)
    if not any(v is w for v in passed):
        return out + f(x.size(), own, None)
    out = out + f(x.size(), (w.radius * 2.0**-20).add_(TINY), None)
    beyond_centre = plus(strayed(x), x.radius)
    return out if beyond_centre is None else out + f(beyond_centre, own, None)


def strayed(x: Form) -> Tensor | None:
    """How far the polynomial of a form strays from its centre: |slope| + |bend| / 2."""
    parts = [part.abs() if share == 1 else part.abs().mul_(share) for part, share in ((x.slope, 1.0), (x.bend, 0.5)) if part is not None]
    return plus(*parts)


def _sums(f: Contraction, bias: Tensor | None, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor | None:
    """The sum of the products of pairs, plus a bias; None where there is no pair."""
    total = None
    for p, q in pairs:
        total = f(p, q, bias) if total is None else total.add_(f(p, q, None))
    return total


def _raised(total: Tensor | None, part: Tensor | None, share: float) -> Tensor | None:
    """total + share part, of what is there."""
    if part is None:
        return total
    return part * share if total is None else total.add_(part, alpha=share)


def _left(x: Form, g: float) -> Tensor:
    """The radius, g m, and what is lost where they are denormal."""
    rounding = x.size().mul_(g).add_(TINY)
    return rounding if x.radius is None else rounding.add_(x.radius)


def add(a: Form, b: Form, scale: float = 1.0) -> Form:
    """a + scale b, with broadcasting. The sum rounds away part of the smaller headroom of its settled arguments."""
    b = scaled(b, scale)
    marks = [x.dropped for x in (a, b) if x.dropped is not None]
    a, b = a.kept().rounded(), b.kept().rounded()
    centre = a.centre + b.centre
    slope, bend = (_spread(plus(p, q), centre) for p, q in ((a.slope, b.slope), (a.bend, b.bend)))
    dropped = None if not marks else torch.stack([m.expand(centre.shape) for m in marks]).any(0)
    pairs = [(x, reduced_to(x.centre.shape)) for x in (a, b)]
    origin = follow(lambda: 0.0, *pairs)
    out = Form(centre, slope, plus(a.radius, b.radius), max(a.ulps, b.ulps) + 2, bend, dropped, origin)
    if origin is not None:
        from isthmus.certify.balls import summed
        summed(out, a, b)
    return out


def _spread(part: Tensor | None, centre: Tensor) -> Tensor | None:
    """A part of full shape, where one argument is broadcast and the other has no such part."""
    return part if part is None or part.shape == centre.shape else part.expand(centre.shape).contiguous()


def scaled(x: Form, factor: float) -> Form:
    """factor x, for an exact number."""
    if factor == 1:
        return x
    if x.dropped is not None and not factor > 0:
        raise Refused("entries of -infinity cannot be multiplied by a number that is not positive")
    c0, c1, q = (None if p is None else p * factor for p in (x.centre, x.slope, x.bend))
    origin = follow(lambda: TINY * max(1.0, abs(factor)), (x, lambda g: g * factor))
    return Form(present(c0), c1, _scaled_radius(x, abs(factor)), x.ulps + 2, q, x.dropped, origin)


def divided(x: Form, divisor: float) -> Form:
    """x / divisor, for an exact number."""
    if x.dropped is not None and not divisor > 0:
        raise Refused("entries of -infinity cannot be divided by a number that is not positive")
    c0, c1, q = (None if p is None else p / divisor for p in (x.centre, x.slope, x.bend))
    # the reciprocal rounds, and so does the product with it
    factor = abs(1 / divisor) * (1 + 4 * UNIT) if divisor else inf
    origin = follow(lambda: TINY * max(1.0, factor), (x, lambda g: g / divisor))
    return Form(present(c0), c1, _scaled_radius(x, factor), x.ulps + 2, q, x.dropped, origin)


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
    """a b, entry by entry with broadcasting; s^2 = 1/2 + (s^2 - 1/2) puts half of slope x slope into the centre.

    What else s makes of slopes and bends is bounded: |s (s^2 - 1/2)| <= 1/2 and (s^2 - 1/2)^2 <= 1/4.
    """
    a, b = a.rounded(), b.rounded()
    centre, both = a.centre * b.centre, times(a.slope, b.slope)
    if both is not None:
        centre.add_(both, alpha=0.5)
    size = b.size()
    radius = torch.mul(a.size(), size).mul_(32 * UNIT).add_(TINY)
    for p, q, share in ((a.slope, b.bend, 0.5), (a.bend, b.slope, 0.5), (a.bend, b.bend, 0.25)):
        if p is not None and q is not None:
            radius.add_((p * q).abs_(), alpha=share)
    pairs = [(x, reduced_to(x.centre.shape, by(y.centre))) for x, y in ((a, b), (b, a))]
    origin = follow(lambda: radius + _crossed(a, b), *pairs)
    radius.add_(present(a.radius) * size).add_(a.reach() * present(b.radius))
    slope = plus(times(a.slope, b.centre), times(a.centre, b.slope))
    bend = plus(times(a.bend, b.centre), times(a.centre, b.bend), both)
    out = Form(centre, slope, radius, HEADROOM / 2, bend, origin=origin)
    if origin is not None and a.ball is not None and b.ball is None:
        from isthmus.certify.balls import entrywise
        entrywise(out, a, float(b.centre.abs().amax()))
    return out


def _crossed(a: Form, b: Form) -> Tensor:
    """What of a product is neither b's centre times a remainder of a, nor the other way round."""
    out = present(a.radius) * present(b.radius)
    for x, y in ((a, b), (b, a)):
        if (stray := strayed(y)) is not None:
            out = out + present(x.radius) * stray
    return out


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


def squared(x: Form) -> Form:
    """x^2 = c^2 + 2 c d + d^2 with x = c + d; d^2 is s^2 slope^2 and what else there is."""
    x = x.rounded()
    twice, flat = 2 * x.centre, times(x.slope, x.slope)
    rounding = x.size().square_().mul_(32 * UNIT).add_(TINY)
    rounding.add_(beyond(x)[1])
    origin = follow(rounding.clone, (x, by(twice)))
    radius = rounding.addcmul_(twice.abs(), present(x.radius))
    out = x.centre.square() if flat is None else torch.add(x.centre.square(), flat, alpha=0.5)
    return Form(out, times(twice, x.slope), radius, HEADROOM / 2, plus(times(twice, x.bend), flat), origin=origin)


def average(f: Callable[[Tensor], Tensor], terms: int, x: Form) -> Form:
    """A sum of `terms` entries with fixed weights of one sign: a mean, a sum, an average pooling."""
    x.refuse_dropped()
    rounding = x.size().mul_((terms + max(x.ulps, 0.0) + 32) * UNIT).add_(TINY)
    origin = follow(lambda: f(rounding).abs().add_(TINY), (x, lazily(f, x.centre)))
    radius = f(rounding if x.radius is None else rounding.add_(x.radius)).abs().add_(TINY)
    slope, bend = (None if p is None else f(p) for p in (x.slope, x.bend))
    return Form(f(x.centre), slope, radius, HEADROOM, bend, origin=origin)


def moved(f: Callable[[Tensor], Tensor], x: Form, padded: Callable[[Tensor], Tensor] | None = None) -> Form:
    """An operation that only moves, repeats or drops entries; `padded` is the one for all parts but the centre."""
    g = padded or f
    slope, radius, bend, dropped = (None if p is None else g(p) for p in (x.slope, x.radius, x.bend, x.dropped))
    return Form(f(x.centre), slope, radius, x.ulps, bend, dropped, follow(lambda: 0.0, (x, lazily(g, x.centre))))


def joined(f: Callable[[Sequence[Tensor]], Tensor], several: Sequence[Form]) -> Form:
    """Concatenation or stacking of forms."""
    columns = list(zip(*(x.parts() for x in several), strict=True))

    def part(column: Sequence[Tensor | None]) -> Tensor | None:
        if all(p is None for p in column):
            return None
        kind = next(p for p in column if p is not None).dtype
        zeros = (
            torch.zeros_like(x.centre, dtype=kind) if p is None else p for p, x in zip(column, several, strict=True)
        )
        return f(list(zeros))

    c0, c1, r, q, dropped = (part(column) for column in columns)
    pairs = [(x, _pull_of(f, several, i)) for i, x in enumerate(several)]
    return Form(present(c0), c1, r, max(x.ulps for x in several), q, dropped, follow(lambda: 0.0, *pairs))


def _pull_of(f: Callable[[Sequence[Tensor]], Tensor], several: Sequence[Form], i: int) -> Pull:
    return lambda g: recorded(lambda *parts: f(list(parts)), *(x.centre for x in several))[1][i](g)


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
