"""Where in the user's code an operation of the graph comes from, in words."""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import Node as FxNode


def where_of(node: FxNode) -> str:
    """The innermost line of the user's own code, and the torch module below it, as far as torch recorded them."""
    frames = [f.split("\n") for f in (node.meta.get("stack_trace") or "").split('File "')[1:]]
    own = next((f for f in reversed(frames) if "torch/" not in f[0]), None)
    module = _module_of(node) if own is None or own is not frames[-1] else ""
    return ", ".join(part for part in (_line(own) if own else "", module) if part)


def _line(frame: Sequence[str]) -> str:
    """A frame of a stack trace as file, line, function and the code itself."""
    path, line, function = (p.strip() for p in frame[0].split(","))
    place = f"{path.rstrip(chr(34)).split('/')[-1]}:{line.removeprefix('line ')} {function}"
    return f"{place}: {frame[1].strip()}" if len(frame) > 1 and frame[1].strip() else place


def _module_of(node: FxNode) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path, kind = stack[-1] if stack else ("", "")
    if not path or path.startswith("_empty"):
        return ""
    return f"module {path!r} ({str(getattr(kind, '__name__', kind)).split('.')[-1]})"
