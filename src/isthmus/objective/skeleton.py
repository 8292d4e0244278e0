"""A module without its weights: the copy that an objective runs with other parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import CodeType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import flop_registry

from isthmus.errors import UnsupportedError
from isthmus.params import Params, in_dtype, moves
from isthmus.program.copied import attributes, copied, name_of

_MODE_DEPENDENT = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm, nn.RReLU)

EXTRA = "_extra_state"
"""How the names of the entries of a state_dict end that ``get_extra_state`` wrote."""


class CountBytes(TorchDispatchMode):
    """Counts the bytes of every tensor that operations make."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.total += sum(v.numel() * v.element_size() for v in tree_flatten(out)[0] if isinstance(v, Tensor))
        return out


class CountProducts(TorchDispatchMode):
    """Counts the multiply-adds of products, and `first` of those that read the tensors `x` themselves."""

    def __init__(self, x: Any) -> None:
        super().__init__()
        self.places = {_place(v) for v in tree_flatten(x)[0] if moves(v)}
        self.total = self.first = 0

    @property
    def share(self) -> float:
        """`first` / `total`."""
        return self.first / max(1, self.total)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if (count := flop_registry.get(func.overloadpacket)) is not None:
            made = count(*args, **kwargs, out_val=out)
            read = [_place(v) for v in tree_flatten(args)[0] if isinstance(v, Tensor)]
            self.total += made
            self.first += made * (not self.places.isdisjoint(read))
        return out


def _place(v: Tensor) -> int:
    """What tensors with the same memory have in common, on any device."""
    return v.untyped_storage()._cdata


def bytes_each(forward: Callable[[int], Any]) -> int:
    """The bytes that operations make for one more example; `forward` runs so many.

    The difference leaves out what does not grow with the batch, such as views of weights.
    """
    totals = []
    for n in (2, 4):
        with torch.no_grad(), CountBytes() as counter:
            forward(n)
        totals.append(counter.total)
    return max(1, (totals[1] - totals[0]) // 2)


# -- what can be copied and run


def check_kind(module: nn.Module) -> None:
    """Refuse modules whose weights do not exist yet, or are not tensors of numbers that can move."""
    for name, part in module.named_modules():
        what = f"module {name!r} ({type(part).__name__})"
        if isinstance(part, torch.jit.ScriptModule):
            raise UnsupportedError(what, "torch.jit compiled it", "pass the Python module that it was made from")
        if type(part).__module__.startswith("torch.") and ".quantized." in type(part).__module__:
            raise UnsupportedError(
                what, "its weights are quantised and cannot move", "pass the floating-point module it was made from"
            )
        for own, v in (*part._parameters.items(), *part._buffers.items()):
            if v is not None and (why := _unusable(v)):
                raise UnsupportedError(f"{own!r} of {what}", *why)


def _unusable(v: Tensor) -> tuple[str, str] | None:
    if is_lazy(v):
        return "it has no shape yet", "run one forward pass first: module(x[:1])"
    if v.is_quantized:
        return "it is quantised and cannot move", "pass the floating-point module it was made from"
    if v.is_floating_point() and v.element_size() == 1:
        return f"no arithmetic is defined on {v.dtype}", "call module.float() first"
    if v.layout != torch.strided:
        return f"it is not dense ({v.layout})", "register v.to_dense()"
    return None


def check_modes(module: nn.Module) -> None:
    """Refuse dropout and BatchNorm in training mode, and whatever else asks whether it is in that mode."""
    for name, part in module.named_modules():
        random = isinstance(part, nn.RNNBase | nn.MultiheadAttention) and part.dropout > 0
        random = random or (isinstance(part, _MODE_DEPENDENT) and getattr(part, "p", 1) > 0)
        if part.training and (random or _asks(type(part))):
            raise UnsupportedError(
                f"module {name!r} ({type(part).__name__})",
                "it is in training mode, where the loss is not a function of the parameters alone",
                "call module.eval() first",
            )


def _asks(kind: type) -> bool:
    """Whether code that is not torch's own reads ``self.training``, be it only now and then."""
    own = [c for c in kind.__mro__ if c is not nn.Module and not c.__module__.startswith("torch.")]
    functions = [f for c in own for k, f in vars(c).items() if k not in ("__init__", "train", "eval", "extra_repr")]
    return any("training" in code.co_names for f in functions for code in _codes(getattr(f, "__code__", None)))


def _codes(code: CodeType | None) -> Iterator[CodeType]:
    if code is not None:
        yield code
        for inner in code.co_consts:
            if isinstance(inner, CodeType):
                yield from _codes(inner)


# -- copies


def skeleton_of(module: nn.Module, dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Params, set[int]]:
    """A copy of the module's structure with no memory in it, and its buffers that no state_dict holds, on `device`.

    Last, the memory of attributes that were views of parameters or buffers: they do not follow those any more.
    """
    memo, fixed = _stand_ins(module, dtype, device)
    memory = storages(module)
    held = [v for part in module.modules() for v in attributes(part)]
    views = [v for v in held if storage(v) in memory and id(v) not in memo]
    memo |= {id(v): _put(v.detach().clone(), device) for v in views}
    memo = _constants(held, dtype, device) | memo
    return _bare_copy(module, memo), fixed, {storage(memo[id(v)]) for v in views}


def _constants(held: list[Tensor], dtype: torch.dtype, device: torch.device) -> dict[int, Any]:
    """Attributes that are tensors: numbers as precise as the rest, all on the device; others there stay themselves."""
    moved = (v for v in held if v.is_floating_point() or v.device != device)
    own = {id(v): v.detach().clone().to(dtype) if v.is_floating_point() else v.detach() for v in moved}
    return {k: _put(v, device) for k, v in own.items()}


def _put(v: Tensor, device: torch.device) -> Tensor:
    return v if v.is_meta else v.to(device)


def _stand_ins(module: nn.Module, dtype: torch.dtype, device: torch.device) -> tuple[dict[int, Any], Params]:
    """What to put for each parameter and buffer: it has no memory, unless no state_dict holds it; and the latter."""
    memo: dict[int, Any] = {}
    for p in module.parameters():
        empty = in_dtype(torch.empty(p.shape, dtype=p.dtype, device="meta"), dtype)
        memo[id(p)] = nn.Parameter(empty, requires_grad=p.requires_grad and moves(p))
    kept = module.state_dict(keep_vars=True)
    fixed = {}
    for name, b in module.named_buffers():
        value = in_dtype(b.detach(), dtype)
        memo[id(b)] = value.to("meta") if name in kept else _put(value.clone(), device)
        if name not in kept:
            fixed[name] = memo[id(b)]
    return memo, fixed


def _bare_copy(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    try:
        skeleton = copied(module, memo)
    except Exception as e:
        raise UnsupportedError(name_of(module), f"its structure cannot be copied ({e})") from e
    for part in skeleton.modules():
        if isinstance(part, nn.Embedding | nn.EmbeddingBag):
            part.sparse = False  # optimisers want dense gradients
    return skeleton


def drawn(like: Mapping[str, Tensor], parameters: Iterable[str]) -> Params:
    """Random parameters, like those in `like`, at which signals neither die nor saturate."""
    g = torch.Generator().manual_seed(0)
    out = {}
    for name in parameters:
        v = like[name]
        real = v.dtype if v.is_floating_point() or v.is_complex() else torch.float32
        noise = torch.randn(v.shape, generator=g, dtype=real)
        if v.dim() > 1:
            noise *= (2 * v.shape[0] / max(v.numel(), 1)) ** 0.5
        elif name.endswith("weight"):
            noise = noise.abs() / 2 + 0.5
        out[name] = noise.to(v)
    return out


def points(
    whole: Params, own: Params, like: Mapping[str, Tensor], parameters: Sequence[str]
) -> list[Callable[[], Params]]:
    """`whole` with a module's `own` weights, and with ``drawn`` ones, each made when called; without own ones the last.

    Own weights may lack some, which are drawn.
    """

    def at_own() -> Params:
        return {**whole, **({} if own.keys() >= {*parameters} else drawn(like, parameters)), **own}

    def at_random() -> Params:
        return {**whole, **own, **drawn(like, parameters)}

    return [at_random] if own.keys().isdisjoint(parameters) else [at_own, at_random]


def zeros(like: Mapping[str, Tensor], device: torch.device) -> Params:
    """Tensors of the shapes in `like`, 0 everywhere; variances 1."""
    return {
        k: torch.ones(v.shape, dtype=v.dtype, device=device) if k.endswith("running_var") else _zero(v, device)
        for k, v in like.items()
    }


def _zero(like: Tensor, device: torch.device) -> Tensor:
    """Zeros, which on the CPU take memory only once they are written to: numpy asks the system for empty pages."""
    if device.type != "cpu":
        return torch.zeros(like.shape, dtype=like.dtype, device=device)
    held = np.zeros(max(1, like.numel() * like.dtype.itemsize), dtype=np.uint8)
    return torch.from_numpy(held)[: like.numel() * like.dtype.itemsize].view(like.dtype).view(like.shape)


def stand_ins(like: Mapping[str, Tensor], device: torch.device) -> Params:
    """Tensors of the shapes in `like` with no memory: those on the meta device cannot carry the one that is wanted."""
    return {k: torch.empty((), dtype=v.dtype, device=device).expand(v.shape) for k, v in like.items()}


def materialised(skeleton: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the skeleton that holds the tensors of `state`."""
    memo: dict[int, Any] = {id(p): nn.Parameter(state[k], p.requires_grad) for k, p in skeleton.named_parameters()}
    memo |= {id(b): state[k] if k in state else b.clone() for k, b in skeleton.named_buffers()}
    return copied(skeleton, memo)


def storage(v: Tensor) -> int:
    """The address of the memory of a tensor; 0 where there is none, as in a tensor that wraps others."""
    try:
        return v.untyped_storage().data_ptr() if v.layout == torch.strided else 0
    except RuntimeError:
        return 0


def storages(module: nn.Module) -> set[int]:
    """The addresses of the memory of everything that the state_dict holds."""
    return {storage(v) for v in module.state_dict(keep_vars=True).values() if isinstance(v, Tensor)} - {0}


def ties_of(module: nn.Module) -> dict[str, str]:
    """For each further name of a shared parameter or buffer its first name."""
    first: dict[int, str] = {}
    ties = {}
    kept = module.state_dict(keep_vars=True)
    for name, v in _named(module):
        if name not in kept:
            continue
        if id(v) in first:
            ties[name] = first[id(v)]
        first.setdefault(id(v), name)
    return ties


def shares(module: nn.Module) -> bool:
    """Whether a parameter or a buffer has several names."""
    named = _named(module)
    return len({id(v) for _, v in named}) < len(named)


def _named(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers by all their names."""
    return [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]


def counters(module: nn.Module) -> set[str]:
    """The names of the counters of batches that normalisations keep, which are read in training mode only."""
    return {
        f"{path}.num_batches_tracked" if path else "num_batches_tracked"
        for path, part in module.named_modules()
        if isinstance(part, nn.modules.batchnorm._NormBase) and part.num_batches_tracked is not None
    }
