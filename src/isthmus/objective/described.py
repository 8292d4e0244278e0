"""An objective in plain values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from torch import nn

from isthmus.objective import named
from isthmus.objective.functions import PROCESS, digest_of
from isthmus.objective.losses import describe_penalty
from isthmus.program.copied import name_of

if TYPE_CHECKING:
    from isthmus.objective.objective import Objective

_TOLD: WeakKeyDictionary[nn.Module, str | None] = WeakKeyDictionary()
"""What modules compute, told once: some count their calls."""


def describe(objective: Objective) -> dict[str, Any]:
    """See ``Objective.describe``."""
    error = objective._labelled["error"]
    given = {k: v for k, v in objective._labelled.items() if v is not None and k != "error"}
    functions = _functions(objective)
    return {
        "module": name_of(objective.skeleton),
        **named.describe(objective._loss),
        **given,
        "named": named.is_named(objective._loss),
        "convex": objective.convex,
        "examples": objective.num_examples,
        "dtype": str(objective.dtype).removeprefix("torch."),
        "device": str(objective.device),
        "penalty": describe_penalty(objective.penalty),
        "error": None if error is None else getattr(error, "__name__", "callable"),
        "digest": objective._digest,
        **({"functions": digest_of(functions)} if functions else {}),
        **objective.source.describe(),
    }


def _functions(objective: Objective) -> dict[str, Any]:
    """Those of the user that the values depend on."""
    own = None if named.is_named(objective._loss) or named.is_torchs(objective._loss) else objective._loss
    found = {"loss": own, "error": objective._labelled["error"], "forward": objective._called["forward"]}
    found["evaluate"] = getattr(objective.source, "evaluate", None)
    return {k: v for k, v in found.items() if v is not None}


def bound(*objectives: Objective) -> dict[str, Any]:
    """What a folder is bound to that keeps work on these objectives of one network: the same in every process.

    Where a function or a module cannot be told from another of its name, only this process goes on, with these objects.
    """
    module, described = objectives[0].skeleton, [describe(o) for o in objectives]
    if module not in _TOLD:
        _TOLD[module] = digest_of(module)
    network = _TOLD[module]
    told = [network, *(d.get("functions", "") for d in described)]
    only = [f"{PROCESS} {id(o)}" for o in objectives] if None in told else []
    return {"network": network, "objective": described, "only": only}
