"""Where the remainder of a form comes from, so that it can be followed back from the loss with its signs.

The value of a form is its polynomial in s plus a remainder rho, |rho| <= radius. A rule makes a result from arguments,
and its remainder is L rho_in + nu: what comes through from the arguments by a linear map L that does not depend on s,
and what is new here, |nu| <= `fresh`. Going back from a linear function g of the last remainder,

    g rho = sum over all forms of B nu,    B = the transposed maps behind it, applied to g,

so that |g rho| <= sum |B| fresh. The signs of the weights that lie between cancel in B, as they do not in a radius,
which goes forward through |L|. A form without an origin is all new: its fresh part is its radius. A map that is passed
on although `fresh` is the whole radius makes the sum larger, never too small.

Of B itself the evaluation rounds off at most gamma |L|'...|g|, and sum |L|'...|g| fresh is at most |g| times the radius
that went forward, but for what norms and softmaxes made of radii (`loose`), and but for what is new in the norm: no
radius is less than 1 / `SHARE` of that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from isthmus.certify.forms import Form

Norm = Callable[[Tensor], float]
"""A bound of the norm of a matrix, or of another linear map."""
UNIT = 2.0**-53
SHARE = 32.0
"""How many times a radius may at most be smaller than what is new in the norm."""
FAINTEST = 1e-150
"""More than what squares lose that underflow."""
Pull = Callable[[Tensor], Tensor]
"""The transposed map of one argument: from what multiplies the result's remainder to what multiplies the argument's."""


class Origin:
    """What a form was made from: the arguments with their pulls, and what is new in it.

    `fresh` bounds what is new entry by entry, `ball` what is new besides, in the norm, of the entries in `mask` (all
    where there is none). `terms` products are summed by a pull; `loose`: the radius may be so many times smaller than
    what went forward through |L|. `label` names the operation.
    """

    __slots__ = ("ball", "fresh", "label", "loose", "mask", "sources", "terms")

    def __init__(
        self,
        sources: Sequence[tuple[Form, Pull]] = (),
        fresh: Tensor | float | None = None,
        terms: int = 1,
        loose: float = 1.0,
        *,
        ball: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> None:
        self.sources, self.fresh, self.terms, self.loose = tuple(sources), fresh, terms, loose
        self.ball, self.mask, self.label = ball, mask, ""

    def new(self, b: Tensor) -> float:
        """A bound of b times what is new."""
        total = 0.0 if self.fresh is None else _product(b.abs(), self.fresh)
        if self.ball is None:
            return total
        b = b if self.mask is None else b * self.mask
        return total + _product(norms_like(b, self.ball), self.ball)


def follow(
    fresh: Callable[[], Tensor | float], *pairs: tuple[Form, Pull], terms: int = 1, loose: float = 1.0
) -> Origin | None:
    """The origin of a result, where any of its arguments has one; else None, and nothing is computed."""
    if not followed(*(x for x, _ in pairs)):
        return None
    return Origin([(x, pull) for x, pull in pairs if holds(x)], fresh(), terms, loose)


def followed(*forms: Form | None) -> bool:
    """Whether any of the forms has an origin."""
    return any(x is not None and x.origin is not None for x in forms)


def holds(x: Form) -> bool:
    """Whether a remainder may come from there."""
    return x.radius is not None or (x.origin is not None and bool(x.origin.sources))


def same(g: Tensor) -> Tensor:
    """The pull of the identity."""
    return g


def reduced_to(shape: torch.Size, f: Pull = same) -> Pull:
    """A pull to an argument that was broadcast."""
    return lambda g: f(g).sum_to_size(shape)


def by(factor: Tensor) -> Pull:
    """The pull of a product with a tensor, entry by entry."""
    return lambda g: g * factor


def recorded(f: Callable[..., Tensor], *arguments: Tensor) -> tuple[Tensor, list[Pull]]:
    """f, linear in each of its arguments, and its pull for each; they may be called any number of times."""
    with torch.enable_grad():
        leaves = [p.detach().requires_grad_() for p in arguments]
        out = f(*leaves)

    def pull(i: int) -> Pull:
        return lambda g: torch.autograd.grad(out, leaves[i], g.contiguous(), retain_graph=True, materialize_grads=True)[
            0
        ]

    return out.detach(), [pull(i) for i in range(len(leaves))]


def lazily(f: Callable[[Tensor], Tensor], p: Tensor) -> Pull:
    """The pull of a linear map that costs little, at `p`."""
    return lambda g: recorded(f, p)[1][0](g)


def contributions(last: Form, g: Tensor) -> dict[str, float]:
    """sum |B| fresh over all that `last` was made from, by label; a sum is not finite where any part is not."""
    grads, labels, shares = {id(last): g}, {id(last): ""}, dict[str, float]()
    for x in _order(last):
        if (b := grads.pop(id(x), None)) is None:
            continue
        origin = Origin(fresh=x.radius) if x.origin is None or not x.origin.sources else x.origin
        label = origin.label or labels[id(x)]
        shares[label] = shares.get(label, 0.0) + origin.new(b)
        for source, pull in origin.sources:
            back = pull(b)
            labels[id(source)] = label
            grads[id(source)] = grads[id(source)] + back if id(source) in grads else back
    return shares


def norms_like(v: Tensor, ball: Tensor) -> Tensor:
    """Upper bounds of the norms of v along the axes on which `ball` has the size 1, which are kept.

    >>> norms_like(torch.tensor([[3.0, 4.0]], dtype=torch.float64), torch.zeros(1, 1)).round(decimals=9).tolist()
    [[5.0]]
    """
    dims = [d for d, n in enumerate(ball.shape) if n == 1]
    terms = v.numel() // max(ball.numel(), 1)
    return torch.linalg.vector_norm(v, dim=dims, keepdim=True).mul_(1 + (terms + 8) * UNIT).add_(FAINTEST)


def _product(a: Tensor, b: Tensor | float) -> float:
    """The sum of the products of what is not negative, rounded up; where a is 0 nothing need be known of b."""
    return float((a * b).masked_fill_(a == 0, 0.0).sum()) * (1 + (a.numel() + 8) * UNIT)


def roundings(last: Form) -> float:
    """gamma, times what a radius may be less than the sum of |L|'...|g| and the fresh parts."""
    terms, loose, parts = 64, 1.0, 1.0
    for x in _order(last):
        if x.origin is not None:
            terms, loose = terms + x.origin.terms + 4, loose * x.origin.loose
            parts += 0 if x.origin.ball is None else SHARE
    return 4 * terms * loose * parts * UNIT


def _order(last: Form) -> list[Form]:
    """All forms that it was made from, each before its arguments."""
    seen: set[int] = set()
    out: list[Form] = []
    stack: list[tuple[Form, bool]] = [(last, False)]
    while stack:
        x, done = stack.pop()
        if done:
            out.append(x)
        elif id(x) not in seen:
            seen.add(id(x))
            stack.append((x, True))
            if x.origin is not None:
                stack += [(source, False) for source, _ in x.origin.sources]
    return out[::-1]
