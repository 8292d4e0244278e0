"""Affine forms through smooth activations: Taylor's remainder, or the range of the slope, whichever is smaller.

For a function f and a value v in [lo, hi], at most w from the centre c:

    f(v) = f(c) + f'(c) (v - c) + f''(x) (v - c)^2 / 2     for some x in [lo, hi], and
    f(v) = f(c) + k (v - c) + (f'(x) - k)(v - c)           for any k.

In the first f''(x) is taken for the middle of its range, and (v - c)^2 for s^2 slope^2, which is carried on; what
either may be off is of third order in the length of the interval.

The ranges of f' and f'' over [lo, hi] follow from their values at lo, hi and at their turning points between. torch's
exp, log, tanh and erf are assumed to be within 1e-13 of the true values, relative to max(1, |argument|, |value|).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import exp, inf, log, nan, pi, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from isthmus.certify.forms import HEADROOM, Form, beyond, cut, half_width, known, plus, present, times
from isthmus.certify.origins import by, follow

ASSUMED = 1e-13
"""The error allowed for torch's elementary functions in float64."""

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Smooth:
    """f with f' and f'', and the points where f' and f'' have extrema (both sides of a kink, where f'' is infinite).

    `cut`: from there on torch's own f is another function, at most `jump` away. `domain`: f is defined above it alone;
    nothing is known of a range that reaches below. `rising`: f is monotone, so that its values are between those at
    both ends.
    """

    value: Function
    slope: Function
    curvature: Function
    slope_turns: tuple[float, ...] = ()
    curvature_turns: tuple[float, ...] = ()
    cut: float = inf
    jump: float = 0.0
    domain: float = -inf
    rising: bool = False


def smooth(f: Smooth, x: Form) -> Form:
    """The form of f(v).

    >>> form = smooth(TANH, Form(torch.zeros(1, dtype=torch.float64), torch.full((1,), 1e-3, dtype=torch.float64)))
    >>> form.slope, bool(form.radius < 1e-8)
    (tensor([0.0010], dtype=torch.float64), True)
    """
    x = x.rounded()
    width, left = half_width(x), present(x.radius)
    lo, hi = x.centre - width, x.centre + width
    value, slope = f.value(x.centre), f.slope(x.centre)
    least, most = _range(f.curvature, f.curvature_turns, lo, hi)
    curved, open_ = (least + most) * 0.25, (most - least) * 0.25
    near = (open_ * width.square()).addcmul_(curved.abs(), beyond(x)[1])
    low, high = _range(f.slope, f.slope_turns, lo, hi)
    middle = (low + high) * 0.5
    far = ((high - low) * 0.5).mul_(width)
    radius, wide = torch.addcmul(near, slope.abs(), left), torch.addcmul(far, middle.abs(), left)
    taylor = radius < wide
    slope, radius = torch.where(taylor, slope, middle), torch.where(taylor, radius, wide)
    bend, centre = times(slope, x.bend), value
    if x.slope is not None:
        square = torch.where(taylor, curved, 0.0) * x.slope.square()
        centre, bend = torch.add(value, square, alpha=0.5), plus(bend, square)
    rounding = (1 + width).square_().add_(centre.abs() + value.abs()).add_(x.centre.abs()).addcmul_(slope.abs(), width)
    radius = radius * (1 + 10 * ASSUMED) + rounding * (4 * ASSUMED)
    if f.cut < inf:
        radius = torch.where(hi > f.cut - 1e-6 - 1e-12 * abs(f.cut), radius + f.jump, radius)
    radius = torch.where((lo > f.domain) & (hi < inf), radius, nan)
    # what is more than the slope times the remainder of x: all of the radius but that
    origin = follow(
        lambda: (
            torch.where(taylor, near, far)
            + (radius - torch.addcmul(torch.where(taylor, near, far), slope.abs(), left)).abs()
        ),
        (x, by(slope)),
    )
    out = Form(centre, times(slope, x.slope), radius, HEADROOM / 2, bend, origin=origin)
    return cut(out, *_ends(f.value, lo, hi)) if f.rising else out


def _ends(f: Function, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
    """f(lo) and f(hi), and beyond them what f may be off: all that there is where either is infinite."""

    def off(x: Tensor, value: Tensor) -> Tensor:
        return (1 + x.abs() + value.abs()).mul_(2 * ASSUMED)

    low, high = f(lo), f(hi)
    return low - off(lo, low), high + off(hi, high)


def _range(f: Function, turns: tuple[float, ...], lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the greatest value of f on [lo, hi]; a turning point may be off by its own rounding."""
    a, b = f(lo), f(hi)
    least, most = torch.minimum(a, b), torch.maximum(a, b)
    for point in turns:
        at = f(lo.clamp(min=point).minimum(hi))  # the turning point, or the end of the range that is nearest to it
        least, most = torch.minimum(least, at), torch.maximum(most, at)
    return least, most


def _tanh_curvature(x: Tensor) -> Tensor:
    t = x.tanh()
    return -2 * t * (1 - t * t)


def _sigmoid_slope(x: Tensor) -> Tensor:
    return x.sigmoid() * (-x).sigmoid()


def _sigmoid_curvature(x: Tensor) -> Tensor:
    return _sigmoid_slope(x) * -(x / 2).tanh()


def _density(x: Tensor) -> Tensor:
    return torch.exp(-x * x / 2) / sqrt(2 * pi)


def _normal(x: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-x / sqrt(2))


def _silu_slope(x: Tensor) -> Tensor:
    return x.sigmoid() + x * _sigmoid_slope(x)


def _silu_curvature(x: Tensor) -> Tensor:
    return _sigmoid_slope(x) * (2 - x * (x / 2).tanh())


_A, _B = sqrt(2 / pi), 0.044715


def _gelu_tanh_slope(x: Tensor) -> Tensor:
    t = (_A * (x + _B * x**3)).tanh()
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * _A * (1 + 3 * _B * x * x)


def _gelu_tanh_curvature(x: Tensor) -> Tensor:
    t = (_A * (x + _B * x**3)).tanh()
    d1, d2 = _A * (1 + 3 * _B * x * x), 6 * _A * _B * x
    return (1 - t * t) * (d1 + 0.5 * x * d2 - x * t * d1 * d1)


TANH = Smooth(
    torch.tanh,
    lambda x: 1 - x.tanh().square(),
    _tanh_curvature,
    (0.0,),
    (-0.6584789484624084, 0.6584789484624084),
    rising=True,
)
SIGMOID = Smooth(
    torch.sigmoid, _sigmoid_slope, _sigmoid_curvature, (0.0,), (-1.3169578969248168, 1.3169578969248168), rising=True
)
SILU = Smooth(
    F.silu, _silu_slope, _silu_curvature,
    (-2.3993572805154677, 2.3993572805154677), (-3.4358409935351107, 0.0, 3.4358409935351107),
)  # fmt: skip
GELU = Smooth(
    F.gelu, lambda x: _normal(x) + x * _density(x), lambda x: _density(x) * (2 - x * x),
    (-sqrt(2), sqrt(2)), (-2.0, 0.0, 2.0),
)  # fmt: skip
GELU_TANH = Smooth(
    lambda x: F.gelu(x, approximate="tanh"), _gelu_tanh_slope, _gelu_tanh_curvature,
    (-1.4185040087908284, 1.4185040087908284), (-2.0134807246242579, 0.0, 2.0134807246242579),
)  # fmt: skip
EXP = Smooth(torch.exp, torch.exp, torch.exp, rising=True)
ROOT = Smooth(torch.sqrt, lambda v: 0.5 * v**-0.5, lambda v: -0.25 * v**-1.5, domain=0.0)
RECIPROCAL = Smooth(torch.reciprocal, lambda v: -(v**-2.0), lambda v: 2 * v**-3.0, domain=0.0)
INVERSE_ROOT = Smooth(torch.rsqrt, lambda v: -0.5 * v**-1.5, lambda v: 0.75 * v**-2.5, domain=0.0)


LOG = Smooth(torch.log, torch.reciprocal, lambda v: -(v**-2.0), domain=0.0)
ERF = Smooth(
    torch.erf, lambda x: torch.exp(-x * x) * (2 / sqrt(pi)), lambda x: x * torch.exp(-x * x) * (-4 / sqrt(pi)),
    (0.0,), (-sqrt(0.5), sqrt(0.5)), rising=True,
)  # fmt: skip


def power(exponent: float) -> Smooth:
    """x^a; where a is no whole number, of positive x alone."""
    a, whole = exponent, exponent == int(exponent) and exponent >= 0
    turns = (0.0,) if whole else ()
    return Smooth(
        lambda x: x**a, lambda x: a * x ** (a - 1), lambda x: a * (a - 1) * x ** (a - 2), turns, turns,
        domain=-inf if whole else 0.0,
    )  # fmt: skip


def sine(x: Form, cosine: bool) -> Form:
    """sin or cos: no derivative of either exceeds 1."""
    x = x.settled()
    f, slope = (torch.cos, -x.centre.sin()) if cosine else (torch.sin, x.centre.cos())
    width, value = half_width(x), f(x.centre)
    rounding = (1 + x.centre.abs() + width).mul_(4 * ASSUMED)
    fresh = (width.square() * 0.5).add_(rounding)
    origin = follow(lambda: fresh, (x, by(slope)))
    radius = torch.addcmul(fresh, slope.abs(), present(x.radius))
    out = Form(value, None if x.slope is None else slope * x.slope, radius, HEADROOM / 2, origin=origin)
    return cut(out, known(x) - 1, known(x) + 1)


def softplus(beta: float, threshold: float) -> Smooth:
    """log(1 + exp(beta x)) / beta; torch returns x itself where beta x > threshold."""
    return Smooth(
        lambda x: F.softplus(x, beta, threshold),
        lambda x: (beta * x).sigmoid(),
        lambda x: beta * _sigmoid_slope(beta * x),
        curvature_turns=(0.0,),
        cut=threshold / beta,
        jump=1.01 * exp(-threshold) / beta,
    )


def elu(alpha: float, scale: float, rate: float) -> Smooth:
    """scale * (x where x > 0, else alpha (exp(rate x) - 1)): ELU, SELU, CELU. Without alpha rate = 1 it has a kink."""
    kink = alpha * rate != 1

    def curvature(x: Tensor) -> Tensor:
        bend = torch.where(x > 0, 0.0, scale * alpha * rate * rate * (rate * x).clamp(max=0).exp())
        return torch.where(x == 0, inf, bend) if kink else bend

    return Smooth(
        lambda x: torch.where(x > 0, scale * x, scale * alpha * (rate * x).clamp(max=0).expm1()),
        lambda x: torch.where(x > 0, scale, scale * alpha * rate * (rate * x).clamp(max=0).exp()),
        curvature,
        slope_turns=(0.0, 1e-300),
        curvature_turns=(0.0, 1e-300),
    )


_OTHERS = {
    "erfc": Smooth(torch.erfc, lambda x: -ERF.slope(x), lambda x: -ERF.curvature(x), (0.0,), ERF.curvature_turns),
    "expm1": Smooth(torch.expm1, torch.exp, torch.exp, rising=True),
    "exp2": Smooth(torch.exp2, lambda x: x.exp2() * log(2), lambda x: x.exp2() * log(2) ** 2, rising=True),
    "log1p": Smooth(torch.log1p, lambda x: 1 / (1 + x), lambda x: -((1 + x) ** -2.0), domain=-1.0),
    "log2": Smooth(torch.log2, lambda x: 1 / (x * log(2)), lambda x: -(x**-2.0) / log(2), domain=0.0),
    "log10": Smooth(torch.log10, lambda x: 1 / (x * log(10)), lambda x: -(x**-2.0) / log(10), domain=0.0),
    "sinh": Smooth(torch.sinh, torch.cosh, torch.sinh, (0.0,), rising=True),
    "cosh": Smooth(torch.cosh, torch.sinh, torch.cosh, curvature_turns=(0.0,)),
}  # fmt: skip
BY_NAME = {
    "tanh": TANH, "sigmoid": SIGMOID, "silu": SILU, "exp": EXP, "sqrt": ROOT, "rsqrt": INVERSE_ROOT, "log": LOG,
    "erf": ERF, **_OTHERS,
}  # fmt: skip
"""The operations of torch without parameters of their own."""
