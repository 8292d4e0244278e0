"""What Nguyen 2019 states, checked on the rows: every theorem on real data, every figure on its function."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import nan

from isthmus.experiments.claims import Claim
from isthmus.experiments.tables import Row
from isthmus.papers.nguyen2019.sketches import NEAR
from isthmus.shown import largest

_CONDITION = 1e6
"""Paths with a larger condition number of features or weights are not asked to keep their digits."""
_EXCESS = 1e-10
"""How far above the higher end rounding may lift the loss, in units of the larger of 1 and that loss."""
_PROVED = 1e-8
"""How far a certificate may be above it: the tolerance of ``Sublevel``. It allows for the worst case of every rounding,
which grows with the width, and no path is seen to come near it."""
_FAR = 1e6
"""The norm to which rays are followed, in place of the theorem's "any"."""
_INVARIANT = 1e-12
"""How far outputs that stay may move, relative to the largest of them."""
_RISE = 1e-12
"""How far rounding may lift the loss on a descent."""
_SQUARED = 1e-20
"""What a descent of the squared loss has to reach."""


def _path(row: Row) -> bool:
    return row["part"].startswith("Theorem")


def _good(row: Row) -> bool:
    """A path that is asked to keep its digits."""
    return _path(row) and row.get("condition") is not None and row["condition"] < _CONDITION


def _descent(row: Row) -> bool:
    return row["part"] == "descend"


def _premises(rows: list[Row]) -> tuple[bool, str]:
    refused = [r for r in rows if r.get("condition") is None]
    return not refused, f"{sum(r['pairs'] for r in rows)} pairs, {len(refused)} kinds refused"


def _proved(rows: list[Row]) -> tuple[bool, str]:
    proved = sum(bool(r["proved"]) for r in rows)
    return proved == len(rows), f"{proved} of {len(rows)} kinds"


def _leads_down(rows: list[Row]) -> tuple[bool, str]:
    there = [r for r in rows if r.get("theorem") is not None]
    worst = largest([r["rise"] for r in there] or [nan])
    down = all(r["loss at the end"] <= r["tolerance"] for r in there)
    good = len(there) == len(rows) and down and worst <= _RISE
    return good, f"{len(there)} of {len(rows)} descents, the largest rise {worst:.1e}"


def _certain(rows: list[Row]) -> bool:
    return all(r["proved"] and r["proved excess"] <= _PROVED for r in rows)


def _descents_proved(rows: list[Row]) -> tuple[bool, str]:
    return _certain(rows), f"{sum(bool(r['proved']) for r in rows)} of {len(rows)} proved"


def _far(rows: list[Row]) -> tuple[bool | None, str]:
    """Of rays that do not get to the norm nothing is said, unless the loss changes on them."""
    change, norm = largest(r["change"] for r in rows), min(r["norm at the end"] for r in rows)
    far = all(r["norm at the end"] >= _FAR for r in rows)
    text = f"{change:.1e} on {len(rows)} rays, to norms of at least {norm:.1e}"
    holds = change <= _EXCESS and _certain(rows)
    return (None if holds and not far else holds), text


def _counts(row: Row) -> str:
    text = f"up to {row['most components']} components, {row['most bad components']} bad, {row['local minima']} minima"
    return text + (f", descent ends at {row['descent ends at']}" if row.get("descent ends at") else "")


def _connected(row: Row) -> bool:
    return row["most components"] == 1 == min(row[".survey"]["components"])


def _stuck(row: Row) -> bool:
    """Gradient descent from y < 1 stays above 1 and keeps falling, from above it comes near the infimum."""
    runs, near = row[".survey"]["runs"], row[".infimum"] + NEAR
    low = [r["f"] for r in runs if r["y"][0] < 1]
    high = [r["f"] for r in runs if r["y"][0] > 1]
    return bool(low) and near < 1 and all(map(_stays_above_one, low)) and all(f[-1] < near for f in high)


def _stays_above_one(values: list[float]) -> bool:
    return values[-1] > 1 and all(p > q for p, q in pairwise(values))


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


def _figure(name: str, says: Callable[[Row], bool]) -> Claim:
    return Claim(
        "{part}: {sketch}",
        lambda row: row["part"] == name,
        ("part", "sketch"),
        judge=lambda rows: (says(rows[0]), _counts(rows[0])),
    )


_KEPT = f"{{part}}, condition numbers below {_CONDITION:.0e}"
CLAIMS = (
    Claim("{part}: its premises hold wherever they should", _path, ("part",), judge=_premises),
    Claim(
        f"{_KEPT}: the loss rises at most {_EXCESS:.0e} above the higher end", _good, ("part",),
        value="excess", at_most=_EXCESS, says="{value:.1e} on {count} paths",
    ),
    Claim(
        f"{_KEPT}: outputs that stay move by at most {_INVARIANT:.0e}", _good, ("part",),
        value="invariance", at_most=_INVARIANT, says="{value:.1e}",
    ),
    Claim(f"{_KEPT}: every path is proved", _good, ("part",), judge=_proved),
    Claim(
        f"{_KEPT}: the proofs allow for at most {_PROVED:.0e} above the higher end", _good, ("part",),
        value=lambda row: row["proved excess"] if row["proved"] else None, at_most=_PROVED, says="{value:.1e} at most",
    ),
    Claim(
        f"from every start that was tried a path leads down to the tolerance and rises by at most {_RISE:.0e}",
        _descent, judge=_leads_down,
    ),
    Claim(
        f"no descent exceeds the loss it starts from by more than {_PROVED:.0e}, by proof", _descent,
        needs=("theorem",), judge=_descents_proved,
    ),
    Claim(
        f"the squared loss comes below {_SQUARED:.0e}", lambda row: _descent(row) and row["loss"] == "mse",
        value="loss at the end", at_most=_SQUARED, says="at most {value:.1e} in {count} descents",
    ),
    Claim(
        f"Theorem {{theorem}}, second part: on a ray to a norm of {_FAR:.0e} the loss stays within {_EXCESS:.0e}, "
        f"by proof within {_PROVED:.0e}", lambda row: row["part"] == "ray", ("theorem",), judge=_far,
    ),
    *(_figure(name, says) for name, says in _FIGURES.items()),
)  # fmt: skip
"""Every statement of the paper."""
