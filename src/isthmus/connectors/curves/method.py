"""Curves with trained control points (Garipov et al. 2018), trained where the loss is high."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Literal

from isthmus.checks import check_whole
from isthmus.connectors.base import About, Connection, Connector, Task
from isthmus.connectors.curves.setting import check_trained
from isthmus.connectors.curves.shape import Bernstein, Polygon, Shape
from isthmus.connectors.curves.train import CurveTraining
from isthmus.errors import InputError
from isthmus.training.fit import Recipe


@dataclass(frozen=True)
class _CurveMethod(Connector):
    """The fields that trained curves have in common."""

    bends: int = 3
    recipe: Recipe = Recipe(lr=None, epochs=20, batch=128, precision="auto", beta2=0.95)  # noqa: RUF009 - frozen
    focus: float = 3.0
    draws: int = 1
    target: float | None = None
    bn: Literal["recompute", "interpolate", "keep"] = "recompute"

    def __post_init__(self) -> None:
        check_trained(self)
        check_whole(self, "bends", least=3)
        check_whole(self, "draws")
        if not 1 <= self.focus <= 64:
            raise InputError("focus", expected="a number in [1, 64]", got=self.focus)

    @property
    def statistics(self) -> str | None:
        """As they were in training."""
        return None if self.bn == "recompute" else self.bn

    @abstractmethod
    def _shape(self) -> Shape: ...

    def find(self, task: Task) -> Connection:
        """Train the control points, then state how high the loss is on the best curve."""
        training = CurveTraining.start(
            task, self._shape(), self.recipe, focus=self.focus, draws=self.draws, target=self.target, bn=self.bn
        )
        return training.setting.connection(training.run(), f"trained {type(self).__name__}")


@dataclass(frozen=True)
class Bezier(_CurveMethod):
    """A Bezier curve with trained control points, for any module and any loss that is not negative.

    Garipov et al. 2018 minimise the mean loss over t; here it is J_p = (int L(theta(t))^p dt)^(1/p), p = `focus`,
    by plain gradients at t drawn where the loss is high (1 is their method). The curve starts as the straight line and
    is returned only where its largest loss, measured on all examples, is lower.

    `bends`: control points, both ends counted. `recipe`: ``lr=None`` is .024 times the root mean square distance of the
    ends' weights, with Adam tensor by tensor; "auto" trains large networks in bfloat16, on weights in the objective's
    precision, if the processor has it; ``beta2=0.95``, as the loss falls by orders of magnitude, which .999 remembers
    for too long. `draws`: places t per step. `target`: stop when the largest loss is confirmed to be at most that;
    default 1.05 times the larger end's. A curve that misses it ends with BUDGET_EXHAUSTED and is the best that was
    found, which proves no disconnection: more `bends` (small networks), more epochs, or aligned ends make it lower.

    `bn`: networks with BatchNorm are trained with the statistics of each batch ("recompute"), and the path is stored
    with statistics that are computed again at knots, as many as keep the loss near that of recomputed ones; the ends
    keep their own. "interpolate" trains with statistics that move from one end's to the other's, "keep" with those of
    the start; such paths are measured by ``profile`` with the same `bn`.

    When to use: first, for networks to which no theorem applies: batch normalisation, residual streams, attention,
    recurrence. Cost: `epochs` passes of training, at about 1.3 times the cost of training the network itself.
    """

    about = About(
        makes="one Bezier curve through trained control points",
        reference="Garipov, Izmailov, Podoprikhin, Vetrov, Wilson 2018",
        needs="any module, a loss with gradients",
        cost="20 epochs of training, and a few passes to measure",
        convex=False,
    )

    def _shape(self) -> Shape:
        return Bernstein(self.bends)


@dataclass(frozen=True)
class PolyChain(_CurveMethod):
    """Straight segments between trained control points (Garipov et al. 2018); else as ``Bezier``, which has the fields.

    At the same cost a Bezier curve is mostly lower. When to use: where every segment shall be straight, as for proofs.

    `bends`, `recipe`, `focus`, `draws`, `target`, `bn`: as in ``Bezier``.
    """

    about = replace(Bezier.about, makes="bends - 1 straight segments through trained control points")

    def _shape(self) -> Shape:
        return Polygon(self.bends)
