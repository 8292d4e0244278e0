"""What Freeman & Bruna 2017 say in words about their figures, checked on the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp, inf
from typing import NamedTuple

import numpy as np

from isthmus.experiments.claims import Claim
from isthmus.experiments.tables import Row
from isthmus.stability.dropout.pattern import log_slope

_NEAR = 1.1
"""A normalised length up to here counts as near 1; the paper names no number."""
_FIT = 0.9
"""The part of the variance that a power law must explain."""
_GROWS = -0.7
"""The rank correlation of length and level up to which a length counts as growing towards low levels."""
_SPIKE = 1.2
"""By which factor a spike stands above the levels on both of its sides."""
_AROUND = (0.145, 0.165)
"""Levels around the spike of the cubic regression, at 0.15."""
_ALWAYS = 3
"""Both ends and the bead that is always put in."""
_SMALL = 1e-3
"""A gap that counts as closed."""
_PROVED = 1.01
"""By how much a bound may exceed the limit: the certificates stop within one percent."""
_ROUNDING = 1e-9


class _PowerLaw(NamedTuple):
    """beads = factor * level^exponent, by least squares on logarithms; `half`: half the exponent's 95 % interval."""

    exponent: float
    half: float
    factor: float
    explained: float


def power_law(levels: Sequence[float], beads: Sequence[float]) -> _PowerLaw | None:
    """The fit; None for fewer than three levels, or where all beads are the same.

    >>> fit = power_law([1.0, 0.1, 0.01], [3.0, 30.0, 300.0])
    >>> round(fit.exponent, 6), round(fit.factor, 6), round(fit.explained, 6)
    (-1.0, 3.0, 1.0)
    """
    if len(set(levels)) < 3 or len(set(beads)) < 2:
        return None
    slope = log_slope(levels, beads)
    x, y = np.log(levels), np.log(beads)
    left = float(((y - slope.intercept - slope.value * x) ** 2).sum())
    explained = 1 - left / float(((y - y.mean()) ** 2).sum())
    return _PowerLaw(slope.value, (slope.high - slope.low) / 2, exp(slope.intercept), explained)


def where_beads_grow(table: Sequence[Row]) -> list[Row]:
    """The levels at which the one bead that is always put in was not enough for most pairs."""
    return [r for r in table if r["beads"] > _ALWAYS + 0.5]


RANGES = {"2": (0.001, 0.125), "3": (0.01, 0.32), "4": (0.7, 4.0), "5": (20.0, 80.0), "6": (135.0, 700.0)}
"""The lowest and the highest level of each figure: what the paper says of it, it says of these levels."""
FIGURES = tuple(RANGES)


def _curve(*figures: str) -> Callable[[Row], bool]:
    """The levels of these figures at which pairs were connected."""
    return lambda row: row["figure"] in (figures or FIGURES) and row.get("length") is not None


def _downwards(rows: list[Row]) -> list[Row]:
    """From the highest level to the lowest."""
    return sorted(rows, key=lambda r: -r["L0"])


def _in_spike(row: Row) -> bool:
    return row["figure"] == "3" and _AROUND[0] <= row["L0"] <= _AROUND[1]


def _grows(rows: list[Row]) -> tuple[bool | None, str]:
    from scipy.stats import spearmanr

    rest = [r for r in _downwards(rows) if not _in_spike(r)]
    if len(rest) < 3:
        return None, "fewer than three levels"
    rank = float(spearmanr([r["L0"] for r in rest], [r["length"] for r in rest])[0])  # type: ignore[arg-type]
    top, low = _downwards(rows)[0], rest[-1]
    ends = ", ".join(f"{r['length']:.3f} at {r['L0']:g}" for r in (top, low))
    return rank <= _GROWS, f"{ends}, rank correlation {rank:.2f}"


def _beads(rows: list[Row]) -> tuple[bool | None, str]:
    growing = where_beads_grow(rows)
    found = power_law([r["L0"] for r in growing], [r["beads"] for r in growing])
    if found is None:
        return None, "too few levels at which they grow"
    text = f"exponent {found.exponent:.2f} ± {found.half:.2f}, {100 * found.explained:.0f} % of the variance"
    known = [r for r in growing if r.get("paper beads") is not None]
    like = power_law([r["L0"] for r in known], [r["paper beads"] for r in known])
    if like is not None:
        text += f"; the paper's values at these levels {like.exponent:.2f} ± {like.half:.2f}"
    return found.exponent + found.half < 0 and found.explained >= _FIT, text


def _spike(column: str) -> Callable[[list[Row]], tuple[bool | None, str]]:
    def judge(rows: list[Row]) -> tuple[bool | None, str]:
        inside = [r for r in rows if _in_spike(r)]
        above = [r[column] for r in rows if r["L0"] > _AROUND[1] + 0.004]
        below = [r[column] for r in rows if 0.1 <= r["L0"] < _AROUND[0]]
        if not (inside and above and below):
            return None, "no levels on one side"
        top = max(inside, key=lambda r: r[column])
        text = f"{top[column]:.2f} at {top['L0']:g}, at most {max(above):.2f} above and {max(below):.2f} below"
        return top[column] >= _SPIKE * max(*above, *below), text

    return judge


def _lstm(rows: list[Row]) -> tuple[bool, str]:
    """The paper's own run cannot say this: its program put one bead everywhere and looked no further."""
    low = _downwards(rows)[-1]
    text = f"{low['beads'] - 2:.1f} between the ends, mean of {low['connected']} pairs, at perplexity {low['L0']:g}"
    return low["beads"] > _ALWAYS, text


def _connected(row: Row) -> float | None:
    """The part of the pairs that is connected."""
    return row["connected"] / row["pairs"] if row["pairs"] else None


def _of_all(rows: list[Row]) -> str:
    pairs, good = sum(r["pairs"] for r in rows), sum(r["connected"] for r in rows)
    missing = [f"{r['task']} at {r['L0']:g}: {r['others']}" for r in rows if r["connected"] < r["pairs"]]
    return "; ".join((f"{good} of {pairs}", *missing))


def _proofs(rows: list[Row]) -> tuple[bool, str]:
    proved, connected = sum(r["proved"] for r in rows), sum(r["connected"] for r in rows)
    worst = max((r["largest bound"] or inf) / r["limit"] for r in rows)
    return proved == connected and worst <= _PROVED, f"{proved} of {connected}, at most {worst:.4f} times"


def _apart(example: str, below: bool) -> Callable[[Row], bool]:
    """Levels on one side of the one below which there is no path."""

    def chosen(row: Row) -> bool:
        if row["task"] != example or row.get("method") != "StringSampling":
            return False
        return (row["L0"] < row["no path below"]) is below

    return chosen


def _outcomes(rows: list[Row]) -> str:
    return ", ".join(f"{r['L0']:g}: {r['outcome']}" for r in rows)


def _sides(example: str) -> tuple[Claim, Claim]:
    level = ("no path below",)
    return (
        Claim(
            f"{example}: never connected below {{no path below:.4g}}", _apart(example, True), level,
            judge=lambda rows: (not any(r["connected"] for r in rows), _outcomes(rows)),
        ),
        Claim(
            f"{example}: connected at some level above {{no path below:.4g}}", _apart(example, False), level,
            judge=lambda rows: (any(r["connected"] for r in rows), _outcomes(rows)),
        ),
    )  # fmt: skip


def _gap_falls(rows: list[Row]) -> tuple[bool | None, str]:
    if len(rows) < 2:
        return None, "one width alone"
    (m, first), *_, (M, last) = sorted((r["m"], r["gap"]) for r in rows)
    return last <= _SMALL and last <= first, f"{first:.2g} at m = {m}, {last:.2g} at m = {M}"


def _corollary(row: Row) -> bool:
    return row["figure"] == "Corollary 2.5"


def _of_figure(figure: str) -> tuple[Claim, Claim, Claim]:
    """What the paper says of every one of Figures 2 to 6."""
    low, high = RANGES[figure]
    levels, of = ("L0", low, high), f"{{task}}, from {high:g} to {low:g}"
    return (
        Claim(
            f"{{task}}: at {high:g}, the highest level, the length is near 1, at most {_NEAR:g}", _curve(figure),
            ("task",), value="length", at_most=_NEAR, says="{value:.3f}", over=("L0", high, high),
        ),
        Claim(f"{of}: the length grows as the level falls", _curve(figure), ("task",), judge=_grows, over=levels),
        Claim(f"{of}: the beads grow about as a power of the level", _curve(figure), ("task",), judge=_beads,
              over=levels),
    )  # fmt: skip


CLAIMS = (
    *(claim for figure in FIGURES for claim in _of_figure(figure)),
    Claim("cubic: around 0.15 the length has a spike", _curve("3"), judge=_spike("length")),
    Claim(
        "cubic: the spike is there too when a straight line that is below needs no bead", _curve("3"),
        judge=_spike("length, line kept"),
    ),
    Claim(
        "{{task}}: the length stays near 1 at every level from {1:g} to {0:g} %".format(*RANGES["4"]), _curve("4"),
        ("task",), value="length", at_most=_NEAR, says="at most {value:.3f}, at {L0:g} %", over=("L0", *RANGES["4"]),
    ),
    Claim("{task}: at the lowest perplexity reached one bead is not enough", _curve("6"), ("task",), judge=_lstm),
    Claim(
        "every pair of every task is connected within the budget of its search",
        lambda row: row["figure"] in FIGURES, value=_connected, at_least=1, says=_of_all, every=("figure", FIGURES),
    ),
    Claim(
        "no connected string is above its limit", _curve(*FIGURES, "squared error", "show"),
        value=lambda row: row["largest"] / row["limit"] if row[".dense"] else None, at_most=1 + _ROUNDING,
        says="at most {value:.4f} times the limit, {task} at {L0:g}",
    ),
    Claim(
        f"squared error: every connected string is proved below {_PROVED:g} times its limit",
        lambda row: row["figure"] == "squared error", needs=("proved", "limit"), judge=_proofs,
    ),
    *_sides("permutation"),
    *_sides("mixture"),
    Claim(
        "mixture, as printed: every path rises to the 1/2 of the text",
        lambda row: row["task"] == "mixture, as printed",
        value="largest", at_least=0.5, says="{value:.2g} on a way, ends {ends:.2g}",
    ),
    Claim(
        f"Corollary 2.5: the gap falls over the widths tried, to at most {_SMALL:g}", _corollary, judge=_gap_falls
    ),
    Claim(
        "Theorem 2.4: no loss on a path is above its ends and epsilon", _corollary,
        value=".above", at_most=_ROUNDING, says="{count} paths, at most {value:.1g} above",
    ),
)  # fmt: skip
"""Every statement of the paper about its figures."""
