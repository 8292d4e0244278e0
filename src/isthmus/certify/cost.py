"""What work costs, counted and not timed, and the budget that stands in a fixed proportion to the measuring."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from isthmus.certify.bounds import Bound
from isthmus.errors import UnsupportedError
from isthmus.evaluate.engine import Engine
from isthmus.objective import Objective
from isthmus.paths import Segment
from isthmus.structure.liveness import changed_tensors

if TYPE_CHECKING:
    from isthmus.certify.kernel import Kernel

PROBED = 1 / 64
"""The width of the sub-intervals on which bounds are tried, in the middle of a segment."""
PROFILES = 30.0
"""How many times the operations of a profile a proof may cost by default."""
CALL = 400_000
"""What calling an operation costs, in multiplications and additions of float32: about 8 microseconds of one core."""


class Count(TorchDispatchMode):
    """Adds up the cost of all operations on tensors while it is active: equal on every machine, unlike seconds.

    An operation costs `CALL`, a unit per four bytes that it reads or writes, and a unit per multiplication and per
    addition of its products, 2.5 in float64. The quotient of a bound to a pass, 6 to 30, was within a third of that of
    the processor seconds on ten perceptrons, residual and VGG-like networks, and 1.5 to 3 times it on small
    convolutional ones, whose pooling is dear.

    >>> import torch
    >>> with Count() as one:
    ...     _ = torch.zeros(100, 100) @ torch.zeros(100, 100)
    >>> one.cost >= 2 * 100**3
    True
    """

    def __init__(self) -> None:
        super().__init__()
        self.cost = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation and add its cost; views are free."""
        out = func(*args, **(kwargs or {}))
        is_view, formula = _about(func)
        if is_view:
            return out
        tensors = _tensors((*args, *kwargs.values(), out) if kwargs else (*args, out))
        self.cost += CALL + sum(v.numel() * v.element_size() for v in tensors) // 4
        if formula and tensors:
            count = int(formula(*args, **(kwargs or {}), out_val=out))
            self.cost += count * 5 // 2 if tensors[0].element_size() > 4 else count
        return out


@cache
def _about(func: Any) -> tuple[bool, Any]:
    """Whether an operation gives a view, and what counts its products; one that takes functions is no view."""
    return getattr(func, "is_view", False), flop_registry.get(getattr(func, "overloadpacket", func))


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """What operations take and give: tensors, also in lists."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found


@dataclass(frozen=True)
class Rate:
    """Operations of a profile, those of bounds once, and those of every bound with the loss in its middle."""

    measuring: int
    once: int
    each: int

    def bounds(self, profiles: float) -> int:
        """How many bounds cost as much as so many profiles; at least 1 where that is more than nothing."""
        return 0 if profiles <= 0 else max(1, int((profiles * self.measuring - self.once) // self.each))

    def profiles(self, bounds: float) -> float:
        """How many profiles so many bounds cost."""
        return (self.once + bounds * self.each) / self.measuring if bounds and self.measuring else 0.0


UNCOUNTED = Rate(61, 0, 16)
"""About what bounds cost in passes, where nothing could be counted."""


def rate(
    kernel: Kernel,
    kinds: Sequence[Sequence[int]],
    bound: Callable[[int, float, float], Bound],
    measuring_of: Callable[[int], int],
    kept: int,
) -> Rate:
    """What bounds over sub-intervals of these segments cost, beside a profile of them.

    Counted on one segment of each kind (`kinds_of`): `measuring_of`, what a profile costs there, and what the bounds
    compute once and for every sub-interval (a bound, and the loss in its middle), of which the dearest counts. With
    more than `kept` segments nothing is taken to be computed once, as it is not kept. Segments that `bound` refuses
    are left out.
    """
    measuring, once, each = 0, 0, 1
    all_kept = sum(map(len, kinds)) <= kept
    for alike in kinds:
        counted = next(filter(None, (_counted(kernel, i, bound, all_kept) for i in alike)), None)
        if counted is None:
            continue
        first, next_ = counted
        once, each = once + len(alike) * (first - next_), max(each, next_)
        measuring += len(alike) * measuring_of(alike[0])
    return Rate(measuring, max(once, 0), each) if measuring else UNCOUNTED


def kinds_of(kernel: Kernel, segments: Sequence[int]) -> list[list[int]]:
    """The segments in groups of those whose bounds compute the same: as many control points, the same tensors move."""
    found: dict[object, list[int]] = {}
    for i in segments:
        control = kernel.control(i)
        found.setdefault((len(control), frozenset(changed_tensors(control))), []).append(i)
    return list(found.values())


def _counted(kernel: Kernel, i: int, bound: Callable[[int, float, float], Bound], kept: bool) -> tuple[int, int] | None:
    """What the first bound on segment i and the loss in its middle cost, and the next, as much if nothing is kept.

    None where a bound is refused.
    """
    costs = []
    try:
        kernel.bounds(i)  # reads the graph of the network, which is no part of the cost
        for k in range(1 + kept):
            with Count() as work:
                bound(i, 0.5 + (k - 1) * PROBED, 0.5 + k * PROBED)
                kernel.loss(i, 0.5 + (k - 0.5) * PROBED)
            costs.append(work.cost)
    except UnsupportedError:
        return None
    return costs[0], costs[-1]


def profile_cost(objective: Objective, segment: Segment, num_points: int) -> int:
    """The cost of a profile of the segment at `num_points`, from those of one and of two points."""
    costs = []
    for ts in ([0.25], [0.25, 0.75]):
        ready = Engine(objective).prepare(segment, num_points)
        with Count() as work:
            ready.measure(list(ts))
        costs.append(work.cost)
    return costs[0] + (num_points - 1) * (costs[1] - costs[0])
