"""Arithmetic on parameter dictionaries, ``Params = dict[str, Tensor]`` (a ``state_dict``).

Every function takes dictionaries with the same keys, shapes, dtypes and devices and refuses others: ``torch.lerp``
alone would broadcast a (3, 1) tensor against a (1, 4) one in silence. Tensors that are the same object, or
equal, at both arguments are shared with the result, not copied. Real and complex tensors move (``moves``). Integer and
boolean ones (counters, index tables, masks) are not interpolated: they keep their first value and take the last one at
t = 1 exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from math import isnan

import torch
from torch import Tensor

from isthmus.errors import InputError

Params = dict[str, Tensor]

_PART = 1 << 22
"""Entries of a tensor that are widened at a time."""
_SAME_WAY = 1e-9
"""Two tensors have no great circle where the cosine between them is that near to 1 or -1."""

__all__ = [
    "Params",
    "cast",
    "check_ends",
    "check_finite",
    "check_like",
    "check_moves",
    "distance",
    "dot",
    "equal",
    "in_dtype",
    "in_parts",
    "lerp",
    "mean",
    "moves",
    "nonfinite",
    "nonfinite_on",
    "norm",
    "not_dense",
    "on_circle",
    "share",
    "stack",
    "widen",
    "widened",
]


def moves(v: Tensor) -> bool:
    """Whether the tensor holds real or complex numbers, which can move along a path; others cannot.

    >>> moves(torch.ones(1)), moves(torch.ones(1, dtype=torch.cfloat)), moves(torch.ones(1, dtype=torch.bool))
    (True, True, False)
    """
    return v.is_floating_point() or v.is_complex()


def in_dtype(v: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor that can move in the precision `dtype`, complex ones in the complex type of it; others as they are.

    >>> in_dtype(torch.ones(1, dtype=torch.cfloat), torch.float64).dtype, in_dtype(torch.tensor(3), torch.float64)
    (torch.complex128, tensor(3))
    """
    if v.is_complex():
        return v.to(torch.complex128 if dtype == torch.float64 else torch.complex64)
    return v.to(dtype) if v.is_floating_point() else v


def widened(v: Tensor) -> Tensor:
    """The entries as float64, a complex one as two of them; carries gradients.

    >>> widened(torch.tensor([3 + 4j]))
    tensor([[3., 4.]], dtype=torch.float64)
    """
    return torch.view_as_real(v.resolve_conj().to(torch.complex128)) if v.is_complex() else v.double()


def _some(names: Iterable[str], limit: int = 4) -> str:
    names = sorted(map(str, names))
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


@cache
def _widens(narrow: torch.dtype, wide: torch.dtype) -> bool:
    """Whether `wide` holds every number of the floating-point type `narrow`.

    >>> _widens(torch.float8_e4m3fn, torch.float32), _widens(torch.bfloat16, torch.float16)
    (True, False)
    """
    if narrow.itemsize == 1:  # float8, which torch does not promote
        return wide in (torch.bfloat16, torch.float32, torch.float64)
    return torch.promote_types(narrow, wide) == wide


def widen(value: Tensor, dtype: torch.dtype, what: str) -> Tensor:
    """`value` in the precision `dtype`, which holds all its numbers; detached. Errors: a wider one; one that is packed.

    >>> widen(torch.tensor([1.5]).half(), torch.float32, "w")
    tensor([1.5000])
    """
    if not isinstance(value, Tensor):
        return value
    if odd := not_dense(value):
        raise InputError(what, expected="a dense tensor of ordinary numbers", got=odd[0], instead=odd[1])
    if moves(value) and not _widens(value.dtype.to_real(), dtype):
        real = torch.float64 if value.dtype == torch.complex128 else value.dtype
        raise InputError(
            what, expected=f"{dtype}, the objective's precision", got=value.dtype, instead=f"objective.cast({real})"
        )
    return in_dtype(value, dtype).detach()


def check_moves(points: Sequence[Mapping[str, Tensor]], idle: Callable[[str], bool], what: str) -> None:
    """Refuse points of a path that differ in a tensor that cannot move and is not `idle`.

    >>> a, b = ({"index": torch.tensor([k])} for k in (0, 1))
    >>> check_moves([a, b], lambda name: False, "path")
    Traceback (most recent call last):
    isthmus.errors.InputError: path['index']: expected the torch.int64 tensor of the other end (it cannot move \
continuously), got other values
    """
    for name, first in points[0].items():
        if moves(first) or all(p[name] is first or torch.equal(first, p[name]) for p in points) or idle(name):
            continue
        raise InputError(
            f"{what}[{name!r}]",
            expected=f"the {first.dtype} tensor of the other end (it cannot move continuously)",
            got="other values",
        )


def nonfinite_on(points: Sequence[Mapping[str, Tensor]]) -> tuple[int, str] | None:
    """The first point of a path and its tensor that holds NaN, or an infinity where the tensor changes; or None.

    An infinity that stays (a mask) is no obstacle: shared tensors are not interpolated.

    >>> a, b = {"w": torch.zeros(1), "mask": torch.tensor([-float("inf")])}, {"w": torch.ones(1)}
    >>> nonfinite_on([a, {**a, **b}]), nonfinite_on([a, {**b, "mask": torch.zeros(1)}])
    (None, (0, 'mask'))
    """
    stays = {k for k, v in points[0].items() if all(p[k] is v or torch.equal(p[k], v) for p in points)}
    for i, point in enumerate(points):
        for name, v in point.items():
            if i and name in stays:
                continue
            if _is_odd(v, stays=name in stays):
                return i, name
    return None


def _is_odd(v: Tensor, *, stays: bool) -> bool:
    return moves(v) and any(bool((part.isnan() if stays else ~part.isfinite()).any()) for (part,) in in_parts(v))


def check_ends(*points: Mapping[str, Tensor]) -> None:
    """Refuse networks a, b, ... where ``nonfinite_on`` finds something, naming the network, the tensor and how much."""
    if (found := nonfinite_on(points)) is not None:
        i, name = found
        check_finite({name: points[i][name]}, "abc"[i])


def nonfinite(params: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds NaN or an infinity, or None.

    >>> nonfinite({"w": torch.tensor([1.0]), "b": torch.tensor([float("inf")])})
    'b'
    """
    return next((k for k, v in params.items() if _is_odd(v, stays=False)), None)


def check_finite(params: Mapping[str, Tensor], what: str = "params") -> None:
    """Refuse NaN and infinities, naming the tensor and how many of its entries are not finite."""
    if (name := nonfinite(params)) is not None:
        bad = int((~params[name].isfinite()).sum())
        raise InputError(f"{what}[{name!r}]", expected="finite numbers", got=f"{bad} entries that are NaN or infinite")


def in_range(values: Tensor, what: str) -> Tensor:
    """`values` themselves, computed from finite weights. Errors: infinities and NaN, which are an overflow.

    >>> in_range(torch.ones(1), "features")
    tensor([1.])
    """
    if not bool(values.isfinite().all()):
        raise InputError(what, expected="numbers in the range of float64", got="an overflow (weights too large)")
    return values


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
    return {k: like[k] if v is like.get(k) or _equal(v, like.get(k)) else v for k, v in params.items()}


def _equal(a: object, b: object) -> bool:
    return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)


def lerp(a: Mapping[str, Tensor], b: Mapping[str, Tensor], t: float) -> Params:
    """(1 - t) a + t b; exact at t = 0 and t = 1, where it returns the tensors themselves.

    >>> lerp({"w": torch.tensor([0.0])}, {"w": torch.tensor([4.0])}, 0.25)["w"]
    tensor([1.])
    """
    if t == 0:
        return dict(a)
    if t == 1:
        return dict(b)
    return {k: v if v is b[k] or not moves(v) else torch.lerp(v, b[k], t) for k, v in a.items()}


def on_circle(a: Tensor, b: Tensor, t: float) -> tuple[float, float] | None:
    """The shares of `a` and `b` in the point at t of the great circle through both (Shoemake 1985).

    None where there is no such circle: they point the same or the opposite way, or one of them is zero.

    >>> on_circle(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), 1.0), on_circle(torch.ones(2), torch.ones(2), 0.5)
    ((0.0, 1.0), None)
    """
    norms = float(a.norm() * b.norm())
    cosine = float((a.conj() * b).sum().real) / norms if norms else 1.0
    if abs(cosine) > 1 - _SAME_WAY:
        return None
    angle = torch.arccos(torch.tensor(cosine, dtype=torch.float64))
    left, right = (float((s * angle).sin() / angle.sin()) for s in (1 - t, t))
    return left, right


def dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """The inner product over all entries that can move, summed in float64; a complex entry counts as two real ones.

    >>> dot({"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 4.0])})
    11.0
    """
    pairs = ((v, v if b is a else b[k]) for k, v in a.items() if moves(v))
    return sum(sum(_dot(*parts) for parts in in_parts(v, w)) for v, w in pairs)


def norm(a: Mapping[str, Tensor]) -> float:
    """The Euclidean norm over all entries that can move.

    >>> norm({"w": torch.tensor([3.0, 4.0])})
    5.0
    """
    return dot(a, a) ** 0.5


def distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """The Euclidean distance over all entries that can move; shared tensors cost nothing, nor do equal infinities.

    >>> mask = torch.tensor([0.0, -float("inf")])
    >>> distance({"w": torch.zeros(2), "mask": mask}, {"w": torch.tensor([3.0, 4.0]), "mask": mask.clone()})
    5.0
    """
    pairs = ((v, b[k]) for k, v in a.items() if moves(v))
    apart = (parts for v, w in pairs if v is not w for parts in in_parts(v, w))
    return sum(_square_of_gap(v, w) for v, w in apart) ** 0.5


def _square_of_gap(v: Tensor, w: Tensor) -> float:
    found = float((widened(v) - widened(w)).square().sum())
    if not isnan(found):
        return found
    p, q = widened(v), widened(w)  # infinities that are equal are no distance apart
    return float((p - q).masked_fill_(p == q, 0.0).square().sum())


def _dot(v: Tensor, w: Tensor) -> float:
    wide = widened(v).flatten()
    return float(torch.dot(wide, wide if w is v else widened(w).flatten()))


def in_parts(*several: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Large tensors of one shape in parts, the same ones of each, which float64 copies of are small; others whole.

    One tensor that is given twice stays one in each part.
    """
    first = several[0]
    if first.numel() <= _PART or not all(v.is_contiguous() for v in several):
        yield several
        return
    for i in range(0, first.numel(), _PART):
        parts = {id(v): v.reshape(-1)[i : i + _PART] for v in several}
        yield tuple(parts[id(v)] for v in several)


def cast(params: Mapping[str, Tensor], dtype: torch.dtype) -> Params:
    """The tensors that can move in `dtype` (``in_dtype``); others, and those that have it already, are shared.

    >>> cast({"w": torch.ones(1)}, torch.float64)["w"].dtype
    torch.float64
    """
    return {k: in_dtype(v, dtype) for k, v in params.items()}


def mean(several: Sequence[Mapping[str, Tensor]]) -> Params:
    """The mean of each tensor, added up in float64; those that cannot move, and those that are shared, are the first's.

    >>> mean([{"w": torch.tensor([1.0])}, {"w": torch.tensor([4.0])}])["w"]
    tensor([2.5000])
    """
    return {k: _mean([p[k] for p in several]) for k in several[0]}


def _mean(several: Sequence[Tensor]) -> Tensor:
    first = several[0]
    if not moves(first) or all(v is first for v in several):
        return first
    out = torch.empty_like(first, memory_format=torch.contiguous_format)
    for whole, *parts in in_parts(out, *several):
        total = in_dtype(parts[0], torch.float64)
        for v in parts[1:]:
            total = total + in_dtype(v, torch.float64)
        whole.copy_(total / len(several))
    return out


def stack(several: Sequence[Mapping[str, Tensor]]) -> Params:
    """One dictionary whose tensors have a new first axis: entry i is the i-th dictionary.

    >>> stack([{"w": torch.zeros(2)}, {"w": torch.ones(2)}])["w"].shape
    torch.Size([2, 2])
    """
    for other in several[1:]:
        check_like(other, several[0])
    return {k: torch.stack([p[k] for p in several]) for k in several[0]}
