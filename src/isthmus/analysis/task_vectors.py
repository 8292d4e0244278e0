"""What fine-tuning moved: task vectors of several networks against the one they began from."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement
from typing import Any

import torch
from torch import Tensor

from isthmus.errors import InputError
from isthmus.evaluate.batchnorm import no_weights
from isthmus.kinds import check_kinds
from isthmus.objective import Objective
from isthmus.objective.skeleton import ties_of
from isthmus.params import check_like, distance, in_parts, moves, norm, widened
from isthmus.paths.on_demand import OnDemand
from isthmus.shown import brief, line, plural, table


@dataclass(frozen=True, eq=False)
class TaskVectors:
    """Of n networks against a base: `norms` [n] of their task vectors; `cosines` [n, n]; `signs` [n, n], the share of
    entries that both moved which they moved the same way; `relative` [n], the norms as shares of the base's."""

    norms: Tensor
    relative: Tensor
    cosines: Tensor
    signs: Tensor

    def __repr__(self) -> str:
        most = brief(float(self.cosines.min()))
        told = f"norms {brief(self.norms.tolist())}", f"cosines >= {most}"
        return line(self, plural(len(self.norms), "network"), *told)

    def _repr_html_(self) -> str:
        rows = [(i, *map(float, (self.norms[i], self.relative[i], *self.cosines[i]))) for i in range(len(self.norms))]
        return table(("network", "norm", "share of base", *(f"cosine {i}" for i in range(len(rows)))), rows, repr(self))

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {k: getattr(self, k).tolist() for k in ("norms", "relative", "cosines", "signs")}


def task_vectors(base: Mapping[str, Tensor], models: Sequence[Mapping[str, Tensor]]) -> TaskVectors:
    """Norms, cosines and agreement of signs of what each network moved from `base`.

    Parts of one tensor at a time are widened to float64, so that memory is little. A network that did not
    move has the cosine 0 with every other one. Tensors that cannot move (counters, masks) do not count; nor do running
    statistics by any other rule than weights. Errors: no networks; other names or shapes. Source: Ilharco et al. 2023.

    >>> base = {"w": torch.zeros(3)}
    >>> found = task_vectors(base, [{"w": torch.tensor([3.0, 0.0, 4.0])}, {"w": torch.tensor([3.0, 5.0, -4.0])}])
    >>> found.norms.tolist(), round(float(found.cosines[0, 1]), 3), float(found.signs[0, 1])
    ([5.0, 7.0710678118654755], -0.198, 0.5)
    """
    check_kinds(task_vectors, locals())
    if not models:
        raise InputError("models", expected="one network or more", got="none")
    for i, one in enumerate(models):
        check_like(one, base, f"models[{i}]")
    total = 0.0
    dots, same, both = torch.zeros(3, len(models), len(models), dtype=torch.float64)
    for name in (name for name, start in base.items() if moves(start)):
        for origin, *parts in in_parts(base[name], *(one[name] for one in models)):
            total += float(widened(origin).square().sum())
            moved = _moved(origin, parts)
            for (i, u), (j, v) in combinations_with_replacement(enumerate(moved), 2):
                signs = u.sign() * v.sign()
                dots[i, j] += float(torch.dot(u, v))
                same[i, j] += float((signs > 0).sum())
                both[i, j] += float((signs != 0).sum())
    dots, same, both = (_mirrored(v) for v in (dots, same, both))
    norms = dots.diagonal().sqrt()
    scale = norms[:, None] * norms[None, :]
    cosines = torch.where(scale > 0, dots / scale.clamp(min=1e-300), torch.zeros_like(dots))
    relative = torch.where(norms > 0, norms / total**0.5, 0.0)
    signs = torch.where(both > 0, same / both.clamp(min=1), torch.ones_like(dots))
    return TaskVectors(norms, relative, cosines.clamp(-1, 1), signs)


def sizes_of(
    objective: Objective, networks: Sequence[Mapping[str, Tensor]], base: Mapping[str, Tensor] | None
) -> dict[str, Any]:
    """For ``Check``: "norms" and "distances" of the weights, and the "vectors" against a base, if there is one.

    Tied tensors count once, running statistics in the vectors alone. What is read on demand stays where it is.
    """
    apart, ties = no_weights(objective), ties_of(objective.skeleton)
    weights = [_but(apart, one) for one in networks]
    pairs = combinations(range(len(networks)), 2)
    found = {
        "norms": tuple(map(norm, weights)),
        "distances": {(i, j): distance(weights[i], weights[j]) for i, j in pairs},
    }
    if base is None:
        return found | {"vectors": None}
    own, *several = (_but(ties, one) for one in (base, *networks))
    return found | {"vectors": task_vectors(own, several)}


def _but(names: Collection[str], params: Mapping[str, Tensor]) -> OnDemand:
    return OnDemand((k for k in params if k not in names), params.__getitem__)


def _moved(origin: Tensor, parts: Sequence[Tensor]) -> list[Tensor]:
    return [(widened(part) - widened(origin)).flatten() for part in parts]


def _mirrored(upper: Tensor) -> Tensor:
    return upper + upper.triu(1).T
