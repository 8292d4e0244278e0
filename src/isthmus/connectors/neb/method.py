"""The nudged elastic band between two networks (Draxler et al. 2018), corrected."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from isthmus.connectors.base import Connection, Connector, Task
from isthmus.connectors.curves.method import Bezier
from isthmus.connectors.curves.setting import CurveSetting, check_trained
from isthmus.connectors.neb.train import ElasticBand
from isthmus.errors import InputError
from isthmus.training.fit import Recipe


@dataclass(frozen=True)
class AutoNEB(Connector):
    """Straight segments through pivots that descend across the band, with pivots put in where it is still high.

    The automated nudged elastic band of Draxler et al. 2018, for any module and any loss. In every step all pivots
    see the same minibatch; the part of the gradient along the band is taken out, and of the optimiser's step after it;
    every ten steps the pivots are spread over the band again, their momenta with them. The ends are run once. What is
    returned is the band with the lowest largest loss, measured on all examples, at the start and after every cycle.

    `cycles`: for each its steps, and how many pivots are put in before it; it ends when no gap asks for one. `tangent`:
    "henkelman", towards the higher neighbour, or "central". `insertion`: of the gaps inside which the loss is above
    both pivots and the target ("peak"), or, as published, of those inside which it is above the chord between the
    pivots ("highest"). `spacing`: the pivots stay equally far from one another ("equal"), or the gaps that were divided
    because of their loss stay shorter ("loss"). `recipe`: ``lr=None`` is .024 times the root mean square distance of
    the ends' weights; its `steps` (or `epochs`) are a budget for all cycles together, its `check` lies between two
    measurements inside a cycle. `target` and `bn` are those of ``Bezier``.

    When to use: to reproduce published bands, or for evenly spaced pivots (``spacing="equal"``). At the same cost
    ``Bezier`` is mostly lower: here a step costs a pass for every pivot.
    """

    cycles: tuple[tuple[int, int], ...] = ((150, 3), (150, 2), (150, 2))
    recipe: Recipe = Recipe("sgd", 0.02, batch=512, schedule="constant", precision="auto")  # noqa: RUF009 - frozen
    tangent: Literal["henkelman", "central"] = "henkelman"
    spacing: Literal["equal", "loss"] = "loss"
    insertion: Literal["peak", "highest"] = "peak"
    target: float | None = None
    bn: Literal["recompute", "interpolate", "keep"] = "recompute"

    about = replace(
        Bezier.about,
        makes="straight segments through pivots of a band",
        reference="Draxler, Veschgini, Salmhofer, Hamprecht 2018",
        cost="450 steps of 3, 5 and 7 networks, and a few passes to measure",
    )

    def __post_init__(self) -> None:
        check_trained(self)
        steps = [_whole(pair) for pair in self.cycles] if isinstance(self.cycles, tuple | list) else []
        if not steps or not all(pair and pair[0] >= 1 and pair[1] >= 0 for pair in steps) or not self.cycles[0][1]:
            expected = "pairs (steps, new pivots) of whole numbers, the first with a pivot"
            raise InputError("cycles", expected=expected, got=repr(self.cycles), instead="((150, 3), (150, 2))")

    @property
    def statistics(self) -> str | None:
        """As they were in training."""
        return None if self.bn == "recompute" else self.bn

    def find(self, task: Task) -> Connection:
        """Train the band cycle by cycle, then state how high the loss is on the best one."""
        setting = CurveSetting.of(task, self.recipe, self.target, self.bn)
        return setting.connection(ElasticBand(self, setting).run(), "between pivots of the band")


def _whole(pair: object) -> tuple[int, int] | None:
    """Two whole numbers, or None."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        return None
    first, second = pair
    return (first, second) if type(first) is int and type(second) is int else None
