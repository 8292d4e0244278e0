"""An objective in plain values."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from isthmus.objective import named
from isthmus.objective.losses import describe_penalty
from isthmus.program.copied import name_of

if TYPE_CHECKING:
    from isthmus.objective.objective import Objective


def describe(objective: Objective) -> dict[str, Any]:
    """See ``Objective.describe``."""
    error = objective._labelled["error"]
    given = {k: v for k, v in objective._labelled.items() if v is not None and k != "error"}
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
        **objective.source.describe(),
    }


def network_of(objective: Objective) -> str:
    """The network in words, the same in every process: without addresses."""
    return re.sub(" at 0x[0-9a-fA-F]+", "", repr(objective.skeleton))
