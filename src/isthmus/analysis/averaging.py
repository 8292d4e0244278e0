"""What was measured on the way to an average, and the verdict in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan

from isthmus.evaluate.decide import Decision
from isthmus.verdict import Level, loss_in_words

Pair = tuple[int, int]
Lines = Mapping[Pair, Mapping[str, Decision]]
"""By the numbers of two networks and the name of a data set."""


@dataclass(frozen=True)
class Mean:
    """The network of averaged weights on one data set, and the level that it must stay below."""

    loss: float
    error: float
    level: float

    @property
    def below(self) -> bool:
        """False for NaN, too."""
        return self.loss < self.level


def height(found: Mapping[str, Decision]) -> float:
    """How far a line goes towards its level, or above it, on the data set where that is most; NaN is infinite."""
    heights = [(d.profile.max - d.level) / (abs(d.level) or 1.0) for d in found.values()]
    return max(h if h == h else float("inf") for h in heights)


def sentence(
    level: Level, names: Sequence[str], lines: Lines, mean: Mapping[str, Mean],
    renumbered: tuple[Lines, Mapping[str, Mean]], go: bool,
) -> str:  # fmt: skip
    """The verdict, with its numbers."""
    if lost := _lost(names, lines):
        return f"May not be averaged: {lost}."
    below = f"below {level.number:g} x the larger end" if level.relative else f"below {level.number:g}"
    if go:
        told = "; ".join(_numbers(lines, mean, name) for name in mean)
        where = "the straight line" if len(names) == 2 else f"{len(lines)} straight lines and at their mean"
        return f"May be averaged: the loss stays {below} on {where} ({told})."
    said = f"May not be averaged as they are: the loss does not stay {below}; {_worst_of(names, lines, mean)}."
    again, means = renumbered
    if not again:
        return said
    if not all_below(again, means):
        return f"{said} Nor with their units renumbered: {_worst_of(names, again, means)}."
    return f"{said} With their units renumbered they may: {'; '.join(_numbers(again, means, name) for name in means)}."


def _lost(names: Sequence[str], lines: Lines) -> str:
    """Which network has no finite loss, on which data; empty where all have one."""
    for pair, found in lines.items():
        for data, d in found.items():
            for i, end in zip(pair, (0, -1), strict=True):
                if not d.profile.loss[end].isfinite():
                    return f"the loss of {names[i]} is not finite on the {data}"
    return ""


def all_below(lines: Lines, mean: Mapping[str, Mean]) -> bool:
    """Whether all lines and the mean stay below their levels on all data sets."""
    return all(d.below for found in lines.values() for d in found.values()) and all(m.below for m in mean.values())


def at_ends(values: Sequence[float | None]) -> str:
    """The first and the last number; a file holds None for what is not finite."""
    ends = [nan if v is None else v for v in (values[0], values[-1])]
    return ", ".join(f"{v:.4g}" if isfinite(v) else "not finite" for v in ends)


def _numbers(lines: Lines, mean: Mapping[str, Mean], name: str) -> str:
    """The largest loss of a data set on any line and at the mean, with the level there."""
    seen = [(found[name].profile.max, found[name].level) for found in lines.values()]
    top, level = max([*seen, (mean[name].loss, mean[name].level)])
    return f"{name}: at most {top:.4g}, level {level:.4g}"


def _worst_of(names: Sequence[str], lines: Lines, mean: Mapping[str, Mean]) -> str:
    """What rises most, in words."""
    bad = [(pair, name, d) for pair, found in lines.items() for name, d in found.items() if not d.below]
    if not bad:
        name, one = next((name, one) for name, one in mean.items() if not one.below)
        return f"at the mean it is {loss_in_words(one.loss)} on the {name}, level {one.level:.4g}"
    (i, j), name, d = max(bad, key=lambda row: (row[2].rises, height({row[1]: row[2]})))
    between = f" between {names[i]} and {names[j]}" if len(names) > 2 else ""
    level = f"level {d.level:.4g}"
    if not d.rises:
        most = f"it is at most {d.profile.max:.4g} where it was measured{between} on the {name}"
        return f"{most}, and may rise to {loss_in_words(d.rise)} elsewhere, {level}"
    return f"it rises to {loss_in_words(d.profile.max)}{between} on the {name} (at t = {d.at:.4g}, {level})"
