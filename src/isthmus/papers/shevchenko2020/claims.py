"""What Shevchenko and Mondelli 2020 say in words about their figures, checked on the rows."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from isthmus.experiments.claims import Claim
from isthmus.experiments.tables import Row
from isthmus.papers.shevchenko2020.tables import TIMES
from isthmus.papers.shevchenko2020.tasks import Task
from isthmus.shown import largest

_LINEAR = -0.9
"""Points whose logarithms correlate at most this much lie "essentially" on a falling line."""
_SLOPES = (-1.0, -0.4)
"""Where the slope of the Gaussian task should be: -1/2 to first order, -1 where the loss is stationary."""
_MILD = 10.0
"""A factor between two times of training that counts as a mild dependence on the time."""
_SAME = 2.0
"""Within this factor, losses of networks with the same number of units left are the same."""
ERROR, HALF = 2.0, 3.0
"""Classification errors on MNIST, in percent, of the whole and of the halved network of 3200 units."""
_AT_1 = 16.0
"""What the text names for CIFAR-10 and T = 1, where T is the step times the number of epochs."""
_FEATURES = (14.0, 16.0)
"""The same on CIFAR-10 with VGG-16 features, three layers."""
_ROUNDING = 1e-5
"""By how much a loss in float32 may exceed its bound, which is computed in float64."""


def _slope(row: Row) -> str:
    return f"{row['slope']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def _what(name: str) -> Callable[[Row], bool]:
    return lambda row: row["what"] == name


def _gaussians(what: str) -> Callable[[Row], bool]:
    """The slopes of the task on which nothing but N differs."""
    return lambda row: row["what"].startswith(what) and row["task"].startswith("gaussians")


def _images(row: Row) -> bool:
    return row["what"] == "widths" and not row["task"].startswith("gaussians")


def _falls(rows: list[Row]) -> tuple[bool, str]:
    text = "; ".join(f"{r['time']}: slope {_slope(r)}, correlation {r['correlation']:.3f}" for r in rows)
    widths = rows[0][".curve"]["x"]
    text += f"; N from {min(widths):g} to {max(widths):g}"
    return all(r["high"] < 0 and r["correlation"] <= _LINEAR for r in rows), text


def _near_the_rate(rows: list[Row]) -> tuple[bool, str]:
    low, high = _SLOPES
    return all(low <= r["slope"] <= high for r in rows), "; ".join(f"{r['time']}: {_slope(r)}" for r in rows)


def _ratio(row: Row) -> float | None:
    """Of the changes in loss at the three times, the largest over the smallest."""
    changes = [row[f"change {time}"] for time in TIMES]
    return largest(changes) / min(changes) if min(changes) > 0 else None


_CHANGES = ("change against N", "change against M")


def _means(row: Row) -> dict[float, float]:
    """The mean changes by N or M."""
    return dict(zip(row[".curve"]["x"], row[".curve"]["mean"], strict=True))


def _only_what_is_left(rows: list[Row]) -> tuple[bool | None, str]:
    """Halves of networks of 2M units beside M units of the widest network."""
    of_N, of_M = ([r for r in rows if r["what"] == what and r["time"] == "end"] for what in _CHANGES)
    if not of_N or not of_M:
        return None, "one of them is missing"
    many, half = _means(of_M[0]), _means(of_N[0])
    ratios = {M: many[M] / half[2 * M] for M in many if 2 * M in half}
    if not ratios:
        return None, "no M in common"
    worst = max(ratios, key=lambda M: max(ratios[M], 1 / ratios[M]))
    good = max(ratios[worst], 1 / ratios[worst]) <= _SAME
    return good, f"at worst {ratios[worst]:.2f} times, M = {worst:g} of {of_M[0]['N']}"


_VGG = Task("cifar10", 3, "vgg16", 128).label
_WIDEST = 12_800
_ADDED = {
    Task("mnist").label: 0.35,
    Task("mnist", 3).label: 0.4,
    _VGG: 1.0,
    Task("cifar10", 4, "vgg16", 128).label: 3.6,
}
"""What the text prints of Figure 4, in percent."""
_LIMITS = {
    Task("mnist").label: (3200, ERROR, HALF),
    _VGG: (3200, *_FEATURES),
}


def _errors(task: str) -> Claim:
    """Figure 1: the errors that the text prints."""
    N, whole, half = _LIMITS[task]

    def judge(rows: list[Row]) -> tuple[bool, str]:
        a, b = rows[0]["error %"], rows[0]["half error %"]
        return a < whole and b <= half, f"{a:.2f} % and {b:.2f} %"

    text = f"{task}, N = {N}: an error below {whole:g} %, of the halved network at most {half:g} %"
    return Claim(text, lambda row: (row["what"], row["task"], row.get("N")) == ("widths", task, N), judge=judge)


def _halved(task: str, most: float) -> Claim:
    """Figure 4, as the text gives it: what halving adds to the error at the last width."""
    text = f"{task}, N = {_WIDEST}: halving adds at most {most:g} % to the error"
    return Claim(
        text, lambda row: (row["what"], row["task"], row.get("N")) == ("widths", task, _WIDEST),
        value="error change %", at_most=most, says="{value:.2f} %",
    )  # fmt: skip


def _fewer_errors(rows: list[Row]) -> tuple[bool | None, str]:
    if len(rows) < 2:
        return None, "one width alone"
    (n, first), (N, last) = ((row["N"], row["error change %"]) for row in (rows[0], rows[-1]))
    return last <= first / 2, f"{first:.2f} % at N = {n}, {last:.2f} % at N = {N}"


def _constructed(layers: int) -> Claim:
    """Theorems 1 (B) and 2 (B): the segments, and no loss above the ends and the halved networks."""
    count = 4 * layers - 1

    def judge(rows: list[Row]) -> tuple[bool, str]:
        judged = [j for row in rows for j in row[".judged"]]
        right = all(row["segments"] == count for row in rows)
        below = all(j["path loss"] <= j["allowed loss"] * (1 + _ROUNDING) for j in judged)
        bounded = all(j["proved"] and j["bound"] <= j["allowed loss"] * (1 + _ROUNDING) for j in judged)
        return right and below and bounded, f"{sum(j['proved'] for j in judged)} of {len(judged)} paths"

    text = f"{{task}}: {count} segments are proved to stay below the ends and the halved networks"
    return Claim(
        text, lambda r: r["what"] == "paths" and r["task"].endswith(f" {layers} layers"), ("task",), judge=judge
    )


def _along(rows: list[Row]) -> tuple[bool, str]:
    row = rows[0]
    text = f"{row['path error %']:.2f} % against {row['allowed error %']:.2f} %, ends {row['end error %']:.2f} %"
    return all(j["path error"] <= j["allowed error"] for j in row[".judged"]), text


def _excess(rows: list[Row]) -> tuple[bool, str]:
    first, *_, last = rows[0][".curve"]["mean"]
    return rows[0]["high"] < 0 and last < first, f"slope {_slope(rows[0])}, {first:.3g} to {last:.2g}"


CLAIMS = (
    Claim(
        "{task}: the change in loss falls with N over the widths tried, nearly linearly on log-log axes, at every time",
        _what("change against N"), ("task",), judge=_falls, every=("time", TIMES),
    ),
    Claim(
        "{{task}}: the slopes lie between {:g} and {:g}".format(*_SLOPES),
        _gaussians("change against N"), ("task",),
        judge=_near_the_rate, every=("time", TIMES),
    ),
    Claim(
        f"{{task}}: at every width tried the changes in loss at the three times agree within a factor of {_MILD:g}",
        _what("widths"), ("task",), value=_ratio, at_most=_MILD, says="at worst {value:.1f} times, N = {N}",
    ),
    Claim(
        f"{{task}}: M units left of the widest network and of 2M cost the same within a factor of {_SAME:g}",
        _gaussians("change against"), ("task",),
        judge=_only_what_is_left,
    ),
    *(_errors(task) for task in _LIMITS),
    Claim(
        f"{_VGG}, T = 1 in epochs: an error below {_AT_1:g} %",
        lambda row: (row["what"], row["task"]) == ("widths", _VGG), value="error %", at_most=_AT_1,
        says="at most {value:.2f} %, N = {N}", over=("T, epochs", 1, inf),
    ),
    Claim(
        "{task}: halving costs the widest network tried at most half of the error that it costs the narrowest",
        _images, ("task",), judge=_fewer_errors,
    ),
    *(_halved(task, most) for task, most in _ADDED.items()),
    *(_constructed(layers) for layers in (2, 3, 4)),
    Claim(
        "{task}, N = {N}: from a bimodal to a unimodal start, the error stays below that of the ends plus what "
        "halving adds", lambda row: row.get("starts") == "bimodal to unimodal", ("task", "N"), judge=_along,
    ),
    Claim(
        "{task}: the path's excess of loss falls with N over the widths tried", _what("excess against N"), ("task",),
        judge=_excess,
    ),
)  # fmt: skip
"""Figure 2, the abstract, Figures 1 and 4, Theorems 1 (B) and 2 (B), Figure 3, in this order."""
