"""``check``: may these networks be averaged? Measured before anything is cooked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

from isthmus.alignment import ActivationMatching, align, align_many
from isthmus.alignment.many import seen_models
from isthmus.analysis.averaging import Lines, Mean, Pair, all_below, at_ends, height, sentence
from isthmus.analysis.barrier import names_of
from isthmus.analysis.blocks import BlockBarriers, block_barriers
from isthmus.analysis.contributions import Contributions, class_labels
from isthmus.analysis.ensemble import average_of
from isthmus.analysis.task_vectors import TaskVectors, sizes_of
from isthmus.certify import Certificate, certify
from isthmus.connectors import Aligned, Bezier, Connection, connect
from isthmus.errors import InputError, IsthmusError
from isthmus.evaluate.batchnorm import POLICIES, followed, is_interpolated, others, segments_under
from isthmus.evaluate.decide import Decision, decide
from isthmus.evaluate.profile import Profile, profile
from isthmus.kinds import check_kind, check_kinds
from isthmus.objective import Objective
from isthmus.objective.drawn import on_some
from isthmus.objective.given import ParamsLike
from isthmus.params import Params
from isthmus.paths import Path
from isthmus.paths.on_demand import OnDemand, loaded
from isthmus.shown import draw, line, table, upward
from isthmus.structure.blocks import blocks_of
from isthmus.training.progress import Progress, no_progress
from isthmus.verdict import LEVEL, Level

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TRAINING = "training data"
"""What the data of the objective are called."""
_Networks = Sequence[Mapping[str, Tensor]]
"""Dictionaries, or networks that are read on demand."""
_BLOCK_PASSES = 1.0
"""What the blocks may cost, in passes over the data: so few examples are drawn for them."""
_BLOCK_EXAMPLES, _BLOCK_FEWEST = 1000, 16


@dataclass(frozen=True, eq=False)
class Check:
    """What ``check`` found. `go`: whether the networks may be averaged as they are; `why`: one sentence.

    `lines`: what was measured on the straight lines, by pair and data set; `mean`: of the average of all, by data set;
    `average`: that network. `aligned`, `aligned_mean`: the same after the units were renumbered (empty where that was
    not tried, or is not possible: `notes` say why), a line of three points where these were enough to refuse it.
    `curve`: profiles of a trained curve between the worst pair, if asked for. `worst`: the pair whose line rises most.
    `blocks`, `carriers`: of that pair. `vectors`: against a base. `norms`, `distances`: of the weights, tied ones once,
    without running statistics. `policies`: the losses at the middle of the worst line under the other policies of
    BatchNorm. `certificate`: of that line, if asked for. `passes`: over the training data, about.

    `names`: of the networks; `sets`: of the data sets, the training data first. `level`: as it was asked for. `bn`:
    what became of BatchNorm's statistics. `connection`: the trained curve itself, if asked for.
    """

    go: bool
    why: str
    names: tuple[str, ...]
    sets: tuple[str, ...]
    level: str
    lines: Lines
    mean: Mapping[str, Mean]
    average: Params = field(repr=False)
    bn: str
    norms: tuple[float, ...]
    distances: Mapping[Pair, float]
    worst: Pair
    aligned: Lines = field(default_factory=dict)
    aligned_mean: Mapping[str, Mean] = field(default_factory=dict)
    curve: Profile | None = None
    connection: Connection | None = field(default=None, repr=False)
    blocks: BlockBarriers | None = None
    carriers: Contributions | None = None
    vectors: TaskVectors | None = None
    policies: Mapping[str, float] = field(default_factory=dict)
    certificate: Certificate | None = None
    passes: float = 0.0
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return line(self, "go" if self.go else "no-go", f"{len(self.names)} networks", f"{len(self.sets)} data sets")

    def __str__(self) -> str:
        return self.why

    @property
    def proved(self) -> bool:
        """Whether the loss of the training data is proved to stay below the level on the worst pair's whole line."""
        level = self.lines[self.worst][TRAINING].level
        return _is_below(self.certificate, level)

    @property
    def best(self) -> tuple[float, float]:
        """Where on the line of the worst pair the loss is lowest, on held-out data if there are any, and that loss."""
        found = self.lines[self.worst][self.sets[min(1, len(self.sets) - 1)]].profile
        i = int(found.loss.nan_to_num(nan=torch.inf).argmin())
        return float(found.t[i]), float(found.loss[i])

    def _repr_html_(self) -> str:
        heading, rows = self.table()
        return table(heading, rows, self.why)

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Headings, and a row for each line and each average on each data set."""
        return table_of(self.to_dict())

    def plot(self, ax: Axes | None = None) -> Axes:
        """The loss on the lines, drawn on `ax`; on two axes, as by default, also the blocks."""
        return draw(self, ax)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as stored in check.json: all but weights and the values of single examples."""
        own = {k: getattr(self, k) for k in ("go", "why", "level", "bn", "passes")}
        parts = {k: getattr(self, k) for k in ("blocks", "carriers", "vectors", "curve")}
        return {"format": 1} | own | {
            "names": list(self.names), "sets": list(self.sets), "worst": list(self.worst), "best": list(self.best),
            "lines": _lines_to_dict(self.lines), "aligned": _lines_to_dict(self.aligned),
            "mean": {k: asdict(v) for k, v in self.mean.items()},
            "aligned_mean": {k: asdict(v) for k, v in self.aligned_mean.items()},
            "norms": list(self.norms), "distances": [[*pair, d] for pair, d in self.distances.items()],
            "policies": dict(self.policies), "notes": list(self.notes),
            "certificate": None if self.certificate is None else self.certificate.to_dict(),
            **{k: None if v is None else v.to_dict() for k, v in parts.items()},
        }  # fmt: skip


def table_of(held: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """The table of a check from its plain values, as check.json holds them."""
    heading = ["path", "data", "loss at the ends", "largest loss", "at t", "may rise to", "level", "error at the ends"]
    heading += ["largest error", "points", "below"]
    names, rows = held["names"], []
    for when, key in (("", "lines"), ("aligned ", "aligned")):
        for row in held[key]:
            loss, error = (row["barriers"][k]["max"] for k in ("loss", "error"))
            known = any(v is not None and v == v for v in row["error"])  # else no error is defined
            middle = [loss, row["at"], row["rise"], row["level"], at_ends(row["error"]) if known else "", error]
            name = f"{when}{names[row['a']]} \N{EN DASH} {names[row['b']]}"
            rows.append([name, row["data"], at_ends(row["loss"]), *middle, len(row["t"]), row["below"]])
    for what, key in (("average", "mean"), ("aligned average", "aligned_mean")):
        for name, one in held[key].items():
            below = None not in (one["loss"], one["level"]) and one["loss"] < one["level"]  # files hold None for inf
            rows.append([what, name, "", one["loss"], None, None, one["level"], "", one["error"], 1, below])
    return heading, rows


def _lines_to_dict(lines: Lines) -> list[dict[str, Any]]:
    def one(d: Decision) -> dict[str, Any]:
        return {"level": d.level, "rise": d.rise, "below": d.below, "at": d.at, **d.profile.to_dict()}

    return [{"a": i, "b": j, "data": name, **one(d)} for (i, j), found in lines.items() for name, d in found.items()]


def check(
    objective: Objective,
    models: Sequence[ParamsLike],
    *,
    test: Mapping[str, Objective] | Objective | None = None,
    base: ParamsLike | None = None,
    names: Sequence[str] | None = None,
    level: float | str = LEVEL,
    align: bool = True,
    curve: bool = False,
    prove: bool = False,
    gap: float = 0.05,
    bn: str | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Check:
    """Whether networks may be averaged, merged or put into a soup: measured, not hoped.

    They may if on the straight line between each two of them, and at their mean, the loss stays below `level` (a loss,
    or a multiple of the larger end's as text) on the training data and on each `test` set, at all points that are
    measured and as far as can be estimated between them. `names`: of the networks. `base`: the network that all began
    from; the result then has the task vectors.

    Where they may not, `align` also tries them with their units renumbered, and `curve` a trained curve between the
    worst pair: what could still be done. `prove` bounds the loss of the worst line for all t (``certify``, with its
    `gap`). `bn`: as for ``profile``.

    Cost: 9 passes over each data set for each pair (up to 33 where the line comes close to the level), and about one
    for the blocks; networks that may not be averaged three to nine more for the alignment. With BatchNorm recomputed
    twice that on the training data. Errors: ``InputError``, fewer than two networks.

    >>> import torch
    >>> x, y = torch.eye(2), torch.tensor([0, 1])
    >>> objective = Objective(torch.nn.Linear(2, 2, bias=False), data=(x, y))
    >>> found = check(objective, [{"weight": torch.eye(2)}, {"weight": 2 * torch.eye(2)}])
    >>> found.go, found.why
    (True, 'May be averaged: the loss stays below 1.1 x the larger end on the straight line (training data: at most \
0.3133, level 0.3446).')
    """
    check_kinds(check, locals(), but=["models", "level", "test"])
    asked = Level.read(level)
    networks = seen_models(objective, models)
    start = base if base is None or isinstance(base, OnDemand) else objective.check(base, "base")
    called = names_of(names, len(networks))
    work = _Work(objective, sets_of(objective, test), networks, asked, bn, progress)
    lines, mean, average = work.measured(networks)
    worst = max(lines, key=lambda pair: height(lines[pair]))
    go, notes = all_below(lines, mean), []
    renumbered = work.aligned(networks, seed, notes) if align and not go else ({}, {})
    more = _worst_pair(work, networks, worst, lines[worst], notes, curve=curve, prove=gap if prove else None, seed=seed)
    why = sentence(asked, called, lines, mean, renumbered, go) + _proof(more, lines[worst])
    return Check(
        go=go, why=why, names=called, sets=tuple(work.sets),
        level=str(asked), lines=lines, mean=mean, bn=work.policy,
        worst=worst, aligned=renumbered[0], aligned_mean=renumbered[1], **sizes_of(objective, networks, start),
        passes=work.passes, notes=tuple(notes), **more,
        average=average_of(objective, networks, work.policy) if average is None else average,  # last: it is large
    )  # fmt: skip


def sets_of(objective: Objective, test: Mapping[str, Objective] | Objective | None) -> dict[str, Objective]:
    """All data sets by name, the training data first. Errors: ``InputError``."""
    check_kind(test, Mapping[str, Objective] | Objective | None, "test")
    more = {"held-out data": test} if isinstance(test, Objective) else {} if test is None else dict(test)
    for name, one in more.items():
        if not isinstance(one, Objective) or name == TRAINING:
            raise InputError("test", expected=f"objectives by names other than {TRAINING!r}", got=repr(name))
    return {TRAINING: objective, **more}


@dataclass(eq=False)
class _Work:
    """What is the same for all lines, and the passes over the training data so far."""

    objective: Objective
    sets: dict[str, Objective]
    networks: _Networks
    level: Level
    bn: str | None
    progress: Progress
    passes: float = 0.0

    @property
    def policy(self) -> str:
        """What becomes of BatchNorm's statistics."""
        return followed(self.objective, self.bn or POLICIES[0])

    def measured(self, networks: _Networks) -> tuple[dict[Pair, dict[str, Decision]], dict[str, Mean], Params | None]:
        """All lines and the mean."""
        lines = {}
        for i, j in combinations(range(len(networks)), 2):
            self.progress("measuring straight lines", len(lines), len(networks) * (len(networks) - 1) // 2)
            lines[i, j] = self.line(Path.through([networks[i], networks[j]]))
        return lines, *self.mean(networks, lines)

    def line(self, path: Path, first: Sequence[float] = ()) -> dict[str, Decision]:
        """One line on all data sets."""
        sets = [*self.sets.values()]
        held_out = [name != TRAINING for name in self.sets]
        found = decide(sets, path, self.level.above, bn=self.bn, held_out=held_out, first=first, progress=self.progress)
        self.count(len(found[0].profile.t))
        return dict(zip(self.sets, found, strict=True))

    def count(self, points: float) -> None:
        """Passes at so many points."""
        self.passes += points * (2 if self.policy == "recompute" else 1)

    def mean(self, networks: _Networks, lines: Lines) -> tuple[dict[str, Mean], Params | None]:
        """The average on all data sets, that of two from their line's middle, and itself where it was made."""
        average = None if len(networks) == 2 else average_of(self.objective, networks, self.policy)
        found = {}
        for name, one in self.sets.items():
            ends = [end for line in lines.values() for end in line[name].profile.loss[[0, -1]].tolist()]
            loss, error = _middle(lines[0, 1][name].profile) if average is None else one.measure(average)
            found[name] = Mean(loss, error, self.level.above(ends))
        self.count(len(networks) > 2)
        return found, average

    def aligned(
        self, networks: _Networks, seed: int, notes: list[str]
    ) -> tuple[dict[Pair, dict[str, Decision]], dict[str, Mean]]:
        """The lines between all pairs after their units were renumbered; nothing where that cannot be."""
        try:
            if not self.objective.structure.groups:
                notes.append("not aligned: the network has no hidden units")
                return {}, {}
            if len(networks) == 2:
                found = align(
                    self.objective, networks[0], networks[1], ActivationMatching(), seed=seed, progress=self.progress
                )
                targets = [networks[0], found.target]
            else:
                several = align_many(self.objective, networks, seed=seed, progress=self.progress)
                targets = [one.target for one in several]
        except IsthmusError as error:
            notes.append(f"not aligned: {error}")
            return {}, {}
        self.count(min(1.0, 2 * _BLOCK_EXAMPLES / self.objective.num_examples))
        lines: dict[Pair, dict[str, Decision]] = {}
        for i, j in combinations(range(len(targets)), 2):
            lines[i, j] = self.line(Path.through([targets[i], targets[j]]), first=[0.5])
        return lines, self.mean(targets, lines)[0]


def _worst_pair(
    work: _Work, networks: _Networks, worst: Pair, found: Mapping[str, Decision], notes: list[str], *,
    curve: bool, prove: float | None, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """All that is said of one pair only."""
    a, b = (networks[i] for i in worst)
    path = Path.through([a, b])
    out: dict[str, Any] = {"blocks": _blocks(work, a, b, notes), "carriers": _carriers(work, found[TRAINING])}
    out["policies"] = {bn: _at_middle(work.objective, path, bn) for bn in others(work.policy)}
    work.passes += len(out["policies"])
    if curve:
        try:
            out["connection"], out["curve"] = _curve(work, a, b, seed)
        except IsthmusError as error:
            notes.append(f"no curve: {error}")
    if prove is not None:
        try:
            whole = Path.through([loaded(a), loaded(b)])
            out["certificate"] = certify(work.objective, whole, prove, progress=work.progress)
        except IsthmusError as error:
            notes.append(f"not proved: {error}")
    return out


def _middle(found: Profile) -> tuple[float, float]:
    i = int((found.t - 0.5).abs().argmin())
    return float(found.loss[i]), float(found.error[i])


def _is_below(found: Certificate | None, level: float) -> TypeGuard[Certificate]:
    """Whether a bound below the level is proved of statistics that move with the weights, or of a network without."""
    return found is not None and found.proved and found.bound < level


def _proof(more: Mapping[str, Any], found: Mapping[str, Decision]) -> str:
    """What is proved beyond the points that were measured; nothing where no bound is below the level."""
    proof = more.get("certificate")
    if not _is_below(proof, found[TRAINING].level):
        return ""
    statistics = "" if is_interpolated(found[TRAINING].profile.bn) else " of interpolated statistics"
    return f" On the training data that is proved for all t{statistics}: at most {upward(proof.bound):.4g}."


def _at_middle(objective: Objective, path: Path, bn: str) -> float:
    return objective.loss(segments_under(objective, path, bn)[0][0].at(0.5))


def _blocks(work: _Work, a: Mapping[str, Tensor], b: Mapping[str, Tensor], notes: list[str]) -> BlockBarriers | None:
    """On so few examples that they cost about one pass over all."""
    if not work.objective.num_examples:
        return None
    blocks = len(blocks_of(list(a)))
    n = work.objective.num_examples
    few = min(n, _BLOCK_EXAMPLES, max(_BLOCK_FEWEST, int(_BLOCK_PASSES * n / (3 * blocks))))
    try:
        found = block_barriers(on_some(work.objective, few), a, b, bn=work.bn, progress=work.progress)
    except IsthmusError as error:
        notes.append(f"no blocks: {error}")
        return None
    work.count(3 * blocks * few / n)
    return found


def _carriers(work: _Work, found: Decision) -> Contributions | None:
    """From the losses that were measured on the line."""
    if found.change is None:
        return None
    loss = found.profile.loss
    end = float(loss[0] < loss[-1])
    each = found.change / len(found.change)
    value = float(loss.max()) - float(loss[[0, -1]].max())
    return Contributions(each, value, value - float(each.sum()), found.at, end, class_labels(work.objective))


def _curve(work: _Work, a: Mapping[str, Tensor], b: Mapping[str, Tensor], seed: int) -> tuple[Connection, Profile]:
    """A trained curve, between aligned ends where there are units that can be told apart."""
    method = Bezier()
    try:
        found = connect(work.objective, a, b, Aligned(method), seed=seed, progress=work.progress)
    except IsthmusError:
        found = connect(work.objective, a, b, method, seed=seed, progress=work.progress)
    test = next((one for name, one in work.sets.items() if name != TRAINING), None)
    measured = profile(work.objective, found, 25, test=test, bn=work.bn, progress=work.progress)
    steps, evaluations = found.cost.gradient_steps or 0, found.cost.evaluations or 0
    work.passes += 3 * steps * method.recipe.batch / work.objective.num_examples + evaluations + len(measured.t)
    return found, measured
