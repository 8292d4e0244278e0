"""Adapters of low rank: the path of their factors, and how the network stands it when some of them are left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from isthmus.errors import InputError
from isthmus.kinds import check_kinds
from isthmus.objective import Objective
from isthmus.objective.given import ParamsLike
from isthmus.objective.skeleton import ties_of
from isthmus.params import Params, check_finite, check_like, moves
from isthmus.paths import Curve, Path
from isthmus.shown import brief, line, one_line, plural, table
from isthmus.training.progress import Progress, no_progress

_NEGLIGIBLE = 1e-4
"""Singular values below this share of the largest are rounding of the merged weights."""


@one_line
@dataclass(frozen=True)
class AdapterRow:
    """The weight of one layer: the `rank` of what was moved, its Frobenius `norm`, and how far the `loss` rises without
    it, all other adapters in place.

    `name`: of the weight. `rise`: the loss without it less the loss with all.
    """

    name: str
    rank: int
    norm: float
    rise: float


@dataclass(frozen=True, eq=False)
class AdapterStability:
    """What ``adapter_stability`` found: a row for each weight that was moved, the `loss` with all, `base_loss` of the
    base, all of whose tensors are its own, and `losses` with random shares of them (`kept`: the number of adapters in
    each).

    `rows`: one for each weight that was moved, in the order of the network.
    """

    rows: tuple[AdapterRow, ...]
    loss: float
    base_loss: float
    losses: tuple[float, ...]
    kept: int

    def __repr__(self) -> str:
        told = f"loss {brief(self.loss)}, with {self.kept} of them {brief(self.mean)} on average"
        return line(self, plural(len(self.rows), "adapter"), told)

    @property
    def mean(self) -> float:
        """The mean loss over the random shares."""
        return sum(self.losses) / len(self.losses)

    def _repr_html_(self) -> str:
        return table(
            ("weight", "rank", "norm", "rise without it"), [tuple(asdict(r).values()) for r in self.rows], repr(self)
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        own = {k: getattr(self, k) for k in ("loss", "base_loss", "kept", "mean")}
        return own | {"losses": list(self.losses), "adapters": [asdict(row) for row in self.rows]}


def adapter_stability(
    objective: Objective,
    base: ParamsLike,
    model: ParamsLike,
    *,
    keep: float = 0.5,
    masks: int = 20,
    seed: int = 0,
    progress: Progress = no_progress,
) -> AdapterStability:
    """How the loss of a tuned network stands leaving adapters out, one at a time and at random.

    `base`: the weights under the adapters; `model`: the merged ones (a folder of PEFT is read as such). Every matrix
    that moved is an adapter, a convolution too; other tensors stay as tuned. `keep`: the share of the adapters that
    each of the `masks` random draws keeps, all but one at most. Networks whose loss hardly rises are those that paths
    and averages of adapters suit (Zhuang et al. 2025, whose training leaves them out at random).

    Cost: a pass over the data for each adapter and each draw. Errors: ``InputError`` where nothing moved.

    >>> x, y = torch.eye(2), torch.tensor([0, 1])
    >>> objective = Objective(torch.nn.Linear(2, 2, bias=False), data=(x, y))
    >>> found = adapter_stability(objective, {"weight": torch.zeros(2, 2)}, {"weight": torch.eye(2)}, masks=1)
    >>> found.rows[0].rank, round(found.rows[0].rise, 3)
    (2, 0.38)
    """
    check_kinds(adapter_stability, locals())
    if not 0 < keep < 1 or masks < 1:
        raise InputError("keep, masks", expected="a number in (0, 1), and one mask or more", got=(keep, masks))
    start, tuned = objective.check(base, "base"), objective.check(model, "model")
    ties = ties_of(objective.skeleton)
    moved = {k: v for k, v in _moved(start, tuned).items() if k not in ties}
    if not moved:
        raise InputError("model", expected="a matrix that differs from the base's", got="none")
    names, loss = list(moved), objective.loss(tuned)

    def without(left_out: Iterable[str]) -> float:
        params = tuned | {k: start[k] for k in left_out}
        return objective.loss(params | {k: params[own] for k, own in ties.items()})

    rows = []
    for name in names:
        progress("leaving adapters out", len(rows), len(names) + masks)
        rows.append(AdapterRow(name, _rank(moved[name]), float(moved[name].norm()), without([name]) - loss))
    generator, kept = torch.Generator().manual_seed(seed), min(len(names) - 1, max(1, round(keep * len(names))))
    losses = []
    for done in range(masks):
        progress("leaving adapters out", len(names) + done, len(names) + masks)
        out = torch.randperm(len(names), generator=generator)[kept:]
        losses.append(without(names[i] for i in out))
    return AdapterStability(tuple(rows), loss, objective.loss(start), tuple(losses), kept)


def low_rank_path(
    base: Mapping[str, Tensor], a: Mapping[str, Tensor], b: Mapping[str, Tensor], *, align: bool = True
) -> Path:
    """The path on which the factors of adapters move in a straight line: W(t) = W_0 + B(t) A(t), one Bezier curve.

    The straight line between merged weights moves B A itself, through twice the rank; here the rank stays that of the
    larger end. Both ends' changes are factored by their singular values, half of these on each side, and with `align`
    the factors of b are brought in the frame of a's by the orthogonal matrix that is nearest (B and A times G and its
    inverse are the same adapter: of all invertible G these are balanced). Tensors that are no matrices move in a
    straight line.

    `base`: the weights under the adapters, `a` and `b`: the merged weights, all by the same names.

    Cost: a singular value decomposition of each matrix that moved. Errors: other names or shapes than the base's.

    >>> base = {"w": torch.zeros(2, 2)}
    >>> a, b = ({"w": v * torch.tensor([[1.0, 0.0], [0.0, 0.0]])} for v in (1.0, 4.0))
    >>> round(float(low_rank_path(base, a, b).at(0.5)["w"][0, 0]), 5)
    2.25
    """
    check_kinds(low_rank_path, locals())
    for what, one in (("a", a), ("b", b)):
        check_like(one, base, what)
    middle: Params = {}
    moved = [_moved(base, one) for one in (a, b)]
    for name, start in base.items():
        if not moves(start):
            middle[name] = a[name]
        elif name in moved[0] or name in moved[1]:
            product = _mixed(*(one.get(name, torch.zeros_like(_matrix(start))) for one in moved), align)
            middle[name] = (_matrix(start) + product).view(start.shape).to(start.dtype)
        else:
            middle[name] = torch.lerp(a[name], b[name], 0.5)
    return Path((Curve((dict(a), middle, dict(b))),))


def _matrix(v: Tensor) -> Tensor:
    return v.detach().double().flatten(1)


def _moved(base: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What was moved of each matrix, those of convolutions flattened, in float64."""
    found = {}
    for name, start in base.items():
        if moves(start) and start.dim() >= 2 and not start.is_complex() and not torch.equal(start, model[name]):
            found[name] = _matrix(model[name]) - _matrix(start)
    check_finite(found, "what was moved")
    return found


def _rank(moved: Tensor) -> int:
    values = torch.linalg.svdvals(moved)
    return int((values > _NEGLIGIBLE * values[0]).sum())


def _mixed(a: Tensor, b: Tensor, align: bool) -> Tensor:
    """(B_a A_b + B_b A_a) / 2, the middle control point of the product of two straight lines."""
    rank = max(1, *(_rank(v) if bool(v.any()) else 0 for v in (a, b)))
    (Ba, Aa), (Bb, Ab) = (_factors(v, rank) for v in (a, b))
    if align:
        u, _, v = torch.linalg.svd(Bb.T @ Ba + Ab @ Aa.T)
        Q = u @ v
        Bb, Ab = Bb @ Q, Q.T @ Ab
    return (Ba @ Ab + Bb @ Aa) / 2


def _factors(moved: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    u, s, v = torch.linalg.svd(moved, full_matrices=False)
    half = s[:rank].sqrt()
    return u[:, :rank] * half, half[:, None] * v[:rank]
