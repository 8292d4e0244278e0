"""Parameters by one name each, or in groups by name, such as the points of a curve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from isthmus.params import Params
from isthmus.training.memory import named

P = TypeVar("P", bound=Mapping[str, Any])
"""Parameters: tensors by name, or groups of them by name, such as the points of a curve."""


def flat(params: Mapping[str, Any]) -> Params:
    """Tensors by one name each: those of a group have its name before theirs."""
    out: Params = {}
    for name, v in params.items():
        out |= named(name, dict(v)) if isinstance(v, Mapping) else {name: v}
    return out


def grouped(several: Params, like: P) -> P:
    """The tensors in the groups of `like`; those that it has not, the buffers, beside the groups."""
    groups = {name: {k: several[f"{name}/{k}"] for k in v} for name, v in like.items() if isinstance(v, Mapping)}
    if not groups:
        return cast(P, several)
    inside = {f"{name}/{k}" for name, group in groups.items() for k in group}
    return cast(P, groups | {k: v for k, v in several.items() if k not in inside})
