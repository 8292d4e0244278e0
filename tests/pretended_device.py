"""A pretended accelerator for machines without one: it refuses what CUDA refuses, and computes what the host does.

``DEVICE`` is a torch device like any other: ``x.to(DEVICE)``, ``module.to(DEVICE)``, ``torch.zeros(3, device=DEVICE)``
make tensors there. Their values are kept in host memory and every operation on them runs on the host, so that the
numbers are those of the host to the last bit; what CUDA does not allow is refused:

- tensors of both devices in one operation. Allowed are copies; one host number (a tensor without dimensions) beside a
  tensor of the device in elementwise operations, if it is not the one that is written to; indexing, ``x[i]`` and
  ``x[i] = v``, of a tensor of the device by an index on the host (not ``index_select`` or ``gather``, and not the other
  way round);
- a generator of the host that draws on the device (``torch.randperm(n, generator=g, device=DEVICE)``);
- numpy's view of the memory (``x.numpy()``, ``np.asarray(x)``);
- what CUDA has no kernel for: ``lstsq`` by another driver than "gels", histograms, matrix products of whole numbers.

Draws on the device without a generator come from one of its own: like those of CUDA, they are not those of the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("pretended")
DEVICE = torch.device("pretended", 0)

_DRAWS = torch.Generator().manual_seed(271828)
_COPIES = {f"aten::{name}" for name in ("copy_", "_to_copy", "_copy_from", "_copy_from_and_resize")}
_BY_INDEX = {f"aten::{name}" for name in ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")}
_THEN_NUMBERS = {"aten::where": 1, "aten::masked_fill": 2, "aten::masked_fill_": 2, "aten::index_fill": 3}
"""How many arguments are tensors of the device; numbers that follow may lie on the host."""
_PRODUCTS = {f"aten::{name}" for name in ("mm", "bmm", "addmm", "baddbmm", "mv", "addmv", "dot", "vdot")}
_HOST_ONLY = {f"aten::{name}" for name in ("histogram", "_histogramdd_bin_edges", "_histogramdd_from_bin_cts")}
_PARTLY = _PRODUCTS | _HOST_ONLY | {"aten::linalg_lstsq"}


class PretendedTensor(Tensor):
    """A tensor of the device; `held` has its values on the host."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, requires_grad: bool = False) -> PretendedTensor:
        made = Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=DEVICE, requires_grad=requires_grad,
        )  # fmt: skip
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, *args, **(kwargs or {}))

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # the library's own needs addresses
        return f"{self.held!r} on {DEVICE}"

    def __deepcopy__(self, memo: dict[int, Any]) -> PretendedTensor:
        return memo.setdefault(id(self), PretendedTensor(self.held.clone(), self.requires_grad))

    def tolist(self) -> Any:
        return self.held.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.held.detach().numpy()
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() first")


def _run(func: Any, *args: Any, **kwargs: Any) -> Any:
    """An operation with tensors of the device, or one that makes a tensor there."""
    mine, others = [], []
    for v in _leaves((*args, *kwargs.values())):
        if isinstance(v, Tensor):
            (mine if type(v) is PretendedTensor else others).append(v)
    if mine and others:
        _refuse_mixture(func, args, kwargs, others)
    wanted = kwargs.get("device")
    here = bool(mine) if wanted is None else torch.device(wanted).type == DEVICE.type
    name, draws = _about(func)
    if name == "aten::copy_":
        here = isinstance(args[0], PretendedTensor)
    if here and (draws or name in _PARTLY):
        _refuse_unknown(func, name, args, kwargs)
    call = partial(func, *_off(args), **{k: _off(v) for k, v in kwargs.items()})
    out = _from_own_generator(call) if draws else call()
    if name.endswith("_") and any(v.held.shape != v.shape for v in mine):
        raise NotImplementedError(f"{func} gives a tensor of the pretended device another shape in place")
    known = {id(v.held): v for v in mine}
    return _on(out, known) if here else out


def _leaves(values: Iterable[Any]) -> Iterator[Any]:
    for v in values:
        if isinstance(v, list | tuple):
            yield from v
        else:
            yield v


def _off(v: Any) -> Any:
    """The same on the host."""
    if isinstance(v, list | tuple):
        return type(v)(map(_off, v))
    if isinstance(v, torch.device):
        return torch.device("cpu") if v.type == DEVICE.type else v
    return v.held if isinstance(v, PretendedTensor) else v


def _on(v: Any, known: Mapping[int, Tensor]) -> Any:
    """The same on the device; what an operation wrote to stays what it was."""
    if isinstance(v, list | tuple):
        return type(v)(_on(one, known) for one in v)
    return (known.get(id(v)) if id(v) in known else PretendedTensor(v)) if isinstance(v, Tensor) else v


@cache
def _about(func: Any) -> tuple[str, bool]:
    """The name of an operation, and whether it draws random numbers."""
    return func._schema.name, torch.Tag.nondeterministic_seeded in func.tags


def _from_own_generator(call: Callable[[], Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(_DRAWS.get_state())
        out = call()
        _DRAWS.set_state(torch.get_rng_state())
    return out


def _refuse_mixture(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], host: Sequence[Tensor]) -> None:
    name = func._schema.name
    if name in _COPIES:
        return
    numbers = all(v.dim() == 0 for v in host)
    if name in _BY_INDEX:  # (x, indices, values)
        values = [v for v in args[2:3] if not isinstance(v, PretendedTensor)]
        allowed = isinstance(args[0], PretendedTensor) and all(v.dim() == 0 for v in values)
    elif name in _THEN_NUMBERS:
        leading = [v for v in args[: _THEN_NUMBERS[name]] if isinstance(v, Tensor)]
        allowed = numbers and all(isinstance(v, PretendedTensor) for v in leading)
    else:
        written = [args[i] for i, a in enumerate(func._schema.arguments[: len(args)]) if a.is_write]
        of_two = torch.Tag.pointwise in func.tags and len(host) == 1 and sum(isinstance(v, Tensor) for v in args) == 2
        allowed = numbers and of_two and all(isinstance(v, PretendedTensor) for v in written)
    if not allowed:
        shapes = ", ".join(str(list(v.shape)) for v in host)
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {DEVICE} and cpu! "
            f"(in {func}, with {shapes} on the host)"
        )


def _refuse_unknown(func: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    if any(isinstance(v, torch.Generator) for v in (*args, *kwargs.values())):
        raise RuntimeError(f"Expected a '{DEVICE.type}' device type for generator but found 'cpu' (in {func})")
    if name == "aten::linalg_lstsq" and kwargs.get("driver") not in (None, "gels"):
        raise RuntimeError("torch.linalg.lstsq: parameter `driver` should be one of (gels)")
    whole = [v for v in args if isinstance(v, Tensor) and not (v.is_floating_point() or v.is_complex())]
    if name in _HOST_ONLY or (name in _PRODUCTS and whole):
        raise NotImplementedError(f"{func} is not implemented for {[v.dtype for v in whole]} on {DEVICE}")


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    _off(target).copy_(_off(source))
    return target


def _overloads(name: str) -> Iterator[Any]:
    """Those that make a tensor; torch would make an empty one and let it grow."""
    packet = getattr(torch.ops.aten, name)
    made = [getattr(packet, k) for k in packet.overloads()]
    return (f for f in made if any(a.name == "device" for a in f._schema.arguments) and "Tensor" not in str(f))


_EVERY, _SOME = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
_EVERY.fallback(_run, "PrivateUse1")
_SOME.impl("_copy_from", _copy_from, "PrivateUse1")
for _name in ("arange", "eye", "linspace", "randperm", "tril_indices", "triu_indices"):
    for _func in _overloads(_name):
        _SOME.impl(_func, partial(_run, _func), "PrivateUse1")
