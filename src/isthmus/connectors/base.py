"""What a connector is, and what it returns."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from isthmus.connectors.info import Cost, info_of, name_of
from isthmus.errors import InputError
from isthmus.objective import Objective
from isthmus.objective.functions import code_of
from isthmus.params import Params
from isthmus.paths import Path
from isthmus.shown import count, draw, line, of_fields, plural, table
from isthmus.training.memory import Memory, forget
from isthmus.training.progress import Progress, no_progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Outcome(Enum):
    """What a method did; the value is the message. How high the loss rises on the path, a ``Verdict`` says.

    ``CONNECTED`` is the name that ``CONSTRUCTED`` had in older files; it is the same member.

    >>> Outcome.CONSTRUCTED.ok, Outcome.UNPROVED.ok, Outcome.NOT_FINITE.ok, Outcome["CONNECTED"].name
    (True, True, False, 'CONSTRUCTED')
    """

    CONSTRUCTED = "constructed: the path was made as the method describes"
    CONNECTED = CONSTRUCTED
    UNPROVED = (
        "constructed, unproved: the path was made as the method describes and measured to stay within the stated "
        "tolerance, but certify has no rule for this network (see stats['certificate'])"
    )
    NOT_FINITE = (
        "training met a loss that is not finite; the path uses the last finite weights (lower the learning rate)"
    )
    PREMISE_FAILS = (
        "no theorem of the method has its premises here (see stats['premises']); the path is the straight line"
    )
    IMPRECISE = (
        "the path was constructed, but in this precision its loss cannot be shown to stay below the stated tolerance"
    )
    BUDGET_EXHAUSTED = "the step budget ran out before the target was reached; the path uses the best weights found"
    BEAD_FAILED = (
        "no path found: a bead could not be trained below the threshold; the path uses the best weights found "
        "(give it more steps, another learning rate, or a higher threshold)"
    )
    SUSPECTED_DISCONNECTION = (
        "no path found: between neighbouring beads a maximum above the threshold persists however many are put between "
        "them, which suggests a disconnection and proves none (the evidence is in the stats)"
    )

    @property
    def ok(self) -> bool:
        """Whether the method succeeded."""
        return self in (Outcome.CONSTRUCTED, Outcome.UNPROVED)

    def __repr__(self) -> str:
        return f"Outcome.{self.name}"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, eq=False)
class Connection:
    """What a connector returns.

    `target` is `b` or, for methods that end at a permutation of b, that permutation: ``path.end`` equals
    `target`, and f(target) = f(b). `labels`: one per segment, or none. `info`: what the method says of its path (see
    ``isthmus.connectors.info``), `cost`: what it cost. They are read from `stats`, which holds plain JSON values, as
    files do: these, the method with its fields, the seed, and the objective's description. `tensors`: what the method
    found that is no plain value, by name, such as the permutations of ``Aligned``. `seconds`: by the clock; no file
    keeps them, so that the same seed gives the same file.

    `path`: from a to `target`. `outcome`: what the method did.
    """

    path: Path
    target: Params
    outcome: Outcome
    stats: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        made = [name for name in (name_of(self.stats), self.outcome.name.lower()) if name]
        return line(self, *made, plural(len(self.path), "segment"), plural(count(self.target), "parameter"))

    def plot(self, ax: Axes | None = None) -> Axes:
        """The path on the plane of its widest spread, drawn on `ax` (default: new axes). Needs ``isthmus[plot]``."""
        return draw(self, ax)

    def _repr_html_(self) -> str:
        return table(("segment", "what it does"), list(enumerate(self.labels)), f"{self!r}: {self.message}")

    @property
    def message(self) -> str:
        """The outcome in words: why it is this one, where the method says so."""
        return str(self.stats.get("why", self.outcome))

    @property
    def labels(self) -> tuple[str, ...]:
        """What each segment does, in words; empty where the method does not say."""
        held = self.stats.get("segments", ())
        return tuple(map(str, held)) if isinstance(held, list | tuple) else ()

    @cached_property
    def info(self) -> Any:
        """What the method says of its path, a value of its class in ``isthmus.connectors.info``, or None."""
        return info_of(self.stats)

    @cached_property
    def cost(self) -> Cost:
        """What making the path cost."""
        return Cost.of(self.stats, self.seconds)


@dataclass(frozen=True)
class About:
    """What a user reads before choosing a method.

    `convex`: whether what its theorem says of the path rests on a loss that is convex in the outputs; ``connect`` then
    refuses any other. `grows`: fields that may be larger when work that was ended by them goes on. `statistics`: what
    its path says of BatchNorm's, "interpolate" where they are part of the construction; None: they are computed again.
    """

    makes: str
    reference: str
    needs: str
    cost: str
    convex: bool = field(kw_only=True)
    grows: tuple[str, ...] = field(default=(), kw_only=True)
    statistics: str | None = field(default=None, kw_only=True)

    @property
    def premises(self) -> str:
        """All that it needs, the loss included."""
        return self.needs + "; a loss that is convex in the outputs" * self.convex


def check_convex(objective: Objective, what: str) -> None:
    """Refuse a loss whose segments no theorem bounds."""
    if not objective.convex:
        objective.source.few()  # an objective of numbers alone says so
        raise InputError(
            "loss",
            expected=f"one that is convex in the outputs, on which the bound of {what} rests",
            got="one not declared convex",
            instead="Objective(..., convex=True) if it is, or another method: Linear(), StringSampling()",
        )


@dataclass(frozen=True, eq=False)
class Task:
    """What ``connect`` has checked; every method receives exactly this, and a wrapper hands it on, changed or not.

    A path from `a` to `b` is asked for. All randomness comes from `generator`. `test`: a second data set, for a
    method that it judges. `memory`: where work that can be killed keeps its state, by named parts.
    """

    objective: Objective
    a: Params
    b: Params
    generator: torch.Generator
    test: Objective | None = None
    progress: Progress = no_progress
    memory: Memory = forget


class Connector(ABC):
    """A method: a frozen dataclass of hyperparameters with one verb, `find`."""

    about: ClassVar[About]

    def __init_subclass__(cls) -> None:
        cls.__repr__ = of_fields  # which ``dataclass`` then leaves as it is

    @abstractmethod
    def find(self, task: Task) -> Connection:
        """A path from ``task.a`` to ``task.b``, which ``connect`` has checked."""

    @property
    def judged(self) -> bool:
        """Whether ``task.test`` judges the path; a wrapper is as its inner method. Else ``connect`` refuses one."""
        return any(inner.judged for inner in _inner_methods(self))

    @property
    def statistics(self) -> str | None:
        """What becomes of BatchNorm's statistics on its path, see ``Path.bn``; a wrapper is as its inner method."""
        return self.about.statistics or next((v for inner in _inner_methods(self) if (v := inner.statistics)), None)

    def digests(self) -> dict[str, str]:
        """What decides its paths beside its fields: the code of it and of what they hold, if not this library's."""
        return code_of(self)


def _inner_methods(method: Connector) -> list[Connector]:
    """The methods among the fields of a method: those that it wraps."""
    values = [getattr(method, f.name) for f in fields(method)] if is_dataclass(method) else []
    return [v for v in values if isinstance(v, Connector)]


def needs_convex(method: Connector) -> bool:
    """Whether the method, or one that it wraps, needs a loss that is convex in the outputs."""
    return method.about.convex or any(needs_convex(inner) for inner in _inner_methods(method))


def lasting(method: Connector) -> dict[str, Any]:
    """The method as ``describe`` gives it, without the fields that may be larger when its work goes on."""
    inner = {f.name: getattr(method, f.name) for f in fields(method)} if is_dataclass(method) else {}
    own = {k: v for k, v in describe(method).items() if k not in method.about.grows}
    return own | {k: lasting(v) for k, v in inner.items() if isinstance(v, Connector)}


def describe(value: Any) -> dict[str, Any]:
    """The name and the fields of a method, or of a value inside one, as JSON values.

    >>> from isthmus.connectors.linear import Linear
    >>> describe(Linear())
    {'name': 'Linear'}
    """
    out: dict[str, Any] = {"name": type(value).__name__}
    for f in fields(value) if is_dataclass(value) else ():
        inner = getattr(value, f.name)
        out[f.name] = describe(inner) if is_dataclass(inner) else json.loads(json.dumps(inner))
    return out
