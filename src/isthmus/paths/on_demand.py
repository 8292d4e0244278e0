"""Networks of which one tensor at a time is in memory, and the straight line between two of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor

from isthmus.params import Params
from isthmus.paths.segment import Curve, Segment, check_t

__all__ = ["Between", "OnDemand", "loaded"]


@final
class OnDemand(Mapping[str, Tensor]):
    """Parameters that lie elsewhere: ``read(name)`` gets each one, anew whenever it is asked for.

    >>> import torch
    >>> OnDemand(["w"], lambda name: torch.ones(2))["w"]
    tensor([1., 1.])
    """

    def __init__(self, names: Iterable[str], read: Callable[[str], Tensor]) -> None:
        self._names, self._read = dict.fromkeys(names), read

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._read(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names  # the mixin would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def loaded(params: Mapping[str, Tensor]) -> Params:
    """All of them in memory; a dictionary is itself."""
    return params if isinstance(params, dict) else dict(params)


@final
@dataclass(frozen=True, eq=False)
class Between(Segment):
    """The straight line between two networks of which at least one is read on demand: the numbers of the ``Curve``.

    A point costs the memory of one network and of one tensor of each end.
    """

    control: tuple[Mapping[str, Tensor], Mapping[str, Tensor]]

    def at(self, t: float) -> Params:
        """The point at t, read again each time; so are `start` and `end`."""
        check_t(t)
        point: Params = {}
        for name in self.control[0]:
            point |= Curve(tuple({name: end[name]} for end in self.control)).at(t)
        return point

    @property
    def length(self) -> float:
        """Needs both ends in memory."""
        return self.loaded().length

    def reversed(self) -> Between:
        """The same points walked from the end to the start."""
        return Between((self.control[1], self.control[0]))

    def split(self, t: float) -> tuple[Curve, Curve]:
        """The parts before and after t, in memory."""
        return self.loaded().split(t)

    def loaded(self) -> Curve:
        """The line with both ends in memory."""
        return Curve(tuple(map(loaded, self.control)))
