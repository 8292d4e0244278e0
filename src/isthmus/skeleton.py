"""A module without its weights: the copy that an objective runs with other parameters."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from isthmus.errors import UnsupportedError
from isthmus.params import Params, in_dtype, moves

_MODE_DEPENDENT = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)


class CountBytes(TorchDispatchMode):
    """Counts the bytes of every tensor that operations make."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.total += sum(v.numel() * v.element_size() for v in tree_flatten(out)[0] if isinstance(v, Tensor))
        return out


def check_modes(module: nn.Module) -> None:
    """Refuse dropout and BatchNorm in training mode, and weights that are packed integers."""
    for name, part in module.named_modules():
        if type(part).__module__.startswith("torch.ao.nn.quantized"):
            raise UnsupportedError(
                f"module {name!r} ({type(part).__name__})",
                "its quantised weights cannot move continuously",
                "use the floating-point module that it was made from",
            )
        random = isinstance(part, nn.RNNBase | nn.MultiheadAttention) and part.dropout > 0
        if part.training and (random or isinstance(part, _MODE_DEPENDENT)):
            raise UnsupportedError(
                f"module {name!r} ({type(part).__name__})",
                "it is in training mode, where the loss is not a function of the parameters alone",
                "call module.eval() first",
            )


def skeleton_of(module: nn.Module, dtype: torch.dtype) -> tuple[nn.Module, Params]:
    """A copy of the module's structure with no memory in it, and its buffers that no state_dict holds."""
    memo: dict[int, Any] = {}
    for p in module.parameters():
        empty = in_dtype(torch.empty(p.shape, dtype=p.dtype, device="meta"), dtype)
        memo[id(p)] = nn.Parameter(empty, requires_grad=p.requires_grad and moves(p))
    kept = module.state_dict(keep_vars=True)
    fixed = {}
    for name, b in module.named_buffers():
        value = in_dtype(b.detach(), dtype)
        memo[id(b)] = value.to("meta") if name in kept else value.clone()
        if name not in kept:
            fixed[name] = memo[id(b)]
    try:
        return copy.deepcopy(module, memo), fixed
    except Exception as e:
        raise UnsupportedError(type(module).__name__, f"its structure cannot be copied ({e})") from e


def ties_of(module: nn.Module) -> dict[str, str]:
    """For each further name of a shared parameter its first name."""
    first: dict[int, str] = {}
    ties = {}
    for name, p in module.named_parameters(remove_duplicate=False):
        if id(p) in first:
            ties[name] = first[id(p)]
        first.setdefault(id(p), name)
    return ties


def counters(module: nn.Module) -> set[str]:
    """The names of the counters of batches that normalisations keep, which are read in training mode only."""
    return {
        f"{path}.num_batches_tracked" if path else "num_batches_tracked"
        for path, part in module.named_modules()
        if isinstance(part, nn.modules.batchnorm._NormBase) and part.num_batches_tracked is not None
    }
