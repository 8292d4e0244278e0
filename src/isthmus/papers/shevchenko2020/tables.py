"""The tables of the page on Shevchenko and Mondelli 2020: widths, paths, and the slopes of both against N."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf, log
from statistics import correlation, fmean
from typing import Any

from isthmus.experiments.tables import (
    Column,
    Done,
    Entry,
    Row,
    Spread,
    Table,
    first,
    largest,
    mean,
    number,
    sd,
    so_many,
)
from isthmus.papers.shevchenko2020.jobs import Paths, Starts, Trials
from isthmus.shown import largest as top
from isthmus.stability.dropout.pattern import PatternStability, Slope, StabilityCurve, log_slope, rate

TIMES = ("start", "middle", "end")
"""The beginning of training, the task's intermediate fraction of T, T."""


def rows(done: Done) -> list[Row]:
    """For each task: one row per width, slopes against N and M, one row per width of paths."""
    widths, paths = _WIDTHS.rows(_begun(done)), _PATHS.rows(done)
    out: list[Row] = []
    for task in dict.fromkeys(row["task"] for row in widths):
        own = sorted((row for row in widths if row["task"] == task), key=lambda row: row["N"])
        joined = [row for row in paths if row["task"] == task]
        out += [*own, *_slopes(task, own), *joined, *_excess_slope(task, joined)]
    return out


def _begun(done: Done) -> Done:
    """Without the starts of widths at which nothing was trained yet, which are no row."""
    trained = {(cell.task, cell.N, cell.init) for cell, _ in done if isinstance(cell, Trials)}
    return [(c, s) for c, s in done if not isinstance(c, Starts) or (c.task, c.N, c.init) in trained]


def _jobs(entries: Sequence[Entry]) -> list[Entry]:
    """Those that trained."""
    return [e for e in entries if isinstance(e.cell, Trials)]


def _trials(entries: Sequence[Entry]) -> list[Mapping[str, Any]]:
    """Of one width, whichever jobs did them."""
    return [trial for e in _jobs(entries) for trial in e["trials"]]


def _at(entries: Sequence[Entry], time: float | str) -> list[PatternStability]:
    """Every trial at a fraction of T, or at one of the ``TIMES``; at the start of all seeds, if more are known."""
    middle = _jobs(entries)[0].cell.middle
    fractions: dict[str, float] = {"start": 0.0, "middle": middle, "end": 1.0}
    fraction = fractions[time] if isinstance(time, str) else time
    starts = [trial for e in entries if isinstance(e.cell, Starts) for trial in e["trials"]]
    if fraction == 0 and starts:
        return [_stability(trial) for trial in starts]
    return [_stability(trial["at"][str(fraction)]) for trial in _trials(entries)]


def _stability(row: Mapping[str, float]) -> PatternStability:
    return PatternStability({}, *(number(row[k]) for k in ("loss", "error", "dropped_loss", "dropped_error")))


def _over(quantity: Callable[[PatternStability], float], time: str = "end", spread: bool = True) -> Column:
    """The mean over the trials at one time, with its standard deviation."""

    def column(entries: Sequence[Entry]) -> Any:
        values = [quantity(found) for found in _at(entries, time)]
        return Spread(fmean(values), sd(values), "sd") if spread else fmean(values)

    return column


def _training_loss(entries: Sequence[Entry]) -> float | None:
    known = [t["training_loss"] for t in _trials(entries) if t["training_loss"] is not None]
    return fmean(known) if known else None


def _epochs(entries: Sequence[Entry]) -> float | None:
    """T of section 5, the step times the number of epochs; None where every example is fresh."""
    job = _jobs(entries)[0]
    examples = job.cell.task.trained_on
    return None if examples is None else job["T"] * job.cell.schedule.batch / examples


def _seconds(entries: Sequence[Entry]) -> float | None:
    """Of a trial; None where the time of one that was killed is not known."""
    known = [e["record.seconds?"] for e in _jobs(entries)]
    return None if None in known else sum(known) / len(_trials(entries))


def _grid(entries: Sequence[Entry]) -> dict[float, list[dict[str, Any]]] | None:
    """Every trial at all times, where they were judged on a grid."""
    cell = _jobs(entries)[0].cell
    return {f: [vars(s) for s in _at(entries, f)] for f in cell.fractions} if cell.grid else None


def _kept(entries: Sequence[Entry]) -> dict[int, list[PatternStability]]:
    """Every trial at the end, by the number M of units that stay."""
    trials = _trials(entries)
    return {int(M): [_stability(t["kept"][M]) for t in trials] for M in trials[0]["kept"]}


_WIDTHS = Table(
    of=(Trials, Starts),
    where=lambda cell: cell.init == "unimodal",
    by={"what": lambda e: "widths", "task": "cell.task.label", "N": "cell.N"},
    columns={
        "trials": lambda entries: len(_trials(entries)),
        "starts": lambda entries: len(_at(entries, 0.0)),
        "training loss": _training_loss,
        "loss": _over(lambda s: s.loss, spread=False),
        "half loss": _over(lambda s: s.dropped_loss, spread=False),
        "error %": _over(lambda s: 100 * s.error),
        "half error %": _over(lambda s: 100 * s.dropped_error),
        "error change %": _over(lambda s: 100 * s.error_change),
        **{f"change {time}": _over(lambda s: s.change, time) for time in TIMES},
        "T": lambda entries: _jobs(entries)[0]["T"],
        "T, epochs": _epochs,
        "step": lambda entries: _jobs(entries)[0]["step"],
        "seconds": _seconds,
        ".middle": lambda entries: _jobs(entries)[0].cell.middle,
        ".grid": _grid,
        ".at": lambda entries: {time: _at(entries, time) for time in TIMES},
        ".kept": _kept,
    },
)


def _slopes(task: str, widths: Sequence[Row]) -> list[Row]:
    """Log-log slopes of the mean change in loss against N at three times, and against M of the widest network."""
    out: list[Row] = []
    for time in TIMES:
        points = {row["N"]: row[".at"][time] for row in widths}
        out += _slope_rows(task, "change against N", time, StabilityCurve.of("N", points))
    widest = widths[-1]
    if widest[".kept"]:
        rows = _slope_rows(task, "change against M", "end", StabilityCurve.of("M", widest[".kept"]))
        out += [{**row, "N": widest["N"]} for row in rows]
    return out


def _slope_rows(task: str, what: str, time: str, curve: StabilityCurve) -> list[Row]:
    """One; none of fewer than three points, or where a mean change has no logarithm."""
    if len(curve.x) < 3 or not all(0 < mean < inf for mean in curve.mean):
        return []
    row = {"what": what, "task": task, "time": time, **_fitted(curve.x, curve.mean, curve.slope())}
    row["rate's slope"] = curve.predicted_slope
    row[".curve"] = {"x": list(curve.x), "mean": list(curve.mean), "deviation": list(curve.deviation)}
    return [row]


def _fitted(x: Sequence[float], y: Sequence[float], slope: Slope) -> Row:
    """The slope with its interval, and how straight the points lie: the correlation of the logarithms."""
    return {
        "slope": slope.value,
        "low": slope.low,
        "high": slope.high,
        "correlation": correlation([log(v) for v in x], [log(v) for v in y]),
    }


def _judged(pair: Mapping[str, Any]) -> dict[str, float]:
    """The worse end, and what the paper allows on the path: the worse end plus what halving adds at the worse end."""
    losses, errors = zip(*map(number, pair["ends"]), strict=True)
    halves = {row["end"]: number(row["error"]) for row in pair["halved"] if row["entry"] == 1}
    added = [halves[e] - error for e, error in zip("ab", errors, strict=True)]
    return {
        "end loss": top(losses),
        "allowed loss": top((*losses, *(number(row["loss"]) for row in pair["halved"]))),
        "end error": top(errors),
        "allowed error": top(errors) + top((0.0, *added)),
    }


def _of_judged(name: str) -> Callable[[Entry], float]:
    return lambda entry: _judged(entry.part)[name]


def _percent(name: str) -> Column:
    return mean(_of_judged(name), scale=100)


def _judged_pairs(entries: Sequence[Entry]) -> list[Row]:
    return [
        {
            **_judged(e.part),
            "path error": e["barriers.error.max"],
            "path loss": e["barriers.loss.max"],
            "bound": e["bound"],
            "proved": e["proved"],
        }
        for e in entries
    ]


_PATHS = Table(
    of=Paths,
    each="pairs",
    by={
        "what": lambda e: "paths",
        "task": "cell.a.task.label",
        "N": "cell.a.N",
        "starts": lambda e: f"{e.cell.a.init} to {e.cell.b.init}",
    },
    columns={
        "pairs": len,
        "segments": first("segments"),
        "end loss": mean(_of_judged("end loss")),
        "path loss": mean("barriers.loss.max"),
        "excess": mean("barriers.loss.excess", "sd"),
        "line loss": mean("line.loss.max"),
        "end error %": _percent("end error"),
        "path error %": mean("barriers.error.max", scale=100),
        "allowed error %": _percent("allowed error"),
        "line error %": mean("line.error.max", scale=100),
        "length/distance": mean("normalized_length"),
        "proved": so_many(lambda e: e["proved"] or None),
        "largest bound": largest("bound", of_all=True),
        "first layer's distance": mean(lambda e: next(iter(e["distances"].values()))),
        "last layer's distance": mean(lambda e: list(e["distances"].values())[-1]),
        "seconds": first("record.seconds?"),
        ".judged": _judged_pairs,
        ".curve": first("curve"),
        ".line": first(lambda e: number(e.stored.result["line"])),
        ".weights": first("weights"),
    },
)
"""Means over the pairs; the error may rise above the ends by what halving adds to it."""


def _excess_slope(task: str, joined: Sequence[Row]) -> list[Row]:
    """The slope of the paths' mean excess against N, over widths joined from the same kind of start."""
    found = sorted(filter(_comparable, joined), key=lambda row: row["N"])
    if len(found) < 3 or any(row["excess"] != row["excess"] for row in found):
        return []
    x, mean = [float(row["N"]) for row in found], [row["excess"] for row in found]
    slope: Row = {"what": "excess against N", "task": task, "time": "end", **_fitted(x, mean, log_slope(x, mean))}
    slope["rate's slope"] = log_slope(x, [rate(v) for v in x]).value
    slope[".curve"] = {"x": x, "mean": mean, "deviation": [row["excess sd"] for row in found]}
    return [slope]


def _comparable(row: Row) -> bool:
    """Whether it is a mean over several pairs of the same kind of start, and above zero or not finite."""
    return row["starts"] == "unimodal to unimodal" and row["excess sd"] is not None and not row["excess"] <= 0
