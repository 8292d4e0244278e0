"""The arrays of ``curve.npz``, under the names that ``eval_curve.py`` of dnn-mode-connectivity gives them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path as File

import numpy as np
from numpy.typing import NDArray

from isthmus.errors import InputError
from isthmus.evaluate import Profile
from isthmus.kinds import check_kinds
from isthmus.objective import Objective
from isthmus.objective.skeleton import ties_of
from isthmus.params import Params, distance
from isthmus.paths import HasPath, Path, path_of
from isthmus.storage.files import PathLike, atomic_write

_Floats = NDArray[np.float64]
_SUMMED = ("loss", "nll", "err")
"""The curves of which the file also has four numbers each."""


def save_curve_npz(
    profile: Profile, file: PathLike, objective: Objective, path: Path | HasPath, test: Objective | None = None
) -> None:
    """Write what was measured of a path under the names of Garipov et al. 2018, atomically.

    `profile`: of the path. `file`: where to write.

    `ts`: t; `dl`: the distances between neighbouring points of the profile in weights (without statistics of
    BatchNorm), after a first 0. "tr_" stands for the training data, "te_" for the test data, if they were measured:
    `tr_nll` the loss without the penalty, `tr_loss` with it, `tr_acc` and `tr_err` in percent; and `tr_loss_min`,
    `_max`, `_avg` (the mean over the points) and `_int` (the mean over the length: trapezoids of widths `dl`), the same
    of `nll` and `err`. `l2`, only where there is a penalty: the sum of the squares of the weights at each point.
    `objective`: the one that was measured, `path`: the path, `test`: the objective of the test data, whose penalty is
    taken out of their loss; default: as `objective`, as in the published code. Cost: the points of the path, no pass
    over the data.

    Errors: ``InputError`` for a profile that is not of a path like this one, and for a `test` that it does not hold.

    >>> import numpy, torch
    >>> from tempfile import TemporaryDirectory
    >>> from isthmus import Path, profile
    >>> objective = Objective(torch.nn.Linear(2, 2, bias=False), data=(torch.eye(2), torch.tensor([0, 1])))
    >>> path = Path.through([{"weight": torch.eye(2)}, {"weight": -torch.eye(2)}])
    >>> with TemporaryDirectory() as folder:
    ...     save_curve_npz(profile(objective, path, 3), f"{folder}/curve.npz", objective, path)
    ...     numpy.load(f"{folder}/curve.npz")["tr_err"].tolist()
    [0.0, 50.0, 100.0]
    """
    check_kinds(save_curve_npz, locals())
    walked = path_of(path)
    last = int(profile.segment[-1]) + 1
    if last != len(walked):
        raise InputError("profile", expected=f"one of {len(walked)} segments, as the path has", got=last)
    ts = profile.t.numpy()
    if test is not None and profile.test is None:
        raise InputError("test", expected="None for a profile without test data", got="an objective")
    sets = [("tr", profile, objective)]
    if profile.test is not None:
        sets.append(("te", profile.test, test or objective))
    dl, penalties, squares = _along([o for *_, o in sets], walked, ts)
    arrays = {"ts": ts, "dl": dl}
    for (name, found, _), penalty in zip(sets, penalties, strict=True):
        arrays |= _curves(name, found, penalty, dl)
    if any(o.penalty is not None for *_, o in sets):
        arrays["l2"] = squares
    atomic_write(file, lambda temporary: _write(temporary, arrays))


def _write(temporary: File, arrays: dict[str, _Floats]) -> None:
    with open(temporary, "wb") as out:  # a name without the ending would get it
        np.savez(out, **arrays)  # type: ignore[arg-type]


def _along(objectives: Sequence[Objective], path: Path, ts: _Floats) -> tuple[_Floats, _Floats, _Floats]:
    """At each t the distance from the point before, the penalty of each objective, and the sum of squared weights."""
    objective = objectives[0]
    ties = ties_of(objective.skeleton)
    weights = [k for k in objective.parameter_names if k not in ties]
    dl, squares, penalties = np.zeros(len(ts)), np.zeros(len(ts)), np.zeros((len(objectives), len(ts)))
    before: Params | None = None
    for i, t in enumerate(ts):
        point = objective.check(path.at(float(t)), "path")
        own = {k: point[k] for k in weights}
        dl[i] = 0.0 if before is None else distance(before, own)
        penalties[:, i] = [o.penalty_of(point) for o in objectives]
        squares[i] = sum(float(v.detach().abs().double().square().sum()) for v in own.values())
        before = own
    return dl, penalties, squares


def _curves(name: str, found: Profile, penalties: _Floats, dl: _Floats) -> dict[str, _Floats]:
    loss, error = found.loss.numpy(), 100 * found.error.numpy()
    curves = {"loss": loss, "nll": loss - penalties, "acc": 100 - error, "err": error}
    arrays = {f"{name}_{k}": v for k, v in curves.items()}
    for k in _SUMMED:
        arrays |= {f"{name}_{k}_{how}": np.asarray(v) for how, v in _numbers(curves[k], dl).items()}
    return arrays


def _numbers(q: _Floats, dl: _Floats) -> dict[str, float]:
    """The four numbers of a curve; the mean over a path of length 0 is that over its points."""
    length = float(dl[1:].sum())
    along = float((0.5 * (q[:-1] + q[1:]) * dl[1:]).sum()) / length if length > 0 else float(q.mean())
    return {"min": float(q.min()), "max": float(q.max()), "avg": float(q.mean()), "int": along}
