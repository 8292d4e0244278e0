"""Sums and products of affine forms, and operations that only move entries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import frexp, inf

import torch
from torch import Tensor

from isthmus.certify.balls import is_tight, summed, tightened
from isthmus.certify.forms import (
    HEADROOM,
    TINY,
    UNIT,
    Form,
    Refused,
    beyond,
    plus,
    present,
    strayed,
    times,
)
from isthmus.certify.origins import Origin, Pull, by, follow, followed, holds, lazily, recorded, reduced_to

Contraction = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x, weight, bias) -> a sum of products plus a bias; ``torch.nn.functional.linear``, say."""


def contract(f: Contraction, terms: int, x: Form, w: Form, b: Form | None = None, axis: int | None = None) -> Form:
    """A sum of `terms` products x w, plus b: a linear layer or a convolution, or two activations multiplied.

    With w = W + s D + (s^2 - 1/2) Q + e and x = c0 + s c1 + (s^2 - 1/2) q + rho, |e| <= E, |rho| <= r:

        centre = W c0 + D c1 / 2 + Q q / 8 + b,    slope = W c1 + D c0 + (D q + Q c1) / 4 + b',
        bend = W q + D c1 + Q c0 + b'',
        radius = |D q + Q c1| / 4 + |Q q| / 8 + (|W| + |D| + |Q| / 2)(r + g m + TINY) + E m + (the bias's own) + TINY,

    because s (s^2 - 1/2) = s / 4 + (4 s^3 - 3 s) / 4 and (s^2 - 1/2)^2 = 1/8 + (8 s^4 - 8 s^2 + 1) / 8, and polynomials
    of Chebyshev stay within 1. g holds every rounding: 2 `terms` u for the products and the radius, the ulps of the
    arguments, and 64 u for the sums and for the headroom of the result.

    `axis`: of w, over which a matrix product sums; where nothing moves, that is computed in parts (``_in_parts``).
    """
    for v in (x, w) if b is None else (x, w, b):
        v.refuse_dropped()
    fixed = None if axis is None else _in_parts(f, terms, x, w, b)
    return fixed or _contracted(f, terms, x, w, b, axis)


def _contracted(f: Contraction, terms: int, x: Form, w: Form, b: Form | None = None, axis: int | None = None) -> Form:
    """``contract``, for all forms."""
    g = (2 * terms + sum(max(v.ulps, 0.0) for v in (x, w, b) if v is not None) + 64) * UNIT
    centre, slope, bend, open_, sources = _polynomial(f, x, w, b)
    out = Form(centre, slope, None, HEADROOM, bend)
    if followed(x, w, b):
        out.origin = Origin(sources, _fresh(f, terms, g, x, w, b).add(open_), terms)
        if axis is not None and is_tight(x, w):
            return tightened(out, x, w, axis)
    out.radius = f(_left(x, g), w.reach(), None if b is None else _left(b, g)).add_(TINY).add_(open_)
    if w.radius is not None:
        # the factor: the ulps of w, over its radius; the term: what is lost of either where they are denormal
        out.radius.add_(f(x.size(), (w.radius * (1 + 2.0**-20)).add_(TINY), None))
    return out if out.origin is None else _with_movement(f, out, x, w, axis)


def _in_parts(f: Contraction, terms: int, x: Form, w: Form, b: Form | None) -> Form | None:
    """x w + b of numbers that are known exactly, with a few ulps of the result in place of `terms` of |x| |w|.

    x = x' + x'' and w = w' + w'' exactly, where x' and w' are whole multiples of q and q', at most 2^k of them, and
    |x''| <= q / 2, |w''| <= q' / 2. With 2 k + log2 `terms` <= 53 the product x' w' is a sum of whole numbers below
    2^53: no order of it rounds. x' w'' and x'' w are at most terms q q' 2^k in size together, and round by at most
    (terms + 2) u of that; then three sums round. None where something else is known of them, or they are of a size
    at which q or its products are no normal numbers.
    """
    if not _all_exact(x, w, b):
        return None
    bits = (53 - (terms - 1).bit_length()) // 2
    units = [_unit(v.centre, bits) for v in (x, w)]
    if bits < 8 or 0.0 in units:
        return None
    (high, low), (upper, lower) = (_split(v.centre, q) for v, q in zip((x, w), units, strict=True))
    rest = f(high, lower, None).add_(f(low, w.centre, None))
    centre = f(high, upper, None).add_(rest)
    size = centre.abs()
    if b is not None:
        centre = centre + b.centre
        size.add_(b.centre.abs())
    small = terms * units[0] * units[1] * 2.0**bits
    radius = size.mul_(64 * UNIT).add_(4 * (terms + 16) * UNIT * small + TINY)
    return Form(centre, None, radius, HEADROOM)


def _all_exact(*forms: Form | None) -> bool:
    return all(v is None or v.exact for v in forms) and not followed(*forms)


def _unit(v: Tensor, bits: int) -> float:
    """The q of which v is at most 2^bits in size, a power of two; 0 where there is none of a moderate size."""
    largest = float(v.abs().amax()) if v.numel() else 0.0
    return 2.0 ** (frexp(largest)[1] - bits) if 2.0**-400 < largest < 2.0**400 else 0.0


def _split(v: Tensor, q: float) -> tuple[Tensor, Tensor]:
    """The nearest multiples of q and what is left, both exact."""
    high = torch.round(v / q) * q
    return high, v - high


def _polynomial(
    f: Contraction, x: Form, w: Form, b: Form | None
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | float, Sequence[tuple[Form, Pull]]]:
    """Centre, slope and bend of x w + b, what they leave open, and the arguments that pass remainders, with pulls."""
    b0, b1, b2 = (None,) * 3 if b is None else (b.centre, b.slope, b.bend)

    def summed(bias: Tensor | None, *pairs: tuple[Tensor | None, Tensor | None]) -> Tensor | None:
        both = [(p, q) for p, q in pairs if p is not None and q is not None]
        if not both and bias is not None:
            both = [(torch.zeros_like(x.centre), w.centre)]
        return _sums(f, bias, both)

    passed = [x] if followed(x, w) and holds(x) else []
    passed += [w] if _passes(w) else []
    first, pulls = _recorded(f, x, w, b0, passed)
    second = summed(None, (x.slope, w.slope))
    third = summed(None, (x.bend, w.slope), (x.slope, w.bend))
    fourth = summed(None, (x.bend, w.bend))
    centre = present(_raised(_raised(first, second, 0.5), fourth, 0.125))
    slope = _raised(summed(b1, (x.slope, w.centre), (x.centre, w.slope)), third, 0.25)
    bend = _raised(summed(b2, (x.bend, w.centre), (x.centre, w.bend)), second, 1.0)
    open_ = plus(*(p.abs_().mul_(share) for p, share in ((third, 0.25), (fourth, 0.125)) if p is not None))
    return centre, slope, bend, 0.0 if open_ is None else open_, list(zip(passed, pulls, strict=True))


def _passes(w: Form) -> bool:
    """Whether a second factor is an activation, whose remainder is passed on; that of a weight is bounded at once."""
    return w.origin is not None and bool(w.origin.sources)


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


def _fresh(f: Contraction, terms: int, g: float, x: Form, w: Form, b: Form | None) -> Tensor:
    """What a product adds to W rho and the like, but for what its polynomial leaves open, and for W(s) - W times rho.

    Of the rounding it takes the largest product `terms` times over, for all.
    """
    rounding = float(x.size().amax()) * g + TINY
    rounding = terms * rounding * float(w.reach().amax()) + TINY
    if b is not None:
        rounding += float(_left(b, g).amax())
    out = torch.full((), rounding, dtype=torch.float64, device=x.centre.device)
    if w.radius is None:
        return out
    own = (w.radius * (1 + 2.0**-20)).add_(TINY)
    if not _passes(w):
        return out + f(x.size(), own, None)
    out = out + f(x.size(), (w.radius * 2.0**-20).add_(TINY), None)
    beside = plus(strayed(x), x.radius)
    return out if beside is None else out + f(beside, own, None)


def _with_movement(f: Contraction, out: Form, x: Form, w: Form, axis: int | None) -> Form:
    """With W(s) - W times the remainder of x in what is new, entry by entry or in the norm."""
    stray = strayed(w)
    moving = None if x.radius is None or stray is None else f(x.radius, stray, None)
    if axis is not None and w.norm is not None:
        return tightened(out, x, w, axis, moving)
    if out.origin is not None and moving is not None:
        fresh = out.origin.fresh
        out.origin.fresh = moving if fresh is None else moving + fresh
    return out


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
    return out if origin is None else summed(out, a, b)


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
    return Form(centre, slope, radius, HEADROOM / 2, bend, origin=origin)


def _crossed(a: Form, b: Form) -> Tensor:
    """What of a product is neither b's centre times a remainder of a, nor the other way round."""
    out = present(a.radius) * present(b.radius)
    for x, y in ((a, b), (b, a)):
        if (stray := strayed(y)) is not None:
            out = out + present(x.radius) * stray
    return out


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
