"""The table operation -> rule, and the derivation of a structure from a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from isthmus.errors import UnsupportedError
from isthmus.program.export import Program
from isthmus.structure import algebra, images, indexing, layers, shapes
from isthmus.structure.propagation import Propagation, Rules
from isthmus.structure.units import Structure

__all__ = ["RULES", "straight_weights", "structure_of"]

RULES = Rules(
    {**algebra.RULES, **shapes.RULES, **indexing.RULES, **layers.RULES, **images.RULES},
    {**algebra.KINDS, **indexing.KINDS, **layers.KINDS},
    layers.RAW | shapes.RAW,
    indexing.NUMBERING,
)


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
    walk = Propagation(program, param_shapes)
    walk.run(RULES)
    return walk.structure()


def straight_weights(program: Program, param_shapes: Mapping[str, Sequence[int]]) -> set[str]:
    """The names of the tensors of which units are read as they are, or through linear operations of each tensor alone.

    None where an operation has no rule.

    >>> import torch
    >>> from isthmus.program.export import trace
    >>> net = torch.nn.Linear(2, 2)
    >>> sorted(straight_weights(trace(net, (torch.zeros(1, 2),)), {k: v.shape for k, v in net.state_dict().items()}))
    ['bias', 'weight']
    """
    walk = Propagation(program, param_shapes)
    try:
        walk.run(RULES)
    except UnsupportedError:
        return set()
    return set(program.tensors.values()) - walk.curved


def _refuse_training(program: Program) -> None:
    """Training mode is the commonest mistake: it is named before any operation that comes with it."""
    for node in program.nodes:
        base, a = node.base, node.named()
        if (
            base == "_native_batch_norm_legit_functional"
            or (base == "batch_norm" and a["training"] and a["running_mean"] is not None)
            or (node.about.random and a["train"] and a["p"])
        ):
            raise UnsupportedError(f"{base} ({node.where})", "it is in training mode", "call module.eval() first")
