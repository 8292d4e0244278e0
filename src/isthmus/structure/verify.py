"""The two laws that every structure must satisfy, checked on randomised copies in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import combinations
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map

from isthmus.errors import InputError, UnsupportedError
from isthmus.params import Params, in_dtype, moves, widened
from isthmus.program.copied import copied
from isthmus.program.export import Program, plain_attention, trace
from isthmus.structure.shorter import Given, shortest
from isthmus.structure.units import Group, Structure

__all__ = ["TOLERANCE", "verify"]

TOLERANCE = 1e-12
"""How far the outputs may move, relative to their largest entry; float64 rounding stays well below."""

ROUNDING = 1e-4
"""An output that moves by less may do so because the module computes in float32 whatever it is given."""

ALONE = 8
"""Up to so many groups are verified one by one."""

REDRAWS = 200
"""Attempts to find random weights at which the outputs are not all zero."""

Forward = Callable[..., list[Tensor]]
"""The outputs at parameters, which stay as they are; with further ones as the second argument only those do."""


def verify(
    structure: Structure,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    draws: int = 2,
    seed: int = 0,
    program: Program | None = None,
) -> str:
    """Raise unless the structure is true of the module; return what was verified.

    Permutation law: permuting the units of groups moves no output. Silence law: when a random half of the units of
    separable groups is silenced, no output depends on the entries that make them. With up to `ALONE` groups each is
    checked alone, and all at once; with more, sets of groups such that any two are told apart by one of them. Both are
    checked at `draws` random weights (running statistics too: at the usual gamma = 1, beta = 0 a
    forgotten BatchNorm member would not show) and random inputs of the shapes given, or of the shortest shapes on which
    the module performs every operation (``shortest``); integer inputs are used as given. A few rows suffice.
    The module is not touched; where it insists on float32, its traced program runs instead, which is `program` at the
    shapes given. A group of one unit has no permutation to check, only the silence law.
    Errors: `UnsupportedError` naming the group and the law.
    """
    given = (tuple(args), dict(kwargs or {}))
    state = {k: v for k, v in module.state_dict(keep_vars=True).items() if isinstance(v, Tensor)}
    _check_shapes(structure, state)
    twin = _twin(module, state)
    used = shortest(module, given, program, partial(_runs, twin, state))
    try:
        _check_laws(structure, module, state, used, partial(_forward, twin), range(seed, seed + draws))
    except (RuntimeError, _LawError) as failed:
        if isinstance(failed, _LawError) and not failed.by < ROUNDING:
            raise
        # it computes in float32 whatever it gets: in its program that is a cast to the type of the weights
        whole = program if used is given else None
        exact = partial(_program, whole or trace(module, *used, every_batch=False))
        _check_laws(structure, module, state, used, exact, range(seed, seed + draws))
    return _said(given, used)


def _said(given: Given, used: Given) -> str:
    shapes, whole = (
        ", ".join(str(tuple(x.shape)) for x in tree_leaves(g) if isinstance(x, Tensor)) for g in (used, given)
    )
    shorter = f", the shortest that exercise every operation; those given have {whole}" if shapes != whole else ""
    return f"verified on inputs of {shapes}{shorter}"


def _runs(twin: nn.Module, state: Mapping[str, Tensor], given: Given) -> bool:
    """Whether the forward pass takes such inputs."""
    g = torch.Generator().manual_seed(0)
    try:
        _forward(twin, *tree_map(partial(_input, g=g), given))(_random(state, g))
    except Exception:  # modules raise what they like at sizes that they do not take
        return False
    return True


def _check_laws(
    structure: Structure,
    module: nn.Module,
    state: Mapping[str, Tensor],
    given: Given,
    forward_at: Callable[..., Forward],
    seeds: Iterable[int],
) -> None:
    for seed in seeds:
        _check_at(structure, module, state, given, forward_at, torch.Generator().manual_seed(seed))


def _check_at(
    structure: Structure,
    module: nn.Module,
    state: Mapping[str, Tensor],
    given: Given,
    forward_at: Callable[..., Forward],
    g: torch.Generator,
) -> None:
    """The laws at one draw of random weights."""
    forward, params, before = _drawn_point(module, state, given, forward_at, g)
    if _moved(before, before, forward(params)):
        raise UnsupportedError(type(module).__name__, "its output is random", "call module.eval() first")
    for law, groups in (
        (_permutation_law, structure.groups),
        (_silence_law, tuple(group for group in structure.groups if group.separable and group.outs)),
    ):
        for several in _sets(groups):
            _checked(partial(law, structure, forward=forward, params=params, before=before, g=g), several)


def _drawn_point(
    module: nn.Module,
    state: Mapping[str, Tensor],
    given: Given,
    forward_at: Callable[..., Forward],
    g: torch.Generator,
) -> tuple[Forward, Params, list[Tensor]]:
    """Random weights and inputs at which no output is all zero."""
    for _ in range(REDRAWS):  # in a narrow network without biases all units may be off at once
        forward = forward_at(*tree_map(partial(_input, g=g), given))
        params = _random(state, g)
        before = forward(params)
        if all(bool(y.isfinite().all()) and bool(y.any()) for y in before):
            return forward, params, before
    raise UnsupportedError(type(module).__name__, "its outputs at random weights are not finite, or all zero")


class _LawError(UnsupportedError):
    """A law that fails, and by how much an output moves."""

    def __init__(self, what: str, why: str, instead: str = "", by: float = inf) -> None:
        super().__init__(what, why, instead)
        self.by = by


def _sets(groups: Sequence[Group]) -> list[Sequence[Group]]:
    """The sets of groups to check: each alone and all together, or for each bit those that have it in their number."""
    if len(groups) <= ALONE:
        return [*((group,) for group in groups), *([groups] if len(groups) > 1 else [])]
    bits = range((len(groups) - 1).bit_length())
    return [groups, *([group for i, group in enumerate(groups) if i >> bit & 1] for bit in bits)]


def _checked(law: Callable[[Sequence[Group]], None], groups: Sequence[Group]) -> None:
    """The law for these groups at once; where it fails, the error is that of the smallest half found to fail."""
    try:
        law(groups)
    except _LawError:
        for half in (groups[: len(groups) // 2], groups[len(groups) // 2 :]) if len(groups) > 1 else ():
            _checked(law, half)
        raise


def _check_shapes(structure: Structure, state: Mapping[str, Tensor]) -> None:
    shapes = {name: tuple(v.shape) for name, v in state.items()}
    for name in sorted(shapes.keys() | structure.shapes.keys()):
        if shapes.get(name) != structure.shapes.get(name):
            got = structure.shapes.get(name, "no such tensor")
            raise InputError(f"structure.shapes[{name!r}]", expected=str(shapes.get(name, "no such tensor")), got=got)


def _permutation_law(
    structure: Structure,
    groups: Sequence[Group],
    *,
    forward: Forward,
    params: Params,
    before: list[Tensor],
    g: torch.Generator,
) -> None:
    permuted = structure.permute(params, {group.name: _cycle(group.size, g) for group in groups})
    for one, two in combinations(params, 2):
        if params[one] is params[two] and not torch.equal(permuted[one], permuted[two]):
            raise _LawError(_named(groups), f"the permutation law fails: {one!r} and {two!r} are tied, and part")
    if moved := _moved(before, before, forward(permuted, params)):
        why = f"the permutation law fails: an output moves by {moved:.1e} of its size"
        raise _LawError(_named(groups), why, by=moved)


def _silence_law(
    structure: Structure,
    groups: Sequence[Group],
    *,
    forward: Forward,
    params: Params,
    before: list[Tensor],
    g: torch.Generator,
) -> None:
    silent = {group.name: torch.randperm(group.size, generator=g)[: max(group.size // 2, 1)] for group in groups}
    one = forward(structure.silence(params, silent), params)
    other = forward(structure.silence(_redrawn(groups, silent, params, g), silent), params)
    if moved := _moved(before, one, other):
        why = f"the silence law fails: silenced units still move an output, by {moved:.1e} of its size"
        raise _LawError(_named(groups), why, "set separable=False and say why", by=moved)


def _redrawn(groups: Sequence[Group], silent: Mapping[str, Tensor], params: Params, g: torch.Generator) -> Params:
    """With other entries that make the silent units."""
    changed = dict(params)
    for member, units in ((member, silent[group.name]) for group in groups for member in group.ins):
        at = member.index[units].reshape(-1)
        old = changed[member.tensor]
        new = _drawn(member.tensor, old.index_select(member.dim, at.to(old.device)), g)
        changed[member.tensor] = old.index_copy(member.dim, at.to(old.device), new)
    return changed


def _named(groups: Sequence[Group]) -> str:
    return f"group {groups[0].name!r}" if len(groups) == 1 else f"groups {', '.join(repr(g.name) for g in groups)}"


def _moved(like: Sequence[Tensor], one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """The largest change of an output relative to the size of `like`, or 0 within `TOLERANCE`; NaN is a change."""
    worst = max(float((x - y).abs().max() / z.abs().max()) for z, x, y in zip(like, one, other, strict=True))
    return 0.0 if worst <= TOLERANCE else worst


def _cycle(n: int, g: torch.Generator) -> Tensor:
    """A random permutation of n units that is one cycle: no unit stays."""
    order, cycle = torch.randperm(n, generator=g), torch.empty(n, dtype=torch.int64)
    cycle[order] = order.roll(1)
    return cycle


def _twin(module: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the module without its weights, in float64."""
    memo: dict[int, Any] = {}
    for tensor in state.values():
        empty = in_dtype(torch.empty_like(tensor, device="meta", requires_grad=False), torch.float64)
        own = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(empty, requires_grad=moves(empty)) if own else empty
    return copied(module, memo).double()


def _forward(twin: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Forward:
    # buffers that are no part of the state_dict
    own = {k: v for k, v in twin.named_buffers() if not v.is_meta}

    def forward(params: Mapping[str, Tensor], kept: Mapping[str, Tensor] | None = None) -> list[Tensor]:
        with torch.no_grad(), plain_attention():
            # it may write into what it gets
            tensors = {**tree_map(torch.clone, own), **_apart(params, params if kept is None else kept)}
            out = functional_call(twin, tensors, *tree_map(_copy, (args, kwargs)), tie_weights=False, strict=True)
        return [widened(y) for y in tree_leaves(out) if isinstance(y, Tensor)]

    return forward


def _program(program: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Forward:
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]

    def forward(params: Mapping[str, Tensor], kept: Mapping[str, Tensor] | None = None) -> list[Tensor]:
        with torch.no_grad():
            return [widened(y) for y in tree_leaves(program.run(params, *tensors))]

    return forward


def _input(x: Any, g: torch.Generator) -> Any:
    return _noise(x, g) if isinstance(x, Tensor) and moves(x) else x


def _apart(params: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> Params:
    """The same in memory that is neither that of `kept` nor shared; what is there already is not copied."""
    taken, out = {v.untyped_storage().data_ptr() for v in kept.values()}, Params()
    for name, v in params.items():
        out[name] = v.clone() if v.untyped_storage().data_ptr() in taken else v
        taken.add(v.untyped_storage().data_ptr())
    return out


def _copy(x: Any) -> Any:
    return x.clone() if isinstance(x, Tensor) else x


def _noise(x: Tensor, g: torch.Generator) -> Tensor:
    dtype = torch.complex128 if x.is_complex() else torch.float64
    return torch.randn(x.shape, generator=g, dtype=dtype).to(x.device)


def _random(state: Mapping[str, Tensor], g: torch.Generator) -> Params:
    """Random weights at which signals neither die nor saturate; tied tensors stay one tensor."""
    done: dict[int, Tensor] = {}
    for name, tensor in state.items():
        if id(tensor) not in done:
            done[id(tensor)] = _drawn(name, tensor.detach(), g) if moves(tensor) else tensor
    return {name: done[id(tensor)] for name, tensor in state.items()}


def _drawn(name: str, like: Tensor, g: torch.Generator) -> Tensor:
    if like.ndim >= 2:
        scale = (2 * like.shape[0] / max(like.numel(), 1)) ** 0.5
        return _noise(like, g).mul_(scale)
    if not like.is_complex() and (name.endswith(("weight", "var")) or like.ndim == 0):
        return torch.rand(like.shape, generator=g, dtype=torch.float64).to(like.device) + 0.5
    return _noise(like, g) * 0.5
