"""Affine forms through piecewise linear functions: chords over the range, and how far the function is from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isthmus.certify.balls import entrywise, row_norms
from isthmus.certify.forms import HEADROOM, NARROW, TINY, UNIT, Form, half_width, known, plus, present, times
from isthmus.certify.origins import SHARE, Origin, by, follow


def rectified(x: Form, leak: float = 0.0) -> Form:
    """max(v, 0) + leak min(v, 0), 0 <= leak <= 1.

    On [lo, hi] with lo < 0 < hi the chord of max(v, 0) has the slope k = hi / (hi - lo), and max(v, 0) - k v is between
    0 and -k lo; the middle is taken, and half of it added to the radius. Where the polynomial in s itself changes sign,
    a parabola comes nearer than a line (``_fitted``).
    """
    x = x.rounded()
    if x.constant:
        return _monotone(lambda v: torch.where(v > 0, v, leak * v), x)
    width = half_width(x)
    factor, offset = _chord(x.centre, width)
    if leak:
        factor.mul_(1 - leak).add_(leak)
        offset.mul_(1 - leak)
    open_ = (offset > 0).nonzero(as_tuple=True)
    if x.slope is None or x.origin is None or not len(open_[0]):
        return _lined(x, factor, offset)
    return _fitted(x, factor, offset, leak, open_)


@dataclass(frozen=True)
class _Fit:
    """Parabolas for max(v, 0) at some entries: its parts, and how far it is from them beside half a remainder."""

    centre: Tensor
    slope: Tensor
    bend: Tensor
    far: Tensor


def _fit(x: Form, at: tuple[Tensor, ...]) -> _Fit:
    """max(v, 0) for v = c + d s + q (s^2 - 1/2) + rho, as v / 2 and a parabola for |c + d s| / 2.

    What is left is at most (|q| / 2 + |rho|) / 2. With s0 = -c / d, a = |s0| < 1 and any g in (0, 1],

        |s - s0| - (g s^2 + 1 - g - s0 s) is 0 at -1 and 1, least at s0, with -(1 - g)(1 - a^2), and
        at most (2 g - 1 + a)^2 / (4 g);

    its range is smallest for g = (1 - a) / (2 a), or g = 1 where a <= 1/3. Where c + d s keeps its sign there is
    nothing to fit.
    """
    c, d = x.centre[at], present(x.slope)[at]
    q = torch.zeros_like(c) if x.bend is None else x.bend[at]
    crossing = (c.abs() < d.abs()) & (d.abs() > NARROW)
    a = torch.where(crossing, c.abs() / d.abs(), 0.0)
    g = torch.where(a <= 1 / 3, 1.0, (1 - a) / (2 * a))
    most, least = (2 * g - 1 + a).square() / (4 * g), -(1 - g) * (1 - a) * (1 + a)
    size, sign = torch.where(crossing, d.abs(), 0.0), torch.where(crossing, 0.0, c.sign())
    centre = c * (1 + sign) / 2 + size * (2 - g + most + least) / 4
    slope = d * (1 + sign) / 2 + torch.where(crossing, d.sign() * c / 2, 0.0)
    narrow = torch.where(crossing | (c.abs() >= d.abs()), 0.0, d.abs())
    rounding = (c.abs() + d.abs() + q.abs()).mul_(64 * UNIT).add_(TINY)
    return _Fit(centre, slope, size * g / 2 + q / 2, size * (most - least) / 4 + q.abs() / 4 + narrow + rounding)


def _fitted(x: Form, factor: Tensor, offset: Tensor, leak: float, at: tuple[Tensor, ...]) -> Form:
    """Parabolas where they are nearer than chords, with the remainder taken entry by entry or in the norm.

    A parabola leaves up to half the remainder of v: of every entry by itself or, where that is less, of all entries
    `at` of an example together, as max(v, 0) moves no farther than v.
    """
    fit, share, r = _fit(x, at), 1 - leak, present(x.radius)
    halves = r[at] * (share / 2)
    alone = fit.far * share + halves
    chosen = alone < offset[at]
    fresh = offset.index_put(at, torch.where(chosen, alone, offset[at]))
    extra = torch.zeros_like(halves)
    ball = mask = None
    if x.ball is not None:
        mask = torch.zeros_like(r).index_put_(at, torch.ones_like(halves))
        ball = torch.minimum(x.ball, row_norms(r * mask)) * (share / 2)
        far = torch.zeros_like(r).index_put_(at, fit.far * share)
        together = row_norms(far) + ball < row_norms(fresh)
        within = together.expand(r.shape)[at]
        fresh, ball = torch.where(together, far, fresh), torch.where(together, ball, 0.0)
        chosen, extra = chosen | within, torch.where(within, halves, 0.0)
    line = _lined(x, factor, offset.clone())
    centre = _put(line.centre, at, chosen, leak, share, x.centre, fit.centre)
    slope = _put(present(line.slope), at, chosen, leak, share, present(x.slope), fit.slope)
    bends = [torch.zeros_like(r) if v.bend is None else v.bend for v in (line, x)]
    bend = _put(bends[0], at, chosen, leak, share, bends[1], fit.bend)
    factor = factor.index_put(at, torch.where(chosen, leak + share / 2, factor[at]))
    fresh.add_(TINY)
    radius = torch.addcmul(fresh, factor, r).index_put_(at, extra, accumulate=True)
    if ball is not None and mask is not None:
        radius = torch.maximum(radius, mask * ball / SHARE)
    origin = Origin([(x, by(factor))], fresh, ball=ball, mask=mask)
    return entrywise(Form(centre, slope, radius, 12, bend, origin=origin), x, 1.0)


def _put(
    line: Tensor, at: tuple[Tensor, ...], chosen: Tensor, leak: float, share: float, own: Tensor, fit: Tensor
) -> Tensor:
    """A part of the chords, with that of leak v + share max(v, 0) by parabolas where they are chosen."""
    return line.index_put(at, torch.where(chosen, leak * own[at] + share * fit, line[at]))


def _chord(centre: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """The slope of the chord of max(v, 0) over centre +- width, and half its greatest height above the function.

    Where the slope would underflow, or the range is a point, the line is flat: max(v, 0) is between 0 and the range's
    upper end. The slope is rounded, so that the heights at both ends of the range need not be the same.
    """
    above = (centre + width).clamp_(min=0)
    below = (width - centre).clamp_(min=0)
    total = above + below
    factor = above / total
    factor.masked_fill_((factor < NARROW) | (total == 0), 0.0)
    height = torch.maximum(below.mul_(factor), above.mul_(1 - factor))
    return factor, height.mul_(0.5)


def _lined(x: Form, factor: Tensor, offset: Tensor) -> Form:
    """factor x + offset +- offset; both terms are at most the new size, so that their rounding is a few ulps."""
    centre = torch.addcmul(offset, factor, x.centre)
    origin = follow(lambda: offset + TINY, (x, by(factor)))
    radius = offset.add_(TINY).addcmul_(factor, present(x.radius))
    return entrywise(Form(centre, times(factor, x.slope), radius, 12, times(factor, x.bend), origin=origin), x, 1.0)


def _monotone(f: Callable[[Tensor], Tensor], x: Form) -> Form:
    """A function that is monotone and has a slope of at most 1, of a constant: the centre's image."""
    return Form(f(x.centre), None, x.radius, 4)


def piecewise(
    f: Callable[[Tensor], Tensor], breaks: Sequence[float], x: Form, limits: Sequence[tuple[float, float]] = ()
) -> Form:
    """A function that is linear between `breaks`: the chord over the range, and its exact deviation.

    `limits`: (where, what value) it tends to from a side from which it may not be continuous. A range with a jump is
    bounded by a constant, and what a form leaves unsaid is enough to be on either side.
    """
    x = x.rounded()
    width = half_width(x)
    lo, hi = x.centre - width, x.centre + width
    low, high = f(lo), f(hi)
    # any factor will do, because the deviation from its line is computed
    factor = ((high - low) / (hi - lo)).masked_fill_(hi - lo < NARROW, 0.0)
    near = [((lo - TINY <= point) & (hi + TINY >= point), point, value) for point, value in limits]
    for within, point, value in near:
        factor.masked_fill_(within & (f(torch.full_like(lo, point)) != value), 0.0)
    gaps = [low - factor * lo, high - factor * hi]
    for point in breaks:
        at = lo.clamp(min=point).minimum(hi)
        gaps.append(f(at) - factor * at)
    for within, point, value in near:
        gaps.append(torch.where(within, value - factor * point, gaps[0]))
    top, bottom = torch.stack(gaps).amax(0), torch.stack(gaps).amin(0)
    rounding = (lo.abs() + hi.abs()) * (1 + factor.abs()) + low.abs() + high.abs()
    radius = (top - bottom) * 0.5 + rounding * (32 * UNIT) + TINY
    origin = follow(radius.clone, (x, by(factor)))
    radius.addcmul_(factor.abs(), present(x.radius))
    centre = torch.addcmul((top + bottom) * 0.5, factor, x.centre)
    return Form(centre, times(factor, x.slope), radius, HEADROOM / 2, times(factor, x.bend), origin=origin)


def stepped(f: Callable[[Tensor], Tensor], x: Form) -> Form:
    """A monotone function without its slope: all values between those at both ends of the range."""
    x = x.rounded()
    width = half_width(x) * (1 + 8 * UNIT) + x.centre.abs() * (8 * UNIT) + TINY
    low, high = f(x.centre - width), f(x.centre + width)
    # halves of the difference and of the sum may round
    radius = (high - low) * 0.5 + (low.abs() + high.abs()) * (8 * UNIT) * (low != high) + known(x)
    origin = follow(radius.clone, (x, by(torch.zeros_like(radius))))
    return Form((low + high) * 0.5, None, radius, origin=origin)


def maximum(a: Form, b: Form) -> Form:
    """max(a, b) = a + max(b - a, 0), by the chord of the difference: (1 - k) a + k b, and half the chord's height."""
    a, b = a.settled(), b.settled()
    gap = b.centre - a.centre
    radii = (a.radius, b.radius)
    width = present(plus(*radii))
    c1 = plus(b.slope, None if a.slope is None else -a.slope)
    width = (width if c1 is None else width + c1.abs()).mul_(1 + 8 * UNIT).add_(gap.abs(), alpha=8 * UNIT)
    factor, offset = _chord(gap, width)
    rest = 1 - factor

    def mixed(p: Tensor | None, q: Tensor | None) -> Tensor | None:
        return plus(times(rest, p), times(factor, q))

    centre, radius = present(mixed(a.centre, b.centre)), present(mixed(*radii))
    origin = follow(lambda: offset + TINY, (a, by(rest)), (b, by(factor)))
    return Form(centre + offset, mixed(a.slope, b.slope), radius.add_(offset).add_(TINY), 40, origin=origin)
