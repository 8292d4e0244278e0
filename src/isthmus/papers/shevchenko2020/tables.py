"""The rows of the page on Shevchenko and Mondelli 2020, from stored results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log, nan
from statistics import correlation, fmean, stdev
from typing import Any

from isthmus.experiments.page import Done, Row
from isthmus.papers.shevchenko2020.jobs import Paths, Starts, Trials
from isthmus.papers.shevchenko2020.tasks import Task
from isthmus.stability.dropout.pattern import PatternStability, Slope, StabilityCurve, log_slope, rate
from isthmus.sweep import Stored

TIMES = ("start", "middle", "end")
"""The beginning of training, the task's intermediate fraction of T, T."""


def rows(done: Done) -> list[Row]:
    """For each task: one row per width, slopes against N and M, one row per width of paths."""
    trained = [(c, s) for c, s in done if isinstance(c, Trials) and c.init == "unimodal"]
    paths = [(c, s) for c, s in done if isinstance(c, Paths)]
    out: list[Row] = []
    for task in dict.fromkeys(c.task for c, _ in trained):
        by_width: dict[int, list[tuple[Trials, Stored]]] = {}
        for c, s in trained:
            if c.task == task:
                by_width.setdefault(c.N, []).append((c, s))
        starts = {c.N: s for c, s in done if isinstance(c, Starts) and c.task == task}
        widths = {N: _Width(N, found, starts.get(N)) for N, found in sorted(by_width.items())}
        out += [_width_row(task, w) for w in widths.values()]
        joined = [_path_row(c, s) for c, s in paths if c.a.task == task]
        out += _slopes(task, list(widths.values())) + joined + _excess_slope(task, joined)
    return out


class _Width:
    """All trials of one width, whichever jobs did them; `starts`: of more seeds, what was found before training."""

    def __init__(self, N: int, found: Sequence[tuple[Trials, Stored]], starts: Stored | None) -> None:
        self.N = N
        self.trials = [trial for _, s in found for trial in s.result["trials"]]
        self.T, self.step = found[0][1].result["T"], found[0][1].result["step"]
        self.cell = found[0][0]
        self.starts = [] if starts is None else [_stability(t) for t in starts.result["trials"]]
        self.seconds = sum(s.record.get("seconds", nan) for _, s in found)

    @property
    def times(self) -> dict[str, float]:
        """Of the three times, the fraction of T."""
        return dict(zip(TIMES, (0.0, self.cell.middle, 1.0), strict=True))

    def at(self, fraction: float) -> list[PatternStability]:
        """Every trial at a fraction of T; all seeds at the start."""
        if fraction == 0 and self.starts:
            return self.starts
        return [_stability(t["at"][str(fraction)]) for t in self.trials]

    def kept(self) -> dict[int, list[PatternStability]]:
        """Every trial at the end, by the number M of units that stay."""
        return {int(M): [_stability(t["kept"][M]) for t in self.trials] for M in self.trials[0]["kept"]}


def _stability(row: Mapping[str, float]) -> PatternStability:
    errors = [nan if row[k] is None else row[k] for k in ("error", "dropped_error")]
    return PatternStability({}, row["loss"], errors[0], row["dropped_loss"], errors[1])


def spread(values: Sequence[float]) -> float | None:
    """The standard deviation over the trials; None for one."""
    return stdev(values) if len(values) > 1 else None


def _width_row(task: Task, w: _Width) -> Row:
    """Whole and halved networks at the end, and the change in loss at three times."""
    end = w.at(1.0)
    training = [t["training_loss"] for t in w.trials if t["training_loss"] is not None]
    row: Row = {
        "what": "widths",
        "task": task.label,
        "N": w.N,
        "trials": len(w.trials),
        "starts": len(w.at(0.0)),
        "training loss": fmean(training) if training else None,
        "loss": fmean(s.loss for s in end),
        "half loss": fmean(s.dropped_loss for s in end),
        "error %": 100 * fmean(s.error for s in end),
        "error sd": spread([100 * s.error for s in end]),
        "half error %": 100 * fmean(s.dropped_error for s in end),
        "half error sd": spread([100 * s.dropped_error for s in end]),
        "error change %": 100 * fmean(s.error_change for s in end),
        "error change sd": spread([100 * s.error_change for s in end]),
    }
    for name, fraction in w.times.items():
        changes = [s.change for s in w.at(fraction)]
        row[f"change {name}"] = fmean(changes)
        row[f"change {name} sd"] = spread(changes)
    row |= {"T": w.T, "step": w.step, "seconds": w.seconds / len(w.trials)}
    row[".middle"] = w.cell.middle
    if w.cell.grid:
        row[".grid"] = {f: [vars(s) for s in w.at(f)] for f in w.cell.fractions}
    return row


def _slopes(task: Task, widths: Sequence[_Width]) -> list[Row]:
    """Log-log slopes of the mean change in loss against N at three times, and against M of the widest network."""
    out: list[Row] = []
    for name in TIMES:
        points = {w.N: w.at(w.times[name]) for w in widths}
        if len(points) >= 3:
            out.append(_slope_row(task, "change against N", name, StabilityCurve.of("N", points)))
    kept = widths[-1].kept() if widths else {}
    if len(kept) >= 3:
        row = _slope_row(task, "change against M", "end", StabilityCurve.of("M", kept))
        out.append({**row, "N": widths[-1].N})
    return out


def _slope_row(task: Task, what: str, time: str, curve: StabilityCurve) -> Row:
    row = {"what": what, "task": task.label, "time": time, **fitted(curve.x, curve.mean, curve.slope())}
    row["rate's slope"] = curve.predicted_slope
    row[".curve"] = {"x": list(curve.x), "mean": list(curve.mean), "deviation": list(curve.deviation)}
    return row


def fitted(x: Sequence[float], y: Sequence[float], slope: Slope) -> Row:
    """The slope with its interval, and how straight the points lie: the correlation of the logarithms."""
    return {
        "slope": slope.value,
        "low": slope.low,
        "high": slope.high,
        "correlation": correlation([log(v) for v in x], [log(v) for v in y]),
    }


def _path_row(cell: Paths, stored: Stored) -> Row:
    """Means over the pairs; the error may rise above the ends by what halving adds to it, and its largest is kept."""
    pairs = stored.result["pairs"]
    judged = [_judged(p) for p in pairs]
    excess = [p["barriers"]["loss"]["excess"] for p in pairs]
    return {
        "what": "paths",
        "task": cell.a.task.label,
        "N": cell.a.N,
        "starts": f"{cell.a.init} to {cell.b.init}",
        "pairs": len(pairs),
        "segments": pairs[0]["segments"],
        "end loss": fmean(j["end loss"] for j in judged),
        "path loss": fmean(p["barriers"]["loss"]["max"] for p in pairs),
        "excess": fmean(excess),
        "excess sd": spread(excess),
        "line loss": fmean(p["line"]["loss"]["max"] for p in pairs),
        "end error %": 100 * fmean(j["end error"] for j in judged),
        "path error %": 100 * fmean(p["barriers"]["error"]["max"] for p in pairs),
        "allowed error %": 100 * fmean(j["allowed error"] for j in judged),
        "line error %": 100 * fmean(p["line"]["error"]["max"] for p in pairs),
        "length/distance": fmean(p["normalized_length"] for p in pairs),
        "proved": f"{sum(p['proved'] for p in pairs)} of {len(pairs)}",
        "largest bound": max((p["bound"] for p in pairs if p["bound"] is not None), default=None),
        "first layer's distance": fmean(next(iter(p["distances"].values())) for p in pairs),
        "last layer's distance": fmean(list(p["distances"].values())[-1] for p in pairs),
        "seconds": stored.record.get("seconds"),
        ".judged": [{**j, "path error": p["barriers"]["error"]["max"], "path loss": p["barriers"]["loss"]["max"],
                     "bound": p["bound"], "proved": p["proved"]} for j, p in zip(judged, pairs, strict=True)],
        ".curve": stored.result["curve"],
        ".line": stored.result["line"],
        ".weights": stored.result["weights"],
    }  # fmt: skip


def _judged(pair: Mapping[str, Any]) -> dict[str, float]:
    """The worse end, and what the paper allows on the path: the worse end plus what halving adds at the worse end."""
    ends = pair["ends"]
    halves = {row["end"]: row for row in pair["halved"] if row["entry"] == 1}
    added = [halves[e]["error"] - ends[i][1] for i, e in enumerate("ab")]
    worst = max(error for _, error in ends)
    return {
        "end loss": max(loss for loss, _ in ends),
        "allowed loss": max(*(loss for loss, _ in ends), *(row["loss"] for row in pair["halved"])),
        "end error": worst,
        "allowed error": worst + max(0.0, *added),
    }


def _excess_slope(task: Task, joined: Sequence[Row]) -> list[Row]:
    """The slope of the paths' mean excess against N, over widths joined from the same kind of start."""
    same = [row for row in joined if row["starts"] == "unimodal to unimodal" and row["excess sd"] is not None]
    found = sorted((row["N"], row["excess"], row["excess sd"]) for row in same if row["excess"] > 0)
    if len(found) < 3:
        return []
    x, mean = [float(N) for N, _, _ in found], [e for _, e, _ in found]
    row = {"what": "excess against N", "task": task.label, "time": "end", **fitted(x, mean, log_slope(x, mean))}
    row["rate's slope"] = log_slope(x, [rate(v) for v in x]).value
    row[".curve"] = {"x": x, "mean": mean, "deviation": [sd for _, _, sd in found]}
    return [row]
