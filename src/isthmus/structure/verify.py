"""The two laws that every structure must satisfy, checked on randomised copies in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map

from isthmus.errors import InputError, UnsupportedError
from isthmus.params import Params, in_dtype, moves, widened
from isthmus.program.copied import copied
from isthmus.program.export import Program, plain_attention, trace
from isthmus.structure.units import Group, Structure

__all__ = ["TOLERANCE", "verify"]

TOLERANCE = 1e-12
"""How far the outputs may move, relative to their largest entry; float64 rounding stays well below."""

REDRAWS = 200
"""Attempts to find random weights at which the outputs are not all zero."""

Forward = Callable[[Mapping[str, Tensor]], list[Tensor]]


def verify(
    structure: Structure,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    draws: int = 2,
    seed: int = 0,
) -> None:
    """Raise unless the structure is true of the module.

    Permutation law: permuting the units of each group alone, and of all groups at once, moves no output. Silence
    law: when a random half of the units of a separable group is silenced, no output depends on the entries that make
    them. Both are checked at `draws` random weights (running statistics too: at the usual gamma = 1, beta = 0 a
    forgotten BatchNorm member would not show) and random inputs of the shapes given; integer inputs are used as given.
    A few rows suffice. The module is not touched; where it insists on float32, its traced program runs instead. A
    group of one unit has no permutation to check, only the silence law.
    Errors: `UnsupportedError` naming the group and the law.
    """
    kwargs = dict(kwargs or {})
    state = {k: v for k, v in module.state_dict(keep_vars=True).items() if isinstance(v, Tensor)}
    _check_shapes(structure, state)
    twin = _twin(module, state)
    for draw in range(draws):
        g = torch.Generator().manual_seed(seed + draw)
        for _ in range(REDRAWS):  # in a narrow network without biases all units may be off at once
            inputs = tree_map(partial(_input, g=g), (args, kwargs))
            params = _random(state, g)
            try:
                forward = _forward(twin, *inputs)
                before = forward(params)
            except RuntimeError:
                forward = _program(trace(module, args, kwargs, every_batch=False), inputs)
                before = forward(params)
            if all(bool(y.isfinite().all()) and bool(y.any()) for y in before):
                break
        else:
            raise UnsupportedError(type(module).__name__, "its outputs at random weights are not finite, or all zero")
        if _moved(before, before, forward(params)):
            raise UnsupportedError(type(module).__name__, "its output is random", "call module.eval() first")
        for groups in _alone_and_together(structure.groups):
            _permutation_law(structure, groups, forward, params, before, g)
        for group in structure.groups:
            if group.separable and group.outs:
                _silence_law(structure, group, forward, params, before, g)


def _check_shapes(structure: Structure, state: Mapping[str, Tensor]) -> None:
    shapes = {name: tuple(v.shape) for name, v in state.items()}
    for name in sorted(shapes.keys() | structure.shapes.keys()):
        if shapes.get(name) != structure.shapes.get(name):
            got = structure.shapes.get(name, "no such tensor")
            raise InputError(f"structure.shapes[{name!r}]", expected=str(shapes.get(name, "no such tensor")), got=got)


def _permutation_law(
    structure: Structure,
    groups: Sequence[Group],
    forward: Forward,
    params: Params,
    before: list[Tensor],
    g: torch.Generator,
) -> None:
    permuted = structure.permute(params, {group.name: _cycle(group.size, g) for group in groups})
    what = f"group {groups[0].name!r}" if len(groups) == 1 else "all groups together"
    for one in params:
        for two in params:
            if params[one] is params[two] and not torch.equal(permuted[one], permuted[two]):
                raise UnsupportedError(what, f"the permutation law fails: {one!r} and {two!r} are tied, and part")
    if moved := _moved(before, before, forward(permuted)):
        raise UnsupportedError(what, f"the permutation law fails: an output moves by {moved:.1e} of its size")


def _silence_law(
    structure: Structure, group: Group, forward: Forward, params: Params, before: list[Tensor], g: torch.Generator
) -> None:
    units = torch.randperm(group.size, generator=g)[: max(group.size // 2, 1)]
    changed = dict(params)
    for member in group.ins:
        at = member.index[units].reshape(-1)
        old = changed[member.tensor]
        new = _drawn(member.tensor, old.index_select(member.dim, at.to(old.device)), g)
        changed[member.tensor] = old.index_copy(member.dim, at.to(old.device), new)
    silent = {group.name: units}
    one, other = forward(structure.silence(params, silent)), forward(structure.silence(changed, silent))
    if moved := _moved(before, one, other):
        raise UnsupportedError(
            f"group {group.name!r}",
            f"the silence law fails: silenced units still move an output, by {moved:.1e} of its size",
            "set separable=False and say why",
        )


def _alone_and_together(groups: Sequence[Group]) -> list[tuple[Group, ...]]:
    return [*((group,) for group in groups), *([tuple(groups)] if len(groups) > 1 else [])]


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

    def forward(params: Mapping[str, Tensor]) -> list[Tensor]:
        with torch.no_grad(), plain_attention():
            given = tree_map(_kept, ({**own, **params}, args, kwargs))
            out = functional_call(twin, *given, tie_weights=False, strict=True)
        return [widened(y) for y in tree_leaves(out) if isinstance(y, Tensor)]

    return forward


def _program(program: Program, inputs: Any) -> Forward:
    tensors = [x for x in tree_leaves(inputs) if isinstance(x, Tensor)]

    def forward(params: Mapping[str, Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return [widened(y) for y in tree_leaves(program.run(params, *tensors))]

    return forward


def _input(x: Any, g: torch.Generator) -> Any:
    return _noise(x, g) if isinstance(x, Tensor) and moves(x) else x


def _kept(x: Any) -> Any:
    """A copy, for forward may write into what it gets."""
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
        return _noise(like, g) * scale
    if not like.is_complex() and (name.endswith(("weight", "var")) or like.ndim == 0):
        return torch.rand(like.shape, generator=g, dtype=torch.float64).to(like.device) + 0.5
    return _noise(like, g) * 0.5
