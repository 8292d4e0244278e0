"""What a checkpoint holds, and which of it are the weights of a network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isthmus.errors import CheckpointError, InputError
from isthmus.objective import Objective
from isthmus.objective.matching import WRAPPERS, Match, bare, matches
from isthmus.objective.skeleton import ties_of
from isthmus.params import Params, not_dense
from isthmus.storage.files import one_line
from isthmus.storage.translated import translated
from isthmus.storage.trees import (
    bare_names,
    beginning,
    dotted,
    is_inside,
    joined,
    kind_of,
    listed,
    mappings,
    quoted,
    tensor_names,
    tensors_in,
    value_at,
)

__all__ = ["Contents", "Like", "owned", "wanted"]

Like = nn.Module | Objective | Mapping[str, Tensor]

_PLAIN = (
    "state_dict", "model_state_dict", "model_state", "model", "net", "network", "net_state_dict", "network_state_dict",
    "params", "weights", *WRAPPERS,
)  # fmt: skip
_AVERAGED = re.compile(r"(?:^|[_-])(?:ema|swa|avg|averaged?|shadow)(?:$|[_-])", re.IGNORECASE)
_SAVE_TENSORS = "where the model was trained, write torch.save(model.state_dict(), path)"


@dataclass(frozen=True)
class _Found:
    """A dictionary of tensors in a file: where, its entries, and for a given module which of them are its own."""

    at: str
    state: Mapping[str, Any]
    match: Match | None = None

    @property
    def place(self) -> str:
        """The `key` that selects it."""
        prefix = "" if self.match is None else self.match.prefix.removesuffix(".")
        return ".".join(part for part in (self.at, prefix) if part)

    @property
    def rank(self) -> int:
        """0 for the plain weights, 1 under names that say nothing, 2 for running averages."""
        if is_averaged(self.place):
            return 2
        parts = self.place.split(".") if self.place else []
        return 0 if all(part in _PLAIN for part in parts) else 1

    @property
    def is_exact(self) -> bool:
        """Whether nothing but wrappers stands before the module's names."""
        return self.match is None or all(part in WRAPPERS for part in self.match.prefix.split(".")[:-1])

    @property
    def taken(self) -> dict[str, Any]:
        """The entries themselves: the module's under its names, or all."""
        return dict(self.state) if self.match is None else {w: self.state[n] for w, n in self.match.names.items()}


@dataclass(frozen=True)
class Contents:
    """What was read from `path`, whose size in bytes is `size`; `ours`: with names that ``save_params`` wrote.

    `files`: the safetensors file of each tensor that came from one, under its name there.
    """

    path: Path
    tree: Any
    size: int
    ours: bool = False
    files: Mapping[str, Path] = field(default_factory=dict)

    def choose(self, key: str | None = None, like: Like | None = None) -> tuple[Params, str]:
        """The weights (see ``load_params``), and a sentence on other weights that were left unused, or ""."""
        tree = self.tree.state_dict() if isinstance(self.tree, nn.Module) else self.tree
        if not isinstance(tree, Mapping):
            raise CheckpointError(self.path, f"holds one {kind_of(tree)}, not a dictionary of tensors", _SAVE_TENSORS)
        tree = tree if key is None else self._under(tree, key)
        found = [_Found(at, state) for at, state in mappings(tree)]
        choose = self._choose if like is None else partial(self._choose_like, like=like)
        params, chosen, others, dropped = choose(found, listed(tree) or "nothing")
        return params, self._note(tree, chosen, others, dropped, "" if key is None else key)

    def tensors_by_file(self) -> Params:
        """The tensors in safetensors files, under their names there."""
        return {k: self.tree[k] for k in self.files}

    def tensors(self) -> Params:
        """All tensors that stand under names, whatever they are."""
        tree = self.tree if isinstance(self.tree, Mapping) else {}
        return {f"{at}.{k}": v for at, m in mappings(tree) for k, v in m.items() if isinstance(v, Tensor)}

    # -- which

    def _under(self, tree: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        """What stands under a dotted name: a dictionary, or the entries whose names begin with it."""
        if isinstance(inner := value_at(tree, key), Mapping):
            return inner
        for at, state in mappings(tree):
            if at and not key.startswith(f"{at}."):
                continue
            rest = beginning(state, (key[len(at) + 1 :] if at else key) + ".")
            if tensors_in(rest):
                return rest
        raise self._nothing(tree, key)

    def _nothing(self, tree: Mapping[str, Any], key: str) -> CheckpointError:
        places = [at for at, state in mappings(tree) if at and tensors_in(state)]
        there = ", ".join(map(quoted, places)) or listed(tree)
        return CheckpointError(self.path, f"holds no tensors under {quoted(key)}", f"it has {there or 'nothing'}")

    def _choose(self, found: list[_Found], listed: str) -> tuple[Params, _Found, list[_Found], list[str]]:
        """The one dictionary of tensors under the names that people use."""
        known = _known(found)
        if not known:
            raise self._unknown(found, listed)
        chosen = self._best(known)
        state, dropped = (chosen.state, []) if self.ours else _strip(chosen.state, _is_lightning(self.tree))
        names = bare_names(chosen.state)
        alike = [f for f in found if f.at and f.rank == 1 and names <= bare_names(f.state)]
        others = [f for f in [*known, *alike] if f.state is not chosen.state]
        return self._checked(state), chosen, others, dropped

    def _unknown(self, found: list[_Found], listed: str) -> CheckpointError:
        keys = [f"key={quoted(f.at)}" for f in found if f.at and tensors_in(f.state)]
        expected = f"expected them here or under {', '.join(map(repr, _PLAIN[:4]))}"
        where, instead = (" under a usual name", f"write {' or '.join(keys[:6])}") if keys else ("", expected)
        return CheckpointError(self.path, f"holds no tensors{where}, only {listed}", instead)

    def _choose_like(
        self, found: list[_Found], listed: str, like: Like
    ) -> tuple[Params, _Found, list[_Found], list[str]]:
        """The weights of a module, wherever they stand and whatever stands before their names."""
        want, ties = wanted(like)
        tensors = [tensor_names(f.state) for f in found]
        fit = _fitting(found, tensors, want, ties) or self._translated(found, want, ties, like)
        if not fit:
            raise self._misfit(max(tensors, key=lambda names: len({*names} & {*want})), want, listed)
        chosen = self._best(fit)
        params = self._checked(chosen.taken)
        params = {k: params[k] if k in params else torch.zeros((), dtype=torch.int64) for k in want}
        dropped = _left(chosen, fit)
        if chosen.match is not None and (part := _own(dropped, chosen.match)):
            why = f"holds {one_line(part, 80)!r}, a part of the network that the module has not"
            raise CheckpointError(self.path, why, "give the module that was trained")
        return params, chosen, [f for f in fit if f.place != chosen.place], dropped

    def _translated(
        self, found: list[_Found], want: Mapping[str, Tensor], ties: Mapping[str, str], like: Like
    ) -> list[_Found]:
        """The weights of a library's module under its names, where the file has others of the same library."""
        if not (known := _known(found)):
            return []
        best = self._best(known)
        own = {k: v for k, v in _strip(best.state, _is_lightning(self.tree))[0].items() if isinstance(v, Tensor)}
        state = translated(self._checked(own), like)
        return [] if state is None else _fitting([_Found(best.at, state)], [list(state)], want, ties)

    def _misfit(self, names: list[str], want: Mapping[str, Tensor], listed: str) -> CheckpointError:
        missing = next((k for k in want if k not in names), "")
        why = f"does not hold the {len(want)} tensors of the module under one prefix: {missing!r} is missing"
        has = ", ".join(one_line(k, 40) for k in names[:4]) or listed
        return CheckpointError(self.path, why, f"it has {has}" + (", ..." if len(names) > 4 else ""))

    def _best(self, found: list[_Found]) -> _Found:
        """The first in rank. Errors: several different ones of that rank."""
        found = _first_rank(found)
        exact = {f.at for f in found if f.is_exact}
        first, *others = (f for f in found if f.is_exact or f.at not in exact)
        if equal := [f for f in others if not _same(f.taken, first.taken)]:
            raise self._several([f.place for f in (first, *equal)])
        return first

    def _several(self, places: list[str]) -> CheckpointError:
        instead = " or ".join(f"key={quoted(p)}" for p in places[:6] if p)
        names = ", ".join(p or "the top" for p in places)
        return CheckpointError(self.path, f"holds several state dicts: {one_line(names, 200)}", f"write {instead}")

    def _note(self, tree: Mapping[str, Any], chosen: _Found, others: list[_Found], dropped: list[str], key: str) -> str:
        lead = f"{key}." if key else ""
        places = dict.fromkeys(lead + f.place for f in others if f.place)
        left = _four([f"{quoted(p)} (key={quoted(p)} takes it)" for p in places], "more")
        left += [f"the list of tensors {quoted(lead + at)}" for at in _averaged_lists(tree)]
        left += _four([one_line(name, 60) for name in dropped], "more tensors")
        if not left:
            return ""
        place = (lead + chosen.place).strip(".")
        taken = f" under {quoted(place)}" if place else ""
        return f"{self.path}: took the weights{taken}; left unused: {', '.join(left)}"

    def _checked(self, state: Mapping[str, Any]) -> Params:
        for name, value in state.items():
            if not isinstance(name, str) or not isinstance(value, Tensor):
                shown = f"{one_line(name, 80)!r} ({kind_of(value)})"
                why = f"its state dict holds {shown}, which is not a tensor under a name"
                raise CheckpointError(self.path, why, "save the tensors alone, or give the module as like=")
        return owned(self.path, state, self.size)


def _fitting(
    found: list[_Found], tensors: list[list[str]], want: Mapping[str, Tensor], ties: Mapping[str, str]
) -> list[_Found]:
    """Where the module's names stand; of these the places with its shapes, where there are any."""
    pairs = zip(found, tensors, strict=True)
    fit = [_Found(f.at, f.state, match) for f, names in pairs for match in matches(names, want, ties)]
    return [f for f in fit if all(v.shape == want[k].shape for k, v in f.taken.items())] or fit


def _known(found: list[_Found]) -> list[_Found]:
    known = [f for f in found if tensors_in(f.state) and f.rank != 1]
    # a number beside the weights, such as the best accuracy, does not make a dictionary one of weights
    return [f for f in known if dotted(f.state) or not any(is_inside(g.at, f.at) for g in known)]


def _first_rank(found: list[_Found]) -> list[_Found]:
    best = min(f.rank for f in found)
    return [f for f in found if f.rank == best]


def _left(chosen: _Found, fit: list[_Found]) -> list[str]:
    """The tensors beside the chosen ones, but for copies under other prefixes, which are named as such."""
    used = {name for f in fit if f.match and f.state is chosen.state for name in f.match.names.values()}
    return [name for name in tensor_names(chosen.state) if name not in used]


def _four(texts: list[str], what: str) -> list[str]:
    """The first four, and how many there are beside them."""
    return texts if len(texts) <= 4 else [*texts[:4], f"and {len(texts) - 4} {what}"]


def is_averaged(place: str) -> bool:
    """Whether a dotted name is that of a running average."""
    return any(_AVERAGED.search(part) for part in place.split("."))


def _averaged_lists(tree: Mapping[Any, Any]) -> list[str]:
    """Where averages stand as lists of tensors without names, as torch_ema writes them."""
    found = {joined(at, k): v for at, state in mappings(tree) for k, v in state.items()}
    lists = {at: v for at, v in found.items() if isinstance(v, list | tuple) and v and is_averaged(at)}
    return [at for at, v in lists.items() if all(isinstance(w, Tensor) for w in v)][:4]


def wanted(like: Like) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors whose names and shapes are wanted, and which of them are tied."""
    if isinstance(like, Objective):
        like = like.skeleton
    if isinstance(like, nn.Module):
        return {k: v for k, v in like.state_dict().items() if isinstance(v, Tensor)}, ties_of(like)
    if not isinstance(like, Mapping) or not all(isinstance(v, Tensor) for v in like.values()):
        raise InputError("like", expected="a module, an objective or a dictionary of tensors", got=type(like).__name__)
    return dict(like), {}


def _own(names: list[str], match: Match) -> str | None:
    """The first of the names that belongs to a part of the module itself, or to a list of layers that goes on."""
    start = len(match.prefix)
    tops = {name[start:].partition(".")[0] for name in map(bare, match.names.values())}
    for name in names:
        top = bare(name)[start:].partition(".")[0]
        goes_on = top.isdecimal() and any(other.isdecimal() for other in tops)
        if bare(name).startswith(match.prefix) and (top in tops or goes_on):
            return name
    return None


def _is_lightning(tree: Any) -> bool:
    return isinstance(tree, Mapping) and "pytorch-lightning_version" in tree


def _strip(state: Mapping[str, Any], lightning: bool) -> tuple[Mapping[str, Any], list[str]]:
    """Without the prefixes that wrappers put before every name, and what such wrappers added."""
    dropped: list[str] = []
    if not all(isinstance(name, str) for name in state):
        return state, dropped
    while True:
        names = [k for k in state if k != "n_averaged"]  # AveragedModel's own counter
        prefix = _prefix(names, lightning)
        if not prefix:
            return _bared(state), dropped
        dropped += [k for k in state if k == "n_averaged"]
        state = {name.removeprefix(prefix): state[name] for name in names}


def _prefix(names: list[str], lightning: bool) -> str:
    """What a wrapper put before every name, or ""."""
    first = next(iter(names), "").split(".")
    wrapper = next((i for i, part in enumerate(first[:-1]) if part in WRAPPERS[1:]), None)
    if wrapper is None and first[0] in ("module", "model" if lightning else "module"):
        wrapper = 0
    prefix = "" if wrapper is None else ".".join(first[: wrapper + 1]) + "."
    return prefix if all(name.startswith(prefix) and name != prefix for name in names) else ""


def _bared(state: Mapping[str, Any]) -> Mapping[str, Any]:
    names = {k: bare(k) for k in state}
    return {names[k]: v for k, v in state.items()} if len({*names.values()}) == len(names) else state


def _same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether both hold the same values under the same names."""
    return a.keys() == b.keys() and all(_equal(v, b[k]) for k, v in a.items())


def _equal(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return a is b
    if a.shape != b.shape or a.dtype != b.dtype or not_dense(a) or not_dense(b):
        return False
    return a.untyped_storage().nbytes() >= a.numel() * a.itemsize and torch.equal(a, b)


def owned(path: Path, state: Mapping[str, Tensor], size: int) -> Params:
    """The tensors, contiguous, after the checks that bound what that can cost.

    A view that is contiguous costs nothing. Others are copied, once each, and together may not exceed the file.
    """
    copies: dict[tuple[Any, ...], Tensor] = {}
    copied = 0
    params: Params = {}
    for name, tensor in state.items():
        if odd := not_dense(tensor):
            raise CheckpointError(path, f"{one_line(name, 80)!r} is {odd[0]}", f"save {odd[1]}")
        held = tensor.untyped_storage().nbytes()
        needs = tensor.numel() * tensor.itemsize
        if needs > held or needs > size:
            claim = f"{one_line(name, 80)!r} of shape {tuple(tensor.shape)} claims {needs:,} bytes"
            why = f"{claim}, the file holds {min(held, size):,}"
            raise CheckpointError(path, why, "save tensor.contiguous()")
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.is_conj(), tensor.is_neg())
        if key not in copies:
            plain = tensor.detach().resolve_conj().resolve_neg()
            if not plain.is_contiguous():
                copied += needs
                if copied > size:
                    why = f"repeats its bytes in {copied:,} bytes of views"
                    raise CheckpointError(path, why, "save contiguous tensors")
            copies[key] = plain.contiguous()
        params[name] = copies[key]
    return params
