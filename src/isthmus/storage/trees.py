"""Dictionaries within dictionaries, as checkpoints hold them: what stands where, and how a message says it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from isthmus.objective.matching import bare
from isthmus.storage.files import one_line

__all__ = [
    "bare_names",
    "beginning",
    "dotted",
    "is_inside",
    "joined",
    "kind_of",
    "listed",
    "mappings",
    "quoted",
    "tensor_names",
    "tensors_in",
    "value_at",
]

_DEPTH = 4
_MAPPINGS = 1000  # looked through in one file


def joined(at: str, key: Any) -> str:
    """The name of what stands under `key` in what stands at `at`."""
    return f"{at}.{key}" if at else str(key)


def quoted(name: str) -> str:
    """A name in a message."""
    return repr(one_line(name, 80))


def listed(tree: Mapping[Any, Any]) -> str:
    """The first entries, in a message."""
    return ", ".join(f"{one_line(k, 40)} ({kind_of(v)})" for k, v in list(tree.items())[:8])


def kind_of(value: Any) -> str:
    """What a value is, in a message."""
    if isinstance(value, Mapping):
        tensors = tensors_in(value)
        return f"dict of {tensors} tensors" if tensors else f"dict of {len(value)} entries"
    return type(value).__name__


def tensors_in(state: Mapping[Any, Any]) -> int:
    """How many tensors a dictionary holds itself."""
    return sum(isinstance(v, Tensor) for v in state.values())


def dotted(state: Mapping[Any, Any]) -> bool:
    """Whether a tensor in it has a name with a dot, as the weights of networks have."""
    return any(isinstance(v, Tensor) and "." in str(k) for k, v in state.items())


def is_inside(inner: str, outer: str) -> bool:
    """Whether one place is within the other."""
    return inner != outer and (not outer or inner.startswith(f"{outer}."))


def mappings(tree: Mapping[Any, Any]) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """The dictionaries under names, the outermost first, each once; a pickled module stands for its state dict."""
    queue: list[tuple[str, Mapping[Any, Any], int]] = [("", tree, 0)]
    seen = {id(tree)}
    for at, mapping, depth in queue:
        yield at, mapping
        for key, value in mapping.items():
            inner = value.state_dict() if isinstance(value, nn.Module) else value
            fresh = isinstance(key, str) and isinstance(inner, Mapping) and id(inner) not in seen
            if fresh and depth < _DEPTH and len(queue) < _MAPPINGS:
                seen.add(id(inner))
                queue.append((joined(at, key), inner, depth + 1))


def value_at(tree: Mapping[str, Any], key: str) -> Any:
    """What stands under a dotted name, where parts of it may hold dots themselves, or None."""
    if key in tree:
        return tree[key].state_dict() if isinstance(tree[key], nn.Module) else tree[key]
    parts = key.split(".")
    for i in range(1, len(parts)):
        inner = tree.get(".".join(parts[:i]))
        found = value_at(inner, ".".join(parts[i:])) if isinstance(inner, Mapping) else None
        if found is not None:
            return found
    return None


def tensor_names(state: Mapping[Any, Any]) -> list[str]:
    """The names of the tensors that it holds itself."""
    return [k for k, v in state.items() if isinstance(k, str) and isinstance(v, Tensor)]


def bare_names(state: Mapping[Any, Any]) -> set[str]:
    """Its names without what wrappers insert."""
    return {bare(str(k)) for k in state}


def beginning(state: Mapping[Any, Any], start: str) -> dict[str, Any]:
    """The entries whose names begin so, without that."""
    names = {k: k if k.startswith(start) else bare(k) for k in state if isinstance(k, str)}
    return {name[len(start) :]: state[k] for k, name in names.items() if name.startswith(start)}
