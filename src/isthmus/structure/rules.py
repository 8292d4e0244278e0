"""The table operation -> rule, and the derivation of a structure from a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from isthmus.errors import UnsupportedError
from isthmus.program.export import Program
from isthmus.structure import algebra, layers, shapes
from isthmus.structure.units import Structure
from isthmus.structure.walk import Rule, Walk

__all__ = ["RULES", "structure_of"]

RULES: dict[str, Rule] = {**algebra.RULES, **shapes.RULES, **layers.RULES}


def structure_of(program: Program, param_shapes: Mapping[str, Sequence[int]]) -> Structure:
    """The unit groups of a program, not yet verified (see ``verify``).

    `param_shapes` are the shapes of the ``state_dict``. Errors: `UnsupportedError` for an operation without a rule
    (named, with its source line), training mode, and a parameter that the forward pass does not use.

    >>> import torch
    >>> from isthmus.program.export import trace
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    >>> shapes = {k: v.shape for k, v in net.state_dict().items()}
    >>> [(g.name, g.size, len(g.members)) for g in structure_of(trace(net, (torch.zeros(2, 3),)), shapes).groups]
    [('0', 5, 3)]
    """
    _refuse_training(program)
    if empty := [name for name, shape in param_shapes.items() if 0 in shape]:
        shape = tuple(param_shapes[empty[0]])
        raise UnsupportedError(f"parameter {empty[0]!r}", f"it has no entries (shape {shape}): a layer has no units")
    walk = Walk(program, param_shapes)
    walk.run(RULES, layers.RAW | shapes.RAW)
    return walk.structure()


def _refuse_training(program: Program) -> None:
    """Training mode is the commonest mistake: it is named before any operation that comes with it."""
    for node in program.nodes:
        base, a = node.op.split(".")[1] if "." in node.op else node.op, node.named()
        if (
            base == "_native_batch_norm_legit_functional"
            or (base == "batch_norm" and a["training"] and a["running_mean"] is not None)
            or (base in ("dropout", "feature_dropout", "alpha_dropout") and a["train"] and a["p"])
        ):
            raise UnsupportedError(f"{base} ({node.where})", "it is in training mode", "call module.eval() first")
