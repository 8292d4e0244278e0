"""Names of parameters, matched to those of a module: wrappers put prefixes before them, ties leave some of them out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from isthmus.errors import InputError
from isthmus.params import Params

__all__ = ["WRAPPERS", "Match", "bare", "check_own", "group", "matches", "renamed", "tied"]

_INSERTED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
WRAPPERS = ("module", "_module", "_forward_module", *_INSERTED)
"""What wrappers (DataParallel, AveragedModel, Opacus, Lightning Fabric, torch.compile, FSDP) call what they wrap."""

_COUNTER = "num_batches_tracked"  # absent from files of torch before 0.4.1, and read in training only


@dataclass(frozen=True)
class Match:
    """Where a module's names stand: each one's name in the file, and the prefix that these have in common.

    A counter of BatchNorm that is not there has no entry.
    """

    prefix: str
    names: dict[str, str]

    def is_all(self, want: Collection[str], have: Mapping[str, Tensor]) -> bool:
        """Whether every wanted name is there, and nothing else."""
        return len(self.names) == len(want) and set(self.names.values()) == have.keys()


def bare(name: str) -> str:
    """A name without what torch.compile, FSDP and activation checkpointing insert anywhere in it.

    >>> bare("model._orig_mod.0.weight")
    'model.0.weight'
    """
    return ".".join(part for part in name.split(".") if part not in _INSERTED)


def group(names: Iterable[str], ties: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """For each name all names of its tensor, itself first. `ties`: for each further name the first one.

    >>> group(["a", "b", "c"], {"b": "a"})
    {'a': ('a', 'b'), 'b': ('b', 'a'), 'c': ('c',)}
    """
    names = list(names)
    tied: dict[str, list[str]] = {}
    for name in names:
        tied.setdefault(ties.get(name, name), []).append(name)
    return {name: (name, *(n for n in tied[ties.get(name, name)] if n != name)) for name in names}


def matches(have: Collection[str], want: Collection[str], ties: Mapping[str, str] | None = None) -> list[Match]:
    """All prefixes under which `have` holds every name in `want`, where of tied names one is enough.

    What ``bare`` drops is ignored, and so are the wrappers around the module itself. The order is that of `have`. Only
    where nothing is found otherwise, wrappers of parts of the module ("features.module.0"), and whatever else holds all
    of it ("net."), are left out too.

    >>> matches(["n_averaged", "module.weight", "module.bias"], ["weight", "bias"])
    [Match(prefix='module.', names={'weight': 'module.weight', 'bias': 'module.bias'})]
    >>> matches(["weight"], ["weight", "bias"])
    []
    """
    groups = group(want, ties or {})
    outer = _outer(want)
    around = [start for start in outer if _is_around(start)]
    plain, within = _distinct(have), {without_wrappers(bare(name)): name for name in have}
    found = _found(plain, groups, around)
    if not found and len(within) == len(have):
        found = _found(within, groups, around)
    return found or [match for match in _found(plain, groups, outer) if _is_around(match.prefix)]


def _found(plain: Mapping[str, str], groups: Mapping[str, tuple[str, ...]], outer: Iterable[str]) -> list[Match]:
    """The matches among the names in `plain` of the wanted ones without one of the prefixes in `outer`."""
    found: dict[tuple[str, ...], Match] = {}
    for start in outer:
        options = {w: tuple(bare(n).removeprefix(start) for n in names) for w, names in groups.items()}
        for prefix in _prefixes(plain, options):
            names = _under(prefix, options, plain)
            if names is not None:
                found.setdefault(tuple(names.values()), Match(prefix, names))
    return list(found.values())


def without_wrappers(name: str) -> str:
    """A name without what DataParallel and its like call what they wrap, be it the whole or a part.

    >>> without_wrappers("features.module.0.weight")
    'features.0.weight'
    """
    *parts, last = name.split(".")
    return ".".join([*(part for part in parts if part not in WRAPPERS), last])


def _under(prefix: str, options: Mapping[str, tuple[str, ...]], plain: Mapping[str, str]) -> dict[str, str] | None:
    """What each name is called behind the prefix; None where one is missing that is no counter."""
    names = {}
    for name, others in options.items():
        there = next((prefix + other for other in others if prefix + other in plain), None)
        if there is not None:
            names[name] = plain[there]
        elif not name.endswith(_COUNTER):
            return None
    return names


def renamed(
    params: Mapping[str, Tensor], want: Collection[str], ties: Mapping[str, str], what: str
) -> Mapping[str, Tensor]:
    """`params` under the names in `want`, where they say the same in other words; else as they are.

    Errors: ``InputError`` where there is more beside them, or a counter is missing, and says how to leave it out.

    >>> renamed({"module.w": "W"}, ["w"], {}, "params")
    {'w': 'W'}
    """
    if params.keys() == set(want):
        return params
    found = matches([k for k in params if isinstance(k, str)], want, ties)
    whole = [m.names for m in found if m.is_all(want, params)]
    if len(whole) == 1:
        return {k: params[name] for k, name in whole[0].items()}
    if not found or found[0].prefix == "":
        return params
    raise _not_alone(params, found[0].names, what)


def _not_alone(params: Mapping[str, Tensor], names: dict[str, str], what: str) -> InputError:
    beside = next((repr(k) for k in params if k not in names.values()), "less than all of them")
    name, stored = next(iter(names.items()))
    return InputError(
        what, expected=f"the module's names, as {name!r}", got=f"{stored!r}, beside {beside}",
        instead="load_params(path, like=objective)",
    )  # fmt: skip


def tied(params: Mapping[str, Tensor], ties: Mapping[str, str], what: str) -> Params:
    """`params` in which the names of one parameter share one tensor; refuses those that differ."""
    out = dict(params)
    for alias, name in ties.items():
        if out[alias] is not out[name] and not torch.equal(out[alias], out[name]):
            raise InputError(f"{what}[{alias!r}]", expected=f"the tensor it is tied to, {name!r}", got="other values")
        out[alias] = out[name]
    return out


def check_own(point: Mapping[str, Tensor], checked: Mapping[str, Tensor]) -> None:
    """Refuse a path's point that ``Objective.check`` had to rename: what is done between points goes by their names."""
    if missing := [name for name in checked if name not in point]:
        raise InputError(
            "path", expected=f"the module's names, as {missing[0]!r}", got=f"names like {next(iter(point), '')!r}",
            instead="Path.through([objective.check(point) for point in points])",
        )  # fmt: skip


def _distinct(names: Collection[str]) -> dict[str, str]:
    """The names under their bare ones, or as they are where two have the same."""
    plain = {bare(name): name for name in names}
    return plain if len(plain) == len(names) else {name: name for name in names}


def _outer(want: Collection[str]) -> list[str]:
    """The prefixes that all of the module's own names have; the empty one first."""
    names, outer = [bare(name) for name in want], [""]
    parts = next(iter(names), "").split(".")[:-1]
    for i in range(len(parts)):
        start = ".".join(parts[: i + 1]) + "."
        if not all(name.startswith(start) for name in names):
            break
        outer.append(start)
    return outer


def _is_around(prefix: str) -> bool:
    """Whether the prefix is what wrappers of a whole module put before its names."""
    return all(part in (*WRAPPERS, "model") for part in prefix.split(".")[:-1])


def _prefixes(plain: Collection[str], options: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The prefixes before one name that must be there: the one that can stand in the fewest places."""
    needed = [others for name, others in options.items() if not name.endswith(_COUNTER)]
    if not needed:
        return [""]
    rarest = max(needed, key=lambda others: min(map(len, others)))
    prefixes = dict.fromkeys([""] if {*rarest} & {*plain} else [])
    for name in plain:
        for other in rarest:
            if name.endswith("." + other):
                prefixes[name.removesuffix(other)] = None
    return list(prefixes)
