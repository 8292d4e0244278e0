"""The hidden units of a network: derived from its program, verified, and used to permute, silence and select."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from isthmus.errors import InputError
from isthmus.kinds import check_kinds
from isthmus.program.adapted import Manner, adapted, choose
from isthmus.program.copied import copied, name_of
from isthmus.program.export import Program, trace
from isthmus.structure.rules import structure_of as structure_of
from isthmus.structure.units import Group as Group
from isthmus.structure.units import Member as Member
from isthmus.structure.units import Structure as Structure
from isthmus.structure.verify import verify as verify

__all__ = ["Group", "Member", "Structure", "derive_structure", "structure_of", "verify"]


def derive_structure(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None, *, verified: bool = True
) -> Structure:
    """The unit groups of a module: its program is traced, read axis by axis, and the result verified.

    `module`: the network. `args`, `kwargs`: a batch of inputs for its forward.

    Call ``module.eval()`` first. Where its result holds more than tensors (caches of Hugging Face's language models,
    say), the ``logits`` are read, else its first or only tensor. Costs one torch.export (a fraction of a second; two
    for long inputs) and, when `verified`, about six forward passes per group, or as many per power of two in the number
    of groups where there are many; ``.verified`` says what that was done on. Errors: `UnsupportedError` naming the
    operation and its source line, or the parameter, that no rule covers.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    >>> [(g.name, g.size, [tuple(m.index.shape) for m in g.members])
    ...  for g in derive_structure(net, (torch.zeros(2, 3, 4, 4),)).groups]
    [('0', 4, [(4, 1), (4, 1), (4, 4)])]
    """
    check_kinds(derive_structure, locals())
    module = _of_tensors(module, args, kwargs or {})
    program = trace(module, args, kwargs, every_batch=False)  # units do not depend on the number of examples
    structure = _read(program, module)
    return _verified(structure, module, args, kwargs, program) if verified else structure


def structure_of_traced(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], program: Program
) -> Structure:
    """The same, verified, of a module that returns tensors and whose program on these arguments is at hand."""
    return _verified(_read(program, module), module, args, kwargs, program)


def _read(program: Program, module: nn.Module) -> Structure:
    tensors = {k: v for k, v in module.state_dict().items() if isinstance(v, Tensor)}
    return structure_of(program, {k: tuple(v.shape) for k, v in tensors.items()})


def _verified(
    structure: Structure, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None, program: Program
) -> Structure:
    return replace(structure, verified=verify(structure, module, args, kwargs, program=program))


def _of_tensors(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> nn.Module:
    """The module itself where it returns nothing but tensors, else one that returns a tensor of those."""
    try:
        with torch.no_grad():  # a forward pass may write, and nothing of the user's is written to
            found = copied(module, {})(*args, **kwargs)
    except (TypeError, RuntimeError, IndexError, ValueError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError("args", expected=f"a batch of inputs that {name_of(module)} takes", got=why) from error
    if all(v is None or isinstance(v, Tensor | int | float) for v in tree_leaves(found)):
        return module
    return adapted(module, Manner(output=choose(found, None, name_of(module))))
