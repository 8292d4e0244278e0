"""Units in an order that is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from isthmus.alignment.assignment import is_order
from isthmus.alignment.matching import Matched, Matching, MatchingTask
from isthmus.errors import InputError


@dataclass(frozen=True)
class Given(Matching):
    """The permutations that are given: unit u of a is unit ``permutations[group][u]`` of b.

    Groups that are not named stay as they are. Groups have the names of ``objective.structure``; a tensor is taken for
    a sequence, such as those of an ``Alignment``.
    """

    permutations: Mapping[str, Sequence[int] | Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.permutations, Mapping):
            raise InputError(
                "permutations", expected="group -> order of its units", got=type(self.permutations).__name__
            )
        plain = {str(k): tuple(map(int, v)) for k, v in self.permutations.items()}
        object.__setattr__(self, "permutations", plain)

    def find(self, task: MatchingTask) -> Matched:
        """These, completed by identities."""
        structure = task.objective.structure
        known = {g.name: g.size for g in structure.groups}
        if strange := sorted(self.permutations.keys() - known.keys()):
            raise InputError("permutations", expected=f"groups among {sorted(known)}", got=strange)
        return Matched({name: self._order(name, size) for name, size in known.items()})

    def _order(self, name: str, size: int) -> Tensor:
        order = torch.tensor(self.permutations.get(name, tuple(range(size))), dtype=torch.int64)
        if not is_order(order, size):
            raise InputError(f"permutations[{name!r}]", expected=f"each of 0 .. {size - 1} once", got=order.tolist())
        return order
