"""Parameters as people have them: a state_dict, a module, a checkpoint file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from isthmus.kinds import check_kind

if TYPE_CHECKING:
    from isthmus.objective.objective import Objective

ParamsLike = Mapping[str, Tensor] | nn.Module | str | os.PathLike[str]
"""A state_dict, a module that has one, or the path of a checkpoint (see ``load_params``)."""


def tensors_of(given: ParamsLike, objective: Objective, what: str) -> Mapping[str, Tensor]:
    """The tensors of what the user gave, not checked yet. A file is read without running anything in it.

    Errors: ``InputError`` for anything else, ``CheckpointError`` for a file that cannot be used.
    """
    if isinstance(given, Mapping):
        return given
    check_kind(given, ParamsLike, what)
    if isinstance(given, nn.Module):
        return given.state_dict()
    # upwards, and only for a file: its names are matched with those of the objective, so the reader stands above
    from isthmus.storage.checkpoints import load_params

    return {k: v.to(objective.device) for k, v in load_params(Path(given), like=objective).items()}
