"""What a test set says about all examples there could be, along a path."""

from __future__ import annotations

import os
from dataclasses import replace

from isthmus.errors import InputError, UnsupportedError
from isthmus.evaluate.band import LEVEL, Band
from isthmus.evaluate.batchnorm import POLICIES, statistics
from isthmus.evaluate.profile import band_along, opened
from isthmus.kinds import check_kinds
from isthmus.objective import Objective
from isthmus.paths import HasPath, Path


def population(
    objective: Objective,
    path: Path | HasPath | str | os.PathLike[str],
    level: float = LEVEL,
    grid: int = 61,
    *,
    train: Objective | None = None,
    bn: str | None = None,
    certified: bool = False,
    seed: int = 0,
) -> Band:
    """Bands for the mean loss and the error rate of the population, from the examples of a test set along a path.

    `objective`: of the test set, whose examples are independent draws, and were not used to find the path. `grid`: the
    points of every segment, as for ``profile``, which shows the same for its `test`. `level`: the probability with
    which a band holds at all points. `bn`: as for ``profile``; recomputed statistics come from the data of `train`, as
    those of the test set would tie its examples together. `seed`: of the draws of the bootstrap.

    `certified`: also an upper band for every t, between the points as well (``band.everywhere``): the losses of single
    examples are bounded over `grid` - 1 equal intervals of every segment, and from the means of these bounds over the
    test set an upper end for those over the population follows. The part about every t is proved; the part from the
    sample to the population holds with probability `level`, asymptotically. Bounds of wide intervals are far above the
    loss: a finer `grid` brings them nearer, and each interval costs 6 to 10 passes. It is about running statistics as
    the path has them, so a network with BatchNorm needs ``bn="interpolate"``.

    `path`: a path, a result that has one, or a file of ``save``.

    Costs what ``profile`` does, and 4 or 8 bytes for every example at every point, up to ``objective.memory``; streams
    are read once per point. On a population of known means (``benchmarks/population.py``, 20 points, level .95)
    the band for the loss held for .924, .954 and .952 of 500 sets of 100, 500 and 2,000 examples, the interval for the
    barrier for .982 and more, that for the error for .974 and more; heavier tails need more examples.

    Errors: ``InputError`` for fewer than two examples, for a loss that is not finite on the path and for what does not
    fit into the memory; ``UnsupportedError`` for an objective without examples (``evaluate=``), for weights of classes
    and sums, and for recomputed statistics without `train`.

    >>> import torch
    >>> x, y = torch.eye(2).repeat(50, 1), torch.tensor([0, 1]).repeat(50)
    >>> objective = Objective(torch.nn.Linear(2, 2, bias=False), data=(x, y))
    >>> line = Path.through([{"weight": torch.eye(2)}, {"weight": -torch.eye(2)}])
    >>> band = population(objective, line, grid=3)
    >>> print(band.error.highest, band.asymptotic, band.error.asymptotic)
    [0.9532, 1] True False
    """
    check_kinds(population, locals())
    if not 0 < level < 1:
        raise InputError("level", expected="a probability between 0 and 1", got=level)
    path = opened(path, objective)
    policy = bn or path.bn or POLICIES[0]
    if policy == "recompute" and statistics(objective):
        _check_recomputed(train, certified)
    band = band_along(objective, path, level, num_points=grid, bn=bn, train=train or objective, seed=seed)
    if not certified:
        return band
    # upwards, and only for who asks for it: proofs rest on what measures
    from isthmus.certify.everywhere import everywhere

    return replace(band, everywhere=everywhere(objective, path, level, grid, seed))


def _check_recomputed(train: Objective | None, certified: bool) -> None:
    """What cannot be said where running statistics are computed again at every point."""
    if train is None:
        why = "running statistics recomputed from the test set tie its examples together"
        raise UnsupportedError("bn='recompute'", why, "give train=objective of the training data, or bn='interpolate'")
    if certified:
        why = "a proof is about the running statistics of the path, not about those computed again"
        raise UnsupportedError("certified=True", why, "bn='interpolate'")
