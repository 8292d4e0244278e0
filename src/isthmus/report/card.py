"""The card beside a merged network: what was merged, how, what was measured, and how to do it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from isthmus.analysis.merge import Merged
from isthmus.report.render import in_a_cell

_MERGEKIT = {"average": "linear", "slerp": "slerp", "task": "task_arithmetic", "ties": "ties"}


def merge_card(held: Mapping[str, Any], recipe: str | None) -> str:
    """Markdown from what merge.json holds.

    Measured is the merged network itself; the line between the networks is what ``isthmus check`` measures.
    """
    how = {k: held[k] for k in ("method", "at", "density", "scale", "base") if held[k] is not None}
    how |= {"weights": ", ".join(f"{w:.4g}" for w in held["weights"])} if held["weights"] else {}
    lines = ["# A merged network", "", str(held["why"]), "", "## What was merged", ""]
    lines += [*(f"- `{file}`" for file in held["checkpoints"]), "", "## How", ""]
    lines += [*(f"- {name}: {value}" for name, value in (how | {"BatchNorm": held["bn"]}).items()), ""]
    lines += ["## What was measured", "", *_measured(held), ""]
    lines += ["Measured on finite data; nothing is proved.", "", "## To repeat this", "", f"    {held['command']}", ""]
    if recipe is not None:
        lines += ["The same with mergekit:", "", *(f"    {line}" for line in recipe.splitlines()), ""]
    return "\n".join(lines)


def _measured(held: Mapping[str, Any]) -> list[str]:
    """The table of losses."""
    heading = ["data", *(f"network {i}" for i in range(len(held["checkpoints"]))), "merged", "level", "merged error"]
    rows = [
        [name, *map(in_a_cell, held["ends"][name]), *(in_a_cell(one[k]) for k in ("loss", "level", "error"))]
        for name, one in held["worth"].items()
    ]
    return [_row(heading), _row(["---"] * len(heading)), *map(_row, rows)]


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def mergekit_recipe(merged: Merged, checkpoints: Sequence[str], base: Path | None) -> str | None:
    """The same recipe for mergekit, which reads folders of Hugging Face; None where it has none.

    BatchNorm's statistics, which mergekit does not compute again, make it another network.
    """
    kind = _MERGEKIT.get(merged.method)
    folders = all((Path(file) / "config.json").is_file() for file in checkpoints)
    if kind is None or not folders or merged.bn == "recompute":
        return None
    start = checkpoints[0] if kind == "slerp" else base
    lines = [f"merge_method: {kind}", *([] if start is None else [f"base_model: {_quoted(str(start))}"]), "models:"]
    weights = merged.weights if merged.at is None else (1 - merged.at, merged.at)
    for file, weight in zip(checkpoints, weights, strict=True):
        lines += [f"  - model: {_quoted(file)}", *_of_a_model(kind, weight, merged.density)]
    lines += ["parameters:", *_options(kind, merged), "dtype: float32", ""]
    return "\n".join(lines)


def _of_a_model(kind: str, weight: float, density: float | None) -> list[str]:
    own = {} if kind == "slerp" else {"weight": weight}
    own |= {} if density is None else {"density": density}
    return ["    parameters:", *(f"      {k}: {v!r}" for k, v in own.items())] if own else []


def _options(kind: str, merged: Merged) -> list[str]:
    if kind == "slerp":
        return [f"  t: {merged.at!r}"]
    scale = [] if merged.scale is None else [f"  lambda: {merged.scale!r}"]
    return [*scale, f"  normalize: {str(kind != 'task_arithmetic').lower()}"]


def _quoted(text: str) -> str:
    """A path as a scalar of YAML."""
    return "'" + text.replace("'", "''") + "'"
