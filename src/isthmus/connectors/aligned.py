"""A method after the units of b were renumbered to be those of a."""

from __future__ import annotations

from dataclasses import dataclass, replace

from isthmus.alignment.activations import ActivationMatching
from isthmus.alignment.align import aligned
from isthmus.alignment.matching import Matching, MatchingTask
from isthmus.connectors.base import About, Connection, Connector, Task
from isthmus.connectors.linear import Linear
from isthmus.kinds import check_fields
from isthmus.params import share


@dataclass(frozen=True)
class Aligned(Connector):
    """Any method, from a to b with its hidden units renumbered by a matching; both compute the same
    function (Ainsworth et al. 2022).

    The target of the connection is the renumbered b (or what `inner` makes of it). `inner`: the method; `matching`: how
    units are told, ``ActivationMatching()`` or ``WeightMatching()``. The permutations are in ``connection.tensors``,
    and in the file: ``load_alignment`` reads them, to be made on other checkpoints of b's run.

    When to use: with ``Linear`` and trained curves, whose loss falls several times, of networks trained from different
    starts. Constructions that choose their own units, such as ``Dropout`` and ``Subnetwork``, gain nothing.
    """

    inner: Connector = Linear()  # noqa: RUF009 - frozen
    matching: Matching = ActivationMatching()  # noqa: RUF009 - frozen

    about = About(
        makes="the path of another method, to b with its units renumbered",
        reference="Ainsworth, Hayase, Srinivasa 2022",
        needs="hidden units that can be told apart, and what the inner method needs",
        cost="one pass over 1,000 examples, one assignment per layer, and the inner method",
        convex=False,
    )

    def __post_init__(self) -> None:
        check_fields(self)

    def find(self, task: Task) -> Connection:
        """Match, renumber, then let the inner method find its path."""
        found = aligned(MatchingTask(task.objective, task.a, task.b, task.generator, task.progress), self.matching)
        goal = share(found.target, task.a)
        path = self.inner.find(replace(task, b=goal, memory=task.memory.part("inner")))
        stats = {**path.stats, "alignment": found.to_dict()}
        return replace(path, stats=stats, tensors={**path.tensors, **found.tensors})
