"""What Kuditipudi et al. 2019 say in words about their figures, checked on the rows."""

from __future__ import annotations

from collections.abc import Callable

from isthmus.experiments.claims import Claim
from isthmus.experiments.tables import Row, number

_STABLE = 90.0
"""The accuracy, in percent, that counts as "fairly dropout stable"; the paper names no number."""
_LOW = 95.0
"""The accuracy of a narrow network whose loss counts as low."""
_FLAT = 0.01
"""How far the loss of a straight segment may rise above its ends."""
_CHANCE = 15.0
"""An accuracy that counts as chance, with ten classes."""
_FEW = 10
"""The most filters of Figure 2, right."""
_FIRST = 3
"""How many are "the first few layers"."""
_SIMILAR = 2.0
"""Within this factor two medians are similar."""
_ROUNDING = 1e-5
"""By how much a loss in float32 may exceed its bound, which is computed in float64."""


def where(row: Row) -> str:
    """The part of the page that a row of a path belongs to."""
    return row["figure"].removeprefix("paths, ") if row["figure"].startswith("paths") else "channels"


def _of(part: str) -> Callable[[Row], bool]:
    """The rows of the paths of one part."""
    return lambda row: row.get("method") is not None and where(row) == part


def _four_fifths(rows: list[Row]) -> tuple[bool | None, str]:
    loss = {row[".p"]: row["loss"] for row in rows}
    if not {0.2, 0.5} <= loss.keys():
        return None, "one of them is missing"
    return loss[0.2] < loss[0.5], f"loss {loss[0.2]:.3g} against {loss[0.5]:.3g}"


def _few_filters(rows: list[Row]) -> tuple[bool | None, str]:
    """The narrowest network that learns, else the best one; that none does is said only where the widest was tried."""
    found = sorted((row[".width"], row["accuracy %"], row["loss"]) for row in rows)
    enough = next((f for f in found if f[1] >= _LOW), None)
    width, accuracy, loss = enough or max(found, key=lambda f: f[1])
    tried = max(row[".width"] for row in rows)
    fails = False if tried >= _FEW else None
    return fails if enough is None else True, f"{width} filters: {accuracy:.1f} %, loss {loss:.3g}"


def _below_the_line(rows: list[Row]) -> tuple[bool | None, str]:
    found = {row["method"]: row for row in rows}
    if not {"Narrow", "Linear"} <= found.keys():
        return None, "one path is missing"
    (a, p), (b, q) = ((found[name]["loss"], found[name]["accuracy %"]) for name in ("Narrow", "Linear"))
    return a < b and p > q, f"loss {a:.3g} against {b:.3g}, accuracy {p:.1f} % against {q:.1f} %"


def _without_dropout(rows: list[Row]) -> dict[bool, tuple[float, str]]:
    """By how much, at worst, medians are worse without dropout in training: of the first layers, and of the others."""
    tables: dict[bool, dict[int, Row]] = {True: {}, False: {}}
    for row in rows:
        tables["dropout" in row["network"]][row["layer"]] = row
    worst: dict[bool, tuple[float, str]] = {}
    for layer, row in sorted(tables[True].items()):
        if layer in tables[False]:
            early = layer <= _FIRST
            worst[early] = max(worst.get(early, (0.0, "")), _worse(tables[False][layer], row))
    return worst


def _late_layers(rows: list[Row]) -> tuple[bool | None, str]:
    worst = _without_dropout(rows)
    if False not in worst:
        return None, "not of both networks"
    return worst[False][0] <= _SIMILAR, "at worst {:.2f} times, {}".format(*worst[False])


def _early_layers(rows: list[Row]) -> tuple[bool | None, str]:
    worst = _without_dropout(rows)
    if len(worst) < 2:
        return None, "not of both networks"
    (early, what), (late, _) = worst[True], worst[False]
    return early > late, f"{early:.2f} times, {what}, against {late:.2f} times"


def _worse(plain: Row, dropped: Row) -> tuple[float, str]:
    """The largest factor by which a median is worse without dropout, and which one: cushions should be large."""
    out = []
    for name in plain:
        both = plain[name], dropped.get(name)
        if name.startswith("median") and None not in both:
            ratio = both[0] / both[1]
            what = f"{name.removeprefix('median ')} of layer {plain['layer']}"
            out.append((ratio if "contraction" in name else 1 / ratio, what))
    return max(out)


def _order(rows: list[Row]) -> tuple[bool | None, str]:
    found = {row["method"]: row["loss"] for row in rows}
    losses = [found[name] for name in ("Narrow", "NoiseDropout", "Linear") if name in found]
    if len(losses) < 3:
        return None, "one path is missing"
    return losses[0] < losses[1] < losses[2], "loss " + ", ".join(f"{v:.2g}" for v in losses)


def _proved(rows: list[Row]) -> tuple[bool, str]:
    """Constructed segments: proved, and never above their bound."""
    # all but the straight segments to theta_1 and back, of which Theorems 2 and 3 have one at each end
    missing = [row for row in rows if row["exact segments"] < row["segments"] - 2 * (row["method"] != "Dropout")]
    below = [number(row["their loss"]) <= number(row["their largest bound"]) * (1 + _ROUNDING) for row in rows]
    count = sum(row["exact segments"] for row in rows)
    return not missing and all(below), f"{count} segments on {len(rows)} kinds of paths"


def _theorem_3(part: str) -> Claim:
    words = "the path of Theorem 3 has a lower loss and a higher accuracy than the straight line"
    return Claim(f"{part}: {words}", _of(part), judge=_below_the_line)


CLAIMS = (
    Claim(
        f"without dropout in training, half of the filters keep an accuracy of {_STABLE:g} %",
        lambda row: row["figure"] == "2 left" and row[".p"] == 0.5,
        value="accuracy %", at_least=_STABLE, says="{value:.1f} %, loss {loss:.3g}",
    ),
    Claim(
        "subnetworks of four fifths of the filters do better than those of half",
        lambda row: row["figure"] == "2 left", judge=_four_fifths,
    ),
    Claim(
        f"the {{what}}, rises at most {_FLAT} above its ends", lambda row: row["figure"] == "2 centre", ("what",),
        value="largest excess", at_most=_FLAT, says="{value:.2g} in {trials} trials",
    ),
    Claim(
        f"networks of a few filters, at most {_FEW}, reach {_LOW:g} %",
        lambda row: row["figure"] == "2 right" and row[".width"] <= _FEW, judge=_few_filters,
    ),
    _theorem_3("filters"),
    Claim(
        f"without dropout in training, layers above {_FIRST} are as noise stable within a factor of {_SIMILAR:g}",
        lambda row: row.get("layer") is not None, judge=_late_layers,
    ),
    Claim(
        f"without dropout in training, one of the first {_FIRST} layers is less noise stable than all others",
        lambda row: row.get("layer") is not None, judge=_early_layers,
    ),
    _theorem_3("channels"),
    Claim(
        f"channels: the accuracy on the straight line falls to chance, at most {_CHANCE:g} %",
        lambda row: _of("channels")(row) and row["method"] == "Linear",
        value="accuracy %", at_most=_CHANCE, says="{value:.1f} %, loss {loss:.3g}",
    ),
    Claim(
        "perceptrons: Theorem 3 stays below Theorem 2, and Theorem 2 below the straight line",
        _of("perceptrons"), judge=_order,
    ),
    Claim(
        "every segment that Theorems 1 to 3 construct is proved, and no measured loss is above its bound",
        lambda row: row.get("method") not in (None, "Linear"), judge=_proved,
        every=("method", ("Dropout", "NoiseDropout", "Narrow")),
    ),
)  # fmt: skip
"""Every statement of the paper about its figures."""
