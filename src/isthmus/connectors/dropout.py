"""Paths between dropout-stable networks (Kuditipudi et al. 2019, Theorem 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from isthmus.checks import check_choices, check_whole
from isthmus.connectors.base import About, Connection, Connector, Outcome, Task
from isthmus.connectors.moves.units import WeightWalk, join, labels_as_text
from isthmus.errors import InputError
from isthmus.evaluate.chain import require_hidden_chain
from isthmus.kinds import check_fields
from isthmus.stability.dropout.dropped import Dropped
from isthmus.stability.dropout.recall import search_recalled
from isthmus.stability.dropout.search import Sought
from isthmus.structure.chain import Weights
from isthmus.structure.network_units import Units, complement, places


@dataclass(frozen=True)
class Dropout(Connector):
    """Theorem 1 of Kuditipudi et al. 2019: the loss on the path is at most max(L(a), L(b)) + epsilon.

    Each end is walked to a network on at most half of its units in every layer (Lemma 1), through the
    dropped-out networks theta_i for i = L-1 .. 1; the two half networks are joined by Lemma 2, which places one
    beside the other and permutes it home by Lemma 4. The path has 8L - 4 straight segments for L layers. epsilon
    is what the subsets cost: for each theta_i the best that `search` finds at the price of `masks` evaluations, each
    subset with its best output scale (`scale="output"`), with a best factor for every layer ("each"), with the factor
    n / kept alone ("layer"), or unscaled ("none"); see ``dropout_stability``, which measures the same.

    `keep`: the kept fraction of each layer, at most 1/2. `every_vertex`: end each step exactly at theta_i, all
    dropped units cleared (5L - 8 segments per end in place of 4L - 6; the same losses). `search`: "gates" trains which
    units stay; "greedy" exchanges units; "magnitude" ranks them; "random" is the paper's.

    When to use: for networks trained with dropout, or to test dropout stability. Needs a chain of layers and a
    loss that is convex in the outputs. Cost: masks * (L - 1) evaluations of half-width networks per end.
    """

    keep: float = 0.5
    masks: int = 30
    scale: Literal["output", "each", "layer", "none"] = "output"
    every_vertex: bool = False
    search: Literal["gates", "greedy", "magnitude", "random"] = "gates"

    about = About(
        makes="8L - 4 straight segments through half-width networks",
        reference="Kuditipudi et al. 2019, Theorem 1",
        needs="a chain of layers (perceptron, plain convolutional network); low loss if dropout stable",
        cost="masks x (L - 1) evaluations of half-width networks per end",
        convex=True,
        statistics="interpolate",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.keep <= 0.5:
            raise InputError("keep", expected="a number in (0, 1/2], as Definition 1 asks", got=self.keep)
        check_choices(self)
        check_whole(self, "masks")

    def find(self, task: Task) -> Connection:
        """Search the subsets at both ends, then build the path of the theorem."""
        objective, a, b = task.objective, task.a, task.b
        chain = require_hidden_chain(objective, instead="Linear()")
        # what lies below the larger end would not lower the path, but large weights would lengthen it
        enough = max(objective.loss(end) - objective.penalty_of(end) for end in (a, b))
        sought = Sought(self.keep, self.masks, self.scale, self.search, enough)
        walks, found = [], []
        for params in (a, b):
            part = task.memory.part(f"search{len(found)}")
            best = search_recalled(part, objective, chain, params, sought, task.generator, task.progress)
            walk = WeightWalk(chain, params)
            _drop_out(walk, best, "AB"[len(walks)], self.every_vertex)
            walks.append(walk)
            found.append(best)
        connect_halves(walks[0], found[0][1].kept, walks[1].now, found[1][1].kept)
        path, labels = join(*walks)
        stats = {
            "segments": labels_as_text(labels),
            "dropped": {end: [_row(found[e][i]) for i in sorted(found[e])] for e, end in enumerate("ab")},
        }
        return Connection(path, b, Outcome.CONSTRUCTED, stats)


def _row(d: Dropped) -> dict[str, object]:
    kept = {str(j): len(units) for j, units in d.kept.items()}
    return {"entry": d.entry, "loss": d.loss, "scale": d.scale, "kept": kept, "separates_data": d.separates}


def _drop_out(walk: WeightWalk, best: dict[int, Dropped], end: str, every_vertex: bool) -> None:
    """Lemma 1: from theta through theta_{L-1}, ..., theta_1, where only `best[1].kept` is alive and the rest is 0."""
    chain, L, theta = walk.chain, walk.L, walk.original
    small = {i: best[i].layers(theta, L) for i in best}

    def put_output(i: int, columns: Tensor) -> None:
        walk.put_output(columns, small[i].A[L], small[i].b[L])

    live: Units = {L - 1: best[L - 1].kept[L - 1]}
    put_output(L - 1, live[L - 1])
    walk.step(f"Lemma 1 at {end}, output of theta_{L - 1}", "a")
    for i in range(L - 2, 0, -1):
        if every_vertex:
            _clear(walk, live)
            walk.step(f"Lemma 1 at {end}, theta_{i + 1}", "b")
        home = best[i].kept
        place: Units = {i: home[i]}
        for j in range(i + 1, L):
            place[j] = places(home[j], complement(chain.widths[j], live[j]))
            walk.zero_rows(j, complement(chain.widths[j], live[j]))
            walk.put_rows(j, place[j], place[j - 1], small[i].A[j], small[i].b[j])
        walk.step(f"Lemma 1 at {end}, write theta_{i} into dead units", "b")
        put_output(i, place[L - 1])
        walk.step(f"Lemma 1 at {end}, switch to theta_{i}", "a")
        for j in range(i + 1, L):
            walk.zero_rows(j, complement(chain.widths[j], place[j]))
        walk.each_layer(walk.copy_rows, i + 1, place, home)
        walk.step(f"Lemma 1 at {end}, copy theta_{i} home", "b")
        walk.each_layer(walk.move_columns, i + 1, place, home)
        walk.step(f"Lemma 1 at {end}, hand over outgoing weights", "m")
        live = dict(home)
    _clear(walk, live)
    walk.step(f"Lemma 1 at {end}, theta_1", "b")


def _clear(walk: WeightWalk, live: Units) -> None:
    for j in live:
        walk.zero_rows(j, complement(walk.chain.widths[j], live[j]))


def connect_halves(walk: WeightWalk, live: Units, target: Weights, home: Units) -> None:
    """Lemma 2: from a network on the units `live` to one on the units `home` (both at most half), 8 segments.

    `target` holds the full weights to arrive at: zero outside `home`.
    """
    chain, L = walk.chain, walk.L
    place = {l: complement(chain.widths[l], live[l])[: len(home[l])] for l in home}
    for l in place:
        rows = target.A[l][home[l]]
        before = None if l == 1 else place[l - 1]
        walk.put_rows(l, place[l], before, rows if l == 1 else rows[:, home[l - 1]], target.b[l][home[l]])
    walk.step("Lemma 2, write theta_1 of B into dead units", "b")
    walk.put_output(place[L - 1], target.A[L][:, home[L - 1]], target.b[L])
    walk.step("Lemma 2, switch from A to B", "a")
    for l in place:
        walk.zero_rows(l, complement(chain.widths[l], place[l]))
    walk.step("Lemma 2, clear theta_1 of A", "b")
    walk.permute_live(place, home, "Lemma 4")
