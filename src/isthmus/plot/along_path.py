"""Results along a path, several of them on one pair of axes where that is asked for: profiles, bands, certificates."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from isthmus.certify import Certificate
from isthmus.evaluate import Band, Profile
from isthmus.plot.curves import DASHED, highest
from isthmus.plot.figures import GREY, PALETTE, legend_text
from isthmus.plot.runs import Floats
from isthmus.plot.stability import loss_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_profile(profile: Profile, ax: Axes, label: str | None = None) -> None:
    """The loss over t, with the maximum marked; the test data dashed."""
    t, loss = profile.t.numpy(), profile.loss.numpy()
    first, second = _unused_colours(ax)
    where, top = highest(t, loss)
    known = f"{legend_text(label)}: max {top:.4g}" if label else _words(ax, None, "training set")
    ax.plot(t, loss, color=first, lw=1.9, label=known)
    seen = [loss]
    if profile.test is not None:
        seen.append(profile.test.loss.numpy())
        ax.plot(t, seen[1], color=second, lw=1.4, linestyle=DASHED, label=_words(ax, label, "test set"))
    mark = "_" if label else f"largest: {top:.4g}"
    ax.plot([where], [top], "o", ms=6, color=first, mfc="white", mew=1.8, zorder=5, label=mark)
    band = None if profile.test is None else profile.test.population
    _axes_of_path(ax, np.concatenate([*seen, *([] if band is None else [_extent(band)])]))
    if band is not None:
        _shade(band, ax, second, label)
    ax.legend(fontsize=9, loc="best")


def draw_band(band: Band, ax: Axes, label: str | None = None) -> None:
    """The mean loss of the test set within the band for that of the population."""
    _, colour = _unused_colours(ax)
    words = _words(ax, label, f"{band.examples:,} test examples")
    ax.plot(band.t, band.loss, color=colour, lw=1.6, label=words)
    _axes_of_path(ax, _extent(band))
    _shade(band, ax, colour, label)
    ax.legend(fontsize=9, loc="best")


def draw_certificate(certificate: Certificate, ax: Axes, label: str | None = None) -> None:
    """The bound on every sub-interval of t, and the largest losses that were seen; what is only measured is dashed."""
    n, seen = len(certificate.segments), []
    first, second = _unused_colours(ax)
    shown: set[bool] = set()
    for row in certificate.segments:
        proved = row.claim != "measured"
        words = "_" if proved in shown else _words(ax, label, "proved bound" if proved else "only measured")
        shown.add(proved)
        for start, end, bound in row.intervals or ((0.0, 1.0, row.bound),):
            style = {"color": second, "lw": 1.9} if proved else {"color": GREY, "lw": 1.5, "linestyle": DASHED}
            ax.plot([(row.index + start) / n, (row.index + end) / n], [bound, bound], label=words, **style)
            words = "_"
            seen.append(bound)
    t = [(row.index + row.witness) / n for row in certificate.segments]
    values = [row.value for row in certificate.segments]
    ax.plot(t, values, "o", ms=4.5, color=first, label=_words(ax, label, "largest loss seen on a segment"))
    _axes_of_path(ax, np.array([*seen, *values]))
    ax.legend(fontsize=9, loc="best")


def _axes_of_path(ax: Axes, losses: Floats) -> None:
    ax.set_xlim(0, 1)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["A", "0.25", "0.5", "0.75", "B"])
    ax.set_xlabel("t, from network A to network B")
    ax.set_ylabel("loss")
    loss_axis(ax, losses)


def _unused_colours(ax: Axes) -> tuple[str, str]:
    """The first two of the palette in which nothing is drawn yet; when it is used up, it begins again."""
    from matplotlib.colors import to_hex

    seen = {to_hex(line.get_color()) for line in ax.get_lines()}
    first, second, *_ = [*(colour for colour in PALETTE if colour not in seen), *PALETTE]
    return first, second


def _words(ax: Axes, label: str | None, words: str) -> str:
    """An entry of the legend: with the label, or, without one, numbered where the axes have these words."""
    if label:
        return f"{legend_text(label)}, {words}"
    taken = ax.get_legend_handles_labels()[1]
    several = (words if k == 1 else f"{words} ({k})" for k in count(1))
    return next(one for one in several if one not in taken)


def _extent(band: Band) -> Floats:
    """What the axis must show of it: a lower bound below 0 says nothing of a loss that is not negative."""
    loss, lo, hi = band.loss.numpy(), band.lo.numpy(), band.hi.numpy()
    return np.concatenate([loss, hi, lo if (loss < 0).any() else lo[lo > 0]])


def _shade(band: Band, ax: Axes, colour: str, label: str | None) -> None:
    """The band, on a logarithmic axis cut off at the bottom, whatever its limits become."""
    t, lo, hi = (v.numpy() for v in (band.t, band.lo, band.hi))
    words = _words(ax, label, f"{band.level:.4g} band, population" + " (asymptotic)" * band.asymptotic)
    filled = ax.fill_between(t, lo, hi, color=colour, alpha=0.2, lw=0, label=words)

    def cut(axes: Axes) -> None:
        bottom = -np.inf if axes.get_yscale() == "linear" else axes.get_ylim()[0]
        filled.set_data(t, np.maximum(lo, bottom), np.maximum(hi, bottom))

    ax.callbacks.connect("ylim_changed", cut)
    cut(ax)
