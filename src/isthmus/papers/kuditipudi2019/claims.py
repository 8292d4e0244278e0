"""What Kuditipudi et al. 2019 say in words about their figures, checked on the rows."""

from __future__ import annotations

from collections.abc import Sequence

from isthmus.experiments.page import Finding, Row

STABLE = 90.0
"""The accuracy, in percent, that counts as "fairly dropout stable"; the paper names no number."""
LOW = 95.0
"""The accuracy of a narrow network whose loss counts as low."""
FLAT = 0.01
"""How far the loss of a straight segment may rise above its ends."""
CHANCE = 15.0
"""An accuracy that counts as chance, with ten classes."""
FIRST = 3
"""How many are "the first few layers"."""
SIMILAR = 2.0
"""Within this factor two medians are similar."""
ROUNDING = 1e-5
"""By how much a loss in float32 may exceed its bound, which is computed in float64."""


def findings(rows: Sequence[Row]) -> list[Finding]:
    """Every statement that the rows can decide."""
    left = {row[".p"]: row for row in rows if row["figure"] == "2 left"}
    paths = {
        part: {row["method"]: row for row in rows if row.get("method") and where(row) == part}
        for part in ("filters", "channels", "perceptrons")
    }
    return [
        *_subnetworks(left),
        *_centre(rows),
        *_narrow(rows, max((row.get("units kept", 0) for row in left.values()), default=0)),
        *_below_the_line("filters", paths["filters"]),
        *_noise(rows),
        *_below_the_line("channels", paths["channels"]),
        *_chance(paths["channels"]),
        *_order(paths["perceptrons"]),
        *_proved([row for found in paths.values() for row in found.values()]),
    ]


def where(row: Row) -> str:
    """The part of the page that a row of a path belongs to."""
    return row["figure"].removeprefix("paths, ") if row["figure"].startswith("paths") else "channels"


def _subnetworks(left: dict[float, Row]) -> list[Finding]:
    if not {0.2, 0.5} <= left.keys():
        return []
    half, fifth = left[0.5], left[0.2]
    return [
        Finding(
            f"without dropout in training, half of the filters keep an accuracy of {STABLE:g} %",
            half["accuracy %"] >= STABLE,
            f"{half['accuracy %']:.1f} %, loss {half['loss']:.3g}",
        ),
        Finding(
            "subnetworks of four fifths of the filters do better than those of half",
            fifth["loss"] < half["loss"],
            f"loss {fifth['loss']:.3g} against {half['loss']:.3g}",
        ),
    ]


def _centre(rows: Sequence[Row]) -> list[Finding]:
    found = [row for row in rows if row["figure"] == "2 centre"]
    return [
        Finding(
            f"the {row['what']}, rises at most {FLAT} above its ends",
            row["largest excess"] <= FLAT,
            f"{row['largest excess']:.2g} in {row['trials']} trials",
        )
        for row in found
    ]


def _narrow(rows: Sequence[Row], kept: int) -> list[Finding]:
    """The narrowest network that learns, against the units that p = 0.2 drops."""
    found = sorted((row[".width"], row["accuracy %"], row["loss"]) for row in rows if row["figure"] == "2 right")
    if not found:
        return []
    enough = next((f for f in found if f[1] >= LOW), None)
    width, accuracy, loss = enough or max(found, key=lambda f: f[1])
    return [
        Finding(
            f"networks of a few filters reach {LOW:g} %",
            enough is not None,
            f"{width} filters: {accuracy:.1f} %, loss {loss:.3g}",
        )
    ]


def _below_the_line(part: str, found: dict[str, Row]) -> list[Finding]:
    if not {"Narrow", "Linear"} <= found.keys():
        return []
    narrow, line = found["Narrow"], found["Linear"]
    return [
        Finding(
            f"{part}: the path of Theorem 3 has a lower loss and a higher accuracy than the straight line",
            narrow["loss"] < line["loss"] and narrow["accuracy %"] > line["accuracy %"],
            f"loss {narrow['loss']:.3g} against {line['loss']:.3g}, "
            f"accuracy {narrow['accuracy %']:.1f} % against {line['accuracy %']:.1f} %",
        )
    ]


def _noise(rows: Sequence[Row]) -> list[Finding]:
    """Medians without dropout in training over those with it: how much less stable each layer is."""
    tables: dict[bool, dict[int, Row]] = {}
    for row in rows:
        if "layer" in row:
            tables.setdefault("dropout" in row["network"], {})[row["layer"]] = row
    if len(tables) < 2:
        return []
    worst = {layer: _worse(tables[False][layer], tables[True][layer]) for layer in sorted(tables[True])}
    first = max((w for layer, w in worst.items() if layer <= FIRST), key=lambda w: w[0])
    rest = max((w for layer, w in worst.items() if layer > FIRST), key=lambda w: w[0])
    return [
        Finding(
            f"without dropout in training, layers above {FIRST} are as noise stable within a factor of {SIMILAR:g}",
            rest[0] <= SIMILAR,
            f"at worst {rest[0]:.2f} times, {rest[1]}",
        ),
        Finding(
            f"without dropout in training, one of the first {FIRST} layers is less noise stable than all others",
            first[0] > rest[0],
            f"{first[0]:.2f} times, {first[1]}, against {rest[0]:.2f} times",
        ),
    ]


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


def _chance(found: dict[str, Row]) -> list[Finding]:
    if "Linear" not in found:
        return []
    accuracy = found["Linear"]["accuracy %"]
    return [
        Finding(
            f"channels: the accuracy on the straight line falls to chance, at most {CHANCE:g} %",
            accuracy <= CHANCE,
            f"{accuracy:.1f} %, loss {found['Linear']['loss']:.3g}",
        )
    ]


def _order(found: dict[str, Row]) -> list[Finding]:
    names = ("Narrow", "NoiseDropout", "Linear")
    if not set(names) <= found.keys():
        return []
    losses = [found[n]["loss"] for n in names]
    return [
        Finding(
            "perceptrons: Theorem 3 stays below Theorem 2, and Theorem 2 below the straight line",
            losses[0] < losses[1] < losses[2],
            "loss " + ", ".join(f"{v:.2g}" for v in losses),
        )
    ]


def _proved(paths: Sequence[Row]) -> list[Finding]:
    """Constructed segments: proved, and never above their bound."""
    made = [row for row in paths if row["method"] != "Linear"]
    if not made:
        return []
    # all but the straight segments to theta_1 and back, of which Theorems 2 and 3 have one at each end
    missing = [row for row in made if row["exact segments"] < row["segments"] - 2 * (row["method"] != "Dropout")]
    above = [row for row in made if row["their loss"] > row["their largest bound"] * (1 + ROUNDING)]
    count = sum(row["exact segments"] for row in made)
    return [
        Finding(
            "every segment that Theorems 1 to 3 construct is proved, and no measured loss is above its bound",
            not missing and not above,
            f"{count} segments on {len(made)} kinds of paths",
        )
    ]
