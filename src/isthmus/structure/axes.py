"""Tensor axes as products and sums of atoms, and the union-find that makes two axes one.

An `Axis` is an atom of n interchangeable positions, or a product of axes (a flattened (channel, row, column), heads
times head dimensions, gates times units), or a sum of axes (a concatenation). Atoms are refined into products or
sums when two axes with different factorisations must be equal. An atom can be *fixed* (its positions have a meaning of
their own: input features, time, classes) and *mixed* (its units are interchangeable, but no unit can be removed alone).
Every step only restricts the permutations that are allowed, so a wrong guess costs symmetry, never correctness.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import prod
from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "GIVEN",
    "Axis",
    "explain",
    "factored",
    "find",
    "fix",
    "fixed",
    "label",
    "labels",
    "leaves",
    "mark",
    "positions",
    "product",
    "split",
    "total",
    "unify",
]

GIVEN = "its positions have a meaning of their own"
"""Why inputs, outputs, places and the rows of a table are fixed: they are no units that something made."""

Kind = Literal["atom", "product", "sum"]


class Axis:
    """A node of the union-find; mutable, private to one derivation. Compare by ``find(a) is find(b)``."""

    __slots__ = ("fixed", "kind", "label", "mixed", "parent", "parts", "size", "why")

    def __init__(self, size: int, kind: Kind = "atom", parts: Sequence[Axis] = ()) -> None:
        self.size, self.kind, self.parts = size, kind, tuple(parts)
        self.parent: Axis | None = None
        self.fixed, self.why, self.mixed, self.label = False, "", "", ""

    def __repr__(self) -> str:
        root = find(self)
        if root.kind == "atom":
            return f"{root.size}{'!' if root.fixed else ''}"
        return f"({(' x ' if root.kind == 'product' else ' + ').join(map(repr, root.parts))})"


def find(a: Axis) -> Axis:
    """The representative of an axis."""
    while a.parent is not None:
        if a.parent.parent is not None:
            a.parent = a.parent.parent
        a = a.parent
    return a


def fixed(size: int, why: str = "") -> Axis:
    """A new axis whose positions cannot be exchanged."""
    a = Axis(size)
    a.fixed, a.why = True, why
    return a


def product(axes: Iterable[Axis]) -> Axis:
    """The flattened axis, first factor slowest; nested products are flattened, fixed factors of size 1 dropped."""
    parts = [p for a in axes for p in factors(a) if not (p.size == 1 and p.kind == "atom" and p.fixed)]
    if len(parts) == 1:
        return parts[0]
    return Axis(prod(p.size for p in parts), "product", parts) if parts else fixed(1)


def total(axes: Iterable[Axis]) -> Axis:
    """The concatenated axis; nested sums are flattened, empty terms dropped."""
    parts = [p for a in axes for p in terms(a) if p.size]
    if len(parts) == 1:
        return parts[0]
    return Axis(sum(p.size for p in parts), "sum", parts) if parts else fixed(0)


def factors(a: Axis) -> list[Axis]:
    """The factors of a product, or the axis itself."""
    a = find(a)
    return [f for p in a.parts for f in factors(p)] if a.kind == "product" else [a]


def terms(a: Axis) -> list[Axis]:
    """The terms of a sum, or the axis itself; a sum in front of a product is multiplied out."""
    a = find(a)
    if a.kind == "sum":
        return [t for p in a.parts for t in terms(p)]
    if a.kind == "product" and len(first := terms(factors(a)[0])) > 1:
        return [u for t in first for u in terms(product([t, *factors(a)[1:]]))]
    return [a]


def leaves(a: Axis) -> Iterator[Axis]:
    """The atoms of an axis, each once per occurrence."""
    a = find(a)
    if a.kind == "atom":
        yield a
    for p in a.parts:
        yield from leaves(p)


def fix(*axes: Axis, why: str = "") -> None:
    """Forbid any permutation of the positions, and say why. The first reason is kept."""
    for a in axes:
        for leaf in leaves(a):
            leaf.fixed, leaf.why = True, leaf.why or why


def explain(a: Axis, why: str) -> None:
    """Say why the atoms that are fixed are so. The first reason is kept."""
    for leaf in leaves(a):
        leaf.why = leaf.why or (why if leaf.fixed else "")


def mark(a: Axis, why: str) -> None:
    """Say that no unit of the axis can be removed alone, and why. The first reason is kept."""
    for leaf in leaves(a):
        leaf.mixed = leaf.mixed or why


def label(a: Axis, name: str) -> None:
    """Give the atoms a name that helps to tell groups apart. The first name is kept."""
    for leaf in leaves(a):
        leaf.label = leaf.label or name


def unify(a: Axis, b: Axis) -> None:
    """Make two axes of equal size one: from now on whatever permutes the one permutes the other alike."""
    a, b = find(a), find(b)
    if a is b:
        return
    if a.size != b.size:
        raise ValueError(f"axes of sizes {a.size} and {b.size} cannot be equal")
    if b.kind == "atom" and a.kind != "atom":
        a, b = b, a
    if a.kind == "atom":
        _bind(a, b)
    elif a.kind == b.kind == "product":
        _unify_products(factors(a), factors(b))
    elif len(terms(a)) > 1 and len(terms(b)) > 1:
        _unify_sums(terms(a), terms(b))
    else:
        _unify_product_with_sum(*((a, b) if a.kind == "product" else (b, a)))


def _bind(atom: Axis, to: Axis) -> None:
    """Replace an atom by another axis, which takes over what was said about it."""
    if to.kind != "atom" and any(leaf is atom for leaf in leaves(to)):
        # only possible when the other factors have size 1
        fix(*(leaf for leaf in leaves(to) if leaf is not atom))
        to.kind, to.parts, to.parent = "atom", (), atom
        return
    atom.parent = to
    for leaf in leaves(to):
        _inherit(leaf, atom, label=to.kind == "atom")


def _inherit(leaf: Axis, atom: Axis, label: bool) -> None:
    leaf.fixed = leaf.fixed or atom.fixed
    leaf.why = leaf.why or atom.why
    leaf.mixed = leaf.mixed or atom.mixed
    leaf.label = leaf.label or (atom.label if label else "")


def _like(atom: Axis, size: int) -> Axis:
    part = Axis(size)
    part.fixed, part.why, part.mixed, part.label = atom.fixed, atom.why, atom.mixed, atom.label
    return part


def _unify_products(xs: list[Axis], ys: list[Axis]) -> None:
    """Match factors from the slow end; split the larger atom where the smaller one ends."""
    while xs and ys:
        xs, ys = _flat(xs), _flat(ys)
        if xs[0].size > ys[0].size:
            xs, ys = ys, xs
        xs, ys = _unify_first(xs, ys)
    fix(*xs, *ys)


def _flat(axes: Sequence[Axis]) -> list[Axis]:
    return [factor for axis in axes for factor in factors(axis)]


def _unify_first(xs: list[Axis], ys: list[Axis]) -> tuple[list[Axis], list[Axis]]:
    """One step: the first factors, of which that of xs is not the larger, and what is left."""
    x, y = xs[0], ys[0]
    if x.size == y.size:
        unify(x, y)
        return xs[1:], ys[1:]
    if x.size == 1:
        fix(x)
        return xs[1:], ys
    if y.kind == "atom" and y.size % x.size == 0:
        _bind(y, Axis(y.size, "product", (_like(y, x.size), _like(y, y.size // x.size))))
        return xs, ys
    return _unify_block(xs, ys)


def _unify_block(xs: list[Axis], ys: list[Axis]) -> tuple[list[Axis], list[Axis]]:
    """The shortest runs of factors at the front that have the same size, made equal or fixed; what is left."""
    i = j = 1
    while (p := prod(x.size for x in xs[:i])) != (q := prod(y.size for y in ys[:j])):
        if p < q:
            i += 1
        else:
            j += 1
    if j == 1:
        unify(product(xs[:i]), ys[0])
    else:
        fix(*xs[:i], *ys[:j])
    return xs[i:], ys[j:]


def _unify_sums(xs: list[Axis], ys: list[Axis]) -> None:
    """Match terms from the front; split the larger one where the smaller one ends."""
    while xs and ys:
        if xs[0].size > ys[0].size:
            xs, ys = ys, xs
        if xs[0].size == ys[0].size:
            unify(xs[0], ys[0])
            xs, ys = xs[1:], ys[1:]
        elif (pieces := _cut(ys[0], xs[0].size)) is not None:
            ys = [*pieces, *ys[1:]]
        else:
            fix(*xs, *ys)
            return
        xs, ys = [t for x in xs for t in terms(x)], [t for y in ys for t in terms(y)]


def _cut(a: Axis, size: int) -> tuple[Axis, Axis] | None:
    """The first `size` positions of a term and the rest; None if the cut goes through a unit."""
    a = find(a)
    if a.kind == "atom":
        parts = (_like(a, size), _like(a, a.size - size))
        _bind(a, Axis(a.size, "sum", parts))
        return parts
    first, rest = factors(a)[0], factors(a)[1:]
    inner = a.size // first.size
    if size % inner:
        return None
    pieces = _cut(first, size // inner)
    return None if pieces is None else (product([pieces[0], *rest]), product([pieces[1], *rest]))


def _unify_product_with_sum(p: Axis, s: Axis) -> None:
    """Cut the slowest factor at the boundaries of the terms, if they fall between its positions."""
    first, rest = factors(p)[0], factors(p)[1:]
    inner = p.size // first.size
    if first.size == 1:
        fix(first)
        unify(product(rest), s)
        return
    if any(t.size % inner for t in terms(s)):
        fix(p, s)
        return
    parts = [Axis(t.size // inner) for t in terms(s)]
    ends = terms(s)
    unify(first, total(parts))
    for part, term in zip(parts, ends, strict=True):
        if part.size == 1:
            fix(part)
        unify(term, product([part, *rest]))


def split(a: Axis, sizes: Sequence[int]) -> list[Axis]:
    """The consecutive pieces of an axis; where a boundary cuts through a unit, everything is fixed."""
    pieces = [Axis(n) for n in sizes]
    unify(a, total(pieces))
    return [piece if piece.size else fixed(0) for piece in pieces]


def factored(a: Axis, sizes: Sequence[int]) -> list[Axis]:
    """The factors of an axis, the first one slowest; those of size 1 hold no units."""
    parts = [fixed(1) if n == 1 else Axis(n) for n in sizes]
    unify(a, product(parts))
    return parts


def labels(a: Axis) -> dict[Axis, Tensor]:
    """For each atom, the unit that each position of the axis belongs to, or -1; fixes an atom that is there twice.

    >>> list(labels(product([fixed(2), Axis(3)])).values())[1]
    tensor([0, 1, 2, 0, 1, 2])
    """
    a = find(a)
    if a.kind == "atom":
        return {a: torch.arange(a.size)}
    out: dict[Axis, Tensor] = {}
    before = 1 if a.kind == "product" else 0
    for part in (find(p) for p in a.parts):
        for atom, unit in labels(part).items():
            if a.kind == "product":
                repeat = a.size // before // part.size
                unit = unit.repeat_interleave(repeat).repeat(before)
                if atom in out:
                    # a permutation would act on both factors at once
                    fix(atom)
                out[atom] = unit
            else:
                line = out.setdefault(atom, torch.full((a.size,), -1))
                line[before : before + part.size] = unit
        before = before * part.size if a.kind == "product" else before + part.size
    return out


def positions(a: Axis, atom: Axis) -> Tensor:
    """Where each unit of an atom is on an axis that holds it, [units, block].

    >>> positions(product([two := Axis(2), Axis(3)]), two)
    tensor([[0, 1, 2],
            [3, 4, 5]])
    """
    unit = labels(a)[find(atom)]
    # positions sorted by unit, in order within each; those of no unit (-1) come first
    return unit.argsort(stable=True)[int((unit < 0).sum()) :].reshape(find(atom).size, -1)
