"""The tables of the page on Nguyen 2019: paths by theorem, start and size; descents; rays; sketches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from isthmus.experiments.page import ended
from isthmus.experiments.tables import Column, Entry, Reader, Table, first, largest, read
from isthmus.papers.nguyen2019.jobs import Descent, Far, Joined, Sketch
from isthmus.papers.nguyen2019.sketches import SKETCHES
from isthmus.shown import largest as top


def _start(part: Reader) -> dict[str, Reader]:
    """What a row of a path, a descent or a ray is about."""
    return {
        "part": part,
        "network": "cell.setting.network",
        "data": "cell.setting.data",
        "N": "cell.setting.N",
        "loss": lambda e: e.cell.setting.loss.replace("cross_entropy", "cross-entropy"),
        "from": "cell.start",
    }


def _made(entry: Entry) -> bool:
    """Whether the premises held."""
    return entry["theorem?"] is not None


def _of_made(what: str) -> Reader:
    """Nothing where the premises failed."""
    return lambda entry: entry[what] if _made(entry) else None


def _worst(what: Reader) -> Column:
    """The largest of all; nothing where a premise failed."""
    return lambda entries: largest(what)(entries) if all(map(_made, entries)) else None


def _outcome(entries: Sequence[Entry]) -> str:
    names = {ended(e["outcome"]) for e in entries}
    return " ".join(sorted(names)) if len(entries) == 1 or all(map(_made, entries)) else "PREMISE_FAILS"


def _premise(entries: Sequence[Entry]) -> str | None:
    return next(("; ".join(e["premises"]) for e in entries if not _made(e)), None)


def _top(entry: Entry) -> float:
    """The loss of the higher end."""
    return top(entry["certificate.ends"])


def _unit(loss: float) -> float:
    """What excesses are relative to: the larger of 1 and the loss that they start from."""
    return top((1.0, loss))


def _all_proved(entries: Sequence[Entry]) -> bool | None:
    return all(e["certificate.proved"] for e in entries) if all(map(_made, entries)) else None


def _proved_excess(start: Reader) -> Column:
    """Of the bound above the loss at the start; nothing unless all are proved."""

    def excess(entry: Entry) -> float:
        loss = read(entry, start)
        return (entry["certificate.bound"] - loss) / _unit(loss)

    return lambda entries: largest(excess)(entries) if _all_proved(entries) else None


def condition(found: Mapping[str, Mapping[str, float]]) -> float:
    """The largest condition number that a path depends on: not those of features at A, which it gives up."""
    needed = [*found["b"].values(), *(v for k, v in found["a"].items() if k.startswith("W"))]
    return top(needed)


_PATHS = Table(
    of=Joined,
    by=_start(lambda e: f"Theorem {e.cell.theorem}"),
    columns={
        "pairs": len,
        "outcome": _outcome,
        "premise": _premise,
        "segments": _worst(lambda e: len(e["segments"])),
        "condition": _worst(lambda e: condition(e["conditions"])),
        "higher end": _worst(_top),
        "excess of the line": _worst(lambda e: top(e["line.loss"]) - _top(e)),
        "excess": _worst(lambda e: e["excess"] / _unit(_top(e))),
        "proved": _all_proved,
        "proved excess": _proved_excess(_top),
        "invariance": _worst("invariance?"),
        "growth": _worst("growth?"),
        "seconds": _worst("record.seconds?"),
        ".curve": first(_of_made("curve")),
        ".line": first(_of_made("line")),
    },
)
_DESCENTS = Table(
    of=Descent,
    by=_start(lambda e: "descend"),
    columns={
        "theorem": first("theorem?"),
        "outcome": _outcome,
        "premise": _premise,
        "segments": _worst(lambda e: len(e["segments"])),
        "condition": _worst(lambda e: top(v for k, v in e["conditions"].items() if k.startswith("F"))),
        "loss at the start": _worst(lambda e: e["loss"][0]),
        "loss at the end": _worst(lambda e: e["loss"][1]),
        "tolerance": first("cell.tolerance"),
        "rise": _worst(lambda e: e["rise"] / _unit(e["loss"][0])),
        "proved": _all_proved,
        "proved excess": _proved_excess(lambda e: e["loss"][0]),
        "growth": _worst("growth?"),
        "seconds": _worst("record.seconds?"),
        ".curve": first(_of_made("curve")),
    },
)
_RAYS = Table(
    of=Far,
    by=_start(lambda e: "ray"),
    columns={
        "theorem": first("theorem?"),
        "outcome": _outcome,
        "segments": first(lambda e: len(e["segments"])),
        "norm at the start": first(lambda e: e["norms"][0]),
        "norm at the end": first(lambda e: e["norms"][-1]),
        "wanted": first("cell.size"),
        "change": first(lambda e: e["change"] / _unit(e["loss"])),
        "drift": first("drift"),
        "proved": _all_proved,
        "proved excess": _proved_excess("loss"),
        "seconds": first("record.seconds?"),
    },
)


def _ends(entry: Entry) -> str | None:
    return ", ".join(f"{run['f'][-1]:.3g}" for run in entry["runs"]) or None


_SKETCHES = Table(
    of=Sketch,
    by={"part": lambda e: f"Figure {e.cell.figure}", "sketch": lambda e: SKETCHES[e.cell.figure].says},
    columns={
        "levels": first(lambda e: len(e["levels"])),
        "most components": first(lambda e: max(e["components"])),
        "most bad components": first(lambda e: max(e["bad"])),
        "local minima": first(lambda e: len(e["minima"])),
        "most in a bad component": first(lambda e: max(e["bad_minima"])),
        "lowest minimum": first(lambda e: min(e["minima"], default=None)),
        "highest minimum": first(lambda e: max(e["minima"], default=None)),
        "midpoint excess": first("convexity"),
        "descent ends at": first(_ends),
        ".survey": first(lambda e: dict(e.stored.result)),
        ".infimum": first(lambda e: SKETCHES[e.cell.figure].infimum),
    },
)
TABLES = (_PATHS, _DESCENTS, _RAYS, _SKETCHES)
