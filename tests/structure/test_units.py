"""Structures as data: what the maps on parameters do, entry by entry, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from isthmus.errors import InputError
from isthmus.params import equal
from isthmus.structure import Group, Member, Structure, derive_structure
from tests.structure.cases import CASES, Case


def simple() -> Structure:
    """Linear(3, 4), Linear(4, 2)."""
    index = torch.arange(4)[:, None]
    members = (Member("a.w", 0, "in", index), Member("a.b", 0, "in", index), Member("b.w", 1, "out", index))
    return Structure((Group("a", 4, members),), {"a.w": (4, 3), "a.b": (4,), "b.w": (2, 4), "b.b": (2,)})


def numbers() -> dict[str, Tensor]:
    shapes = simple().shapes
    return {k: torch.arange(1.0, 1 + torch.Size(s).numel()).reshape(s) for k, s in shapes.items()}


def slow_permute(structure: Structure, params: dict[str, Tensor], name: str, perm: list[int]) -> dict[str, Tensor]:
    """The definition, one row at a time."""
    out = {k: v.clone() for k, v in params.items()}
    for m in structure.group(name).members:
        for u, v in enumerate(perm):
            for to, source in zip(m.index[u].tolist(), m.index[v].tolist(), strict=True):
                out[m.tensor].select(m.dim, to).copy_(params[m.tensor].select(m.dim, source))
        params = {k: v.clone() for k, v in out.items()}
    return out


@pytest.mark.parametrize("case", CASES, ids=[c.name for c in CASES])
def test_permute_follows_its_definition_and_inverts(case: Case) -> None:
    module = case.module()
    structure, params = case.structure, dict(module.state_dict())
    g = torch.Generator().manual_seed(3)
    perms = {group.name: torch.randperm(group.size, generator=g) for group in structure.groups}
    slow = params
    for name, perm in perms.items():
        slow = slow_permute(structure, slow, name, perm.tolist())
    assert equal(structure.permute(params, perms), slow)
    back = structure.permute(structure.permute(params, perms), {n: p.argsort() for n, p in perms.items()})
    assert equal(back, params)


@pytest.mark.parametrize("case", CASES, ids=[c.name for c in CASES])
def test_embed_is_the_right_inverse_of_select(case: Case) -> None:
    module = case.module()
    structure, params = case.structure, dict(module.state_dict())
    g = torch.Generator().manual_seed(4)
    units = {x.name: torch.randperm(x.size, generator=g)[: (x.size + 1) // 2] for x in structure.groups}
    small = structure.select(params, units)
    full = structure.embed(small, units)
    assert equal(structure.select(full, units), small)
    assert {k: tuple(v.shape) for k, v in full.items()} == {k: tuple(v.shape) for k, v in params.items()}
    kept = {k: (v != 0) for k, v in full.items()}
    assert all(torch.equal(full[k][kept[k]], params[k][kept[k]]) for k in params), "entries return to their places"
    everything = {x.name: range(x.size) for x in structure.groups}
    assert equal(structure.select(params, everything), params)


def test_select_gives_the_narrow_network() -> None:
    def net(channels: int, units: int) -> nn.Sequential:
        conv = (nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels), nn.ReLU(), nn.Flatten())
        return nn.Sequential(*conv, nn.Linear(9 * channels, units), nn.ReLU(), nn.Linear(units, 2)).eval()

    wide, narrow = net(5, 4), net(2, 3)
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    structure, units = derive_structure(wide, (x,)), {"0": [4, 1], "4": [2, 0, 3]}
    params = dict(wide.state_dict())
    small = structure.select(params, units)
    narrow.load_state_dict(small)
    silent = {"0": [0, 2, 3], "4": [1]}
    wide.load_state_dict(structure.silence(params, silent))
    torch.testing.assert_close(narrow(x), wide(x))
    wide.load_state_dict(structure.embed(small, units))
    torch.testing.assert_close(narrow(x), wide(x))


def test_values_of_a_small_example() -> None:
    s, p = simple(), numbers()
    assert s.permute(p, {"a": [1, 2, 3, 0]})["a.b"].tolist() == [2, 3, 4, 1]
    assert s.permute(p, {"a": [1, 2, 3, 0]})["b.w"].tolist() == [[2, 3, 4, 1], [6, 7, 8, 5]]
    assert s.silence(p, {"a": [0, 2]})["b.w"].tolist() == [[0, 2, 0, 4], [0, 6, 0, 8]]
    assert s.scale(p, {"a": [1, 2, 0, 0.5]})["b.w"].tolist() == [[1, 4, 0, 2], [5, 12, 0, 4]]
    assert s.select(p, {"a": [3, 1]})["b.w"].tolist() == [[4, 2], [8, 6]]
    assert s.embed(s.select(p, {"a": [3, 1]}), {"a": [3, 1]})["a.b"].tolist() == [0, 2, 0, 4]
    assert s.select(p, {"a": []})["a.w"].shape == (0, 3)


def test_untouched_tensors_are_shared_and_arguments_kept() -> None:
    s, p = simple(), numbers()
    before = {k: v.clone() for k, v in p.items()}
    for out in (s.permute(p, {"a": [3, 2, 1, 0]}), s.silence(p, {"a": [0]}), s.select(p, {"a": [0]})):
        assert out["b.b"] is p["b.b"]
    assert s.silence(p, {"a": [0]})["a.w"] is p["a.w"]
    assert equal(p, before)


def test_silence_writes_zeros_over_values_that_are_not_finite() -> None:
    p = numbers() | {"b.w": torch.full((2, 4), float("inf"))}
    assert simple().silence(p, {"a": [1]})["b.w"][:, 1].tolist() == [0, 0]


def test_members_of() -> None:
    assert [(g.name, m.dim) for g, m in simple().members_of("b.w")] == [("a", 1)]
    assert simple().members_of("b.b") == ()
    group = simple().group("a")
    assert [m.tensor for m in group.ins] == ["a.w", "a.b"]
    assert [m.tensor for m in group.outs] == ["b.w"]
    assert group.members[0].size == 4


MISUSE: list[tuple[Callable[[Structure, dict[str, Tensor]], Any], str]] = [
    (lambda s, p: s.permute(p, {"x": [0]}), "group: expected one of ['a'], got 'x'"),
    (lambda s, p: s.permute(p, {"a": [0, 1]}), "group 'a': expected a permutation of 4, got 2"),
    (lambda s, p: s.permute(p, {"a": [0, 1, 2, 2]}), "group 'a': expected distinct units"),
    (lambda s, p: s.select(p, {"a": [4]}), "group 'a': expected units 0 to 3, got [4]"),
    (lambda s, p: s.silence(p, {"a": torch.ones(4, dtype=torch.bool)}), "group 'a': expected unit numbers"),
    (lambda s, p: s.scale(p, {"a": [1.0]}), "group 'a': expected 4 factors"),
    (lambda s, p: s.permute({}, {}), "params: expected the key 'a.w'"),
    (lambda s, p: s.permute(p | {"a.b": torch.zeros(3)}, {}), "params['a.b']: expected shape (4,), got (3,)"),
    (lambda s, p: s.embed(p, {"a": [0]}), "params['a.w']: expected shape (1, 3), got (4, 3)"),
    (lambda s, p: s.embed({}, {"a": [0]}), "params['a.w']: expected shape (1, 3), got nothing"),
    (lambda s, p: s.members_of("c"), "tensor: expected one of"),
]


@pytest.mark.parametrize(("call", "message"), MISUSE)
def test_misuse_is_refused_by_name(call: Callable[[Structure, dict[str, Tensor]], Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        call(simple(), numbers())


def test_units_that_are_not_separable_are_not_silenced() -> None:
    s = simple()
    mixed = Structure((Group("a", 4, s.groups[0].members, separable=False, why="LayerNorm"),), s.shapes)
    with pytest.raises(InputError, match=r"group 'a': expected separable units, got units that are not: LayerNorm"):
        mixed.silence(numbers(), {"a": [0]})


def hand(*groups: tuple[str, int, str, int, str, Tensor]) -> Structure:
    made = [Group(n, size, (Member(tensor, dim, role, index),)) for n, size, tensor, dim, role, index in groups]  # type: ignore[arg-type]
    return Structure(tuple(made), {"w": (6, 4)})


ROWS = torch.arange(4)[:, None]
BAD = [
    ([("g", 4, "x", 0, "in", ROWS)], "group 'g', member 'x' axis 0: expected a tensor of the network"),
    ([("g", 4, "w", 2, "in", ROWS)], "expected an axis of the shape (6, 4), got 2"),
    ([("g", 4, "w", 0, "both", ROWS)], 'expected the role "in" or "out", got both'),
    ([("g", 5, "w", 0, "in", ROWS)], "expected an int64 index of shape (5, block), got (4, 1)"),
    ([("g", 4, "w", 0, "in", ROWS.int())], "of torch.int32"),
    ([("g", 4, "w", 1, "in", ROWS + 1)], "expected positions 0 to 3, got 1 to 4"),
    ([("g", 4, "w", 0, "in", ROWS // 2)], "expected each position at most once"),
    ([("g", 4, "w", 0, "in", ROWS), ("g", 4, "w", 1, "in", ROWS)], "expected a different name for each, got 'g' twice"),
    ([("g", 4, "w", 0, "in", ROWS), ("h", 4, "w", 0, "in", ROWS + 1)], "groups 'g' and 'h': expected each position"),
]


@pytest.mark.parametrize(("groups", "message"), BAD)
def test_a_wrong_hand_written_structure_is_refused(groups: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        hand(*groups)


def test_a_grid_of_heads_and_dimensions_is_accepted() -> None:
    grid = torch.arange(6).reshape(2, 3)
    s = hand(("heads", 2, "w", 0, "in", grid), ("dims", 3, "w", 0, "in", grid.T.contiguous()))
    w = {"w": torch.arange(6.0)[:, None].expand(6, 4)}
    assert s.permute(w, {"heads": [1, 0], "dims": [2, 0, 1]})["w"][:, 0].tolist() == [5, 3, 4, 2, 0, 1]
    small = s.select(w, {"heads": [1], "dims": [2, 0]})
    assert small["w"][:, 0].tolist() == [5, 3]
    assert s.embed(small, {"heads": [1], "dims": [2, 0]})["w"][:, 0].tolist() == [0, 0, 0, 3, 0, 5]
