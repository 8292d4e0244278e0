"""Straight segments through points between the ends whose units have repaired statistics."""

from __future__ import annotations

from dataclasses import dataclass

from isthmus.alignment.renormalise import renormalised
from isthmus.checks import check_whole
from isthmus.connectors.base import About, Connection, Connector, Outcome, Task
from isthmus.kinds import check_fields
from isthmus.paths import Path


@dataclass(frozen=True)
class Renormalised(Connector):
    """From a to b through `knots` points of the straight line, at which the units' statistics are repaired.

    Between two networks the units vary less than at either, which is much of the barrier of aligned networks (Jordan et
    al. 2022). At the knots running statistics of BatchNorm are computed again on the first `examples` examples; without
    BatchNorm the layers themselves are scaled, unit by unit. One knot keeps nearly the whole gain, and the path stays
    plain: ``certify`` works on it.

    When to use: inside ``Aligned``. Cost: three passes over the examples, and one more for each further knot.
    """

    knots: int = 1
    examples: int = 1000

    about = About(
        makes="knots + 1 straight segments through points with repaired statistics",
        reference="Jordan, Sedghi, Saukh, Entezari, Neyshabur 2022",
        needs="BatchNorm, or layers whose units can be scaled one by one",
        cost="three passes over 1,000 examples",
        convex=False,
        statistics="interpolate",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        check_whole(self, "knots")
        check_whole(self, "examples", least=2)

    def find(self, task: Task) -> Connection:
        """Repair the knots one by one."""
        ts = [i / (self.knots + 1) for i in range(1, self.knots + 1)]
        points = renormalised(task.objective, task.a, task.b, ts, self.examples)
        labels = ["to repaired statistics", *["between repaired points"] * (self.knots - 1), "to the end"]
        return Connection(Path.through([task.a, *points, task.b]), task.b, Outcome.CONSTRUCTED, {"segments": labels})
