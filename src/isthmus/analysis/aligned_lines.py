"""``aligned_lines``: the straight lines between networks, and their mean, before and after an alignment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from isthmus.alignment import Alignment
from isthmus.alignment.change import change
from isthmus.alignment.many import checked_models
from isthmus.analysis.ensemble import average_of
from isthmus.errors import InputError
from isthmus.evaluate.batchnorm import POLICIES, followed
from isthmus.evaluate.profile import Profile, profile
from isthmus.kinds import check_kinds
from isthmus.objective import Objective
from isthmus.objective.given import ParamsLike
from isthmus.params import Params
from isthmus.paths import Path
from isthmus.shown import brief, draw, largest, line, plural, table
from isthmus.training.progress import Progress, no_progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

_FEW, _ROUNDING = 256, 1e-2
"""Examples on which a target must compute what its network does, and up to what share of the outputs."""


@dataclass(frozen=True, eq=False)
class StraightLines:
    """The straight lines between each two of several networks, and the network of their mean weights.

    `profiles`: by the numbers of the two networks, the smaller one first. `average`: the mean, with BatchNorm's
    statistics under the policy of the lines; `scores`: its "loss" and "error", and "test_loss" and "test_error" where
    test data were given.
    """

    profiles: Mapping[tuple[int, int], Profile]
    average: Params
    scores: Mapping[str, float]

    @classmethod
    def between(
        cls,
        objective: Objective,
        models: Sequence[ParamsLike],
        *,
        test: Objective | None = None,
        num_points: int = 21,
        bn: str | None = None,
        progress: Progress = no_progress,
    ) -> StraightLines:
        """Measure them, as ``aligned_lines`` does; n (n - 1) / 2 lines for n models, each of `num_points` passes."""
        check_kinds(StraightLines.between, locals(), but=["models", "cls"])
        networks = checked_models(objective, models)
        profiles, pairs = {}, list(combinations(range(len(networks)), 2))
        for done, (i, j) in enumerate(pairs):
            progress("measuring straight lines", done, len(pairs))
            path = Path.through([networks[i], networks[j]])
            profiles[i, j] = profile(objective, path, num_points, test=test, bn=bn)
        progress("measuring straight lines", len(pairs), len(pairs))
        average = average_of(objective, networks, followed(objective, bn or POLICIES[0]))
        return cls(profiles, average, _scores(objective, average, test))

    def __repr__(self) -> str:
        loss = f"the mean's loss {brief(self.scores['loss'])}"
        return line(self, plural(len(self.profiles), "line"), f"largest excess {brief(self.max)}", loss)

    @property
    def excesses(self) -> list[float]:
        """Of the loss on each line, over that of the larger end."""
        return [p.excess for p in self.profiles.values()]

    @property
    def max(self) -> float:
        """The largest excess on any line; NaN if one is."""
        return largest(self.excesses)

    @property
    def mean(self) -> float:
        """The mean excess of the lines."""
        return sum(self.excesses) / len(self.excesses)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: all but the weights."""
        lines = [{"a": a, "b": b, **p.to_dict()} for (a, b), p in self.profiles.items()]
        return {"max": self.max, "mean": self.mean, "average": dict(self.scores), "lines": lines}


@dataclass(frozen=True, eq=False)
class AlignedLines:
    """What ``aligned_lines`` measured: the same lines `before` and `after` the networks were brought in one numbering.

    `alignments`: those of the networks after the first.
    """

    before: StraightLines
    after: StraightLines
    alignments: tuple[Alignment, ...]

    def __repr__(self) -> str:
        told = f"largest excess {brief(self.before.max)} -> {brief(self.after.max)}"
        losses = (brief(one.scores["loss"]) for one in (self.before, self.after))
        return line(self, plural(len(self.alignments) + 1, "network"), told, f"the mean's loss {' -> '.join(losses)}")

    def _repr_html_(self) -> str:
        rows = [
            (f"{i} \N{EN DASH} {j}", before.excess, self.after.profiles[i, j].excess)
            for (i, j), before in self.before.profiles.items()
        ]
        return table(("excess", "before", "after"), rows, repr(self))

    def plot(self, ax: Any = None) -> Axes | NDArray[Any]:
        """The loss on the lines, dashed before and solid after, on `ax`; on three axes, as by default on new ones, also
        the share of units that moved in each layer, and the similarity in the course of the search.

        Needs ``isthmus[plot]``.
        """
        return draw(self, ax)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as stored in alignment.json."""
        return {
            "format": 1, "alignments": [one.to_dict() for one in self.alignments],
            "before": self.before.to_dict(), "after": self.after.to_dict(),
        }  # fmt: skip


def aligned_lines(
    objective: Objective,
    models: Sequence[ParamsLike],
    found: Alignment | Sequence[Alignment],
    *,
    test: Objective | None = None,
    num_points: int = 21,
    bn: str | None = None,
    progress: Progress = no_progress,
) -> AlignedLines:
    """The loss on the straight lines between each two of `models`, and at their mean, before and after an alignment.

    `found`: what ``align`` gave for two models, or ``align_many`` for several. `num_points` are measured on each line,
    on `test` data too; `bn`: the policy of BatchNorm, of the lines and of the mean, as in ``profile``.

    Cost: for n models, n (n - 1) num_points passes over the data. Errors: ``InputError`` for alignments that are not
    those of the models.

    >>> import torch
    >>> from isthmus.alignment import align
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2))
    >>> objective = Objective(net, data=(torch.eye(2), torch.tensor([0, 1])))
    >>> a = {k: v.clone() for k, v in net.state_dict().items()}
    >>> b = objective.structure.permute(a, {"0": [1, 0]})
    >>> lines = aligned_lines(objective, [a, b], align(objective, a, b))
    >>> lines.after.max < 1e-6, abs(lines.after.scores["loss"] - objective.loss(a)) < 1e-6
    (True, True)
    """
    check_kinds(aligned_lines, locals(), but=["models", "found"])
    given = checked_models(objective, models)
    several = (found,) if isinstance(found, Alignment) else found[1:] if isinstance(found, Sequence) else ()
    if len(several) != len(given) - 1 or not all(isinstance(one, Alignment) for one in several):
        expected = "what align gave for two models, or align_many for several"
        raise InputError("found", expected=expected, got=f"{plural(len(several), 'alignment')} of {len(given)} models")
    for i, (one, model) in enumerate(zip(several, given[1:], strict=True), 1):
        if not change(objective, model, one.target, _FEW) <= _ROUNDING:
            raise InputError("found", expected=f"an alignment of models[{i}]", got="one of another network")
    targets = [given[0], *(one.target for one in several)]

    def measured(networks: Sequence[Params]) -> StraightLines:
        return StraightLines.between(objective, networks, test=test, num_points=num_points, bn=bn, progress=progress)

    return AlignedLines(measured(given), measured(targets), tuple(several))


def _scores(objective: Objective, params: Params, test: Objective | None) -> dict[str, float]:
    """Loss and error on both data sets."""
    loss, error = objective.measure(params)
    found = {"loss": loss, "error": error}
    if test is not None:
        found["test_loss"], found["test_error"] = test.measure(params)
    return found
