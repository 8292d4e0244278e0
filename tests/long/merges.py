"""Merged networks against the formulas of their methods, written out, and losses against the plain loop."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

import torch
from torch import Tensor

import isthmus as im
from isthmus.analysis.merge import MergeMethod
from isthmus.params import Params
from tests.long.claims import near, tolerance
from tests.long.odd import Odd, in_float64

METHODS: tuple[MergeMethod, ...] = get_args(MergeMethod)


def merges(odd: Odd, r: random.Random) -> Iterator[str]:
    """Of one method with options that fit it."""
    method = r.choice(METHODS)
    models = [odd.a, odd.b]
    if method != "slerp" and r.random() < 0.4:
        models.append(_shrunk(odd.b, 0.5))
    options = _options(odd, r, method, len(models))
    found = im.merge(odd.objective(), models, method, **options)
    said = f"{method} of {len(models)}, {sorted(options)}"
    [(name, mean)] = found.worth.items()
    truth, tol = odd.truth(found.params), tolerance(odd)
    if not near(mean.loss, truth, tol):
        yield f"{said}: loss {mean.loss}, truth {truth}"
    if found.ok and not truth < mean.level + tol * max(1.0, abs(mean.level)):
        yield f"{said}: below {mean.level}, truth {truth}"
    for model, end in zip(models, found.ends[name], strict=True):
        if not near(end, odd.truth(model), tol):
            yield f"{said}: an end {end}, truth {odd.truth(model)}"
    if method in FORMULAS:
        yield from (f"{said}: {fault}" for fault in _of_weights(found, models, options))


def _shrunk(params: Params, by: float) -> Params:
    return {k: v.detach() * by if v.is_floating_point() and "running" not in k else v for k, v in params.items()}


def _options(odd: Odd, r: random.Random, method: str, n: int) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if method in ("task", "ties"):
        out = {"base": r.choice([odd.a, _shrunk(odd.a, 0.9)]), "scale": r.choice([1.0, 0.3, -1.0, 0.0])}
    if method == "ties":
        out["density"] = r.choice([0.2, 1, 0.5, 1e-6])
    if method != "slerp" and r.random() < 0.3:
        out["weights"] = [r.choice([1.0, 2.0, 0.5, -0.25]) for _ in range(n)]
    elif n == 2 and not out and r.random() < 0.5:
        out["at"] = r.choice([0.0, 0.3, 0.5, 1.0])
    if r.random() < 0.3:
        out["bn"] = r.choice(["keep", "interpolate", "recompute"])
    return out


def _of_weights(found: im.Merged, models: Sequence[Params], options: dict[str, Any]) -> Iterator[str]:
    wide, base = [in_float64(p) for p in models], in_float64(options.get("base", {}))
    for name, have in found.params.items():
        if have.is_floating_point() and "running" not in name:
            several = [p[name] for p in wide]
            want = FORMULAS[found.method](several, base.get(name), found, options)
            size = max(1e-300, *(float(v.abs().max()) for v in (want, *several)))
            off = float((want - have.double()).abs().max()) / size
            if not off <= (1e-6 if have.dtype == torch.float32 else 1e-8):
                yield f"{name} is off by {off:.2g} of its size"


def _average(several: list[Tensor], base: Tensor | None, found: im.Merged, options: dict[str, Any]) -> Tensor:
    weights = options.get("weights")
    if weights is None and len(several) == 2:
        assert found.at is not None
        return torch.lerp(several[0], several[1], found.at)
    weights = weights or [1.0] * len(several)
    return sum((w / sum(weights) * v for w, v in zip(weights, several, strict=True)), torch.zeros_like(several[0]))


def _slerp(several: list[Tensor], base: Tensor | None, found: im.Merged, options: dict[str, Any]) -> Tensor:
    t, (a, b) = options.get("at", 0.5), several
    lengths = float(a.norm()) * float(b.norm())
    cosine = float((a * b).sum()) / lengths if lengths else 1.0
    if abs(cosine) > 1 - 1e-9:
        return a + t * (b - a)
    angle = math.acos(cosine)
    return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)


def _task(several: list[Tensor], base: Tensor | None, found: im.Merged, options: dict[str, Any]) -> Tensor:
    assert base is not None
    weights = options.get("weights", [1.0] * len(several))
    moved = (w * (v - base) for w, v in zip(weights, several, strict=True))
    return base + options["scale"] * sum(moved, torch.zeros_like(base))


def _ties(several: list[Tensor], base: Tensor | None, found: im.Merged, options: dict[str, Any]) -> Tensor:
    """Trim each difference, weigh it, elect a sign per entry, and average what has it."""
    assert base is not None
    weights = options.get("weights", [1.0] * len(several))
    moved = [w * _largest(v - base, options["density"]) for w, v in zip(weights, several, strict=True)]
    zero = torch.zeros_like(base)
    elected = sum(moved, zero).sign()
    agree = [(d.sign() == elected) & (d != 0) for d in moved]
    total = sum((w * m for w, m in zip(weights, agree, strict=True)), zero)
    mean = sum((d * m for d, m in zip(moved, agree, strict=True)), zero) / total
    return base + options["scale"] * torch.where(total != 0, mean, 0.0)


def _largest(d: Tensor, density: float) -> Tensor:
    """The entries of largest size, at least one."""
    flat, count = d.flatten(), max(1, int(density * d.numel()))
    if count >= flat.numel():
        return d
    index = flat.abs().topk(count).indices
    return torch.zeros_like(flat).index_copy(0, index, flat[index]).view_as(d)


FORMULAS: dict[str, Callable[[list[Tensor], Tensor | None, im.Merged, dict[str, Any]], Tensor]] = {
    "average": _average,
    "slerp": _slerp,
    "task": _task,
    "ties": _ties,
}
