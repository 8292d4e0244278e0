"""Arithmetic on parameter dictionaries, ``Params = dict[str, Tensor]`` (a ``state_dict``).

Every function takes dictionaries with the same keys, shapes, dtypes and devices and refuses others: ``torch.lerp``
alone would broadcast a (3, 1) tensor against a (1, 4) one in silence. Tensors that are the same object, or
equal, at both arguments are shared with the result, not copied. Integer tensors (counters, index tables) are not
interpolated: they keep their first value and take the last one at t = 1 exactly.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from isthmus.errors import InputError

Params = dict[str, Tensor]

__all__ = [
    "Params",
    "cast",
    "check_finite",
    "check_like",
    "distance",
    "dot",
    "equal",
    "lerp",
    "masks",
    "nonfinite",
    "norm",
    "not_dense",
    "share",
    "stack",
    "widens",
]


def _some(names: Iterable[str], limit: int = 4) -> str:
    names = sorted(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def check_like(params: Mapping[str, Tensor], like: Mapping[str, Tensor], what: str = "params") -> None:
    """Refuse `params` unless it has the keys, shapes, dtypes and devices of `like`; the message names the key.

    >>> check_like({"w": torch.zeros(2)}, {"w": torch.zeros(3)})
    Traceback (most recent call last):
    isthmus.errors.InputError: params['w']: expected shape (3,), got (2,)
    """
    if missing := set(like) - set(params):
        raise InputError(what, expected=f"the key(s) {_some(missing)}", got=f"only {_some(params)}")
    if extra := set(params) - set(like):
        raise InputError(what, expected=f"only the keys {_some(like)}", got=f"also {_some(extra)}")
    for name, want in like.items():
        have = params[name]
        if not isinstance(have, Tensor):
            raise InputError(f"{what}[{name!r}]", expected="a torch.Tensor", got=type(have).__name__)
        if have.shape != want.shape:
            raise InputError(f"{what}[{name!r}]", expected=f"shape {tuple(want.shape)}", got=tuple(have.shape))
        if have.dtype != want.dtype:
            raise InputError(f"{what}[{name!r}]", expected=str(want.dtype), got=have.dtype)
        if have.device != want.device:
            raise InputError(f"{what}[{name!r}]", expected=f"device {want.device}", got=have.device)


def masks(points: Sequence[Mapping[str, Tensor]], parameters: Collection[str]) -> set[str]:
    """The names of the tensors with infinities (no NaN) that are no `parameters` and the same at all points.

    >>> causal = torch.tensor([[0.0, -torch.inf], [0.0, 0.0]])
    >>> masks([{"mask": causal, "w": torch.zeros(1)}, {"mask": causal.clone(), "w": torch.ones(1)}], ["w"])
    {'mask'}
    """
    return {
        k
        for k, v in points[0].items()
        if k not in parameters
        and v.is_floating_point()
        and bool(v.isinf().any())
        and all(torch.equal(p[k], v) for p in points)
    }


def not_dense(tensor: Tensor) -> tuple[str, str] | None:
    """Why a tensor has no plain array of values, and what to write instead; None for one that has.

    >>> not_dense(torch.eye(2).to_sparse())
    ('not a dense tensor: it is sparse', 'tensor.to_dense()')
    """
    if tensor.is_quantized:
        return "not a dense tensor: it is quantised", "tensor.dequantize()"
    if tensor.is_nested:
        return "not a dense tensor: it is nested", "the tensors of tensor.unbind()"
    if tensor.layout != torch.strided:
        return "not a dense tensor: it is sparse", "tensor.to_dense()"
    if tensor.is_meta:
        return "not a dense tensor: it is on the device meta, where tensors have no values", "the values themselves"
    return None


def widens(narrow: torch.dtype, wide: torch.dtype) -> bool:
    """Whether `wide` holds every number of the floating-point type `narrow`.

    >>> widens(torch.float8_e4m3fn, torch.float32), widens(torch.bfloat16, torch.float16)
    (True, False)
    """
    if narrow.itemsize == 1:  # float8, which torch does not promote
        return wide in (torch.bfloat16, torch.float32, torch.float64)
    return torch.promote_types(narrow, wide) == wide


def nonfinite(params: Mapping[str, Tensor], but: Collection[str] = ()) -> str | None:
    """The name of the first tensor, none of `but`, that holds NaN or an infinity, or None.

    >>> nonfinite({"w": torch.tensor([1.0]), "b": torch.tensor([float("inf")])})
    'b'
    """
    bad = (k for k, v in params.items() if v.is_floating_point() and not bool(v.isfinite().all()))
    return next((k for k in bad if k not in but), None)


def check_finite(params: Mapping[str, Tensor], what: str = "params", but: Collection[str] = ()) -> None:
    """Refuse NaN and infinities (except in `but`), naming the tensor and how many of its entries are not finite."""
    if (name := nonfinite(params, but)) is not None:
        bad = int((~params[name].isfinite()).sum())
        raise InputError(f"{what}[{name!r}]", expected="finite numbers", got=f"{bad} entries that are NaN or infinite")


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Same keys, and every tensor equal bit for bit (as ``torch.equal``).

    >>> equal({"w": torch.ones(2)}, {"w": torch.ones(2)})
    True
    """
    return a.keys() == b.keys() and all(
        v is b[k] or (v.dtype == b[k].dtype and torch.equal(v, b[k])) for k, v in a.items()
    )


def share(params: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> Params:
    """`params` with every tensor that equals the one in `like` replaced by that very object."""
    return {k: like[k] if v is like[k] or torch.equal(v, like[k]) else v for k, v in params.items()}


def lerp(a: Mapping[str, Tensor], b: Mapping[str, Tensor], t: float) -> Params:
    """(1 - t) a + t b; exact at t = 0 and t = 1, where it returns the tensors themselves.

    >>> lerp({"w": torch.tensor([0.0])}, {"w": torch.tensor([4.0])}, 0.25)["w"]
    tensor([1.])
    """
    if t == 0:
        return dict(a)
    if t == 1:
        return dict(b)
    return {k: v if v is b[k] or not v.is_floating_point() else torch.lerp(v, b[k], t) for k, v in a.items()}


def dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """The inner product over all floating-point entries, summed in float64.

    >>> dot({"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 4.0])})
    11.0
    """
    return sum(
        float(torch.dot(v.double().flatten(), b[k].double().flatten())) for k, v in a.items() if v.is_floating_point()
    )


def norm(a: Mapping[str, Tensor]) -> float:
    """The Euclidean norm over all floating-point entries.

    >>> norm({"w": torch.tensor([3.0, 4.0])})
    5.0
    """
    return dot(a, a) ** 0.5


def distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """The Euclidean distance over all floating-point entries; shared tensors cost nothing.

    >>> distance({"w": torch.zeros(2)}, {"w": torch.tensor([3.0, 4.0])})
    5.0
    """
    return (
        sum(
            float((v.double() - b[k].double()).square().sum())
            for k, v in a.items()
            if v is not b[k] and v.is_floating_point()
        )
        ** 0.5
    )


def cast(params: Mapping[str, Tensor], dtype: torch.dtype) -> Params:
    """The floating-point tensors in `dtype`; others, and those that have it already, are shared.

    >>> cast({"w": torch.ones(1)}, torch.float64)["w"].dtype
    torch.float64
    """
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in params.items()}


def stack(several: Sequence[Mapping[str, Tensor]]) -> Params:
    """One dictionary whose tensors have a new first axis: entry i is the i-th dictionary.

    >>> stack([{"w": torch.zeros(2)}, {"w": torch.ones(2)}])["w"].shape
    torch.Size([2, 2])
    """
    for other in several[1:]:
        check_like(other, several[0])
    return {k: torch.stack([p[k] for p in several]) for k in several[0]}
