"""What a method says of its path, typed: ``connection.info`` and ``connection.cost``.

Everything here is read from ``connection.stats``, the plain values that stand in files, so a stored connection says
the same as a new one. Rows are dictionaries of plain values, one per network, layer or bead. A new method adds its
class and its line in ``INFO``; the keys that it gives are the fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from isthmus.shown import one_line

_Rows = list[dict[str, Any]]


@one_line
@dataclass(frozen=True)
class Cost:
    """What a connection cost; None where it was not counted.

    `gradient_steps`: of training, all networks together. `evaluations`: passes over the data to look at the loss.
    `seconds`: by the clock, of the machine that made it.
    """

    gradient_steps: int | None = None
    evaluations: int | None = None
    seconds: float | None = None

    @classmethod
    def of(cls, stats: Mapping[str, Any], seconds: float | None = None) -> Cost:
        """As the stats of a connection say.

        >>> Cost.of({"subnetworks": [{"steps": 10}, {"steps": 20}]}, 0.5)
        Cost(gradient_steps=30, evaluations=None, seconds=0.5)
        """
        trained = [*stats.get("subnetworks", ()), *([stats["network"]] if "network" in stats else [])]
        counted = [row["steps"] for row in trained if "steps" in row]
        steps = stats.get("gradient_steps", sum(counted) if counted else None)
        return cls(steps, stats.get("evaluations"), seconds)


@one_line
@dataclass(frozen=True)
class LinearInfo:
    """Of ``Linear`` and ``Renormalised``: nothing."""


@one_line
@dataclass(frozen=True)
class DropoutInfo:
    """Of ``Dropout``. `dropped`: for each end, "a" and "b", one row per entry layer: the theta_i on the path."""

    dropped: dict[str, _Rows]


@one_line
@dataclass(frozen=True)
class NoiseDropoutInfo:
    """Of ``NoiseDropout``. `noise`: the losses that were found on the segments without a guarantee, per segment."""

    noise: Any


@one_line
@dataclass(frozen=True)
class NarrowInfo:
    """Of ``Narrow``. `noise`: as of ``NoiseDropout``; `network`: the narrow one, its widths, loss and training;
    `gradient_steps`: of all attempts."""

    noise: Any
    network: dict[str, Any]
    gradient_steps: int | None = None


@one_line
@dataclass(frozen=True)
class SubnetworkInfo:
    """Of ``Subnetwork``. `subnetworks`: a row for each; `limited_by`: the one of the largest loss, or a vertex;
    `gradient_steps`: of all that were trained, those that were not taken too."""

    subnetworks: _Rows
    limited_by: Any
    gradient_steps: int | None = None


@one_line
@dataclass(frozen=True)
class MeanFieldInfo:
    """Of ``MeanField``. `halved`: for each end the loss of the half that the path goes through."""

    halved: Any


@one_line
@dataclass(frozen=True)
class StringSamplingInfo:
    """Of ``StringSampling``.

    `threshold`: its quantity, value and data, `threshold_from` where it comes from, `notes` what to know of it.
    `beads`: how many were trained, up to `depth`; `values`, `born`, `trainings`: of each bead, ends included, its
    value, its depth and how its training ended. `maximum`: the largest value seen; `sampling`: how densely; `rounds`: a
    row per depth. `batched`: whether beads were trained together. `bounds`: what was proved per segment, with
    ``certify=True``. `evidence`: of a disconnection that is suspected.
    """

    threshold: dict[str, Any]
    threshold_from: str
    notes: list[str]
    beads: int
    depth: int
    normalized_length: float
    gradient_steps: int
    evaluations: int
    sampling: dict[str, Any]
    batched: bool
    maximum: float
    rounds: _Rows
    values: list[float]
    born: list[int]
    trainings: list[str]
    bounds: list[float | None] | None = None
    evidence: _Rows | None = None


@one_line
@dataclass(frozen=True)
class ConstrainedStringSamplingInfo:
    """Of ``ConstrainedStringSampling``: as of ``StringSampling``; `level`: what the string was below last; `levels`:
    a row for each that was tried. `evidence`: where it did not get further."""

    threshold: dict[str, Any]
    threshold_from: str
    notes: list[str]
    level: float
    beads: int
    normalized_length: float
    gradient_steps: int
    evaluations: int
    sampling: dict[str, Any]
    batched: bool
    maximum: float | None
    levels: _Rows
    evidence: dict[str, Any] | None = None


@one_line
@dataclass(frozen=True)
class SublevelInfo:
    """Of ``Sublevel``. `theorem`: whose premises hold (None: none), `premises`: with their numbers, or what fails.

    `conditions`: the condition numbers of the steps from each end. In the units of the loss: `excess` over the larger
    end, `allowed` of it, `deviation` of the outputs and `drift` of the loss from what they should be; `digits_lost` and
    `growth` of the weights on the way. `certificate`: what is proved. `largest_subproblem`: for how many of the samples
    a theorem would apply.
    """

    theorem: str | None
    premises: list[Any]
    conditions: dict[str, Any] | None = None
    excess: float | None = None
    deviation: float | None = None
    allowed: float | None = None
    drift: float | None = None
    digits_lost: float | None = None
    growth: float | None = None
    certificate: dict[str, Any] | None = None
    largest_subproblem: dict[str, Any] | None = None


@one_line
@dataclass(frozen=True)
class DeepLinearInfo:
    """Of ``DeepLinear``. `construction`: which of the two; `free_layer`: the wide one of "one layer at a time"; of
    "balanced factors" the `bound` on the loss and its excess over the larger end, `excess_bound`."""

    construction: str | None = None
    free_layer: int | None = None
    bound: float | None = None
    excess_bound: float | None = None


@one_line
@dataclass(frozen=True)
class TwoLayerReLUInfo:
    """Of ``TwoLayerReLU``. `theorem`: the epsilon of Theorem 2.4 and its parts; `tried`: a row per number of units."""

    theorem: dict[str, Any]
    tried: _Rows


@one_line
@dataclass(frozen=True)
class CurveInfo:
    """Of ``Bezier`` and ``PolyChain``. `max`: the largest loss that was found on the path, on all examples, at `t`.

    `target`, `ends`: what was to be reached, and the losses of the ends (with BatchNorm and bn="recompute", as all
    losses here, those with statistics computed again); `lr`, `precision`: of the training. `history`: a row per check,
    with "max" and "t" of that moment, whether it was "confirmed" on all examples, and the "profile": running means of
    the losses of batches in equal parts of t (None: nothing known); these t are those of the curve before it was cut
    into the pieces of `statistics`. `gradient_steps`, `evaluations`: in all.
    `statistics`: of BatchNorm, in how many "pieces" they move, and the largest "deviation" of the loss from that with
    recomputed ones at so many equidistant "points" inside each piece; between them it may be larger.
    """

    max: float
    t: float
    target: float
    ends: list[float]
    lr: float
    precision: str
    history: _Rows
    gradient_steps: int
    evaluations: int
    statistics: dict[str, Any] | None = None


@one_line
@dataclass(frozen=True)
class AutoNEBInfo(CurveInfo):
    """Of ``AutoNEB``: as of ``Bezier``; `pivots`: how many the band has between the ends.

    `history`: a row per check, with the "pivots" of that moment; "profile": the running means of their losses.
    """

    pivots: int = 0


@one_line
@dataclass(frozen=True)
class LayerWiseInfo(CurveInfo):
    """Of ``LayerWise``: as of ``Bezier``; `blocks`: a row per point, which "block" moved, how far it is "at", and the
    "max" on some examples on the segment before it."""

    blocks: _Rows = field(default_factory=list)


@one_line
@dataclass(frozen=True)
class AlignedInfo:
    """Of ``Aligned``. `inner`: what the inner method says of its path. `alignment`, by name:

    "similarity", "distance" of a and b, before and after; "function_error", the largest change of an output, relative
    to the largest, in float64; "units", "moved": for each group how many there are, and the share with another number;
    "dead": groups with units that do not vary, how many in a and in b; "runs": a row per search.
    """

    alignment: dict[str, Any]
    inner: Any = None


@one_line
@dataclass(frozen=True)
class AutoInfo:
    """Of ``Auto``. `found`: the method whose path this is, with its fields; `max`, `excess`: what was seen of it, which
    is at least the level at one point where that was enough to refuse it.

    `asked`: the excess above the larger of the losses `ends`, which makes the `level`. `passes` over the data in all,
    of the `budget`. `tried`: a row for each step: its "method", "max" and "excess", whether it "reached" the level, its
    "gradient_steps", "evaluations" and "passes", and what it bought, or why it was skipped, as "said".
    """

    found: dict[str, Any]
    max: float
    excess: float
    asked: float
    level: float
    ends: list[float]
    passes: float
    budget: float
    tried: _Rows
    gradient_steps: int
    evaluations: int


INFO: dict[str, type] = {
    "Linear": LinearInfo,
    "Bezier": CurveInfo,
    "PolyChain": CurveInfo,
    "AutoNEB": AutoNEBInfo,
    "LayerWise": LayerWiseInfo,
    "Aligned": AlignedInfo,
    "Renormalised": LinearInfo,
    "Dropout": DropoutInfo,
    "NoiseDropout": NoiseDropoutInfo,
    "Narrow": NarrowInfo,
    "Subnetwork": SubnetworkInfo,
    "MeanField": MeanFieldInfo,
    "StringSampling": StringSamplingInfo,
    "ConstrainedStringSampling": ConstrainedStringSamplingInfo,
    "Sublevel": SublevelInfo,
    "DeepLinear": DeepLinearInfo,
    "TwoLayerReLU": TwoLayerReLUInfo,
    "Auto": AutoInfo,
}
"""The class of each method's `info`, by the name of the method."""


def info_of(stats: Mapping[str, Any]) -> Any:
    """What the method says, as a value of its class; None for a method that is not known, or that said less.

    >>> info_of({"method": {"name": "DeepLinear"}, "bound": 0.5, "seed": 0})
    DeepLinearInfo(construction=None, free_layer=None, bound=0.5, excess_bound=None)
    """
    kind = INFO.get(name_of(stats))
    if kind is None:
        return None
    if kind is AlignedInfo:
        stats = {**stats, "inner": info_of({**stats, "method": stats["method"].get("inner")})}
    given = {f.name: stats[f.name] for f in fields(kind) if f.name in stats}
    needed = {f.name for f in fields(kind) if f.default is MISSING}
    return kind(**given) if needed <= given.keys() else None


def name_of(stats: Mapping[str, Any]) -> str:
    """The name of the method, empty where none is known."""
    method = stats.get("method")
    return str(method.get("name", "")) if isinstance(method, Mapping) else ""
