"""Modules copied, whatever wraps them and whatever an earlier pass left in them."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from isthmus.program.adapted import Adapted

__all__ = ["REGISTERED", "Inner", "attributes", "copied", "name_of"]

REGISTERED = ("_parameters", "_buffers", "_modules")
"""The attributes in which a module keeps what it registers."""


class Inner(nn.Module):
    """Stands where a wrapper stood that computes what the one module in it does; names stay what they were."""

    def __init__(self, name: str, inner: nn.Module) -> None:
        super().__init__()
        self.add_module(name, inner)
        self.training = inner.training

    @property
    def inner(self) -> nn.Module:
        """The module itself."""
        return next(self.children())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module itself computes."""
        return self.inner(*args, **kwargs)


def name_of(module: nn.Module) -> str:
    """The name of the module's class, or of the class that a wrapper wraps."""
    if isinstance(module, Adapted):
        return name_of(module.own)
    return name_of(module.inner) if isinstance(module, Inner) else type(module).__name__


def _wrapped(module: nn.Module) -> str:
    """The name under which a wrapper (DataParallel, torch.compile) holds its module; empty for other modules."""
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return "module"
    return "_orig_mod" if type(module).__name__ == "OptimizedModule" else ""


def copied(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A deep copy with `memo` as of ``copy.deepcopy``, wrappers left out.

    What an earlier forward pass left in attributes (the weights that pruning and weight_norm compute) is copied
    without its history, which torch refuses to copy.
    """
    parts = list(module.modules())
    for part in parts:
        for v in attributes(part):
            if v.grad_fn is not None and id(v) not in memo:
                memo[id(v)] = v.detach().clone()
    for part in reversed(parts):  # from the inside out
        if name := _wrapped(part):
            memo[id(part)] = Inner(name, copy.deepcopy(part.get_submodule(name), memo))
    return copy.deepcopy(module, memo)


def attributes(part: nn.Module) -> list[Tensor]:
    """The tensors that a module holds without having registered them, in lists and dictionaries too."""
    own = {k: v for k, v in vars(part).items() if k not in REGISTERED}
    return [v for v in tree_leaves(own) if isinstance(v, Tensor)]
