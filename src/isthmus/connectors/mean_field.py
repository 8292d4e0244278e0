"""Paths between solutions of mean-field SGD (Shevchenko and Mondelli 2020, Theorems 1 (B) and 2 (B))."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan
from typing import Literal

import torch

from isthmus.checks import check_choices
from isthmus.connectors.base import About, Connection, Connector, Outcome, Task
from isthmus.connectors.moves.units import WeightWalk, join, labels_as_text
from isthmus.evaluate.chain import losses_of, require_hidden_chain
from isthmus.kinds import check_fields
from isthmus.stability.dropout.pattern import without
from isthmus.stability.dropout.subsets import rescaling
from isthmus.structure.chain import Chain, Weights
from isthmus.structure.network_units import Units


@dataclass(frozen=True)
class MeanField(Connector):
    """Theorems 1 (B) and 2 (B) of Shevchenko and Mondelli 2020: through half networks chosen before looking.

    Every hidden layer keeps a fixed half of its units, whose outgoing weights are multiplied by n / |half|, so that
    averages over all units become averages over the half. In wide networks trained by mean-field SGD this
    hardly changes the loss, whatever the half; both ends may come from different initial distributions, data and
    numbers of steps. With theta_i the network whose layers i .. L-1 are halved (L counts layers with weights, the
    paper's L + 1), the loss on the path, penalty left out, is at most the largest of those of the ends and of
    theta_1 .. theta_{L-1} at both: nothing is searched or trained.

    `mask`: "first" keeps the first half of every layer, "random" a half drawn from the seed. `halves`: "same" keeps
    that half at both ends, as the paper: 4L - 1 straight segments for L layers, 7 for two. "opposite" keeps the other
    half at `b`, which then need not be moved: 4L - 3 segments, 5 for two layers.

    When to use: mean-field networks; otherwise `Dropout` searches better halves. Needs a chain of layers and a loss
    convex in the outputs. Cost: L - 1 evaluations of narrower networks per end.
    """

    mask: Literal["first", "random"] = "first"
    halves: Literal["same", "opposite"] = "same"

    about = About(
        makes="4L - 1 straight segments (7 for two layers) through halves fixed beforehand",
        reference="Shevchenko and Mondelli 2020, Theorems 1 and 2",
        needs="a chain of layers; low loss for wide networks trained by mean-field SGD",
        cost="L - 1 evaluations of narrower networks per end",
        convex=True,
        statistics="interpolate",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        check_choices(self)

    def find(self, task: Task) -> Connection:
        """Halve both ends, the last hidden layer first, and join the halves."""
        objective, a, b = task.objective, task.a, task.b
        chain = require_hidden_chain(objective, instead="Linear()")
        halves = first, second = self._halves(chain, task.generator)
        swap = self.halves == "opposite"
        rooms = (halves, (second, first) if swap else halves)
        walks = [WeightWalk(chain, params) for params in (a, b)]
        live = [_halve(walk, rooms[e], "AB"[e]) for e, walk in enumerate(walks)]
        _join_halves(walks[0], walks[1].now, live[1], None if swap else _elsewhere(halves, live[1]))
        path, labels = join(*walks)
        rows = []
        for e, params in enumerate((a, b)):
            for i in range(1, chain.L):
                loss, error = losses_of(objective, chain, without(chain, params, rooms[e][0], i))
                counts = {str(l): len(rooms[e][0][l]) for l in range(i, chain.L)}
                known = None if isnan(error) else error
                rows.append({"end": "ab"[e], "entry": i, "loss": loss, "error": known, "kept": counts})
                task.progress("halving", len(rows), 2 * (chain.L - 1))
        return Connection(path, b, Outcome.CONSTRUCTED, {"segments": labels_as_text(labels), "halved": rows})

    def _halves(self, chain: Chain, generator: torch.Generator) -> tuple[Units, Units]:
        """Two disjoint sets of floor(n / 2) units of every hidden layer; an odd one is in neither."""
        first: Units = {}
        second: Units = {}
        for l in range(1, chain.L):
            n = chain.widths[l]
            order = torch.arange(n) if self.mask == "first" else torch.randperm(n, generator=generator)
            first[l], second[l] = order[: n // 2].sort().values, order[n - n // 2 :].sort().values
        return first, second


def _elsewhere(rooms: tuple[Units, Units], units: Units) -> Units:
    """In every layer the half that is not `units`."""
    return {l: rooms[1][l] if units[l] is rooms[0][l] else rooms[0][l] for l in units}


def _halve(walk: WeightWalk, rooms: tuple[Units, Units], end: str) -> Units:
    """From theta through theta_{L-1} .. theta_1 on the units `rooms[0]`, 2L - 3 segments; where they live at last.

    Layer i is halved by writing the layers after it anew, reading only the kept units of layer i, into the half of each
    layer that is dead, and switching the outputs over to them: each layer's kept units change rooms every time.
    """
    chain, L, theta, kept = walk.chain, walk.L, walk.original, rooms[0]
    factor = {l: rescaling(chain.widths[l], len(units)) for l, units in kept.items()}
    live: Units = {}
    for i in range(L - 1, 0, -1):
        live = {i: kept[i], **_elsewhere(rooms, live)}
        for j in range(i + 1, L):
            A = theta.A[j][kept[j]][:, kept[j - 1]] * factor[j - 1]
            walk.put_rows(j, live[j], live[j - 1], A, theta.b[j][kept[j]])
        if i < L - 1:
            walk.step(f"Theorem 2 at {end}, write theta_{i} into dead units", "b")
        walk.put_output(live[L - 1], theta.A[L][:, kept[L - 1]] * factor[L - 1], theta.b[L])
        walk.step(f"Theorem {1 if L == 2 else 2} at {end}, switch to theta_{i}", "a")
    return live


def _join_halves(walk: WeightWalk, target: Weights, home: Units, place: Units | None) -> None:
    """From A's theta_1 to that of B, whose full weights are `target` and which lives on the units `home`.

    Three segments where A's lives elsewhere. If it lives there too, B's is written to `place` first: five segments.
    """
    L, at = walk.L, home if place is None else place
    for l in at:
        rows = target.A[l][home[l]]
        columns = (None, rows) if l == 1 else (at[l - 1], rows[:, home[l - 1]])
        walk.put_rows(l, at[l], *columns, target.b[l][home[l]])
    walk.step("write theta_1 of B into dead units", "b")
    walk.put_output(at[L - 1], target.A[L][:, home[L - 1]], target.b[L])
    walk.step("switch from A to B", "a")
    if place is not None:
        walk.each_layer(walk.copy_rows, 1, place, home)
        walk.step("copy theta_1 of B home", "b")
        walk.each_layer(walk.move_columns, 1, place, home)
        walk.step("hand over outgoing weights", "m")
    walk.now = target.copy()
    walk.step("restore the dead units of B", "b")
