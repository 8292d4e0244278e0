"""``MinimaGraph``: the networks, the paths that were tried between them, and what follows for each pair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import isfinite
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import DisjointSet

from isthmus.connectors import Connection
from isthmus.errors import InputError
from isthmus.graph.tree import Pair, floor_of, merges, route, saddle_matrix, spanning_tree, suggestions
from isthmus.graph.way import Step, in_a_row
from isthmus.objective import Objective
from isthmus.paths import Path
from isthmus.shown import brief, draw, line, one_line, plural, table
from isthmus.storage import load_connection

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@one_line
@dataclass(frozen=True)
class Minimum:
    """A trained network: its loss and error (None where none is defined), and those on the test data, if any."""

    name: str
    loss: float
    error: float | None
    test_loss: float | None = None
    test_error: float | None = None


@one_line
@dataclass(frozen=True)
class Edge:
    """A path that was tried, from the network number `a` to number `b`.

    `max`: the largest loss on it, never below those of its ends; `t`: where. `error`, `test_loss`, `test_error`: the
    largest of these. `moved`: it ends at another network that computes what `b` does; `aligned`: at the one that its
    alignment makes of `b`. `length`: over the distance of its ends. `folder`: of its files, inside that of the graph.
    """

    a: int
    b: int
    max: float
    t: float
    error: float | None
    test_loss: float | None
    test_error: float | None
    outcome: str
    moved: bool
    length: float
    gradient_steps: int | None
    folder: str
    aligned: bool = False

    @property
    def pair(self) -> Pair:
        """The numbers of its networks."""
        return self.a, self.b


@dataclass(frozen=True, eq=False)
class MinimaGraph:
    """Networks as nodes and paths between them as edges, as high as the loss is on them.

    `edges`: in the order in which they were tried. `tol`: how much lower an untried pair must be able to be to be worth
    a try. `method`, `seed`: of the paths; `objective`: what they are measured on, in words; `source`: itself, until it
    is saved. Networks are named by name or number. `folder` holds the paths. `aligned`: the matching that brought the
    networks into one numbering, and the folder of the alignments in that of the graph, one file for each network in
    order (``load_alignment``); else empty.

    `minima`: the networks, with their losses and errors. `goal`: "tree" or "all". `held`: what keeps a folder of its
    own until the graph is gone.
    """

    minima: tuple[Minimum, ...]
    edges: tuple[Edge, ...]
    folder: FilePath
    tol: float = 0.01
    goal: str = "tree"
    method: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    objective: Mapping[str, Any] = field(default_factory=dict)
    aligned: Mapping[str, Any] = field(default_factory=dict)
    held: object = field(default=None, repr=False)
    source: Objective | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        tried = f"{len(self.edges)} of {plural(len(self) * (len(self) - 1) // 2, 'pair')} tried"
        done = "complete" if self.complete else "more pairs could be lower"
        return line(self, plural(len(self), "network"), tried, f"bottleneck {brief(self.bottleneck)}", done)

    def __len__(self) -> int:
        return len(self.minima)

    def _repr_html_(self) -> str:
        return table(*self.table(), f"{self!r}: {self.stop}")

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Headings, and for each network its saddles to all, the largest loss on the lowest known way."""
        names = [m.name for m in self.minima]
        rows = [[n, *map(float, row)] for n, row in zip(names, self.saddles, strict=True)]
        return ["largest loss on the way", *names], rows

    def plot(self, ax: Any = None) -> Axes | NDArray[Any]:
        """The tree, drawn on `ax`; on two axes, as by default on new ones, also the matrix of saddles.

        Needs ``isthmus[plot]``.
        """
        return draw(self, ax)

    # -- what is known of each pair

    @cached_property
    def losses(self) -> list[float]:
        """Of the networks."""
        return [m.loss for m in self.minima]

    @cached_property
    def weights(self) -> dict[Pair, float]:
        """The largest loss on the path of each pair that was tried."""
        return {e.pair: e.max for e in self.edges}

    @cached_property
    def tree(self) -> tuple[Edge, ...]:
        """The edges of the minimum spanning tree, the lowest first."""
        own = {e.pair: e for e in self.edges}
        return tuple(own[pair] for pair in spanning_tree(len(self), self.weights))

    @cached_property
    def saddles(self) -> NDArray[np.float64]:
        """[i, j]: how high the loss is on the lowest known way from i to j; [i, i]: the loss of i."""
        return saddle_matrix(self.losses, self.weights)

    @property
    def bottleneck(self) -> float:
        """The highest edge of the tree: from everywhere to everywhere, no known way needs more."""
        return float(self.saddles.max())

    def saddle(self, i: str | int, j: str | int) -> float:
        """How high the loss is on the lowest known way from i to j: the largest edge of the tree between them."""
        return float(self.saddles[self.number(i), self.number(j)])

    def floor(self, i: str | int, j: str | int) -> float:
        """The larger loss of the two: no path between them is lower."""
        return floor_of(self.losses, (self.number(i), self.number(j)))

    def number(self, name: str | int) -> int:
        """The number of a network, from 0. Errors: ``InputError`` for one that is not in the graph."""
        names = [m.name for m in self.minima]
        if isinstance(name, str) and name in names:
            return names.index(name)
        if isinstance(name, int) and not isinstance(name, bool) and 0 <= name < len(names):
            return name
        expected = f"one of {', '.join(names)}, or a number below {len(names)}"
        raise InputError("network", expected=expected, got=repr(name))

    # -- what to try next

    def suggestions(self, count: int = 1) -> list[tuple[str, str]]:
        """Up to `count` pairs to try next, by name: those that could lower the tree most; none when it is complete."""
        found = suggestions(self.losses, self.weights, self.tol, count)
        return [(self.minima[i].name, self.minima[j].name) for i, j in found]

    @property
    def complete(self) -> bool:
        """Whether no pair that was not tried can lower the tree by more than `tol`, however low its path would be."""
        return not self.suggestions()

    @property
    def stop(self) -> str:
        """Why no further pair was tried, in words."""
        pairs = len(self) * (len(self) - 1) // 2
        if len(self.edges) == pairs:
            return "all pairs were tried"
        if not self.complete:
            return f"{pairs - len(self.edges)} pairs were not tried, and some of them could lower the tree"
        said = "no path between them is lower than the larger loss of its ends"
        return f"no untried pair can lower the tree by more than {100 * self.tol:g} %: {said}"

    # -- the tree

    def components(self, level: float) -> list[tuple[str, ...]]:
        """The networks whose loss is at most `level`, those together that are joined by a known way below it."""
        parts = DisjointSet(i for i, loss in enumerate(self.losses) if loss <= level)
        for edge in self.tree:
            if edge.max <= level:
                parts.merge(*edge.pair)
        return [tuple(self.minima[i].name for i in sorted(part)) for part in sorted(parts.subsets(), key=min)]

    def dendrogram(self) -> NDArray[np.float64]:
        """The tree in the form of ``scipy.cluster.hierarchy.linkage``: rows of two clusters, the saddle between them
        and the number of networks. Errors: ``InputError`` where some pair is joined by no finite way."""
        if not isfinite(self.bottleneck):
            raise InputError("graph", expected="ways between all networks", got=f"a bottleneck of {self.bottleneck}")
        return merges(self.saddles)

    def connection(self, edge: Edge) -> Connection:
        """What the method returned for an edge, from its file."""
        return load_connection(self.folder / edge.folder / "path.safetensors")

    def path(self, i: str | int, j: str | int, objective: Objective | None = None) -> Path:
        """The path of ``way(i, j, objective)``."""
        return self.way(i, j, objective).path

    def way(self, i: str | int, j: str | int, objective: Objective | None = None) -> Connection:
        """The lowest known way from i to j: the paths of the tree between them, one after the other.

        Where a path ends at a renumbered network, as those of ``Aligned`` do, the following ones are renumbered too,
        exactly. The way then ends at j renumbered, its `target`; its `tensors` say how: ``Renumbering.of(objective,
        tensors).inverse()`` makes j of it. That needs the `objective`: default: the one the graph was made with, which
        no file keeps.

        Errors: ``InputError`` for a network and itself, and without an objective where one is needed;
        ``UnsupportedError`` where a path ends at another network than that which its alignment makes.
        """
        start, goal = self.number(i), self.number(j)
        if start == goal:
            raise InputError("path", expected="two networks", got=f"{self.minima[start].name} twice")
        own = {pair: e for e in self.tree for pair in (e.pair, e.pair[::-1])}
        steps = route([e.pair for e in self.tree], start, goal)
        return in_a_row([self._step(own[s], s) for s in steps], objective or self.source)

    def _step(self, edge: Edge, walked: Pair) -> Step:
        a, b = (self.minima[n].name for n in edge.pair)
        return Step(self.connection(edge), a, b, edge.pair == walked, edge.moved, edge.aligned)

    def save(self, folder: str | FilePath) -> FilePath:
        """Write the graph and its paths into a folder, from which ``load_graph`` reads them; returns it."""
        # upwards in this package: files are read into this class
        from isthmus.graph.stored import write_graph

        return write_graph(self, FilePath(folder))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as stored in graph.json."""
        return {
            "format": 1,
            "minima": [asdict(m) for m in self.minima],
            "edges": [asdict(e) for e in self.edges],
            "goal": self.goal, "tol": self.tol, "method": dict(self.method), "seed": self.seed,
            "objective": dict(self.objective), "aligned": dict(self.aligned), "tree": [list(e.pair) for e in self.tree],
            "saddles": self.saddles.tolist(), "bottleneck": self.bottleneck,
            "complete": self.complete, "stop": self.stop,
        }  # fmt: skip
