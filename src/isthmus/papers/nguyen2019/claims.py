"""What Nguyen 2019 states, checked on the rows: every theorem on real data, every figure on its function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from isthmus.experiments.page import Finding, Row
from isthmus.papers.nguyen2019.sketches import NEAR

CONDITION = 1e6
"""Paths with a larger condition number of features or weights are not asked to keep their digits."""
EXCESS = 1e-10
"""How far above the higher end rounding may lift the loss, in units of the larger of 1 and that loss."""
PROVED = 1e-8
"""How far a certificate may be above it: the tolerance of ``Sublevel``. It allows for the worst case of every rounding,
which grows with the width, and no path is seen to come near it."""
INVARIANT = 1e-12
"""How far outputs that stay may move, relative to the largest of them."""
RISE = 1e-12
"""How far rounding may lift the loss on a descent."""
SQUARED = 1e-20
"""What a descent of the squared loss has to reach."""


def findings(rows: Sequence[Row]) -> list[Finding]:
    """Every statement that the rows can decide."""
    out: list[Finding] = []
    for theorem in ("3.2", "5.1", "6.1"):
        out += _theorem(theorem, [r for r in rows if r["part"] == f"Theorem {theorem}"])
    out += _descents([r for r in rows if r["part"] == "descend"])
    for theorem in ("3.2", "5.1"):
        out += _rays(theorem, [r for r in rows if r["part"] == "ray" and r["theorem"] == theorem])
    sketches = {r["part"]: r for r in rows if r["part"].startswith("Figure")}
    return out + [
        Finding(f"{name}: {sketches[name]['sketch']}", test(sketches[name]), _counts(sketches[name]))
        for name, test in _FIGURES.items()
        if name in sketches
    ]


def _theorem(name: str, found: Sequence[Row]) -> list[Finding]:
    if not found:
        return []
    refused = [r for r in found if "condition" not in r]
    kept = [r for r in found if "condition" in r and r["condition"] < CONDITION]
    pairs = sum(r["pairs"] for r in kept)
    what = f"Theorem {name}, condition numbers below {CONDITION:.0e}"
    out = [
        Finding(
            f"Theorem {name}: its premises hold wherever they should",
            not refused,
            f"{sum(r['pairs'] for r in found)} pairs, {len(refused)} kinds refused",
        )
    ]
    if not kept:
        return out
    excess = max(r["excess"] for r in kept)
    moved = max((r["invariance"] for r in kept if r["invariance"] is not None), default=None)
    certain = [r["proved excess"] for r in kept if r["proved"]]
    return [
        *out,
        Finding(
            f"{what}: the loss rises at most {EXCESS:.0e} above the higher end",
            excess <= EXCESS,
            f"{excess:.1e} on {pairs} paths",
        ),
        Finding(
            f"{what}: outputs that stay move by at most {INVARIANT:.0e}",
            None if moved is None else moved <= INVARIANT,
            "no such segment" if moved is None else f"{moved:.1e}",
        ),
        Finding(
            f"{what}: every path is proved",
            len(certain) == len(kept),
            f"{len(certain)} of {len(kept)} kinds",
        ),
        Finding(
            f"{what}: the proofs allow for at most {PROVED:.0e} above the higher end",
            bool(certain) and max(certain) <= PROVED,
            f"{max(certain, default=float('nan')):.1e} at most",
        ),
    ]


def _descents(found: Sequence[Row]) -> list[Finding]:
    if not found:
        return []
    there = [r for r in found if r.get("theorem") is not None]
    squared = [r for r in there if r["loss"] == "mse"]
    worst = max((r["rise"] for r in there), default=float("nan"))
    lost = [r for r in there if r["loss at the end"] > r["tolerance"]]
    out = [
        Finding(
            f"from every start a path leads down to the tolerance and rises by at most {RISE:.0e}",
            len(there) == len(found) and not lost and worst <= RISE,
            f"{len(there)} of {len(found)} descents, the largest rise {worst:.1e}",
        ),
        Finding(
            f"no descent exceeds the loss it starts from by more than {PROVED:.0e}, by proof",
            bool(there) and all(r["proved"] and r["proved excess"] <= PROVED for r in there),
            f"{sum(bool(r['proved']) for r in there)} of {len(there)} proved",
        ),
    ]
    if squared:
        reached = max(r["loss at the end"] for r in squared)
        out.append(
            Finding(
                f"the squared loss comes below {SQUARED:.0e}",
                reached < SQUARED,
                f"at most {reached:.1e} in {len(squared)} descents",
            )
        )
    return out


def _rays(name: str, found: Sequence[Row]) -> list[Finding]:
    if not found:
        return []
    change = max(r["change"] for r in found)
    what = f"on a ray to any norm the loss stays within {EXCESS:.0e}, by proof within {PROVED:.0e}"
    return [
        Finding(
            f"Theorem {name}, second part: {what}",
            change <= EXCESS
            and all(r["norm at the end"] >= r["wanted"] for r in found)
            and all(r["proved"] and r["proved excess"] <= PROVED for r in found),
            f"{change:.1e} on {len(found)} rays, to norms of at least {min(r['norm at the end'] for r in found):.1e}",
        )
    ]


def _counts(row: Row) -> str:
    text = f"up to {row['most components']} components, {row['most bad components']} bad, {row['local minima']} minima"
    return text + (f", descent ends at {row['descent ends at']}" if "descent ends at" in row else "")


def _connected(row: Row) -> bool:
    return row["most components"] == 1 == min(row[".survey"]["components"])


def _stuck(row: Row) -> bool:
    """Gradient descent from y < 1 stays above 1 and keeps falling, from above it comes near the infimum."""
    runs = row[".survey"]["runs"]
    low = [r["f"] for r in runs if r["y"][0] < 1]
    falling = all(p > q for f in low for p, q in pairwise(f))
    free = all(r["f"][-1] < row[".infimum"] + NEAR for r in runs if r["y"][0] > 1)
    return bool(low) and falling and free and all(f[-1] > 1 for f in low) and row[".infimum"] + NEAR < 1


_FIGURES: dict[str, Callable[[Row], bool]] = {
    "Figure 1": lambda r: _connected(r) and r["midpoint excess"] > 0,
    "Figure 2 left": lambda r: r["most bad components"] > 0 and r["most in a bad component"] >= 2,
    "Figure 2 right": lambda r: r["most bad components"] > 0 and r["most in a bad component"] == 0,
    "Figure 3 left": lambda r: r["local minima"] == 0 and r["most components"] > r["most bad components"] > 0,
    "Figure 3 right": lambda r: (
        r["local minima"] > 0 and r["highest minimum"] <= r[".infimum"] + NEAR and r["most bad components"] == 2
    ),
    "Figure 4": lambda r: r["most components"] > 1 and r["most bad components"] == 0,
    "Figure 5": lambda r: _connected(r) and _stuck(r),
}
"""What each figure says, of its row."""
