"""The rotations and permutations with the largest inner product of two networks, found in turns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from isthmus.alignment.assignment import assignment, inner_sums
from isthmus.alignment.descent import UnitSearch
from isthmus.alignment.overlap import Overlap, rows_of
from isthmus.alignment.rotations.frame import Placed, Rotatable, Stacked, Turn
from isthmus.alignment.rotations.turning import best, polar, reach
from isthmus.structure import Group

_ENOUGH = 1e-10
"""The rounds end when one gains less than so much."""
_TIES = 1e-3
"""The weight of the weights beside values, each in units of its norm: decides where no value differs."""
_SWEEPS = 20
"""Sweeps over the groups that are only renumbered, at most, in one round."""


@dataclass(eq=False)
class Rounds:
    """Rotations and permutations in the making, of networks that are folded already.

    `search`: the second network as it stands, and the permutations; `rotations`: those of the turns, which come after
    the permutations. `seen`: for groups that are turned once, by their values, how alike each pair of units is. No
    step of the others lowers the inner product.
    """

    frame: Rotatable
    search: UnitSearch
    seen: Mapping[str, Tensor] = field(default_factory=dict)
    rotations: dict[str, Tensor] = field(default_factory=dict)
    trace: list[float] = field(default_factory=list)
    converged: bool = False

    def __post_init__(self) -> None:
        for turn in self.frame.turns:
            self.rotations[turn.group] = torch.eye(turn.size, dtype=torch.float64).expand(turn.shape).clone()

    @property
    def overlap(self) -> Overlap:
        """The inner product."""
        return self.search.overlap

    def run(self, rounds: int, tell: Callable[[int], None]) -> None:
        """First by values, and by what is tied to nothing else, such as embeddings; then all in turns."""
        alone, heads, rest = self.parts()
        free = [t for t in alone if t.group not in self.seen]
        self.begin(alone, rest)
        self.untangle(heads)
        self.trace.append(self.search.similarity)
        while len(self.trace) <= rounds and not self.converged:
            self.round(free, heads, [g.name for g in rest])
            tell(len(self.trace) - 1)

    def parts(self) -> tuple[list[Turn], list[Group], list[Group]]:
        """What is rotated by itself, the keys of what is rotated with them, and what is only renumbered."""
        keys = {name for t in self.frame.turns for name in t.renumbered}
        turned = {t.group for t in self.frame.turns}
        heads, rest = self._groups(keys, True), self._groups(keys | turned, False)
        return [t for t in self.frame.turns if not (t.renumbered or t.carried)], heads, rest

    def _groups(self, names: Collection[str], among: bool) -> list[Group]:
        """The groups among some, or all others."""
        return [g for g in self.overlap.structure.groups if (g.name in names) == among]

    def round(self, turns: Sequence[Turn], heads: Sequence[Group], rest: Sequence[str]) -> None:
        """Everything once."""
        for turn in turns:
            self.turn(turn)
        for group in heads:
            self.pair(group)
        for turn in (t for t in self.frame.turns if t.carried):
            self.exchange(turn)
        self.search.climb(self.search.sweeps + _SWEEPS, lambda _: None, rest)
        self.trace.append(self.search.similarity)
        self.converged = self.trace[-1] - self.trace[-2] <= _ENOUGH * abs(self.trace[-1])

    def begin(self, turns: Sequence[Turn], groups: Sequence[Group]) -> None:
        """Each group by those tensors only that hold no other."""
        for turn in turns:
            if turn.group in self.seen:
                self._look(turn, self.seen[turn.group])
            else:
                self.turn(turn, self._own(turn.group))
        for group in groups:
            if names := self._own(group.name):
                self.renumber(group.name, assignment(self.overlap.gram(group, self.search.b, names)))

    def untangle(self, heads: Sequence[Group]) -> None:
        """Where what rotates together also has an order, as query heads that share a head of keys: first without it."""
        for group in heads:
            ordered, rotated = self._held(group, "order"), self._held(group, "phase") | self._held(group, "rotation")
            if ordered & rotated:
                self.pair(group, rotated - ordered)

    def _held(self, group: Group, kind: str) -> set[str]:
        """The tensors of the turns of a kind beside a group."""
        turns = [t for t in self.frame.turns if t.kind == kind and group.name in t.renumbered]
        return {name for t in turns for name in t.tensors}

    def _own(self, group: str) -> list[str]:
        turned = {name for t in self.frame.turns if t.group != group for name in t.tensors}
        own = [k for k, several in self.overlap.of.items() if {name for name, _ in several} == {group}]
        return [k for k in own if k not in turned]

    # ------------------------------------------------------------------ steps

    def turn(self, turn: Turn, names: Collection[str] | None = None) -> None:
        """The best rotations of one group, all else held."""
        grams = self._grams(turn, names)
        if grams is not None:
            before, kept = self.search.similarity, (self.search.b, self.rotations[turn.group])
            self._rotate(turn, best(turn, grams))
            if names is None and self.search.similarity < before:  # the group is on two axes of a tensor
                self.search.b, self.rotations[turn.group] = kept

    def _look(self, turn: Turn, alike: Tensor) -> None:
        """The best rotation for values, and a little for tensors that hold no other group."""
        grams = self._grams(turn, self._own(turn.group))
        parts = [alike] if grams is None else [alike, grams]
        sizes = [torch.linalg.matrix_norm(g, keepdim=True).clamp(min=torch.finfo(g.dtype).tiny) for g in parts]
        both = sum(w * g / n for w, g, n in zip((1.0, _TIES), parts, sizes, strict=False))
        self._rotate(turn, polar(torch.as_tensor(both), turn.centred))

    def pair(self, group: Group, names: Collection[str] | None = None) -> None:
        """The best permutation of heads, with the best rotations inside each pair."""
        turns = [t for t in self.frame.turns if group.name in t.renumbered]
        scores = self._left(group, turns)
        for turn in turns:
            if members := self._scored(turn, turns, names):
                scores = scores + self._scores(turn, group.name, members)
        self.renumber(group.name, assignment(scores))
        for turn in sorted(turns, key=lambda t: t.kind == "order"):
            self.turn(turn, names if turn.kind != "order" else None)

    def exchange(self, turn: Turn) -> None:
        """The best places of modules such as experts, with the best order inside each pair of them."""
        search = self.search
        before, kept = search.similarity, (search.b, search.orders, self.rotations[turn.group])
        inside = [[self.overlap.structure.group(name) for name in names] for names in turn.carried]
        scores = [self._alone(turn, inside), *(self._inside(groups) for groups in inside)]
        found = torch.eye(turn.size, dtype=torch.float64)[assignment(torch.stack(scores).sum(0))]
        search.orders = self.frame.carried(search.orders, {turn.group: found})
        self._rotate(turn, found)
        for group in (g for groups in inside for g in groups):
            search.take(group.name, assignment(self.overlap.gram(group, search.b)))
        if search.similarity <= before:
            search.b, search.orders, self.rotations[turn.group] = kept

    def _alone(self, turn: Turn, inside: Sequence[Sequence[Group]]) -> Tensor:
        """What each pair of modules adds in tensors in which nothing inside is renumbered, such as rows of a router."""
        ordered = {m.tensor for groups in inside for g in groups for m in g.members}
        names = {name for m in self._compared(turn) for name in m.tensors} - ordered
        grams = self._grams(turn, names)
        return torch.zeros(turn.size, turn.size, dtype=torch.float64) if grams is None else grams

    def _inside(self, groups: Sequence[Group]) -> Tensor:
        """What the units of corresponding groups add at best, for each pair of modules."""
        rows = [[self._units(g, p) for g in groups] for p in (self.overlap.a, self.search.b)]
        return inner_sums(torch.stack([torch.stack([a @ b.T for b in rows[1]]) for a in rows[0]]))

    def _units(self, group: Group, params: Mapping[str, Tensor]) -> Tensor:
        """All of a unit that is compared, for each."""
        members = [m for m in group.members if m.tensor in self.overlap.of]
        return torch.cat([rows_of(params[m.tensor], m.dim, m.index) for m in members], 1)

    @property
    def orders(self) -> dict[str, Tensor]:
        """The permutations, which come before the rotations: of modules that change places, by where these were."""
        back = {t.group: self.rotations[t.group].mT for t in self.frame.turns if t.carried}
        return self.frame.carried(self.search.orders, back)

    def _left(self, group: Group, turns: Sequence[Turn]) -> Tensor:
        """What entries of the heads add in which nothing rotates."""
        out = torch.zeros(group.size, group.size, dtype=torch.float64)
        still = {name: torch.ones_like(self.overlap.a[name]) for name in self.overlap.tensors(group)}
        for m in [m for t in turns for m in self._compared(t)]:
            still |= m.filled(still, torch.zeros_like(m.rows(still)))
        for name, here in still.items():
            held = next(m for m in group.members if m.tensor == name)
            a, b = (rows_of(p[name] * here, held.dim, held.index) for p in (self.overlap.a, self.search.b))
            out += a @ b.T
        return out

    def _scored(self, turn: Turn, turns: Sequence[Turn], names: Collection[str] | None) -> list[Placed | Stacked]:
        """The members that the score of a turn counts: entries that also rotate are not counted as ordered again."""
        members = [m for m in self._compared(turn) if names is None or set(m.tensors) <= set(names)]
        if turn.kind != "order":
            return members
        rotated = {name for t in turns if t.kind != "order" for name in t.tensors}
        return [m for m in members if not rotated & set(m.tensors)]

    def _scores(self, turn: Turn, group: str, members: Sequence[Placed | Stacked]) -> Tensor:
        """For each pair of heads the largest inner product that rotations inside reach."""
        place = [name for name, _ in turn.keys].index(group)
        grams = []
        for m in members:
            a, b = (m.rows(p).movedim(place, 0) for p in (self.overlap.a, self.search.b))
            a, b = (x.reshape(len(x), -1, *x.shape[-2:]) for x in (a, b))  # [heads, other keys, units, entries]
            grams.append(torch.einsum("ukir,vkjr->uvkij", a, b))
        return reach(turn, torch.stack(grams).sum(0))

    def renumber(self, name: str, order: Tensor) -> None:
        """Renumber a group, and with it the rotations of which it is a key."""
        self.search.take(name, order)
        for turn in self.frame.turns:
            for place, (key, _) in enumerate(turn.keys):
                if key == name:
                    self.rotations[turn.group] = self.rotations[turn.group].index_select(place, order)

    def _compared(self, turn: Turn) -> list[Placed | Stacked]:
        return [m for m in turn.members if set(m.tensors) <= self.overlap.of.keys()]

    def _grams(self, turn: Turn, names: Collection[str] | None) -> Tensor | None:
        """For each key what each pair of units adds, [keys..., units, units]."""
        members = [m for m in self._compared(turn) if names is None or set(m.tensors) <= set(names)]
        if not members:
            return None
        both = [(m.rows(self.overlap.a), m.rows(self.search.b)) for m in members]
        return torch.stack([a @ b.mT for a, b in both]).sum(0)

    def _rotate(self, turn: Turn, rotation: Tensor) -> None:
        self.search.b = self.frame.rotate(self.search.b, {turn.group: rotation})
        self.rotations[turn.group] = rotation @ self.rotations[turn.group]
