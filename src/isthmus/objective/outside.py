"""What the code of a module reaches beyond the module: globals, closures, attributes of classes."""

from __future__ import annotations

import dis
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn

from isthmus.program.adapted import Adapted
from isthmus.program.copied import REGISTERED

_GENERATORS = (np.random.Generator, np.random.RandomState, random.Random)

_LONGEST = 100
"""Entries of a container that are looked at."""


def outside(module: nn.Module) -> dict[str, tuple[Any, bool]]:
    """By name: a mark of what is there, which is another once it was written to, and whether it draws random numbers.

    >>> module, before = nn.Linear(1, 1), outside(nn.Linear(1, 1))
    >>> module.draws = np.random.default_rng(0)
    >>> sorted(outside(module).keys() - before.keys())
    ['self.draws']
    """
    seen: set[Any] = set()
    reached = (found for part in module.modules() for found in _reached(part, seen))
    return {name: (_mark(v), isinstance(v, _GENERATORS)) for name, v in reached}


def _reached(part: nn.Module, seen: set[Any]) -> Iterator[tuple[str, Any]]:
    """By name; what is in classes and functions that were `seen` in another part is there already."""
    own = {k: v for k, v in vars(part).items() if k not in REGISTERED}
    yield from ((f"self.{k}", v) for k, v in own.items() if isinstance(v, _GENERATORS))
    functions = _functions(own) + ([part.manner.forward] if isinstance(part, Adapted) else [])
    for kind in _kinds(part):
        if kind in seen:
            continue
        seen.add(kind)
        yield from _of_class(kind)
        functions += vars(kind).values()
    yield from _read_by(functions, seen)


def _kinds(part: nn.Module) -> list[type]:
    """The classes of a module that are not those of a library."""
    kind = part.kind if isinstance(part, Adapted) else type(part)
    return [one for one in kind.__mro__ if not _foreign(one)]


def _functions(own: dict[str, Any]) -> list[Any]:
    """The hooks and the attributes of a module; of bound methods the functions."""
    hooks = [v for k, v in own.items() if k.endswith("_hooks") and isinstance(v, Mapping)]
    found = [*itertools.chain.from_iterable(v.values() for v in hooks), *own.values()]
    return [f.__func__ if isinstance(f, MethodType) else f for f in found]


def _read_by(waiting: list[Any], seen: set[Any]) -> Iterator[tuple[str, Any]]:
    """What these functions read, those that they call, and so on."""
    while waiting:
        f = waiting.pop()
        if not isinstance(f, FunctionType) or f in seen or _foreign(f):
            continue
        seen.add(f)
        for name, v in names_read(f):
            yield name, v
            waiting.append(v)
            if isinstance(v, type) and not _foreign(v):
                yield from _of_class(v)


def names_read(
    f: FunctionType, of: Callable[[CodeType], Iterable[str]] = lambda code: code.co_names
) -> Iterator[tuple[str, Any]]:
    """The globals and the variables of outer functions that a function reads.

    `of`: the names of globals in its code, and those of attributes, but with ``globals_of``, which takes longer.
    """
    codes = [f.__code__]
    while codes:
        code = codes.pop()
        yield from ((k, f.__globals__[k]) for k in of(code) if k in f.__globals__)
        codes += [c for c in code.co_consts if isinstance(c, type(code))]
    for name, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=False):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not filled yet
            continue


def globals_of(code: CodeType) -> list[str]:
    """The names that are no attributes: ``x.shape`` does not read what is called shape."""
    read = (i.argval for i in dis.get_instructions(code) if "GLOBAL" in i.opname or i.opname.endswith("_NAME"))
    return [*dict.fromkeys(read)]


def _of_class(kind: type) -> Iterator[tuple[str, Any]]:
    return ((f"{kind.__name__}.{k}", v) for k, v in vars(kind).items() if not k.startswith("__"))


def _foreign(thing: Any) -> bool:
    root = (getattr(thing, "__module__", None) or "").split(".")[0]
    return root in ("torch", "numpy", "builtins", "isthmus", "tqdm")  # whose bars are no part of a computation


def _mark(v: Any, depth: int = 3) -> Any:
    """Plain values that change when what `v` holds does; None for what cannot be looked into."""
    if isinstance(v, (*_GENERATORS, Tensor)):
        return _state(v)
    if isinstance(v, bool | int | float | complex | str | bytes | np.ndarray | np.generic | itertools.count):
        return repr(v)
    if isinstance(v, nn.Module | ModuleType | type) or callable(v) or depth == 0:
        return None
    if isinstance(v, Mapping):
        v = list(itertools.islice(itertools.chain.from_iterable(v.items()), 2 * _LONGEST))
    if isinstance(v, list | tuple | set | frozenset):
        return len(v), [_mark(part, depth - 1) for part in itertools.islice(v, _LONGEST)]
    return _mark(vars(v), depth - 1) if hasattr(v, "__dict__") else None


def _state(v: Any) -> Any:
    if isinstance(v, np.random.Generator):
        return repr(v.bit_generator.state)
    if isinstance(v, np.random.RandomState):
        return repr(v.get_state(legacy=False))
    if isinstance(v, random.Random):
        return None if isinstance(v, random.SystemRandom) else v.getstate()
    return id(v), 0 if v.is_inference() else v._version
