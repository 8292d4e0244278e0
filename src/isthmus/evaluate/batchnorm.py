"""What becomes of BatchNorm's running statistics on a path: four policies, always stated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from isthmus.errors import InputError, UnsupportedError
from isthmus.objective import Objective
from isthmus.objective.skeleton import ties_of
from isthmus.params import Params
from isthmus.paths import Curve, Path, Segment
from isthmus.program.copied import copied

POLICIES = ("recompute", "interpolate", "keep", "error")
"""What becomes of running statistics. The first is the default: statistics belong to weights."""
_WORDS = {
    "interpolate": "the running statistics move along the path like weights, and certificates speak about those",
    "keep": "the running statistics stay those of the path's start; certificates speak about interpolated ones",
    "recompute": "the running statistics are computed again at every point; certificates speak about interpolated ones",
}
BATCH = 256
"""Examples per batch, about, when statistics are computed again."""


def segments_under(objective: Objective, path: Path, bn: str | None) -> tuple[Sequence[Segment], str]:
    """The segments of `path` under a policy, and the policy that applies ("none" without running statistics).

    None is the policy of the path, else the default.
    """
    policy, names = followed(objective, bn or path.bn or POLICIES[0]), statistics(objective)
    if policy == "keep":
        kept = {k: path.start[k] for k in names}
        return path.map(lambda p: {**p, **kept}).segments, policy
    if policy == "recompute":
        _check_data(objective)
        return [Refreshed(s, objective, tuple(names)) for s in path.segments], policy
    return path.segments, policy


def policy_in_words(bn: str) -> str:
    """What became of running statistics under the policy that a profile names; empty for "none".

    >>> policy_in_words("none"), policy_in_words("keep")[:32]
    ('', 'BatchNorm (bn=keep): the running')
    """
    return f"BatchNorm (bn={bn}): {_WORDS[bn]}" if bn in _WORDS else ""


def beside_in_words(top: float, beside: Mapping[str, float]) -> str:
    """The largest losses under the other policies, where one is more than 1 % from `top`; empty where none is.

    >>> beside_in_words(1.22, {"interpolate": 3.271, "keep": 1.22})
    'the largest loss is 3.271 with bn=interpolate, 1.22 with bn=keep'
    >>> beside_in_words(1.22, {"interpolate": 1.221})
    ''
    """
    differ = any(not abs(v - top) <= 0.01 * abs(top) for v in beside.values())
    return f"the largest loss is {', '.join(f'{v:.4g} with bn={p}' for p, v in beside.items())}" if differ else ""


def applied(objective: Objective, bn: str) -> str:
    """The policy that applies: `bn`, or "none" without running statistics. Errors: `InputError` for another word."""
    if bn not in POLICIES:
        raise InputError("bn", expected=f"one of {POLICIES}", got=repr(bn))
    return bn if statistics(objective) else "none"


def followed(objective: Objective, bn: str) -> str:
    """``applied``; refuses "error" where there are running statistics."""
    policy = applied(objective, bn)
    if policy == "error":
        names = statistics(objective)
        raise UnsupportedError(
            "BatchNorm",
            f"the network has running statistics ({names[0]} and {len(names) - 1} more)",
            "choose what becomes of them on the path: bn='interpolate', 'keep' or 'recompute'",
        )
    return policy


def is_interpolated(policy: str) -> bool:
    """Whether points of a path have the statistics that lie between those of its ends, about which certificates speak.

    >>> is_interpolated("none"), is_interpolated("interpolate"), is_interpolated("keep")
    (True, True, False)
    """
    return policy in ("none", "interpolate")


def others(policy: str) -> tuple[str, ...]:
    """The policies whose values stand beside those of `policy`; none without running statistics.

    >>> others("recompute"), others("none")
    (('interpolate', 'keep'), ())
    """
    return () if policy == "none" else tuple(p for p in POLICIES if p not in (policy, "error"))


def statistics(objective: Objective) -> list[str]:
    """The names of all running statistics of BatchNorm, counters included.

    >>> x = torch.zeros(4, 3)
    >>> net = torch.nn.Sequential(torch.nn.BatchNorm1d(3)).eval()
    >>> statistics(Objective(net, data=(x, torch.zeros(4, dtype=torch.int64))))
    ['0.running_mean', '0.running_var', '0.num_batches_tracked']
    """
    return [
        f"{path}.{name}" if path else name
        for path, part in objective.skeleton.named_modules(remove_duplicate=False)
        if isinstance(part, _BatchNorm) and part.running_mean is not None
        for name in ("running_mean", "running_var", "num_batches_tracked")
    ]


def no_weights(objective: Objective) -> list[str]:
    """The names of what is no weight of its own: running statistics, and further names of tied tensors.

    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2, bias=False))
    >>> net[1].weight = net[0].weight
    >>> no_weights(Objective(net, data=(torch.eye(2), torch.tensor([0, 1]))))
    ['1.weight']
    """
    return [*statistics(objective), *ties_of(objective.skeleton)]


def with_batch_statistics(module: nn.Module) -> nn.Module:
    """A copy whose BatchNorm layers normalise by the batch, and keep the mean of all batches' statistics."""
    copy = copied(module, {})
    for part in copy.modules():
        if isinstance(part, _BatchNorm):
            part.train()
            part.momentum = None
    return copy


def _check_data(objective: Objective) -> None:
    if not objective.num_examples:
        why = "evaluate= shows no data from which statistics can be computed"
        raise UnsupportedError("bn='recompute'", why, "write bn='interpolate' or bn='keep'")
    if objective.num_examples < 2:
        raise InputError("data", expected="at least 2 examples, to compute statistics", got=1)


def refresh(objective: Objective, params: Params) -> Params:
    """`params` with running statistics computed again: the averages over fixed batches of the objective's data.

    The batches are the same at every call (one fixed shuffle of all examples, about `BATCH` each); every layer sees
    what the ones before it normalise by the batch, and averages are cumulative (momentum None). Costs one pass over the
    data. Nothing is written into `params` or into the user's module. Errors: fewer than two examples, or none to see.
    """
    _check_data(objective)
    module, ties = with_batch_statistics(objective.skeleton), ties_of(objective.skeleton)
    own: dict[str, Tensor] = {k: torch.zeros_like(params[k]) for k in statistics(objective)}
    order = torch.randperm(objective.num_examples, generator=torch.Generator().manual_seed(0)).to(objective.device)
    with torch.no_grad():
        for index in order.tensor_split(max(1, len(order) // BATCH)):
            objective.forward({**params, **own}, objective.source.at(index)[0], module)
    own |= {k: own[ties[k]] for k in own if k in ties}
    return {**params, **own}


@final
@dataclass(frozen=True, eq=False)
class Refreshed(Segment):
    """A segment whose running statistics are computed again at every point, from the data of `objective`."""

    inner: Segment
    objective: Objective
    names: tuple[str, ...]
    _known: dict[float, Params] = field(default_factory=dict)

    def at(self, t: float) -> Params:
        """The point at t; its statistics are computed once, however many data sets are measured with them."""
        params = self.objective.check(self.inner.at(t), "path")
        if t not in self._known:
            fresh = refresh(self.objective, params)
            self._known[t] = {k: fresh[k] for k in self.names}
        return {**params, **self._known[t]}

    @property
    def length(self) -> float:
        """The length of the segment without its statistics' change."""
        few = tuple({k: v for k, v in p.items() if k not in self.names} for p in self._control())
        return Curve(few).length

    def reversed(self) -> Refreshed:
        """The same points walked from the end to the start."""
        return Refreshed(self.inner.reversed(), self.objective, self.names)

    def split(self, t: float) -> tuple[Refreshed, Refreshed]:
        """The parts before and after t."""
        left, right = self.inner.split(t)
        return (
            Refreshed(left, self.objective, self.names),
            Refreshed(right, self.objective, self.names),
        )

    def _control(self) -> tuple[Params, ...]:
        return self.inner.control if isinstance(self.inner, Curve) else (self.inner.start, self.inner.end)
