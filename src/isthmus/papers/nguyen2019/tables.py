"""The rows of the page on Nguyen 2019, from stored results."""

from __future__ import annotations

from collections.abc import Mapping
from math import nan
from typing import Any

from isthmus.experiments.page import Done, Row, ended
from isthmus.papers.nguyen2019.jobs import Descent, Far, Joined, Sketch
from isthmus.papers.nguyen2019.problems import Setting
from isthmus.papers.nguyen2019.sketches import SKETCHES
from isthmus.sweep import Stored

Found = list[tuple[Any, Stored]]


def rows(done: Done) -> list[Row]:
    """Paths by theorem, start and size; descents; rays; sketches."""

    def of(kind: type) -> Found:
        return [(cell, stored) for cell, stored in done if isinstance(cell, kind)]

    groups: dict[tuple[Any, ...], Found] = {}
    for cell, stored in of(Joined):
        groups.setdefault((cell.theorem, cell.setting, cell.start), []).append((cell, stored))
    out = [_path(group) for group in groups.values()]
    out += [_descent(c, s) for c, s in of(Descent)]
    out += [_ray(c, s) for c, s in of(Far)]
    return out + [_sketch(c, s) for c, s in of(Sketch)]


def _setting(part: str, setting: Setting, start: str) -> Row:
    loss = "cross-entropy" if setting.loss == "cross_entropy" else setting.loss
    return {"part": part, "network": setting.network, "data": setting.data, "N": setting.N, "loss": loss, "from": start}


def _path(group: Found) -> Row:
    """The worst of the pairs in every column; excesses relative to the larger of 1 and the higher end's loss."""
    cell = group[0][0]
    start = {"part": f"Theorem {cell.theorem}", "pairs": len(group)} | _setting(
        f"Theorem {cell.theorem}", cell.setting, cell.start
    )
    results = [s.result for _, s in group]
    if any(r["theorem"] is None for r in results):
        failing = next(r["premises"] for r in results if r["theorem"] is None)
        return start | {"outcome": "PREMISE_FAILS", "premise": "; ".join(failing)}
    tops = [max(1.0, *r["certificate"]["ends"]) for r in results]
    certificates = [r["certificate"] for r in results]
    proved = all(c["proved"] for c in certificates)
    return start | {
        "outcome": " ".join(sorted({ended(r["outcome"]) for r in results})),
        "segments": max(len(r["segments"]) for r in results),
        "condition": max(condition(r["conditions"]) for r in results),
        "higher end": max(max(c["ends"]) for c in certificates),
        "excess of the line": max(max(r["line"]["loss"]) - max(r["certificate"]["ends"]) for r in results),
        "excess": max(r["excess"] / top for r, top in zip(results, tops, strict=True)),
        "proved": proved,
        "proved excess": max((c["bound"] - max(c["ends"])) / top for c, top in zip(certificates, tops, strict=True))
        if proved
        else None,
        "invariance": max((v for r in results if (v := r["invariance"]) is not None), default=None),
        "growth": max(r["growth"] for r in results),
        "seconds": max(s.record.get("seconds", nan) for _, s in group),
        ".curve": results[0]["curve"],
        ".line": results[0]["line"],
        ".key": (cell.theorem, cell.start),
    }


def condition(found: Mapping[str, Mapping[str, float]]) -> float:
    """The largest condition number that a path depends on: not those of features at A, which it gives up."""
    needed = [*found["b"].values(), *(v for k, v in found["a"].items() if k.startswith("W"))]
    return max(needed)


def _descent(cell: Descent, stored: Stored) -> Row:
    """One descent."""
    row, r = _setting("descend", cell.setting, cell.start), stored.result
    if r["theorem"] is None:
        return row | {"outcome": ended(r["outcome"]), "premise": "; ".join(r["premises"])}
    first, last = r["loss"]
    certificate = r["certificate"]
    top = max(1.0, first)
    return row | {
        "theorem": r["theorem"],
        "outcome": ended(r["outcome"]),
        "segments": len(r["segments"]),
        "condition": max(v for k, v in r["conditions"].items() if k.startswith("F")),
        "loss at the start": first,
        "loss at the end": last,
        "tolerance": cell.tolerance,
        "rise": r["rise"] / top,
        "proved": certificate["proved"],
        "proved excess": (certificate["bound"] - first) / top if certificate["proved"] else None,
        "growth": r["growth"],
        "seconds": stored.record.get("seconds"),
        ".curve": r["curve"],
    }


def _ray(cell: Far, stored: Stored) -> Row:
    """One ray."""
    r = stored.result
    top, certificate = max(1.0, r["loss"]), r["certificate"]
    return _setting("ray", cell.setting, cell.start) | {
        "theorem": r["theorem"],
        "outcome": ended(r["outcome"]),
        "segments": len(r["segments"]),
        "norm at the start": r["norms"][0],
        "norm at the end": r["norms"][-1],
        "wanted": cell.size,
        "change": r["change"] / top,
        "drift": r["drift"],
        "proved": certificate["proved"],
        "proved excess": (certificate["bound"] - r["loss"]) / top if certificate["proved"] else None,
        "seconds": stored.record.get("seconds"),
    }


def _sketch(cell: Sketch, stored: Stored) -> Row:
    """What the grid shows of one function."""
    r, sketch = stored.result, SKETCHES[cell.figure]
    ends = [(run["y"][0], run["f"][-1]) for run in r["runs"]]
    return {
        "part": f"Figure {cell.figure}",
        "sketch": sketch.says,
        "levels": len(r["levels"]),
        "most components": max(r["components"]),
        "most bad components": max(r["bad"]),
        "local minima": len(r["minima"]),
        "most in a bad component": max(r["bad_minima"]),
        "lowest minimum": min(r["minima"], default=None),
        "highest minimum": max(r["minima"], default=None),
        "midpoint excess": r["convexity"],
        **({"descent ends at": ", ".join(f"{f:.3g}" for _, f in ends)} if ends else {}),
        ".survey": r,
        ".infimum": sketch.infimum,
    }
