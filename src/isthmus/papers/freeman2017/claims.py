"""What Freeman & Bruna 2017 say in words about their figures, checked on the rows."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, inf
from typing import NamedTuple

import numpy as np

from isthmus.experiments.page import Finding, Row
from isthmus.stability.dropout.pattern import log_slope

NEAR = 1.1
"""A normalised length up to here counts as near 1; the paper names no number."""
FIT = 0.9
"""The part of the variance that a power law must explain."""
GROWS = -0.7
"""The rank correlation of length and level up to which a length counts as growing towards low levels."""
SPIKE = 1.2
"""By which factor a spike stands above the levels on both of its sides."""
AROUND = (0.145, 0.165)
"""Levels around the spike of the cubic regression, at 0.15."""
ALWAYS = 3
"""Both ends and the bead that is always put in."""
SMALL = 1e-3
"""A gap that counts as closed."""
PROVED = 1.01
"""By how much a bound may exceed the limit: the certificates stop within one percent."""
ROUNDING = 1e-9


class PowerLaw(NamedTuple):
    """beads = factor * level^exponent, by least squares on logarithms; `half`: half the exponent's 95 % interval."""

    exponent: float
    half: float
    factor: float
    explained: float


def power_law(levels: Sequence[float], beads: Sequence[float]) -> PowerLaw | None:
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
    return PowerLaw(slope.value, (slope.high - slope.low) / 2, exp(slope.intercept), explained)


def where_beads_grow(table: Sequence[Row]) -> list[Row]:
    """The levels at which the one bead that is always put in was not enough for most pairs."""
    return [r for r in table if r["beads"] > ALWAYS + 0.5]


def findings(rows: Sequence[Row]) -> list[Finding]:
    """Every statement that the rows can decide."""
    figures = ("2", "3", "4", "5", "6")
    curves = {f: [r for r in rows if r["figure"] == f and "length" in r] for f in figures}
    out = [finding for table in curves.values() if len(table) > 1 for finding in _curve(table)]
    out += _spike(curves["3"])
    if curves["4"]:
        worst = max(curves["4"], key=lambda r: r["length"])
        text = f"at most {worst['length']:.3f}, at {worst['L0']:g} %"
        out.append(Finding(f"{worst['task']}: the length stays near 1 at every level", worst["length"] <= NEAR, text))
    out += _lstm(curves["6"])
    out += _connected([r for r in rows if r["figure"] in figures])
    out += _below([r for f in (*figures, "squared error", "show") for r in rows if r["figure"] == f and "length" in r])
    out += _proofs([r for r in rows if r["figure"] == "squared error" and "largest bound" in r])
    for name in ("permutation", "mixture"):
        out += _apart(name, [r for r in rows if r["task"] == name and r["method"] == "StringSampling"])
    return [*out, *_gaps([r for r in rows if r["figure"] == "Corollary 2.5"])]


def _curve(table: list[Row]) -> list[Finding]:
    """Near 1 at the highest level, growing towards the lowest, and the beads a power law."""
    from scipy.stats import spearmanr

    table = sorted(table, key=lambda r: -r["L0"])
    name, top = table[0]["task"], table[0]
    out = [
        Finding(
            f"{name}: at the highest level the length is near 1, at most {NEAR:g}",
            top["length"] <= NEAR,
            f"{top['length']:.3f} at {top['L0']:g}",
        )
    ]
    rest = [r for r in table if not (r["figure"] == "3" and AROUND[0] <= r["L0"] <= AROUND[1])]
    if len(rest) > 2:
        rank = float(spearmanr([r["L0"] for r in rest], [r["length"] for r in rest])[0])  # type: ignore[arg-type]
        low = rest[-1]
        text = (
            f"{top['length']:.3f} at {top['L0']:g}, {low['length']:.3f} at {low['L0']:g}, rank correlation {rank:.2f}"
        )
        out.append(Finding(f"{name}: the length grows as the level falls", rank <= GROWS, text))
    growing = where_beads_grow(table)
    found = power_law([r["L0"] for r in growing], [r["beads"] for r in growing])
    if found is not None:
        theirs = [(r["L0"], r["paper beads"]) for r in growing if "paper beads" in r]
        like = power_law(*zip(*theirs, strict=True)) if len(theirs) > 2 else None
        text = f"exponent {found.exponent:.2f} ± {found.half:.2f}, {100 * found.explained:.0f} % of the variance"
        text += "" if like is None else f"; the paper's values at these levels {like.exponent:.2f} ± {like.half:.2f}"
        good = found.exponent + found.half < 0 and found.explained >= FIT
        out.append(Finding(f"{name}: the beads grow about as a power of the level", good, text))
    return out


def _spike(table: list[Row]) -> list[Finding]:
    inside = [r for r in table if AROUND[0] <= r["L0"] <= AROUND[1]]
    above = [r for r in table if r["L0"] > AROUND[1] + 0.004]
    below = [r for r in table if 0.1 <= r["L0"] < AROUND[0]]
    if not (inside and above and below):
        return []
    out = []
    for column, words in (
        ("length", "around 0.15 the length has a spike"),
        ("length, line kept", "the spike is there too when a straight line that is below needs no bead"),
    ):
        top = max(inside, key=lambda r: r[column])
        sides = [max(r[column] for r in side) for side in (above, below)]
        text = f"{top[column]:.2f} at {top['L0']:g}, at most {sides[0]:.2f} above and {sides[1]:.2f} below"
        out.append(Finding(f"cubic: {words}", top[column] >= SPIKE * max(sides), text))
    return out


def _lstm(table: list[Row]) -> list[Finding]:
    """The paper's own run cannot say this: its program put one bead everywhere and looked no further."""
    if not table:
        return []
    low = min(table, key=lambda r: r["L0"])
    text = f"{low['beads'] - 2:.1f} between the ends, mean of {low['connected']} pairs, at perplexity {low['L0']:g}"
    return [Finding("Penn Treebank: at a low perplexity one bead is not enough", low["beads"] > 3, text)]


def _connected(table: list[Row]) -> list[Finding]:
    pairs, good = sum(r["pairs"] for r in table), sum(r["connected"] for r in table)
    if not pairs:
        return []
    missing = [f"{r['task']} at {r['L0']:g}: {r['others']}" for r in table if r["connected"] < r["pairs"]]
    text = f"{good} of {pairs}" + (f"; {'; '.join(missing)}" if missing else "")
    return [Finding("every pair of every task is connected", good == pairs, text)]


def _below(table: list[Row]) -> list[Finding]:
    """Samples of another grid than the one on which the search judged, where they were taken."""
    table = [r for r in table if r[".dense"]]
    if not table:
        return []
    worst = max(table, key=lambda r: r["largest"] / r["limit"])
    ratio = worst["largest"] / worst["limit"]
    text = f"at most {ratio:.4f} times the limit, {worst['task']} at {worst['L0']:g}"
    return [Finding("no connected string is above its limit", ratio <= 1 + ROUNDING, text)]


def _proofs(table: list[Row]) -> list[Finding]:
    if not table:
        return []
    proved, connected = sum(r["proved"] for r in table), sum(r["connected"] for r in table)
    worst = max((r["largest bound"] or inf) / r["limit"] for r in table)
    return [
        Finding(
            f"squared error: every connected string is proved below {PROVED:g} times its limit",
            proved == connected and worst <= PROVED,
            f"{proved} of {connected}, at most {worst:.4f} times",
        )
    ]


def _apart(name: str, table: list[Row]) -> list[Finding]:
    if not table:
        return []
    level = table[0]["no path below"]
    low, high = ([r for r in table if (r["L0"] < level) is side] for side in (True, False))
    out = []
    if low:
        good = not any(r["connected"] for r in low)
        out.append(Finding(f"{name}: never connected below {level:.4g}", good, _outcomes(low)))
    if high:
        good = any(r["connected"] for r in high)
        out.append(Finding(f"{name}: connected at some level above {level:.4g}", good, _outcomes(high)))
    return out


def _outcomes(table: list[Row]) -> str:
    return ", ".join(f"{r['L0']:g}: {r['outcome']}" for r in table)


def _gaps(table: list[Row]) -> list[Finding]:
    if len(table) < 2:
        return []
    table = sorted(table, key=lambda r: r["m"])
    first, last = table[0], table[-1]
    text = f"{first['gap']:.2g} at m = {first['m']}, {last['gap']:.2g} at m = {last['m']}"
    above = max(r[".above"] for r in table)
    return [
        Finding(
            f"Corollary 2.5: the gap falls with the width, to at most {SMALL:g}",
            last["gap"] <= SMALL and last["gap"] <= first["gap"],
            text,
        ),
        Finding(
            "Theorem 2.4: no loss on a path is above its ends and epsilon",
            above <= ROUNDING,
            f"{sum(r['pairs'] for r in table)} paths, at most {above:.1g} above",
        ),
    ]
