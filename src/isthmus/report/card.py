"""The card beside a merged network: what was merged, how, what was measured, and how to do it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from isthmus.analysis.merge import Merged
from isthmus.report.graph import in_a_cell

_MERGEKIT = {"average": "linear", "slerp": "slerp", "task": "task_arithmetic", "ties": "ties"}


def merge_card(held: Mapping[str, Any], recipe: str | None) -> str:
    """Markdown from what merge.json holds.

    Measured is the merged network itself; the line between the networks is what ``isthmus check`` measures.
    """
    lines = ["# A merged network", "", str(held["why"]), "", "## What was merged", ""]
    lines += [f"- `{file}`" for file in held["checkpoints"]]
    how = {k: held[k] for k in ("method", "at", "density", "scale", "base") if held[k] is not None}
    how |= {"weights": ", ".join(f"{w:.4g}" for w in held["weights"])} if held["weights"] else {}
    how |= {"BatchNorm": held["bn"]}
    lines += ["", "## How", "", *(f"- {name}: {value}" for name, value in how.items())]
    lines += ["", "## What was measured", ""]
    networks = [f"network {i}" for i in range(len(held["checkpoints"]))]
    heading = ["data", *networks, "merged", "level", "merged error"]
    lines += [_row(heading), _row(["---"] * len(heading))]
    for name, one in held["worth"].items():
        lines.append(_row([name, *map(in_a_cell, held["ends"][name]), *(in_a_cell(one[k]) for k in _COLUMNS)]))
    lines += [
        "",
        "Measured on finite data; nothing is proved.",
        "",
        "## To repeat this",
        "",
        f"    {held['command']}",
        "",
    ]
    if recipe is not None:
        lines += ["The same with mergekit:", "", *(f"    {line}" for line in recipe.splitlines()), ""]
    return "\n".join(lines)


_COLUMNS = ("loss", "level", "error")


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
    weights = merged.weights if merged.at is None else (1 - merged.at, merged.at)
    lines = [f"merge_method: {kind}"]
    lines += [f"base_model: {_quoted(str(base))}"] if base is not None else []
    lines += [f"base_model: {_quoted(checkpoints[0])}"] if kind == "slerp" else []
    lines.append("models:")
    for file, weight in zip(checkpoints, weights, strict=True):
        lines += [f"  - model: {_quoted(file)}"]
        own = {} if kind == "slerp" else {"weight": weight}
        own |= {} if merged.density is None else {"density": merged.density}
        lines += ["    parameters:", *(f"      {k}: {v!r}" for k, v in own.items())] if own else []
    options = {"slerp": {"t": merged.at}, "linear": {"normalize": True}}.get(kind, {"lambda": merged.scale})
    options |= {"normalize": kind == "ties"} if kind in ("ties", "task_arithmetic") else {}
    lines += ["parameters:", *(f"  {k}: {str(v).lower()}" for k, v in options.items()), "dtype: float32", ""]
    return "\n".join(lines)


def _quoted(text: str) -> str:
    """A path as a scalar of YAML."""
    return "'" + text.replace("'", "''") + "'"
