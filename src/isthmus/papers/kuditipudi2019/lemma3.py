"""Lemma 3 of Kuditipudi et al. 2019: how many draws of Algorithm 1 leave the loss low on the whole segment to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from statistics import median
from typing import Any, ClassVar

import torch

from isthmus.connectors.noise_dropout import End
from isthmus.evaluate.chain import require_hidden_chain
from isthmus.experiments.claims import Claim
from isthmus.experiments.jobs import Network, On
from isthmus.experiments.tables import Entry, Row, Table, first, largest, mean
from isthmus.objective import Objective
from isthmus.papers.kuditipudi2019.jobs import PAGE
from isthmus.params import Params, lerp
from isthmus.shown import largest as top
from isthmus.structure.chain import Chain
from isthmus.sweep import Cell, Job

RISE = 0.1
"""The rise that counts as low, in place of the lemma's O(sqrt(p) epsilon), whose constant the paper does not give."""
_LEAST = 25.0
"""Percent of the draws: the lemma's probability of 1/4."""


@dataclass(frozen=True)
class LowDraws(Cell):
    """The largest rise of the loss on the straight segment to each of `draws` networks that Algorithm 1 draws, by p."""

    page: ClassVar[str] = PAGE
    what: ClassVar[str] = "Algorithm 1 on"

    end: Network | On
    ps: tuple[float, ...] = (0.25, 0.5, 0.75)
    draws: int = 200
    num_points: int = 5

    def run(self, job: Job) -> Mapping[str, Any]:
        """The rises, in the order of the draws; the points are equally far from each other, without the start."""
        objective, _ = self.end.problem.objectives(job.device)
        theta = objective.check(self.end.params(job))
        chain, generator = require_hidden_chain(objective), torch.Generator().manual_seed(self.end.seed)
        start = objective.loss(theta)
        rises: dict[str, list[float]] = {}
        for p in self.ps:
            ends = (drawn(chain, theta, p, generator) for _ in range(self.draws))
            rises[str(p)] = [self._highest(objective, theta, end) - start for end in ends]
        return {"loss": start, "rises": rises}

    def _highest(self, objective: Objective, theta: Params, end: Params) -> float:
        points = (lerp(theta, end, (k + 1) / self.num_points) for k in range(self.num_points))
        return top(map(objective.loss, points))


def drawn(chain: Chain, theta: Params, p: float, generator: torch.Generator) -> Params:
    """Algorithm 1 on layers 2 to L: the outgoing weights of every hidden unit are zero with probability p, else times
    1 / (1 - p)."""
    units = range(1, chain.L)
    kept = {l: (torch.rand(chain.widths[l], generator=generator) >= p).nonzero().flatten() for l in units}
    end = End(chain, theta, kept, dict.fromkeys(units, 1 / (1 - p)), (0, 0))
    return chain.write(end.dropped(), theta)


def _shares(entry: Entry) -> list[Row]:
    """For each p how many draws are low, in percent, and what half of them stay below."""
    # a rise that was not finite is above every other
    found = ((p, [inf if rise != rise else rise for rise in entry["rises"][str(p)]]) for p in entry.cell.ps)
    return [
        {"p": p, "low": 100 * sum(r <= RISE for r in rises) / len(rises), "half": median(rises)} for p, rises in found
    ]


TABLE = Table(
    of=LowDraws,
    each=_shares,
    by={"figure": lambda e: "Lemma 3", "what": lambda e: f"p = {e['p']:g}"},
    columns={
        "trials": len,
        "draws": first("cell.draws"),
        f"draws within {RISE:g}, %": mean("low", "sd"),
        "fewest, %": lambda entries: min(e["low"] for e in entries),
        "half of the draws rise at most": largest("half"),
    },
)


def _of_lemma(row: Row) -> bool:
    return row["figure"] == "Lemma 3"


def _judged(rows: list[Row]) -> tuple[bool | None, str]:
    """Too few low draws say nothing against the lemma, as nothing shows that the networks are noise stable enough."""
    row = min(rows, key=lambda r: r["fewest, %"])
    lowest, trials, draws = row["fewest, %"], row["trials"], row["draws"]
    told = f"{lowest:.3g} % of {draws} draws, the fewest of {trials} perceptrons trained with dropout"
    return (True, told) if lowest >= _LEAST else (None, f"{told}; not shown to be noise stable enough for this p")


CLAIMS: Sequence[Claim] = (
    Claim(
        f"perceptrons, {{what}}: at least a quarter of the draws of Algorithm 1 raise the loss by at most {RISE:g} on "
        "the whole segment, as Lemma 3 has it for noise stable networks",
        _of_lemma, ("what",), judge=_judged,
    ),
)  # fmt: skip
"""The lemma's probability."""
