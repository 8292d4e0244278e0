"""Affine forms through piecewise linear functions: chords over the range, and how far the function is from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from isthmus.certify.forms import HEADROOM, NARROW, TINY, UNIT, Form, half_width, plus, present, times
from isthmus.certify.origins import by, follow


def rectified(x: Form, leak: float = 0.0) -> Form:
    """max(v, 0) + leak min(v, 0), 0 <= leak <= 1: between the chord over the range and the chord less its height.

    On [lo, hi] with lo < 0 < hi the chord of max(v, 0) has the slope k = hi / (hi - lo), and max(v, 0) - k v is between
    0 and -k lo; the middle is taken, and half of it added to the radius.
    """
    x = x.rounded()
    if x.constant:
        return _monotone(lambda v: torch.where(v > 0, v, leak * v), x)
    factor, offset = _chord(x.centre, half_width(x))
    if x.ball is not None and not leak and x.origin is not None and KINK and x.slope is not None:
        return _bent(x, factor, offset)
    if leak:
        factor.mul_(1 - leak).add_(leak)
        offset.mul_(1 - leak)
    return _lined(x, factor, offset)


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
    centre = torch.addcmul(offset, factor, x.centre)
    origin = follow(lambda: offset + TINY, (x, by(factor)))
    radius = offset.add_(TINY).addcmul_(factor, present(x.radius))
    out = Form(centre, times(factor, x.slope), radius, 12, times(factor, x.bend), origin=origin)
    from isthmus.certify.balls import entrywise
    return entrywise(out, x, 1.0)


def _monotone(f: Callable[[Tensor], Tensor], x: Form) -> Form:
    """A function that is monotone and has a slope of at most 1, of a constant: the centre's image."""
    return Form(f(x.centre), None, x.radius, 4)


def piecewise(f: Callable[[Tensor], Tensor], breaks: Sequence[float], x: Form) -> Form:
    """A continuous function that is linear between `breaks`: the chord over the range, and its exact deviation."""
    x = x.rounded()
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
    origin = follow(radius.clone, (x, by(factor)))
    radius.addcmul_(factor.abs(), present(x.radius))
    centre = torch.addcmul((top + bottom) * 0.5, factor, x.centre)
    return Form(centre, times(factor, x.slope), radius, HEADROOM / 2, times(factor, x.bend), origin=origin)


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


KINK = 1
CA, CB = 0.0, 1.0

def _bent(x: Form, factor: Tensor, offset: Tensor) -> Form:
    from isthmus.certify.balls import row_norms
    from isthmus.certify.origins import Origin
    c, d, r = x.centre, x.slope, x.radius
    q = torch.zeros_like(c) if x.bend is None else x.bend
    size = d.abs()
    a = (c.abs() / size)
    cross = (a < 1) & (size > NARROW)
    a = torch.where(cross, a, 0.0)
    kappa = 1 - a
    gamma = torch.where(a <= 1 / 3, 1.0, kappa / (2 * a))
    high = torch.where(a <= 1 / 3, (1 + a).square() / 4, (2 * gamma - kappa).square() / (4 * gamma))
    low = -(1 - gamma) * kappa * (1 + a)
    fresh = size * (high - low) / 4 + q.abs() / 4 + (c.abs() + size + q.abs()) * (64 * UNIT) + TINY
    use = cross & (fresh + CA * r < offset)
    centre = c / 2 + size * (1 - gamma / 2 + (high + low) / 2) / 2
    slope = d / 2 + torch.sign(d) * c / 2
    bend = size * gamma / 2 + q / 2
    # flat: the polynomial does not cross
    most = size + q.abs() / 2
    flat = (c.abs() > most) & (c.abs() < CB * r)
    on = (c > 0).to(c.dtype)
    line = _lined(x, factor, offset.clone())
    def pick(u, v, w):
        return torch.where(use, u, torch.where(flat, v, w))
    either = use | flat
    fresh = torch.where(use, fresh, torch.where(flat, (c.abs() + size + q.abs()) * (64 * UNIT) + TINY, offset + TINY))
    factor = torch.where(either, 0.5, factor)
    radius = fresh + factor * r + torch.where(either, 0.5 * r, 0.0)
    out = Form(pick(centre, on * c, line.centre), pick(slope, on * d, line.slope), radius, 12, pick(bend, on * q, 0.0 if line.bend is None else line.bend))
    origin = Origin([(x, by(factor))], fresh)
    origin.mask = either.to(c.dtype)
    rest = x.ball.numel() == len(c) and c.dim() > 2
    origin.ball = torch.minimum(x.ball, row_norms(r * origin.mask, rest)) / 2
    out.origin = origin
    out.ball = torch.minimum(x.ball + row_norms(fresh, rest), row_norms(radius, rest))
    return out
