"""Which part of a network carries a barrier: one block at a time, and all blocks up to one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor

from isthmus.alignment.many import seen_model
from isthmus.errors import InputError
from isthmus.evaluate.batchnorm import POLICIES, followed, refresh, statistics
from isthmus.kinds import check_kinds
from isthmus.objective import Objective
from isthmus.objective.given import ParamsLike
from isthmus.objective.skeleton import ties_of
from isthmus.params import Params, check_ends, distance, lerp
from isthmus.shown import brief, draw, line, one_line, plural, table
from isthmus.structure.blocks import blocks_of, checked_blocks
from isthmus.training.progress import Progress, no_progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@one_line
@dataclass(frozen=True)
class BlockBarrier:
    """A block of `parameters` numbers, with its `share` of the squared distance of the networks in what moves.

    `alone`: how far the loss rises above the larger end when only this block of a moves to that of b, over the points
    that were measured, and `t`, where; below 0 where it does not reach the larger end. `through`: the same of the
    network whose blocks up to this one are those of b, the others those of a.

    `name`: of the block.
    """

    name: str
    parameters: int
    share: float
    alone: float
    t: float
    through: float


@dataclass(frozen=True, eq=False)
class BlockBarriers:
    """What ``block_barriers`` found: a row per block, in the order of the network, the losses of both `ends`, the
    number of `examples` and what became of BatchNorm's statistics, `bn`.

    `rows`: a row for each block.
    """

    rows: tuple[BlockBarrier, ...]
    ends: tuple[float, float]
    examples: int
    bn: str

    def __repr__(self) -> str:
        top = self.highest
        return line(self, plural(len(self.rows), "block"), f"highest alone {top.name!r}, {brief(top.alone)}")

    def __getitem__(self, name: str) -> BlockBarrier:
        for row in self.rows:
            if row.name == name:
                return row
        raise InputError("block", expected=f"one of {', '.join(row.name for row in self.rows)}", got=repr(name))

    @property
    def highest(self) -> BlockBarrier:
        """The block that raises the loss most when it alone moves."""
        return max(self.rows, key=lambda row: (row.alone != row.alone, row.alone))

    def _repr_html_(self) -> str:
        heading = ("block", "parameters", "share of distance", "alone", "at t", "all up to it")
        return table(heading, [tuple(asdict(row).values()) for row in self.rows], repr(self))

    def plot(self, ax: Axes | None = None) -> Axes:
        """Two bars per block, drawn on `ax` (default: new axes). Needs ``isthmus[plot]``."""
        return draw(self, ax)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        about = {"ends": list(self.ends), "examples": self.examples, "bn": self.bn}
        return {**about, "blocks": [asdict(row) for row in self.rows]}


def block_barriers(
    objective: Objective,
    a: ParamsLike,
    b: ParamsLike,
    *,
    blocks: Mapping[str, Sequence[str]] | None = None,
    ts: Sequence[float] = (0.5, 1.0),
    bn: str | None = None,
    progress: Progress = no_progress,
) -> BlockBarriers:
    """How far the loss rises when one block of `a` moves to that of `b`, and when all blocks up to one are those of b.

    `blocks`: names of tensors, by the name of the block, in the order of the network; default: what ``blocks_of``
    tells from the names, layers and repeated blocks. `ts`: how far a block moves, in (0, 1]. `bn`: what becomes of
    BatchNorm's statistics, of the ends too, as for ``profile``: those of a block move with it ("interpolate"), stay
    those of a ("keep") or are computed again.

    Cost: ``len(ts) + 1`` passes over the data for each block; ``objective.subset(1000)`` makes them cheap. Source: the
    layer-wise barriers of Adilova, Andriushchenko, Kamp, Fischer, Jaggi 2024, of which this has the excess.

    Errors: blocks that hold no tensor of the network, or one of another block; `ts` outside.

    >>> import torch
    >>> x, y = torch.eye(2), torch.tensor([0, 1])
    >>> layers = [torch.nn.Linear(2, 2, bias=False) for _ in range(3)]
    >>> objective = Objective(torch.nn.Sequential(*layers), data=(x, y))
    >>> a = {f"{i}.weight": torch.eye(2) for i in range(3)}
    >>> b = {**a, "1.weight": -torch.eye(2), "2.weight": -torch.eye(2)}
    >>> found = block_barriers(objective, a, b)
    >>> [(row.name, round(row.alone, 2), round(row.through, 2)) for row in found.rows]
    [('0', 0.0, 0.0), ('1', 1.0, 1.0), ('2', 1.0, 0.0)]
    """
    check_kinds(block_barriers, locals())
    start, goal = (seen_model(objective, one, what) for one, what in ((a, "a"), (b, "b")))
    check_ends(start, goal)
    if not ts or not all(0 < t <= 1 for t in ts):
        raise InputError("ts", expected="numbers in (0, 1]", got=list(ts))
    own = [k for k in start if k not in ties_of(objective.skeleton)]
    parts = blocks_of(own) if blocks is None else checked_blocks(blocks, own)
    policy = followed(objective, bn or POLICIES[0])
    kept = frozenset(() if policy == "interpolate" else statistics(objective))
    work = _Work(objective, policy, start, goal, parts, kept, progress)
    ends = work.ends()
    rows = tuple(work.rows(sorted({*ts}), max(ends)))
    return BlockBarriers(rows, ends, objective.num_examples, policy)


@dataclass(frozen=True, eq=False)
class _Work:
    """Two networks in blocks, but for statistics that are `kept` of a, or computed again.

    One network, with tensors of the other in it, is in memory besides them.
    """

    objective: Objective
    policy: str
    a: Mapping[str, Tensor]
    b: Mapping[str, Tensor]
    parts: Mapping[str, Sequence[str]]
    kept: frozenset[str]
    progress: Progress

    def ends(self) -> tuple[float, float]:
        """The losses of both networks, the second with what is kept of the first."""
        return self.loss(self.a), self.loss({k: self.a[k] if k in self.kept else v for k, v in self.b.items()})

    def rows(self, ts: Sequence[float], top: float) -> Iterator[BlockBarrier]:
        """A row for each block: the losses at `ts` of a with it moved, and of a with all blocks up to it from b."""
        squares = {name: distance(*self._both(names)) ** 2 for name, names in self.parts.items()}
        total = sum(squares.values()) or 1.0
        alone = [self._alone(names, ts, i) for i, names in enumerate(self.parts.values())]
        for (name, names), losses, through in zip(self.parts.items(), alone, self._through(), strict=True):
            t, loss = max(losses.items(), key=lambda item: (item[1] != item[1], item[1]))
            size = sum(self.a[k].numel() for k in names)
            yield BlockBarrier(name, size, squares[name] / total, loss - top, t, through - top)

    @cached_property
    def _now(self) -> Params:
        """The network in memory, which is that of a between two blocks."""
        return dict(self.a)

    def _alone(self, names: Sequence[str], ts: Sequence[float], i: int) -> dict[float, float]:
        ends, losses = self._both(names), {}
        for t in ts:
            losses[t] = self.loss(self._now | lerp(*ends, t))
        self.progress("measuring blocks", i + 1, 2 * len(self.parts))
        return losses

    def _through(self) -> Iterator[float]:
        for i, names in enumerate(self.parts.values()):
            self._now.update(self._both(names)[1])
            yield self.loss(self._now)
            self.progress("measuring blocks", len(self.parts) + i + 1, 2 * len(self.parts))

    def loss(self, params: Mapping[str, Tensor]) -> float:
        """Under the policy of the statistics; tied tensors are as their first names have them."""
        whole = dict(params) | {k: params[own] for k, own in ties_of(self.objective.skeleton).items()}
        return self.objective.measure(refresh(self.objective, whole) if self.policy == "recompute" else whole)[0]

    def _both(self, names: Sequence[str]) -> tuple[Params, Params]:
        """What moves of these tensors, in a and in b."""
        own = [k for k in names if k not in self.kept]
        return {k: self.a[k] for k in own}, {k: self.b[k] for k in own}
