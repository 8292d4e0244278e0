"""The rows of the page on Kuditipudi et al. 2019, from stored results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from math import isfinite, nan
from statistics import fmean, median, stdev
from typing import Any

from isthmus.experiments.jobs import Network, On, Pair
from isthmus.experiments.page import Done, Row
from isthmus.papers.kuditipudi2019.jobs import TABLES, Losses, Noise, Subnetworks
from isthmus.storage import read_json
from isthmus.storage.tensors import read_tensors
from isthmus.sweep import Stored

Found = list[tuple[Any, Stored]]


def rows(done: Done, paper: Mapping[str, Network]) -> list[Row]:
    """All rows: Figure 2 left, centre, right; accuracies and noise of VGG-11; the paths on every kind of network.

    `paper`: the paper's networks of "filters" (Figure 2), of "channels" (Figures 3 and 5) with dropout and "plain"
    without, to say what differs.
    """

    def of(kind: type) -> Found:
        return [(cell, stored) for cell, stored in done if isinstance(cell, kind)]

    narrow = [(c, s) for c, s in of(Losses) if c.figure == "2 right"]
    judged = [(c, s) for c, s in of(Losses) if c.figure == "text"]
    out = [*_left(of(Subnetworks)), *_centre(of(Subnetworks)), *_right(narrow)]
    out += [*_accuracies(judged), *_noise(of(Noise)), *_paths(of(Pair))]
    for row in out:
        network = row.pop(".network")
        plain = part_of(network) == "channels" and "dropout" not in network.problem.model
        like = paper.get("plain" if plain else part_of(network))
        if like is not None:
            row["differs from the paper"] = differences(network, like)
    return out


def network_of(end: Network | On) -> Network:
    """The trained network behind an end."""
    return end.network if isinstance(end, On) else end


def part_of(network: Network) -> str:
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
    if here.model != there.model and (here.data != there.data or part_of(network) == "channels"):
        parts.append(f"{here.model} for {there.model}")
    for f in fields(network.recipe):
        ours, theirs = getattr(network.recipe, f.name), getattr(paper.recipe, f.name)
        if ours != theirs and f.name != "check":
            parts.append(f"{f.name} {ours} for {theirs}")
    return ", ".join(parts)


def spread(values: list[float]) -> float | None:
    """The standard deviation over the trials; None for one."""
    return stdev(values) if len(values) > 1 else None


def _means(loss: list[float], error: list[float]) -> Row:
    accuracy = [100 * (1 - e) for e in error]
    return {
        "trials": len(loss),
        "loss": fmean(loss),
        "loss sd": spread(loss),
        "accuracy %": fmean(accuracy),
        "accuracy sd": spread(accuracy),
    }


def _row(figure: str, what: str, network: Network, values: Row) -> Row:
    return {"figure": figure, "what": what, "network": network.problem.model, ".network": network, **values}


def _left(found: Found) -> list[Row]:
    """Without dropout, then the best subnetwork for each p: means and standard deviations over the trials."""
    if not found:
        return []
    network = network_of(found[0][0].end)
    results = [s.result for _, s in found]
    whole = _means([r["loss"] for r in results], [r["error"] for r in results])
    out = [_row("2 left", "p = 0", network, {".p": 0.0, **whole})]
    for p in found[0][0].ps:
        best = [r["p"][str(p)]["best"] for r in results]
        kept = results[0]["p"][str(p)]["kept"][0]
        values = _means([b["loss"] for b in best], [b["error"] for b in best])
        out.append(_row("2 left", f"p = {p:g}", network, {".p": p, "units kept": kept, **values}))
    return out


def _centre(found: Found) -> list[Row]:
    """The largest loss and the smallest accuracy on the straight segments to the best subnetworks."""
    out = []
    for p in found[0][0].lines if found else ():
        lines = [s.result["p"][str(p)]["line"] for _, s in found]
        values = _means([max(line["loss"]) for line in lines], [max(line["error"]) for line in lines])
        ends = [max(line["loss"][0], line["loss"][-1]) for line in lines]
        excess = max(max(line["loss"]) - end for line, end in zip(lines, ends, strict=True))
        values |= {"largest excess": excess, ".lines": lines}
        out.append(_row("2 centre", f"straight segment, p = {p:g}", network_of(found[0][0].end), values))
    return out


def _right(found: Found) -> list[Row]:
    """Narrow networks: means over the trials."""
    groups: dict[str, Found] = {}
    for cell, stored in found:
        groups.setdefault(network_of(cell.end).problem.model, []).append((cell, stored))
    out = []
    for model, group in groups.items():
        width = int(model.split(":")[1])
        losses = [s.result["train"] for _, s in group]
        values = _means([v["loss"] for v in losses], [v["error"] for v in losses])
        network = network_of(group[0][0].end)
        out.append(_row("2 right", f"{width} filters", network, {".width": width, "units kept": width, **values}))
    return out


_SETS = {"train": "training set", "test": "test set"}


def _accuracies(found: Found) -> list[Row]:
    """Networks with and without training by dropout; the latter's rows say so."""
    groups: dict[tuple[str, str], list[tuple[Network, Mapping[str, float]]]] = {}
    for cell, stored in found:
        network = network_of(cell.end)
        plain = "" if cell.passes else ", trained without dropout"
        for part, values in stored.result.items():
            for state, v in (("off", values), ("active", values.get("active"))):
                if v is not None:
                    key = (
                        network.problem.model,
                        f"{_SETS[part]}, dropout {state}" if not plain else _SETS[part] + plain,
                    )
                    groups.setdefault(key, []).append((network, v))
    return [
        _row("text", what, group[0][0], _means([v["loss"] for _, v in group], [v["error"] for _, v in group]))
        for (_, what), group in groups.items()
    ]


def _noise(found: Found) -> list[Row]:
    """One row per network and layer: the medians over the examples, every example's numbers for the figures."""
    out = []
    for cell, stored in found:
        tensors, _ = read_tensors(stored.folder / "noise.safetensors")
        network = network_of(cell.end)
        for layer in range(1, stored.result["layers"] + 1):
            values = {name: tensors[f"{name}/{layer}"].tolist() for name in TABLES if f"{name}/{layer}" in tensors}
            medians = {f"median {name.replace('_', ' ')}": finite_median(v) for name, v in values.items()}
            row = {"layer": layer, **medians, ".values": values, "epsilon": stored.result["epsilon"]}
            out.append(_row("3 left" if layer == 6 else "D.3", f"noise of layer {layer}", network, row))
    return out


def finite_median(values: list[float]) -> float | None:
    """The median; None where it is infinite: most examples then satisfy the inequality with any constant."""
    found = median(values) if values else nan
    return found if isfinite(found) else None


def _paths(found: Found) -> list[Row]:
    """One row per kind of network and method: means over the pairs, the largest bound."""
    groups: dict[tuple[str, str], Found] = {}
    for cell, stored in found:
        key = (network_of(cell.a).problem.model, type(cell.method).__name__)
        groups.setdefault(key, []).append((cell, stored))
    return [_path_row(method, group) for (_, method), group in groups.items()]


_SOURCES = {"Linear": "5", "Narrow": "3 right"}
_KINDS = {"filters": "paths, filters", "channels": "paths, channels", "perceptrons": "paths, perceptrons"}


def _path_row(method: str, group: Found) -> Row:
    network = network_of(group[0][0].a)
    part = part_of(network)
    figure = _SOURCES.get(method, _KINDS[part]) if part == "channels" else _KINDS[part]
    results = [s.result for _, s in group]
    bounds = [r["bound"] for r in results if r["bound"] is not None]
    constructed = [_constructed(s) for _, s in group]
    values = {
        "method": method,
        "segments": results[0]["segments"],
        "length/distance": fmean(r["normalized_length"] for r in results),
        **_means([r["max_loss"] for r in results], [r["max_error"] for r in results]),
        "largest excess": max(r["excess"] for r in results),
        "proved": f"{len(bounds)} of {len(group)}",
        "largest bound": max(bounds) if len(bounds) == len(group) else None,
        "exact segments": constructed[0][0],
        "their loss": max(c[1] for c in constructed) if constructed[0][0] else None,
        "their largest bound": max(c[2] for c in constructed) if constructed[0][0] else None,
        "seconds": fmean(s.record.get("seconds", nan) for _, s in group),
        ".end loss": max(max(r["loss_a"], r["loss_b"]) for r in results),
        ".curve": _curve(group[0][1]),
    }
    return _row(figure, "largest on the path", network, values)


def _constructed(stored: Stored) -> tuple[int, float, float]:
    """The segments proved by an exact reason: how many, the largest measured loss on them, their largest bound."""
    certificate = read_json(stored.folder / "run" / "certificate.json")
    curve = read_json(stored.folder / "run" / "profile.json")
    exact = {s["index"]: s["bound"] for s in certificate["segments"] if s["claim"] in ("unchanged", "convex")}
    n = len(certificate["segments"])
    inside = [
        loss
        for t, loss in zip(curve["t"], curve["loss"], strict=True)
        if any(i / n - 1e-12 <= t <= (i + 1) / n + 1e-12 for i in exact)
    ]
    return len(exact), max(inside, default=nan), max(exact.values(), default=nan)


def _curve(stored: Stored) -> dict[str, list[float]]:
    profile = read_json(stored.folder / "run" / "profile.json")
    return {k: profile[k] for k in ("t", "loss", "error")}
