"""The largest loss along a curve: many points on some examples, then the highest of them on all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite

_POINTS = 17
_HALVINGS, _PEAKS = 3, 3
"""How often the parts beside so many of the highest points are halved before a maximum is confirmed."""
_MOST = 4
"""Points that are measured on all examples, at most."""
_TIMES, _SHARE = 4.0, 1e-3
"""A point is left out where its screened loss is lower by so many times what screening was seen to be off by, and by
that share of the maximum."""


@dataclass(frozen=True)
class Highest:
    """The largest loss that was found, and its t; `confirmed`: on all examples, else on some."""

    loss: float
    t: float
    confirmed: bool


def screen(few: Callable[[float], float], ends: tuple[float, float], knots: Sequence[float]) -> dict[float, float]:
    """Losses on some examples at equidistant points and at the `knots`; those of the ends are known."""
    inner = {k / (_POINTS - 1) for k in range(1, _POINTS - 1)} | {t for t in knots if 0 < t < 1}
    return {0.0: ends[0], **{t: few(t) for t in sorted(inner)}, 1.0: ends[1]}


def sharpened(screened: dict[float, float], few: Callable[[float], float]) -> dict[float, float]:
    """The screened points, and others ever closer to the highest of them that are local maxima, the ends among these.

    >>> found = sharpened({0.0: 1.0, 0.5: 0.5, 1.0: 0.0}, lambda t: 3.0 if t == 0.125 else 0.5)
    >>> found[0.125], 0.75 in found
    (3.0, True)
    """
    known = dict(screened)
    for _ in range(_HALVINGS):
        places = sorted(known)
        beside = {t: [*places[max(i - 1, 0) : i], *places[i + 1 : i + 2]] for i, t in enumerate(places)}
        peaks = [t for t in places if isfinite(known[t]) and not any(known[u] > known[t] for u in beside[t])]
        for t in sorted(peaks, key=lambda t: -known[t])[:_PEAKS]:
            known |= {(t + u) / 2: few((t + u) / 2) for u in beside[t]}
    return known


def of_screened(screened: dict[float, float]) -> Highest:
    """The highest of the screened points; one that is not finite is the highest."""
    t = max(screened, key=lambda t: (not isfinite(screened[t]), screened[t]))
    return Highest(screened[t], t, False)


def confirm(screened: dict[float, float], everything: Callable[[float], float]) -> Highest:
    """The largest loss on all examples, of the ends and of the highest local maxima of the screened points.

    >>> confirm({0.0: 0.1, 0.5: 0.5, 0.75: 0.2, 1.0: 0.1}, lambda t: 0.6 if t == 0.5 else 0.1)
    Highest(loss=0.6, t=0.5, confirmed=True)
    """
    places = sorted(screened)
    best = max(((screened[t], t) for t in (0.0, 1.0)), key=lambda found: (not isfinite(found[0]), found[0]))
    between = zip(places, places[1:], places[2:], strict=False)
    peaks = [t for s, t, u in between if not screened[t] < max(screened[s], screened[u])]
    off = 0.0
    for t in sorted(peaks, key=lambda t: (isfinite(screened[t]), -screened[t]))[:_MOST]:
        if off and screened[t] + _TIMES * off + _SHARE * abs(best[0]) < best[0]:
            break
        loss = everything(t)
        off = max(off, abs(loss - screened[t]))
        best = max(best, (loss, t), key=lambda found: (not isfinite(found[0]), found[0]))
    return Highest(best[0], best[1], True)


def secured(
    found: Highest, whole: Callable[[float], float], everything: Callable[[float], float], limit: float
) -> Highest:
    """`found`, or a higher point where that is at most the `limit`: then it is what training ends with.

    The examples of a screening may lack the few that carry the loss, so all equidistant points are seen on the `whole`
    data, in the fast precision, and the highest of them are measured, until one is above the limit.

    >>> secured(Highest(0.2, 0.5, True), lambda t: t == 0.75, lambda t: 0.4 if t == 0.75 else 0.2, 0.3)
    Highest(loss=0.4, t=0.75, confirmed=True)
    """
    if not found.loss <= limit:
        return found
    best = found
    seen = {k / (_POINTS - 1): whole(k / (_POINTS - 1)) for k in range(1, _POINTS - 1)}
    for t in sorted(seen, key=lambda t: (isfinite(seen[t]), -seen[t]))[:_PEAKS]:
        loss = everything(t)
        if not loss <= best.loss:
            best = Highest(loss, t, True)
        if not best.loss <= limit:
            break
    return best
