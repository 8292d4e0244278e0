"""Which examples carry a barrier: what the loss of each adds to it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from isthmus.errors import InputError
from isthmus.evaluate.batchnorm import segments_under
from isthmus.evaluate.profile import opened, profile
from isthmus.kinds import check_kinds
from isthmus.objective import Objective
from isthmus.objective.labels import IGNORED
from isthmus.paths import HasPath, Path
from isthmus.shown import brief, draw, line, plural, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class Contributions:
    """What every example adds to the rise of the loss from an end to `t`: `each` [n], float64, in units of the loss.

    ``each.sum() + penalty`` is `value`, the loss at `t` less that of the end, to rounding in float64: the excess of a
    path whose largest loss is at `t`. `end`: 0.0 or 1.0, the end with the larger loss. `penalty`: what that adds.
    `labels` [n]: the classes, where targets are classes, one for each example; -100 where a label does not count.
    """

    each: Tensor
    value: float
    penalty: float
    t: float
    end: float
    labels: Tensor | None = None

    def __repr__(self) -> str:
        half = f"{self.half:.2%} of them carry half" if self.value > 0 else "no rise"
        return line(self, plural(len(self.each), "example"), f"sum {brief(self.value)}", f"t {brief(self.t)}", half)

    @property
    def half(self) -> float:
        """The smallest share of the examples that add up to half of the rise; 1 where there is no rise."""
        summed = self.each.sort(descending=True).values.cumsum(0)
        if not self.value - self.penalty > 0:
            return 1.0
        return float((summed < (self.value - self.penalty) / 2).sum() + 1) / len(self.each)

    def top(self, k: int = 10) -> list[tuple[int, float]]:
        """The `k` examples that add most: their numbers in the data set, and what they add."""
        values, index = self.each.topk(min(k, len(self.each)))
        return [(int(i), float(v)) for i, v in zip(index, values, strict=True)]

    def by_class(self) -> dict[int, float]:
        """What the examples of each class add together; empty where there are no classes."""
        if self.labels is None:
            return {}
        return {int(c): float(self.each[self.labels == c].sum()) for c in self.labels.unique() if c != IGNORED}

    def _repr_html_(self) -> str:
        return table(("example", "adds"), self.top(), repr(self))

    def plot(self, ax: Axes | None = None) -> Axes:
        """What the examples add, from the largest on, summed up; drawn on `ax` (default: new axes)."""
        return draw(self, ax)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        own = {k: getattr(self, k) for k in ("value", "penalty", "t", "end", "half")}
        classes = {str(k): v for k, v in self.by_class().items()}
        return own | {"examples": len(self.each), "top": [list(row) for row in self.top()], "by_class": classes}


def contributions(
    objective: Objective,
    path: Path | HasPath | str | os.PathLike[str],
    t: float | None = None,
    *,
    num_points: int = 25,
    bn: str | None = None,
) -> Contributions:
    """What every example adds to the rise of the mean loss from the larger end of a path to `t`.

    `path`: a path, a result that has one, or a file of ``save``.

    `t` in [0, 1]: default, where the loss is largest on `num_points` per segment (ends of paths whose loss does not
    rise give zeros). `bn`: as for ``profile``. Cost: three passes over the data, and those of ``profile`` without `t`;
    8 bytes for each example. Errors: ``UnsupportedError`` for an objective without examples; `t` outside.

    >>> import torch
    >>> x, y = torch.eye(2), torch.tensor([0, 1])
    >>> objective = Objective(torch.nn.Linear(2, 2, bias=False), data=(x, y))
    >>> middle = torch.diag(torch.tensor([1.0, -2.0]))
    >>> found = contributions(objective, Path.through([{"weight": w} for w in (torch.eye(2), middle, torch.eye(2))]))
    >>> found.top(1)[0][0], abs(float(found.each.sum()) - found.value) < 1e-12
    (1, True)
    """
    check_kinds(contributions, locals())
    path = opened(path, objective)
    if t is None:
        found = profile(objective, path, num_points, bn=bn)
        t = float(found.t[int(found.loss.argmax())])
    if not 0 <= t <= 1:
        raise InputError("t", expected="a number in [0, 1]", got=t)
    segments, _ = segments_under(objective, path, bn)
    i = min(int(t * len(segments)), len(segments) - 1)
    points = {0.0: segments[0].start, 1.0: segments[-1].end, t: segments[i].at(t * len(segments) - i)}
    losses = {place: objective.losses(params).double().cpu() for place, params in points.items()}
    penalties = {place: objective.penalty_of(objective.check(params)) for place, params in points.items()}
    means = {place: float(losses[place].mean()) + penalties[place] for place in points}
    end = max((0.0, 1.0), key=means.__getitem__)
    each = (losses[t] - losses[end]) / len(losses[t])
    penalty = penalties[t] - penalties[end]
    return Contributions(each, float(each.sum()) + penalty, penalty, t, end, class_labels(objective))


def class_labels(objective: Objective) -> Tensor | None:
    """One class for each example, where targets are that; ``IGNORED`` where a label does not count."""
    y: Any = objective.source.targets()
    if not (isinstance(y, Tensor) and y.dim() == 1 and not y.is_floating_point() and objective.has_error):
        return None
    labels = objective.criterion.classes
    return (y if labels is None else torch.where(labels.counts(y), y, IGNORED)).cpu()
