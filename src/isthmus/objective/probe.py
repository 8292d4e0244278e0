"""What a module's forward does besides computing outputs: writing, drawing random numbers, mixing examples."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from isthmus.errors import InputError, UnsupportedError
from isthmus.objective.data import Inputs, hint, rows
from isthmus.objective.outside import outside
from isthmus.objective.skeleton import storage
from isthmus.objective.writes import Writes, alike, call, changed, held, same
from isthmus.params import Params, cast
from isthmus.program.copied import attributes, copied, name_of
from isthmus.program.export import plain_attention

REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError)
"""The errors by which a forward pass says that it cannot take its arguments."""

Point = Callable[[], Params]
"""Makes all tensors that a call needs."""

_BATCHES = (2, 3, 4, 5, 8, 10, 16, 20, 25, 32, 40, 50, 64, 100, 128, 200, 256, 512)
"""Numbers of examples that somebody may have written into a forward pass."""


class _Watch(TorchDispatchMode):
    """Notes the memory that operations read and write, which draw random numbers, and whether some read no memory."""

    def __init__(self) -> None:
        super().__init__()
        self.read: set[int] = set()
        self.written: set[int] = set()
        self.random: list[str] = []
        self.unset = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        schema = {a.name: a for a in func._schema.arguments}
        given = {k: a.default_value for k, a in schema.items() if a.has_default_value()}
        given |= dict(zip(schema, args, strict=False)) | kwargs
        for name, value in given.items():
            alias = schema[name].alias_info if name in schema else None
            self._note(value, alias is not None and alias.is_write)
        if torch.Tag.nondeterministic_seeded in func.tags and not _idle(given):
            self.random.append(str(func))
        return func(*args, **kwargs)

    def _note(self, value: Any, is_written: bool) -> None:
        held = [v for v in tree_leaves(value) if isinstance(v, Tensor)]
        self.unset |= any(v.is_meta for v in held)
        memory = {storage(v) for v in held} - {0}
        self.read |= memory
        if is_written:
            self.written |= memory


def _idle(given: Mapping[str, Any]) -> bool:
    """Whether an operation that may draw random numbers was told not to."""
    rates = [given[k] for k in ("dropout_p", "dropout", "p") if isinstance(given.get(k), int | float)]
    modes = [given[k] for k in ("train", "training") if isinstance(given.get(k), bool)]
    return 0 in rates or False in modes


@torch.no_grad()
def examine(module: nn.Module, points: Sequence[Point], x: Inputs, memory: set[int]) -> tuple[Writes, Tensor]:
    """What forward writes, and its outputs at the examples `x`, if they depend on parameters and example alone.

    `points`: all that ``functional_call`` replaces, at the module's own weights and at random ones, where nothing
    is hidden by a zero, each made when it is needed, so that one is in memory at a time; `memory`: the addresses of
    weights that are not among them, which nothing may read or write.
    Errors: ``InputError`` when forward does not run, ``UnsupportedError``.
    """
    writes, out = _examine_first(module, points[0](), x, memory)
    for point in points[1:]:
        drawn = point()
        try:
            at_random = call(module, drawn, x, writes)
        except REFUSALS:
            return writes, out
        if isinstance(at_random, Tensor) and at_random.shape == out.shape and bool(at_random.isfinite().all()):
            _check_point(module, drawn, x, writes, at_random)
    return writes, out


def _examine_first(module: nn.Module, tensors: Params, x: Inputs, memory: set[int]) -> tuple[Writes, Tensor]:
    kind, n = name_of(module), len(tree_leaves(x)[0])
    writes, first = _first_call(module, tensors, x, memory)
    _check_output(kind, first, n)
    second = call(module, tensors, x, writes)
    before = outside(module)
    third = call(module, tensors, x, writes)
    _check_outside(kind, before, outside(module))
    if not same(first, second) and not same(second, third):
        raise UnsupportedError(kind, "two passes over the same data differ (forward is random)", "call module.eval()")
    _check_point(module, tensors, x, writes, second)
    return writes, second


def _check_point(module: nn.Module, tensors: Params, x: Inputs, writes: Writes, out: Tensor) -> None:
    if any(part.training for part in module.modules()):
        _check_eval(module, tensors, x, writes, out)
    _check_alone(module, tensors, x, writes, out)


@torch.no_grad()
def check_together(module: nn.Module, points: Sequence[Point], x: Inputs, writes: Writes) -> None:
    """Refuse outputs of a few examples that change when these stand in the batch `x`, which may be a large one."""
    n, states = len(tree_leaves(x)[0]), generators()
    index = torch.tensor(sorted({0, 1 % n, n // 2, n - 1}), device=tree_leaves(x)[0].device)
    tensors: Params = {}
    for point in points:
        tensors.clear()  # before the next one is made
        tensors |= point()
        alone = call(module, tensors, rows(x, index), writes)
        try:
            together = call(module, tensors, x, writes)
        except REFUSALS as e:
            if point is points[0]:
                raise _refused(module, tensors, x, writes, e) from e
            return
        finally:
            drew = restore(states)
        _check_output(name_of(module), together, n)
        if drew:
            raise _random(name_of(module), "Python's, numpy's or torch's generator")
        if point is not points[0] and not bool(together.isfinite().all()):
            return
        if alone.shape[1:] != together.shape[1:]:
            raise _dependent(module, "the shape of an example's output depends on the rest of its batch")
        if _far(alone, together[index]) and not _rounding(module, tensors, x, writes, index):
            raise _dependent(module, f"an example's output depends on the rest of its batch, of {n}")


@torch.no_grad()
def accepts(module: nn.Module, tensors: Params, x: Inputs, writes: Writes) -> Tensor:
    """The outputs at `x`; what forward refuses is an error that says so."""
    try:
        out = call(module, tensors, x, writes)
    except REFUSALS as e:
        raise _refused(module, tensors, x, writes, e) from e
    _check_output(name_of(module), out, len(tree_leaves(x)[0]))
    return out


def _check_output(kind: str, out: Any, n: int) -> None:
    """Refuse what is not one tensor with an entry per example."""
    if not isinstance(out, Tensor):
        raise UnsupportedError(kind, f"its forward returns {type(out).__name__}, and a tensor at other weights")
    if out.dim() == 0 or len(out) != n or not out.numel():
        raise UnsupportedError(
            kind, f"{n} examples give an output of shape {tuple(out.shape)}", "examples must stand on axis 0"
        )


def _first_call(module: nn.Module, tensors: Params, x: Inputs, memory: set[int]) -> tuple[Writes, Any]:
    """One watched call on copies of everything."""
    views = (v for part in module.modules() for v in attributes(part) if storage(v) in memory)
    trial = with_same_weights(module, *views)
    tensors = {k: v.clone() for k, v in tensors.items()}
    x = tree_map(torch.clone, x)
    opaque = changed(module, trial)
    out, watch = _watched(trial, tensors, x)
    if watch.read & memory or watch.unset:
        raise _elsewhere(name_of(module))
    attributes_written = held(trial, watch.written) | changed(module, trial) - opaque
    return Writes(
        any(storage(v) in watch.written for v in tree_leaves(x)),
        frozenset(k for k, v in tensors.items() if storage(v) in watch.written),
        tuple(sorted(attributes_written)),
    ), out


def with_same_weights(module: nn.Module, *views: Tensor) -> nn.Module:
    """A copy of all but the weights."""
    return copied(module, {id(v): v for v in (*module.parameters(), *module.buffers(), *views)})


def _watched(trial: nn.Module, tensors: Params, x: Inputs) -> tuple[Any, _Watch]:
    """What a call gives and touches. Errors: it does not run, or it draws random numbers."""
    kind = name_of(trial)
    states, before = generators(), _drawing(trial)
    try:
        with _Watch() as watch:
            out = call(trial, tensors, x, Writes())
    except REFUSALS as e:
        if re.search(r"\bmeta\b", str(e)):
            raise _elsewhere(kind) from e
        raise _refused(trial, tensors, x, Writes(), e) from e
    finally:
        drew = restore(states)
    if drew or watch.random:
        raise _random(kind, watch.random[0] if watch.random else "Python's, numpy's or torch's generator")
    _check_outside(kind, before, _drawing(trial))
    return out, watch


def _refused(module: nn.Module, tensors: Params, x: Inputs, writes: Writes, error: Exception) -> Exception:
    """What to say when forward does not run: what it is in the module, if that can be found out, else the data."""
    kind, n = name_of(module), len(tree_leaves(x)[0])

    def runs(tensors: Params, x: Inputs) -> bool:
        try:
            out = call(module, tensors, x, writes)
        except REFUSALS:
            return False
        return isinstance(out, Tensor) and out.dim() > 0 and len(out) == len(tree_leaves(x)[0])

    if runs(*tree_map(lambda v: v.float() if v.dtype == torch.float64 else v, (tensors, x))):
        return UnsupportedError(
            kind,
            f"its forward does not run in float64: {_reason(error)}",
            "write dtype=x.dtype where it makes a tensor, or Objective(..., dtype=torch.float32)",
        )
    index = torch.arange(max(n, *_BATCHES), device=tree_leaves(x)[0].device)
    for size in _BATCHES:
        if size != n and runs(tensors, rows(x, index[:size] % n)):
            if runs(tensors, rows(x, index[:n] % size)):
                break  # as many of other examples: it is what they hold
            return UnsupportedError(
                kind,
                f"its forward runs on {size} examples and not on {n}: {_reason(error)}",
                "write x.shape[0] where it has the number of examples",
            )
    reason = _reason(error)
    return InputError("data", expected=f"examples that {kind} accepts", got=reason, instead=hint(reason, x))


def _random(kind: str, what: str) -> UnsupportedError:
    return UnsupportedError(
        kind,
        f"forward draws random numbers ({what}), so that two passes over the same data differ",
        "call module.eval(), or draw them once and register them as a buffer",
    )


def _drawing(module: nn.Module) -> dict[str, Any]:
    """The generators among what is ``outside``."""
    return {name: held for name, held in outside(module).items() if held[1]}


def _check_outside(kind: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Refuse a forward pass that moves generators or writes to what is no part of the module."""
    for name, (mark, draws) in after.items():
        if name in before and mark == before[name][0]:
            continue
        if draws:
            raise _random(kind, f"of {name}")
        raise UnsupportedError(
            kind,
            f"every forward pass changes {name}, which is no part of the module's state",
            "keep it in an attribute of the module, or leave it out",
        )


def _elsewhere(kind: str) -> UnsupportedError:
    return UnsupportedError(
        kind,
        "forward reads weights that stay what they are, whatever parameters it is given",
        "read them as self.name, not through a list, a view of them or a function that holds the module",
    )


def _check_eval(module: nn.Module, tensors: Params, x: Inputs, writes: Writes, trained: Tensor) -> None:
    """Refuse a module in training mode whose outputs eval mode would change."""
    calm = with_same_weights(module).eval()
    with plain_attention():
        one, other = (call(m, tensors, x, writes) for m in (module, calm))
    if not isinstance(other, Tensor) or other.shape != trained.shape or not same(one, other):
        raise UnsupportedError(
            name_of(module),
            "it is in training mode, where its outputs differ from those of eval mode",
            "call module.eval() first",
        )


def _check_alone(module: nn.Module, tensors: Params, x: Inputs, writes: Writes, together: Tensor) -> None:
    """Refuse outputs that depend on which other examples are in the batch, on their order or their number."""
    n = len(together)
    everything = torch.arange(n, device=together.device)
    several = [
        everything.flip(0),
        everything[-1:],
        everything[:1],
        everything[n // 2 : n // 2 + 1],
        everything[: n // 2 + 1],
    ]
    for index in several if n > 1 else ():
        part = rows(x, index)
        try:
            out = call(module, tensors, part, writes)
        except REFUSALS as e:
            why = f"it runs on {n} examples, but not on {_which(index, n)} of them: {_reason(e)}"
            raise _dependent(module, why) from e
        want = together[index]
        if not isinstance(out, Tensor) or out.shape != want.shape:
            raise _dependent(
                module,
                f"the shape of an example's output depends on the rest of its batch: {tuple(want.shape)} with others, "
                f"{tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__} for {_which(index, n)} of them",
            )
        if _far(out, want) and not _rounding(module, tensors, x, writes, index):
            raise _dependent(module, "an example's output depends on the rest of its batch")


def _dependent(module: nn.Module, why: str) -> UnsupportedError:
    hint = "examples must stand on axis 0 and be computed each by itself"
    if any(part.training for part in module.modules()):
        hint = f"call module.eval(); {hint}"
    axis_one = [type(part).__name__ for part in module.modules() if getattr(part, "batch_first", None) is False]
    return UnsupportedError(name_of(module), why, f"{hint} (batch_first=True for {axis_one[0]})" if axis_one else hint)


def _which(index: Tensor, n: int) -> str:
    return "the reverse order" if len(index) == n else f"{len(index)}"


def _far(a: Tensor, b: Tensor, tolerance: float | None = None) -> bool:
    """Whether the outputs of an example differ by more than rounding may be taken to explain, relative to its largest.

    Examples with outputs far below those of most others are compared with these.
    """
    if not a.is_floating_point() and not a.is_complex():
        return not torch.equal(a, b)
    if tolerance is None:
        tolerance = min(16 * torch.finfo(a.dtype).eps, torch.finfo(a.dtype).eps ** 0.5)
    finite = b.isfinite()
    if not same(a.where(~finite, 0), b.where(~finite, 0)):
        return True
    away, size = (v.where(finite, 0).abs().reshape(len(v), -1).amax(1) for v in (a - b, b))
    usual = float(size.median()) * 1e-3 or float(size.max()) or 1.0
    return not bool((away <= tolerance * size.clamp(min=usual)).all())


def _rounding(module: nn.Module, tensors: Params, x: Inputs, writes: Writes, index: Tensor) -> bool:
    """Whether a difference is one of rounding: float64 would not show it."""
    wide, wide_x = cast(tensors, torch.float64), tree_map(lambda v: v.double() if v.is_floating_point() else v, x)
    try:
        together, alone = (call(module, wide, part, writes) for part in (wide_x, rows(wide_x, index)))
    except REFUSALS:
        wide, wide_x = tensors, x  # it insists on its precision
        together, alone = (call(module, wide, part, writes) for part in (wide_x, rows(wide_x, index)))
    return not _far(alone, together[index], torch.finfo(together.dtype).eps ** 0.5)


def _reason(e: BaseException) -> str:
    """The first line of an error, and the user's line that it came from."""
    line = next(iter(str(e).strip().splitlines()), type(e).__name__)
    frames = []
    trace = e.__traceback__
    while trace is not None:
        frames.append((trace.tb_frame.f_code, trace.tb_lineno))
        trace = trace.tb_next
    own = [(c, k) for c, k in frames if "/torch/" not in c.co_filename and c.co_filename != __file__]
    if not own:
        return line
    code, number = own[-1]
    return f"{line} ({code.co_filename.split('/')[-1]}:{number} in {code.co_name})"


def generators() -> tuple[Any, ...]:
    """The states of the global generators of Python, numpy and torch."""
    return random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state()  # noqa: NPY002


def restore(states: tuple[Any, ...]) -> bool:
    """Put the global generators back; whether they had moved."""
    now = generators()
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])
    return now[0] != states[0] or not alike(now[1], states[1]) or not torch.equal(now[2], states[2])
