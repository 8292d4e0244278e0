"""What Shevchenko and Mondelli 2020 say in words about their figures, checked on the rows."""

from __future__ import annotations

from collections.abc import Sequence

from isthmus.experiments.page import Finding, Row
from isthmus.papers.shevchenko2020.tables import TIMES
from isthmus.papers.shevchenko2020.tasks import Task

LINEAR = -0.9
"""Points whose logarithms correlate at most this much lie "essentially" on a falling line."""
SLOPES = (-1.0, -0.4)
"""Where the slope of the Gaussian task should be: -1/2 to first order, -1 where the loss is stationary."""
MILD = 10.0
"""A factor between two times of training that counts as a mild dependence on the time."""
SAME = 2.0
"""Within this factor, losses of networks with the same number of units left are the same."""
ERROR, HALF = 2.0, 3.0
"""Classification errors on MNIST, in percent, of the whole and of the halved network of 3200 units."""
FEATURES = (14.0, 16.0)
"""The same on CIFAR-10 with VGG-16 features, three layers."""
ROUNDING = 1e-5
"""By how much a loss in float32 may exceed its bound, which is computed in float64."""


def findings(rows: Sequence[Row]) -> list[Finding]:
    """Every statement that the rows can decide."""
    out: list[Finding] = []
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        widths = [row for row in own if row["what"] == "widths"]
        slopes = [row for row in own if row["what"] == "change against N"]
        paths = [row for row in own if row["what"] == "paths"]
        out += [*_falls(task, slopes), *_near_the_rate(task, slopes), *_mild(task, widths), *_only_what_is_left(own)]
        out += [*_errors(task, widths), *_fewer_errors(task, widths)]
        out += [*_constructed(task, paths), *_along(task, paths), *_excess(task, own)]
    return out


def _slope(row: Row) -> str:
    return f"{row['slope']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def _falls(task: str, slopes: Sequence[Row]) -> list[Finding]:
    """Figure 2: one statement per task, for all times."""
    if not slopes:
        return []
    return [
        Finding(
            f"{task}: the change in loss falls with N, nearly linearly on log-log axes, at every time",
            all(row["high"] < 0 and row["correlation"] <= LINEAR for row in slopes),
            "; ".join(f"{row['time']}: slope {_slope(row)}, correlation {row['correlation']:.3f}" for row in slopes),
        )
    ]


def _near_the_rate(task: str, slopes: Sequence[Row]) -> list[Finding]:
    """The Gaussian task, on which nothing but N differs."""
    if not slopes or not task.startswith("gaussians"):
        return []
    low, high = SLOPES
    return [
        Finding(
            f"{task}: the slopes lie between {low:g} and {high:g}",
            all(low <= row["slope"] <= high for row in slopes),
            "; ".join(f"{row['time']}: {_slope(row)}" for row in slopes),
        )
    ]


def _mild(task: str, widths: Sequence[Row]) -> list[Finding]:
    """Figure 2: the three curves lie close together."""
    found = [(row["N"], [row[f"change {name}"] for name in TIMES]) for row in widths]
    ratios = [(max(v) / min(v), N) for N, v in found if min(v) > 0]
    if not ratios:
        return []
    worst, N = max(ratios)
    return [
        Finding(
            f"{task}: at every width the changes in loss at the three times agree within a factor of {MILD:g}",
            worst <= MILD,
            f"at worst {worst:.1f} times, N = {N}",
        )
    ]


def _only_what_is_left(own: Sequence[Row]) -> list[Finding]:
    """Abstract: the change does not depend on N, only on the number M of units left."""
    kept = [row for row in own if row["what"] == "change against M"]
    end = [row for row in own if row["what"] == "change against N" and row["time"] == "end"]
    if not kept or not end:
        return []
    half = {N / 2: v for N, v in zip(end[0][".curve"]["x"], end[0][".curve"]["mean"], strict=True)}
    many = dict(zip(kept[0][".curve"]["x"], kept[0][".curve"]["mean"], strict=True))
    ratios = {M: many[M] / half[M] for M in many if M in half}
    if not ratios:
        return []
    worst = max(ratios, key=lambda M: max(ratios[M], 1 / ratios[M]))
    return [
        Finding(
            f"{own[0]['task']}: M units left of {kept[0]['N']} and of 2M cost the same within a factor of {SAME:g}",
            max(ratios[worst], 1 / ratios[worst]) <= SAME,
            f"at worst {ratios[worst]:.2f} times, M = {worst:g}",
        )
    ]


_LIMITS = {
    Task("mnist").label: (3200, ERROR, HALF),
    Task("cifar10", 3, "vgg16", 128).label: (3200, *FEATURES),
}


def _errors(task: str, widths: Sequence[Row]) -> list[Finding]:
    """Figure 1: the errors that the text prints."""
    if task not in _LIMITS:
        return []
    N, whole, half = _LIMITS[task]
    return [
        Finding(
            f"{task}, N = {N}: an error below {whole:g} %, of the halved network at most {half:g} %",
            row["error %"] < whole and row["half error %"] <= half,
            f"{row['error %']:.2f} % and {row['half error %']:.2f} %",
        )
        for row in widths
        if row["N"] == N
    ]


def _fewer_errors(task: str, widths: Sequence[Row]) -> list[Finding]:
    """Figure 4: the degradation of the error falls with the width."""
    if len(widths) < 2 or task.startswith("gaussians"):
        return []
    first, last = widths[0], widths[-1]
    return [
        Finding(
            f"{task}: halving costs the widest network at most half of the error that it costs the narrowest",
            last["error change %"] <= first["error change %"] / 2,
            f"{first['error change %']:.2f} % at N = {first['N']}, {last['error change %']:.2f} % at N = {last['N']}",
        )
    ]


def _constructed(task: str, paths: Sequence[Row]) -> list[Finding]:
    """Theorems 1 (B) and 2 (B): the segments, and no loss above the ends and the halved networks."""
    judged = [j for row in paths for j in row[".judged"]]
    if not judged:
        return []
    count = 4 * int(task.split()[-2]) - 1  # "..., 3 layers"
    right = all(row["segments"] == count for row in paths)
    below = all(j["path loss"] <= j["allowed loss"] * (1 + ROUNDING) for j in judged)
    bounded = all(j["proved"] and j["bound"] <= j["allowed loss"] * (1 + ROUNDING) for j in judged)
    return [
        Finding(
            f"{task}: {count} segments are proved to stay below the ends and the halved networks",
            right and below and bounded,
            f"{sum(j['proved'] for j in judged)} of {len(judged)} paths",
        )
    ]


def _along(task: str, paths: Sequence[Row]) -> list[Finding]:
    """Figure 3: blue under red."""
    return [
        Finding(
            f"{task}, N = {row['N']}: from a bimodal to a unimodal start, the error stays below that of the ends plus "
            "what halving adds",
            all(j["path error"] <= j["allowed error"] for j in row[".judged"]),
            f"{row['path error %']:.2f} % against {row['allowed error %']:.2f} %, ends {row['end error %']:.2f} %",
        )
        for row in paths
        if row["starts"] == "bimodal to unimodal"
    ]


def _excess(task: str, own: Sequence[Row]) -> list[Finding]:
    """Theorem 1 (B): what the path adds vanishes as N grows."""
    return [
        Finding(
            f"{task}: the path's excess of loss falls with N",
            row["high"] < 0 and row[".curve"]["mean"][-1] < row[".curve"]["mean"][0],
            f"slope {_slope(row)}, {row['.curve']['mean'][0]:.3g} to {row['.curve']['mean'][-1]:.2g}",
        )
        for row in own
        if row["what"] == "excess against N"
    ]
