"""The tables of the page on Kuditipudi et al. 2019."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from math import isfinite, nan
from pathlib import Path
from statistics import fmean, median
from typing import Any

from isthmus.experiments.jobs import Network, On, Pair
from isthmus.experiments.tables import Column, Entry, Reader, Row, Table, first, largest, mean, number, read, so_many
from isthmus.papers.kuditipudi2019.jobs import TABLES, Losses, Noise, Subnetworks
from isthmus.papers.kuditipudi2019.lemma3 import RISE
from isthmus.shown import largest as top
from isthmus.storage import read_json
from isthmus.storage.tensors import read_tensors


def _network_of(end: Network | On) -> Network:
    """The trained network behind an end."""
    return end.network if isinstance(end, On) else end


def _part_of(network: Network) -> str:
    """Which part of the page a network belongs to: "filters", "channels" or "perceptrons"."""
    if network.problem.model.startswith("mlp"):
        return "perceptrons"
    return "filters" if ":nopool" in network.problem.model else "channels"


def differences(network: Network, paper: Network) -> str:
    """What is not as in the paper in a network's form, data and training."""
    here, there = network.problem, paper.problem
    parts = []
    if here.data != there.data:
        parts.append(f"{here.data} for {there.data}")
    if here.model != there.model and (here.data != there.data or _part_of(network) == "channels"):
        parts.append(f"{here.model} for {there.model}")
    for f in fields(network.recipe):
        ours, theirs = getattr(network.recipe, f.name), getattr(paper.recipe, f.name)
        if ours != theirs and f.name != "check":
            parts.append(f"{f.name} {ours} for {theirs}")
    return ", ".join(parts)


def _network(entry: Entry) -> Network:
    """That the entry is about."""
    end: Any = entry.cell.a if isinstance(entry.cell, Pair) else entry.cell.end
    return _network_of(end)


def _about(figure: Reader, what: Reader) -> dict[str, Reader]:
    return {"figure": figure, "what": what, "network": lambda e: _network(e).problem.model}


def _means(loss: Reader, error: Reader) -> dict[str, Column]:
    """Over the trials, with standard deviations; the accuracy in percent."""

    def accuracy(entry: Entry) -> float:
        return 100 * (1 - read(entry, error))

    return {"trials": len, "loss": mean(loss, "sd"), "accuracy %": mean(accuracy, "sd")}


def tables(paper: Mapping[str, Network]) -> tuple[Table, ...]:
    """Figure 2 left, centre, right; accuracies and noise of VGG-11; the paths on every kind of network.

    `paper`: the paper's networks of "filters" (Figure 2), of "channels" (Figures 3 and 5) with dropout and "plain"
    without, to say what differs.
    """

    def differs(entries: Sequence[Entry]) -> str | None:
        network = _network(entries[0])
        plain = _part_of(network) == "channels" and "dropout" not in network.problem.model
        like = paper.get("plain" if plain else _part_of(network))
        return None if like is None else differences(network, like)

    last = {"differs from the paper": differs}
    left = Table(
        of=Subnetworks,
        each=_subnetworks,
        by=_about(lambda e: "2 left", lambda e: f"p = {e['p']:g}"),
        columns={
            ".p": first("p"),
            **_means("loss", "error"),
            "units kept": first("kept?"),
            f"draws within {RISE:g}, %": mean("success?", scale=100),
            **last,
        },
    )
    centre = Table(
        of=Subnetworks,
        each=lambda e: [{"p": p, "line": e["p"][str(p)]["line"]} for p in e.cell.lines],
        by=_about(lambda e: "2 centre", lambda e: f"straight segment, p = {e['p']:g}"),
        columns={
            **_means(lambda e: top(e["line.loss"]), lambda e: top(e["line.error"])),
            "largest excess": largest(_excess),
            ".lines": lambda entries: [e["line"] for e in entries],
            **last,
        },
    )
    right = Table(
        of=Losses,
        where=lambda cell: cell.figure == "2 right",
        by=_about(lambda e: "2 right", lambda e: f"{_filters(e)} filters"),
        columns={
            ".width": first(_filters),
            "units kept": first(_filters),
            **_means("train.loss", "train.error"),
            **last,
        },
    )
    text = Table(
        of=Losses,
        where=lambda cell: cell.figure == "text",
        each=_states,
        by=_about(lambda e: "text", "state"),
        columns=_means("loss", "error") | last,
    )
    noise = Table(
        of=Noise,
        each=_layers,
        by=_about(lambda e: "3 left" if e["layer"] == 6 else "D.3", lambda e: f"noise of layer {e['layer']}"),
        columns={
            "layer": first("layer"),
            **{f"median {name.replace('_', ' ')}": _finite_median(name) for name in TABLES},
            ".values": first("values"),
            "epsilon": first("epsilon"),
            **last,
        },
    )
    return left, centre, right, text, noise, Table(of=Pair, by=_PATH, columns=_ON_PATHS | last)


def _subnetworks(entry: Entry) -> list[Row]:
    """The whole network, then the best subnetwork for each p."""
    found = {p: entry["p"][str(p)] for p in entry.cell.ps}
    best = [{"p": p, "kept": f["kept"][0], "loss": f["best"]["loss"], "error": f["best"]["error"],
             "success": fmean(loss <= entry["loss"] + RISE for loss in f["losses"])}
            for p, f in found.items()]  # fmt: skip
    return [{"p": 0.0, "kept": None}, *best]


def _excess(entry: Entry) -> float:
    """How far the loss on a straight segment rises above its ends."""
    loss = entry["line.loss"]
    return top(loss) - top((loss[0], loss[-1]))


def _filters(entry: Entry) -> int:
    return int(_network(entry).problem.model.split(":")[1])


_SETS = {"train": "training set", "test": "test set"}


def _states(entry: Entry) -> list[Row]:
    """Training and test set, with dropout off and active, or trained without dropout."""
    out = []
    for part, values in entry.stored.result.items():
        off = ", dropout off" if entry.cell.passes else ", trained without dropout"
        out.append({"state": _SETS[part] + off, "loss": values["loss"], "error": values["error"]})
        if "active" in values:
            out.append({"state": f"{_SETS[part]}, dropout active", **values["active"]})
    return out


def _layers(entry: Entry) -> list[Row]:
    """The numbers of every example, by layer."""
    tensors, _ = read_tensors(entry.stored.folder / "noise.safetensors")
    out = []
    for layer in range(1, entry["layers"] + 1):
        names = [name for name in TABLES if f"{name}/{layer}" in tensors]
        out.append({"layer": layer, "values": {name: tensors[f"{name}/{layer}"].tolist() for name in names}})
    return out


def _finite_median(name: str) -> Column:
    """The median over the examples; None where it is infinite: most then satisfy the inequality with any constant."""

    def column(entries: Sequence[Entry]) -> float | None:
        values = entries[0]["values"].get(name)
        found = median(values) if values else nan
        return found if isfinite(found) else None

    return column


def _figure(entry: Entry) -> str:
    """The paper shows two of the paths on its VGG-11."""
    part, method = _part_of(_network(entry)), type(entry.cell.method).__name__
    shown = {"Linear": "5", "Narrow": "3 right"} if part == "channels" else {}
    return shown.get(method, f"paths, {part}")


_PATH = _about(_figure, lambda e: "largest on the path") | {"method": lambda e: type(e.cell.method).__name__}


@lru_cache(maxsize=64)
def _exact(folder: Path) -> tuple[int, float, float]:
    """The segments proved by an exact reason: how many, the largest measured loss on them, their largest bound."""
    certificate = read_json(folder / "run" / "certificate.json")
    curve = read_json(folder / "run" / "profile.json")
    exact = {s["index"]: s["bound"] for s in certificate["segments"] if s["claim"] in ("unchanged", "convex")}
    n = len(certificate["segments"])
    inside = [
        loss
        for t, loss in zip(curve["t"], number(curve["loss"]), strict=True)
        if any(i / n - 1e-12 <= t <= (i + 1) / n + 1e-12 for i in exact)
    ]
    return len(exact), top(inside or [nan]), top(exact.values() or [nan])


def _constructed(which: int) -> Column:
    """Of ``_exact``, the number of the first path, or the largest over the paths if there are such segments."""

    def column(entries: Sequence[Entry]) -> float | None:
        found = [_exact(e.stored.folder) for e in entries]
        if which == 0:
            return found[0][0]
        return top(f[which] for f in found) if found[0][0] else None

    return column


def _curve(entries: Sequence[Entry]) -> dict[str, list[float]]:
    """Of the first pair."""
    profile = read_json(entries[0].stored.folder / "run" / "profile.json")
    return {k: number(profile[k]) for k in ("t", "loss", "error")}


_ON_PATHS: dict[str, Column] = {
    "segments": first("segments"),
    "length/distance": mean("normalized_length"),
    **_means("max_loss", "max_error"),
    "largest excess": largest("excess"),
    "proved": so_many("bound"),
    "largest bound": largest("bound", of_all=True),
    "exact segments": _constructed(0),
    "their loss": _constructed(1),
    "their largest bound": _constructed(2),
    "seconds": mean("record.seconds?"),
    ".curve": _curve,
}
"""Means over the pairs; largest bounds."""
