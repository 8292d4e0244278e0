"""The jobs of a graph: a network to be measured, and a pair of them to be joined."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, ClassVar

from isthmus.alignment import Matching, Renumbering, align_many
from isthmus.connectors import Connector, connect
from isthmus.evaluate import Profile, profile
from isthmus.evaluate.batchnorm import no_weights
from isthmus.graph.way import is_aligned
from isthmus.objective import Objective
from isthmus.objective.described import bound
from isthmus.params import Params, equal
from isthmus.paths import Path, length_of
from isthmus.pipeline import judge_of, write_profile
from isthmus.storage import load_alignment, save, save_alignment
from isthmus.sweep import Cell, Job, Stored


@dataclass(frozen=True, eq=False)
class Material:
    """What the jobs of a graph have in common; the networks by their digests."""

    objective: Objective
    test: Objective | None
    params: Mapping[str, Params]

    def digest(self) -> str:
        """Of the network and of the data that it is measured on."""
        sets = [o for o in (self.objective, self.test) if o is not None]
        return sha256(json.dumps(bound(*sets), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class AlignmentCell(Cell):
    """All networks brought into one numbering; how each is renumbered is left in the folder."""

    page: ClassVar[str] = "alignments"
    what: ClassVar[str] = "align"

    on: str
    params: tuple[str, ...]
    matching: Matching
    seed: int = 0

    def run(self, job: Job) -> Mapping[str, Any]:
        """``align_many``."""
        own: Material = job.given
        networks = [own.params[name] for name in self.params]
        found = align_many(own.objective, networks, self.matching, seed=self.seed)
        for file, one in zip(self.files, found, strict=True):
            save_alignment(one, job.folder / file)
        return {"alignments": [one.to_dict() for one in found]}

    @property
    def files(self) -> list[str]:
        """Those of the alignments, one for each network."""
        return [f"{i}.alignment.safetensors" for i in range(len(self.params))]

    def found(self, stored: Stored, own: Material) -> list[Renumbering]:
        """What was found, from its files."""
        return [load_alignment(stored.folder / file, own.objective) for file in self.files]


@dataclass(frozen=True)
class MinimumCell(Cell):
    """A network measured, under a policy of BatchNorm; `on`: the digest of the material, `params`: of the network."""

    page: ClassVar[str] = "minima"
    what: ClassVar[str] = "measure"

    on: str
    params: str
    bn: str | None = None

    def run(self, job: Job) -> Mapping[str, Any]:
        """Loss and error on both data sets."""
        own: Material = job.given
        point = own.params[self.params]
        still = Path.through([point, point])
        found = profile(own.objective, still, 2, test=own.test, bn=self.bn)
        return {"loss": float(found.loss[0]), "error": float(found.error[0])} | (
            {}
            if found.test is None
            else {"test_loss": float(found.test.loss[0]), "test_error": float(found.test.error[0])}
        )


@dataclass(frozen=True)
class EdgeCell(Cell):
    """Two networks joined by a method, and the path measured; it is left in the folder."""

    page: ClassVar[str] = "edges"
    what: ClassVar[str] = "connect"

    on: str
    a: str
    b: str
    method: Connector
    seed: int = 0
    num_points: int = 61

    def run(self, job: Job) -> Mapping[str, Any]:
        """Connect (work that was killed goes on) and measure."""
        own: Material = job.given
        judge = judge_of(self.method, own.test)
        found = connect(
            own.objective, own.params[self.a], own.params[self.b], self.method,
            seed=self.seed, test=judge, memory=job.memory("search"),
        )  # fmt: skip
        save(found, job.folder / "path.safetensors")
        measured = profile(own.objective, found.path, self.num_points, test=own.test)
        write_profile(measured, job.folder, own.objective)
        return {
            **_heights(measured),
            "outcome": found.outcome.name,
            "moved": not equal(found.target, own.params[self.b]),
            "aligned": is_aligned(own.objective, found, own.params[self.b]),
            "length": length_of(found.path, no_weights(own.objective))[1],
            "gradient_steps": found.cost.gradient_steps,
        }


def _heights(found: Profile) -> dict[str, Any]:
    """The largest values on a path, and where the loss is highest."""
    test = found.test
    return {
        "max": found.max,
        "t": float(found.t[int(found.loss.argmax())]),
        "error": found.barriers["error"].max,
        "test_loss": None if test is None else test.max,
        "test_error": None if test is None else test.barriers["error"].max,
    }


def edge_cells(
    on: str, digests: Sequence[str], pairs: Sequence[tuple[int, int]], method: Connector, seed: int, num_points: int
) -> list[EdgeCell]:
    """One job for each pair."""
    return [EdgeCell(on, digests[i], digests[j], method, seed, num_points) for i, j in pairs]
