"""``minima_graph``: try the pairs that can matter, each once, until no other one can."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from math import isfinite, isnan
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypedDict, Unpack, get_type_hints

from isthmus.alignment import Matching
from isthmus.checks import check_choices, check_whole
from isthmus.connectors import Connector, Linear
from isthmus.connectors.base import describe
from isthmus.errors import InputError, IsthmusError, UnsupportedError
from isthmus.evaluate.batchnorm import statistics
from isthmus.graph.cells import AlignmentCell, Material, MinimumCell, edge_cells
from isthmus.graph.minima import Edge, MinimaGraph, Minimum
from isthmus.graph.stored import write_graph
from isthmus.graph.tree import Pair, floor_of, suggestions
from isthmus.kinds import check_kind, check_kinds
from isthmus.objective import Objective
from isthmus.objective.given import ParamsLike
from isthmus.params import Params, check_finite
from isthmus.storage import digest
from isthmus.sweep import Cell, Engine, Local, Ray, Store, Stored, run_cells
from isthmus.training.progress import Progress, no_progress


class GraphOptions(TypedDict, total=False):
    """What ``minima_graph`` takes besides. `num_points`: measured per segment; the others: see there."""

    tol: float
    num_points: int
    progress: Progress
    align: Matching | None


def minima_graph(
    objective: Objective,
    params: Mapping[str, ParamsLike] | Sequence[ParamsLike],
    method: Connector | None = None,
    *,
    folder: str | os.PathLike[str] | None = None,
    test: Objective | None = None,
    goal: Literal["tree", "all"] = "tree",
    seed: int = 0,
    workers: int | Engine | None = None,
    **options: Unpack[GraphOptions],
) -> MinimaGraph:
    """Join trained networks by `method` (default ``Linear()``) until it is known how high one must climb between them.

    `params`: state_dicts, modules or checkpoint files, by name. No path between two networks is lower than the larger
    of their losses, their floor. First the lowest network is joined with each other one. Then, from the highest edge of
    the minimum spanning tree down, an untried pair across it is tried if its floor is lower by more than the share
    `tol` (.01) of it; when there is none, no untried pair can lower the tree by more than that, and the graph is
    complete (Draxler et al. 2018 try pairs in a similar order, without floors and without an end). ``goal="all"`` tries
    all pairs.

    ``align=im.ActivationMatching()`` (or another matching that renumbers) first brings all networks into the numbering
    of the first, by ``align_many``: the nodes are the renumbered networks, which compute what they did, and any two
    paths that meet in one continue each other.

    `folder` keeps what is found (default: as long as the graph lives): each pair is a job of its own, whose key is
    that of the networks, the data, the method and the seed. A call that was killed goes on with the same call, to the
    same bytes. `workers`: processes of this machine, by Ray, or an engine of ``isthmus.sweep``: they try pairs at once
    that may be wanted later; the graph is that of one worker. `test`: held-out data; their largest loss and error stand
    beside every maximum. `num_points` (61) are measured on each segment; ``progress(what, done, total)`` is told of
    each pair.

    `goal`: "tree", or "all". `options`: `tol`, `num_points`, `align` and `progress`, as above.

    The nodes are measured under the policy of BatchNorm of the paths (see ``profile``). Needs ``isthmus[cli]`` for the
    locks of the jobs. Errors: ``InputError`` for fewer than two networks, and for one whose loss is not finite;
    ``UnsupportedError`` for a method with bn="keep" and BatchNorm, whose paths do not end at the networks;
    ``IsthmusError`` for a pair that cannot be joined, which is named: what was done before stays.

    >>> import torch
    >>> x, y = torch.eye(2), torch.tensor([0, 1])
    >>> objective = Objective(torch.nn.Linear(2, 2, bias=False), data=(x, y))
    >>> nets = {name: {"weight": k * torch.eye(2)} for name, k in (("a", 1.0), ("b", 2.0), ("c", 4.0))}
    >>> graph = minima_graph(objective, nets)
    >>> graph.suggestions(), round(graph.saddle("a", "c"), 4), graph.floor("a", "c") == graph.saddle("a", "c")
    ([], 0.3133, True)
    """
    check_kinds(minima_graph, locals(), but=["method", "params"])
    _check_options(options)
    method = Linear() if method is None else method
    if not isinstance(method, Connector):
        raise InputError("method", expected="a connector such as im.Bezier()", got=type(method).__name__)
    _check_meeting(objective, method)
    engine = _engine(workers)
    networks = _checked(objective, params)
    where = TemporaryDirectory(prefix="isthmus-graph-") if folder is None else folder
    root = Path(where.name if isinstance(where, TemporaryDirectory) else where)
    digests = [digest(p) for p in networks.values()]
    material = Material(objective, test, dict(zip(digests, networks.values(), strict=True)))
    search = _Search(material, list(networks), digests, method, root, goal, seed, engine, **options)
    return search.run(where)


def _check_options(options: Mapping[str, Any]) -> None:
    """Refuse options that there are not, and values of another kind."""
    known = get_type_hints(GraphOptions)
    for name, value in options.items():
        if name not in known:
            raise InputError("options", expected=f"some of {', '.join(known)}", got=repr(name))
        check_kind(value, known[name], name)


def _check_meeting(objective: Objective, method: Connector) -> None:
    """Refuse paths that do not meet at the networks: "keep" gives the last one the statistics of the first."""
    if method.statistics == "keep" and statistics(objective):
        why = "its paths end at networks with the statistics of their start, which are none of the graph"
        raise UnsupportedError("bn='keep'", why, "give the method bn='recompute' or 'interpolate'")


def _engine(workers: int | Engine | None) -> Engine:
    if isinstance(workers, Engine):
        return workers
    return Local() if workers is None else Ray(workers)


def _checked(objective: Objective, params: Mapping[str, ParamsLike] | Sequence[ParamsLike]) -> dict[str, Params]:
    """The networks by name, as the objective evaluates them."""
    networks = {name: objective.check(p, name) for name, p in _named(params).items()}
    for name, found in networks.items():
        check_finite({k: found[k] for k in objective.parameter_names if k in found}, name)
    return networks


def _named(params: Mapping[str, ParamsLike] | Sequence[ParamsLike]) -> dict[str, Any]:
    """The networks by name: files by theirs where these differ, others by number."""
    if not isinstance(params, Mapping | Sequence) or isinstance(params, str):
        raise InputError("params", expected="networks by name, or several of them", got=type(params).__name__)
    if isinstance(params, Mapping):
        named = {str(name): value for name, value in params.items()}
    else:
        named = dict(zip(names_of(params), params, strict=True))
    if len(named) < len(params):
        raise InputError("params", expected="names that differ as text", got=list(params))
    if len(named) < 2:
        raise InputError("params", expected="at least two networks", got=len(named))
    return named


def names_of(params: Sequence[Any]) -> list[str]:
    """Names for networks without: of files theirs, or with their folders where these are equal; of others numbers.

    >>> names_of(["runs/a.pt", "b.pt"]), names_of(["1/end.pt", "2/end.pt"]), names_of([{}, {}])
    (['a', 'b'], ['1/end', '2/end'], ['0', '1'])
    """
    if not all(isinstance(p, str | os.PathLike) for p in params):
        return [str(i) for i in range(len(params))]
    for name in (lambda p: p.stem, lambda p: f"{p.parent.name}/{p.stem}", lambda p: str(p)):
        names = [name(Path(p)) for p in params]
        if len({*names}) == len(names):
            return names
    raise InputError("params", expected="different files", got=", ".join(map(str, params)))


@dataclass(eq=False)
class _Search:
    """A graph in the making: rounds of pairs, each a sweep of its own.

    `edges`: in the order in which one worker tries them, whatever the engine; `tried`: those and others ahead of them.
    """

    material: Material
    names: list[str]
    digests: list[str]
    method: Connector
    root: Path
    goal: Literal["tree", "all"]
    seed: int
    engine: Engine
    tol: float = 0.01
    num_points: int = 61
    progress: Progress = no_progress
    align: Matching | None = None
    aligned: str = ""
    edges: list[Edge] = field(default_factory=list)
    tried: dict[Pair, Edge] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choices(self)
        check_whole(self, "num_points", least=2)
        if not 0 <= self.tol < float("inf"):
            raise InputError("tol", expected="a number >= 0", got=self.tol)

    def run(self, held: object) -> MinimaGraph:
        """Rounds until no pair is suggested; graph.json is there after each."""
        if self.align is not None:
            self._align(self.align)
        minima = self._measured()
        losses = [m.loss for m in minima]
        while True:
            graph = self._graph(minima, held)
            write_graph(graph, self.root)
            pairs = self._next(losses)
            if not pairs:
                return graph
            if any(pair not in self.tried for pair in pairs):
                self._join(pairs, losses)
            self.edges += [self.tried[pair] for pair in pairs]

    def _align(self, matching: Matching) -> None:
        """Go on with the networks in one numbering."""
        self.progress("aligning the networks", 0, 1)
        cell = AlignmentCell(self.material.digest(), tuple(self.digests), matching, self.seed)
        (stored,) = self._done([cell], ["aligning"], no_progress)
        assert stored is not None  # noqa: S101 - a job that failed has raised
        found = zip(cell.found(stored, self.material), self.digests, strict=True)
        networks = [how.apply(self.material.params[name]) for how, name in found]
        self.digests = [digest(p) for p in networks]
        self.material = replace(self.material, params=dict(zip(self.digests, networks, strict=True)))
        self.aligned = f"{cell.group}/{stored.key}"
        self.progress("aligning the networks", 1, 1)

    def _next(self, losses: list[float]) -> list[Pair]:
        weights = {e.pair: e.max for e in self.edges}
        if self.goal == "all":
            return [p for p in combinations(range(len(losses)), 2) if p not in weights]
        return suggestions(losses, weights, self.tol)

    def _ahead(self, pairs: Sequence[Pair], losses: list[float]) -> list[Pair]:
        """Pairs that may be wanted after these, so that the engine has work for all its workers."""
        if self.goal == "all":
            return []
        weights, count = {e.pair: e.max for e in self.edges}, self.engine.at_once
        further = suggestions(losses, weights, self.tol, count + len(self.tried))
        return [p for p in further if p not in pairs and p not in self.tried][: max(0, count - len(pairs))]

    def _measured(self) -> list[Minimum]:
        on = self.material.digest()
        cells = [MinimumCell(on, d, self.method.statistics) for d in self.digests]
        measured = self._done(cells, [f"network {name}" for name in self.names], no_progress)
        found = [stored for stored in measured if stored is not None]
        for name, stored in zip(self.names, found, strict=True):
            loss = stored.result["loss"]
            if loss is None or not isfinite(loss):
                raise InputError(name, expected="a network of finite loss", got="a loss that is NaN or infinite")
        return [Minimum(name, **stored.result) for name, stored in zip(self.names, found, strict=True)]

    def _join(self, wanted: Sequence[Pair], losses: list[float]) -> None:
        """Try the pairs that are wanted and not tried yet, and others ahead of them."""
        wanted = [p for p in wanted if p not in self.tried]
        pairs = [*wanted, *self._ahead(wanted, losses)]
        cells = edge_cells(self.material.digest(), self.digests, pairs, self.method, self.seed, self.num_points)
        labels = [f"{self.names[i]} to {self.names[j]}" for i, j in pairs]
        before, total = len(self.tried), len(losses) * (len(losses) - 1) // 2

        def told(_: str, done: int, __: int) -> None:
            self.progress(f"joining {labels[0] if len(labels) == 1 else 'pairs'}", before + done, total)

        found = self._done(cells, labels[: len(wanted)], told)
        self.tried |= {p: self._edge(p, s, losses) for p, s in zip(pairs, found, strict=True) if s is not None}

    def _edge(self, pair: Pair, stored: Stored, losses: list[float]) -> Edge:
        held = dict(stored.result)
        top = float("inf") if held["max"] is None or isnan(held["max"]) else float(held["max"])
        held |= {"max": max(top, floor_of(losses, pair)), "folder": f"edges/{stored.key}"}
        return Edge(*pair, **held)

    def _done(self, cells: Sequence[Cell], labels: Sequence[str], progress: Progress) -> list[Stored | None]:
        """The results of the jobs, done where they are missing, None for one that failed and has no label.

        Errors: the first of those with a label that failed.
        """
        store = Store(self.root)
        device = str(self.material.objective.device)
        report = run_cells(cells, store, self.engine, device=device, given=self.material, progress=progress)
        for cell, label in zip(cells, labels, strict=False):
            if store.find(cell) is None:
                raise IsthmusError(f"{label}: {report.failed[cell.label].message}")
        return [store.find(cell) for cell in cells]

    def _graph(self, minima: list[Minimum], held: object) -> MinimaGraph:
        about = {"method": describe(self.method), "objective": self.material.objective.describe()}
        if self.align is not None:
            about["aligned"] = {"matching": describe(self.align), "folder": self.aligned}
        return MinimaGraph(
            tuple(minima),
            tuple(self.edges),
            self.root,
            self.tol,
            self.goal,
            seed=self.seed,
            held=held,
            source=self.material.objective,
            **about,
        )
