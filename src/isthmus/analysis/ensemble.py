"""Ensembles and weight averages of the networks along a path, beside independent networks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from isthmus.analysis.scores import Predictions, Scores, Tally
from isthmus.checks import refuse_unless_whole
from isthmus.connectors.base import Connection
from isthmus.errors import InputError
from isthmus.evaluate.batchnorm import POLICIES, followed, no_weights, refresh, segments_under, statistics
from isthmus.evaluate.profile import opened
from isthmus.kinds import check_kinds
from isthmus.objective import Objective
from isthmus.objective.given import ParamsLike
from isthmus.objective.skeleton import ties_of
from isthmus.params import Params, equal, mean
from isthmus.paths import HasPath, Path, by_length
from isthmus.shown import draw, line, one_line, plural, table
from isthmus.training.progress import Progress, no_progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_POINTS = 5
_SHARE = 4
"""Batches are so many times smaller than the objective's, as sums of predictions are in memory too, in float64."""
HEADINGS = {"error": "error", "nll": "NLL", "ece": "ECE", "brier": "Brier", "disagreement": "disagreement"}
"""The scores of class probabilities, and what they are called in tables."""


@one_line
@dataclass(frozen=True)
class EnsembleRow:
    """One way to predict. `kind`: "end", "ends", "member", "probability average", "weight average", "independent" or
    "independent ensemble"; of networks without probabilities, "probability average" is that of the outputs. `t`: of a
    member on a path. `passes`: evaluations of the network for one prediction. `seconds`: that making it cost beyond the
    ends of the path, where that is known. `test`: scores on the test data.

    `name`: of the row. `train`: scores on the training data.
    """

    name: str
    kind: str
    passes: int
    train: Scores
    test: Scores | None = None
    t: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, eq=False)
class Ensemble:
    """What ``ensemble`` found: `rows`, the `members` at `t` (none for networks without a path), their weight `average`.

    `bn`: what became of BatchNorm's statistics, "none" where there are none. ``found["probability average"]`` is the
    first row of that kind, or of that name.
    """

    rows: tuple[EnsembleRow, ...]
    members: tuple[Params, ...]
    average: Params
    t: tuple[float, ...]
    bn: str

    def __repr__(self) -> str:
        best = self["probability average"]
        score = (best.test or best.train).error
        told = [] if score is None else [f"{'test ' if best.test else ''}error {score:.4g}"]
        return line(self, plural(len(self.members), "network"), *told, plural(len(self.rows), "row"))

    def __getitem__(self, name: str) -> EnsembleRow:
        for row in self.rows:
            if name in (row.kind, row.name):
                return row
        raise InputError("row", expected=f"one of {', '.join(row.name for row in self.rows)}", got=repr(name))

    def member(self, i: int) -> Params:
        """The parameters of the i-th network, to be used or saved as they are."""
        if not -len(self.members) <= i < len(self.members):
            raise InputError("i", expected=f"0 to {len(self.members) - 1}", got=i)
        return self.members[i]

    def table(self, *parts: str) -> tuple[list[str], list[list[Any]]]:
        """The headings, and a row of cells for each way to predict; scores that no row has are left out.

        `parts`: "test", "train" or both, in the order of the columns; default: the test data first, if there are any.
        """
        names = HEADINGS if self.rows[0].train.nll is not None else {"loss": "loss", "error": "error"}
        columns = self._columns(parts or (("test", "train") if self.rows[0].test is not None else ("train",)), names)
        told = [f"{part} {names[name]}" for part, name in columns]
        cells = [[getattr(getattr(row, part), name) for part, name in columns] for row in self.rows]
        rows = [[row.name, *scores, row.passes, row.seconds] for row, scores in zip(self.rows, cells, strict=True)]
        return ["prediction", *told, "passes", "training s"], rows

    def _columns(self, parts: Sequence[str], names: Iterable[str]) -> list[tuple[str, str]]:
        """The scores that some row has."""
        every = [(part, name) for part in parts for name in names]
        return [(p, n) for p, n in every if any(getattr(getattr(row, p), n) is not None for row in self.rows)]

    def _repr_html_(self) -> str:
        return table(*self.table(), repr(self))

    def plot(self, ax: Axes | None = None) -> Axes:
        """The error (or loss) along the path, and those of the averages. Needs ``isthmus[plot]``."""
        return draw(self, ax)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"format": 1, "bn": self.bn, "t": list(self.t), "rows": [asdict(row) for row in self.rows]}


def ensemble(
    objective: Objective,
    path: Path | HasPath | str | os.PathLike[str] | Sequence[ParamsLike],
    points: int | None = None,
    test: Objective | None = None,
    independent: Sequence[ParamsLike] = (),
    ts: Sequence[float] | None = None,
    bn: str | None = None,
    progress: Progress = no_progress,
) -> Ensemble:
    """How good the networks on a path are together, by averaged probabilities and by averaged weights.

    `path`: a path, a result that has one, a file of ``save``, or networks themselves, such as those of
    ``fast_geometric_ensemble``. The members are `points` networks (default 5) at equal distances along the path, both
    ends among them (1: its middle), or those at `ts`. Rows: each member, each end, both ends together, the average of
    probabilities, the network of averaged weights, each `independent` network and their ensembles: of all, of as many
    as there are members, which is the fair comparison, and of two.

    Probabilities are averaged (softmax or sigmoid of the outputs; outputs that are logarithms of probabilities; outputs
    of a function loss with class labels are taken for logits), for all other losses outputs. `test` is evaluated too,
    and shown first. BatchNorm (`bn`, as in ``profile``): "recompute" computes the statistics of members and of the
    average again; ends, independent networks and networks that are given have their own.

    Cost: one pass over the data for each network. Data and outputs are in memory batch by batch, the networks whole.
    Errors: ``InputError`` for options that do not fit and for a network whose outputs are not numbers, by its name.

    Source: Garipov, Izmailov, Podoprikhin, Vetrov, Wilson 2018, sections 3 and 5 (where t, not length, is equidistant).

    >>> x, y = torch.eye(2), torch.tensor([0, 1])
    >>> objective = Objective(torch.nn.Linear(2, 2, bias=False), data=(x, y))
    >>> found = ensemble(objective, Path.through([{"weight": torch.eye(2)}, {"weight": 3 * torch.eye(2)}]), points=3)
    >>> found.average["weight"].tolist(), found["probability average"].train.error
    ([[2.0, 0.0], [0.0, 2.0]], 0.0)
    """
    check_kinds(ensemble, locals())
    objective.source.few()  # there must be outputs
    if isinstance(path, Sequence) and not isinstance(path, str):
        chosen = _given(objective, path, points, ts, bn)
    else:
        chosen = _on_path(objective, path, points, ts, bn)
    nets = _Networks()
    averaged = "output average" if Predictions(objective).link == "none" else "probability average"
    plans = [*_of_the_path(chosen, nets, averaged), *_of_others(objective, independent, nets, len(chosen.members))]
    train = _evaluated(objective, nets, plans, progress)
    tests = [None] * len(plans) if test is None else _evaluated(test, nets, plans, progress)
    rows = tuple(
        EnsembleRow(p.name, p.kind, len(p.networks), one, other, p.t, p.seconds)
        for p, one, other in zip(plans, train, tests, strict=True)
    )
    return Ensemble(rows, tuple(chosen.members.values()), chosen.average, tuple(chosen.t), chosen.bn)


@dataclass(frozen=True)
class _Chosen:
    """The networks by their names; `t` of the members on a path."""

    ends: Mapping[str, Params]
    members: Mapping[str, Params]
    average: Params
    t: Sequence[float]
    bn: str
    seconds: float | None = None


@dataclass(frozen=True)
class _Plan:
    """A row before it is measured; `networks`: the numbers of those whose predictions are averaged."""

    name: str
    kind: str
    networks: list[int]
    t: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class _Networks:
    """All networks that are evaluated, each once."""

    names: list[str] = field(default_factory=list)
    params: list[Params] = field(default_factory=list)

    def add(self, name: str, params: Params) -> int:
        """The number of the network, perhaps that of an equal one."""
        for i, known in enumerate(self.params):
            if equal(known, params):
                return i
        self.names.append(name)
        self.params.append(params)
        return len(self.params) - 1


def _on_path(
    objective: Objective,
    given: Path | HasPath | str | os.PathLike[str],
    points: int | None,
    ts: Sequence[float] | None,
    bn: str | None,
) -> _Chosen:
    path = opened(given, objective)
    segments, policy = segments_under(objective, path, bn)
    if ts is None:
        still = ties_of(objective.skeleton) if policy == "interpolate" else no_weights(objective)
        ts = by_length(path, _shares(_POINTS if points is None else points), still)
    elif points is not None or not len(ts):
        raise InputError("ts", expected="at least one t, in place of points", got=f"{len(ts)} and points={points}")
    at = list(map(float, ts))
    places = zip(_named(at), map(path.locate, at), strict=True)
    members = {name: objective.check(segments[i].at(local), name) for name, (i, local) in places}
    ends = {"a": objective.check(path.start, "a"), "b": objective.check(path.end, "b")}
    seconds = given.cost.seconds if isinstance(given, Connection) else None
    average = average_of(objective, list(members.values()), policy)
    return _Chosen(ends, members, average, at, policy, seconds)


def _named(ts: Sequence[float]) -> list[str]:
    """What the members are called: by t in four digits, or as many as tell them apart. Errors: equal t."""
    if len({*ts}) < len(ts):
        raise InputError("ts", expected="each t once", got=list(ts))
    several = ([f"t = {t:.{digits}g}" for t in ts] for digits in range(4, 18))
    return next(names for names in several if len({*names}) == len(ts))


def _shares(points: int) -> list[float]:
    refuse_unless_whole("points", points)
    return [i / (points - 1) for i in range(int(points))] if points > 1 else [0.5]


def _given(
    objective: Objective, networks: Sequence[ParamsLike], points: int | None, ts: Sequence[float] | None, bn: str | None
) -> _Chosen:
    if not len(networks):
        raise InputError("path", expected="a path, or at least one network", got="no network")
    if points is not None or ts is not None:
        raise InputError("points, ts", expected="None for networks without a path", got=(points, ts))
    members = {}
    for k, given in enumerate(networks, start=1):
        members[f"network {k}"] = {n: v.clone() for n, v in objective.check(given, f"network {k}").items()}
    policy = followed(objective, bn or POLICIES[0])
    return _Chosen({}, members, average_of(objective, list(members.values()), policy), [], policy)


def average_of(objective: Objective, members: Sequence[Mapping[str, Tensor]], policy: str) -> Params:
    """The mean of the weights; of statistics too with "interpolate", else they are the first's or computed again."""
    average = mean(members)
    if policy in ("keep", "recompute"):
        average |= {k: members[0][k] for k in statistics(objective)}
    return refresh(objective, average) if policy == "recompute" else average


def _of_the_path(chosen: _Chosen, nets: _Networks, averaged: str) -> list[_Plan]:
    """Those of the ends, the members and their averages; `averaged`: what that of their predictions is called."""
    ends = [nets.add(name, p) for name, p in chosen.ends.items()]
    members = [nets.add(name, p) for name, p in chosen.members.items()]
    average = nets.add("the weight average", chosen.average)
    places = chosen.t or [None] * len(members)
    several, cost = plural(len(members), "network"), chosen.seconds
    return [
        *(_Plan(name, "end", [i]) for name, i in zip(chosen.ends, ends, strict=True)),
        *([_Plan("a and b", "ends", ends)] if ends else []),
        *(
            _Plan(name, "member", [i], t, None if i in ends else cost)
            for name, i, t in zip(chosen.members, members, places, strict=True)
        ),
        _Plan(f"{averaged}, {several}", "probability average", members, None, cost),
        _Plan(f"weight average, {several}", "weight average", [average], None, cost),
    ]


def _of_others(objective: Objective, independent: Sequence[ParamsLike], nets: _Networks, count: int) -> list[_Plan]:
    """The independent networks, and their ensembles: of two, of as many as there are members, of all."""
    plans, all_of = [], []
    for k, given in enumerate(independent, start=1):
        name = f"independent {k}"
        all_of.append(nets.add(name, objective.check(given, name)))
        plans.append(_Plan(name, "independent", all_of[-1:]))
    sizes = sorted({n for n in (2, count, len(all_of)) if 2 <= n <= len(all_of)})
    return plans + [_Plan(f"{n} independent networks", "independent ensemble", all_of[:n]) for n in sizes]


def _evaluated(objective: Objective, nets: _Networks, plans: Sequence[_Plan], progress: Progress) -> list[Scores]:
    predictions = Predictions(objective)
    tallies = [Tally(predictions) for _ in plans]
    params = [objective.check(p, name) for name, p in zip(nets.names, nets.params, strict=True)]
    done = 0
    with torch.no_grad():
        for x, y in objective.source.chunks(max(1, objective.chunk // _SHARE)):
            named = zip(nets.names, (objective.forward(p, x) for p in params), strict=True)
            _add(tallies, plans, predictions, ((z, _finite(predictions, name, z, y)) for name, z in named), y)
            done += len(y)
            progress("evaluating networks", done, objective.num_examples)
    return [tally.scores() for tally in tallies]


def _finite(predictions: Predictions, name: str, outputs: Tensor, y: Tensor) -> Tensor:
    """The prediction. Errors: ``InputError`` where one that counts is no number."""
    one = predictions.of(outputs)
    if predictions.has_nan(one, y):
        raise InputError(name, expected="outputs that are numbers", got="NaN", instead="the other networks alone")
    return one


def _add(
    tallies: Sequence[Tally],
    plans: Sequence[_Plan],
    predictions: Predictions,
    ones: Iterator[tuple[Tensor, Tensor]],
    y: Tensor,
) -> None:
    """Some examples. The outputs of one network at a time are in memory, and one sum for each ensemble."""
    classes: list[Tensor] = []
    sums: dict[int, Tensor] = {}
    for i, (outputs, one) in enumerate(ones):
        classes.append(predictions.classes(one) if predictions.has_classes else one.new_zeros(0))
        for k, plan in enumerate(plans):
            if plan.networks == [i]:
                tallies[k].add(one, y, [classes[i], classes[0]], outputs)
                continue
            for _ in range(plan.networks.count(i)):
                sums[k] = predictions.added(sums.get(k), one)
    for k, total in sums.items():
        networks = plans[k].networks
        tallies[k].add(predictions.mean(total, len(networks)), y, [classes[i] for i in networks])
