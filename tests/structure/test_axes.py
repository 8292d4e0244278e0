"""The union-find over axes: unified axes agree on every free atom, whatever their factorisations were."""

from __future__ import annotations

import random

import pytest
import torch

from isthmus.structure import axes as ax
from isthmus.structure.axes import Axis


def tree(size: int, r: random.Random, depth: int = 3) -> Axis:
    """A random axis of that size: an atom, a product or a sum."""
    kind = r.choice(["atom", "product", "sum"]) if depth else "atom"
    divisors = [d for d in range(2, size) if size % d == 0]
    if kind == "product" and divisors:
        d = r.choice(divisors)
        return ax.product([tree(d, r, depth - 1), tree(size // d, r, depth - 1)])
    if kind == "sum" and size > 1:
        d = r.randrange(1, size)
        return ax.total([tree(d, r, depth - 1), tree(size - d, r, depth - 1)])
    return Axis(size) if r.random() < 0.8 else ax.fixed(size)


def free(a: Axis) -> dict[Axis, list[int]]:
    units = ax.labels(a)
    return {atom: unit.tolist() for atom, unit in units.items() if not atom.fixed}


@pytest.mark.parametrize("seed", range(400))
def test_unified_axes_carry_the_same_units(seed: int) -> None:
    r = random.Random(seed)
    size = r.choice([1, 2, 4, 6, 8, 12, 16, 24, 36])
    trees = [tree(size, r) for _ in range(4)]
    for a, b in ((0, 1), (2, 3), (1, 2)):
        ax.unify(trees[a], trees[b])
    for a in trees:
        ax.labels(a)  # fixes atoms that an axis holds twice
    maps = [free(a) for a in trees]
    assert all(m == maps[0] for m in maps)
    assert all(a.size == size == sum(1 for _ in range(size)) for a in map(ax.find, trees))


@pytest.mark.parametrize("seed", range(100))
def test_labels_cover_each_position_once_per_factor(seed: int) -> None:
    r = random.Random(seed)
    a = tree(24, r)
    for atom, unit in ax.labels(a).items():
        counts = torch.bincount(unit[unit >= 0], minlength=atom.size)
        assert len(unit) == 24
        assert counts.unique().numel() == 1, "each unit has as many positions as any other"


def test_a_flattened_image_keeps_its_channels() -> None:
    channels, flat = Axis(3), Axis(12)
    ax.unify(ax.product([channels, ax.fixed(2), ax.fixed(2)]), flat)
    assert free(flat) == {ax.find(channels): [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]}


def test_an_atom_splits_into_heads_and_dimensions() -> None:
    flat, heads, inside = Axis(6), Axis(2), Axis(3)
    ax.unify(flat, ax.product([heads, inside]))
    assert sorted(free(flat).values()) == [[0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2]]


def test_a_concatenation_splits_its_reader() -> None:
    left, right, reader = Axis(2), Axis(3), Axis(5)
    ax.unify(ax.total([left, right]), reader)
    assert sorted(free(reader).values()) == [[-1, -1, 0, 1, 2], [0, 1, -1, -1, -1]]


def test_three_equal_pieces_of_a_product_are_one() -> None:
    d, q, k, v = Axis(4), Axis(4), Axis(4), Axis(4)
    ax.unify(ax.product([ax.fixed(3), d]), ax.total([q, k, v]))
    assert ax.find(q) is ax.find(k) is ax.find(v) is ax.find(d)


def test_a_boundary_through_a_unit_fixes() -> None:
    a, b = Axis(3), Axis(4)
    flat = ax.product([a, b])
    ax.split(flat, [6, 6])
    assert free(flat) == {}


def test_incompatible_factors_are_fixed() -> None:
    a = ax.product([Axis(2), Axis(3)])
    ax.unify(a, ax.product([Axis(3), Axis(2)]))
    assert free(a) == {}


def test_an_atom_twice_in_a_product_is_fixed() -> None:
    a = Axis(3)
    assert free(ax.product([a, a])) == {}


def test_marks_and_fixing_reach_the_pieces() -> None:
    a, b = Axis(6), ax.product([Axis(2), Axis(3)])
    ax.mark(a, "softmax")
    ax.unify(a, b)
    assert {leaf.mixed for leaf in ax.leaves(b)} == {"softmax"}
    ax.unify(b, ax.fixed(6))
    assert all(leaf.fixed for leaf in ax.leaves(a))


def test_an_atom_inside_its_own_product() -> None:
    a, one = Axis(3), Axis(1)
    flat = ax.product([a, one])
    ax.unify(a, flat)
    assert ax.find(flat) is ax.find(a)
    assert free(flat) == {a: [0, 1, 2]}
    assert one.fixed


def test_a_cut_inside_a_nested_sum() -> None:
    a, b = Axis(2), Axis(4)
    first, second = ax.split(ax.total([a, b]), [3, 3])
    assert sorted(free(first).values()) == [[-1, -1, 0], [0, 1, -1]]
    assert list(free(second).values()) == [[0, 1, 2]]


def test_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="sizes 2 and 3"):
        ax.unify(Axis(2), Axis(3))


def test_axes_print_their_form() -> None:
    assert repr(ax.total([ax.product([ax.fixed(4), Axis(2)]), Axis(3)])) == "((4! x 2) + 3)"
