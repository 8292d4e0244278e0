"""The derived groups of every case: sizes, the two laws against the module itself, and what verify catches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from isthmus.errors import UnsupportedError
from isthmus.structure import Group, Structure, derive_structure, verify
from tests.structure.cases import CASES, Case

IDS = [c.name for c in CASES]


def random_params(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """Independent of verify's: all entries uniform in [0.2, 1.2], signs on matrices, tied tensors alike."""
    g = torch.Generator().manual_seed(seed)
    made: dict[int, Tensor] = {}
    for v in module.state_dict(keep_vars=True).values():
        if id(v) not in made:
            x = torch.rand(v.shape, generator=g, dtype=torch.float64) + 0.2
            sign = torch.randint(0, 2, v.shape, generator=g) * 2 - 1
            made[id(v)] = x * sign / (v.numel() / len(v)) ** 0.5 if v.ndim > 1 else x
            made[id(v)] = made[id(v)] if v.is_floating_point() else v
    return {k: made[id(v)] for k, v in module.state_dict(keep_vars=True).items()}


def outputs(case: Case, params: dict[str, Tensor]) -> Tensor:
    args = tuple(x.double() if x.is_floating_point() else x for x in case.args)
    out = functional_call(case.module().double(), params, args, tie_weights=False)
    return torch.cat([y.detach().reshape(-1) for y in tree_leaves(out)])


def difference(x: Tensor, y: Tensor) -> float:
    return float((x - y).abs().max() / x.abs().max().clamp(min=1e-300))


def refusal(structure: Structure, module: nn.Module, case: Case) -> str:
    """What verify says, or nothing."""
    try:
        verify(structure, module, case.args, program=case.program)
    except UnsupportedError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_groups_are_those_expected(case: Case) -> None:
    found = {g.name: g.size if g.separable else -g.size for g in case.structure.groups}
    assert [*found.items()] == [*case.groups.items()], "in the order of the network"
    assert all(g.separable == (not g.why) for g in case.structure.groups)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_any_permutation_of_all_groups_leaves_the_outputs(case: Case) -> None:
    structure, params = case.structure, random_params(case.module(), 5)
    before = outputs(case, params)
    g = torch.Generator().manual_seed(7)
    perms = {group.name: torch.randperm(group.size, generator=g) for group in structure.groups}
    assert difference(before, outputs(case, structure.permute(params, perms))) <= 1e-12
    for name in perms:
        one = structure.permute(params, {name: torch.arange(structure.group(name).size).flip(0)})
        assert difference(before, outputs(case, one)) <= 1e-12


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_nothing_depends_on_silenced_units(case: Case) -> None:
    structure, params, other = case.structure, random_params(case.module(), 5), random_params(case.module(), 6)
    before = outputs(case, params)
    for group in (g for g in structure.groups if g.separable):
        for units in ([0], list(range(1, group.size)), list(range(group.size))):
            changed = dict(params)
            for m in group.members:
                if m.role == "in":
                    at = m.index[units].reshape(-1)
                    slab = changed[m.tensor].movedim(m.dim, 0).clone()
                    slab[at] = other[m.tensor].movedim(m.dim, 0)[at]
                    changed[m.tensor] = slab.movedim(0, m.dim)
            one = outputs(case, structure.silence(params, {group.name: units}))
            two = outputs(case, structure.silence(changed, {group.name: units}))
            assert difference(one, two) <= 1e-12, group.name
        assert difference(before, one) > 1e-6, "silencing all units must change the function"


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_verify_catches_any_one_member_dropped(case: Case) -> None:
    structure, module = case.structure, case.module()
    for i, group in enumerate(structure.groups):
        for j, member in enumerate(group.members):
            less = replace(group, members=group.members[:j] + group.members[j + 1 :])
            broken = Structure((*structure.groups[:i], less, *structure.groups[i + 1 :]), structure.shapes)
            assert "law fails" in refusal(broken, module, case), (group.name, member.tensor, member.dim)


# under weight_norm a removed column changes the others, but no output depends on what made it: the law holds
NOTHING = ("weight_norm", "attention by einsum")
MIXED = [c for c in CASES if min(c.groups.values(), default=0) < 0 and c.name not in NOTHING]


@pytest.mark.parametrize("case", MIXED, ids=[c.name for c in MIXED])
def test_verify_catches_a_wrong_separable_flag(case: Case) -> None:
    structure = case.structure
    for group in (g for g in structure.groups if not g.separable and g.outs):
        lied = [replace(g, separable=True, why="") if g is group else g for g in structure.groups]
        with pytest.raises(UnsupportedError, match=f"{group.name!r}: the silence law fails"):
            verify(Structure(tuple(lied), structure.shapes), case.module(), case.args, program=case.program)


@pytest.mark.parametrize("case", CASES[::8], ids=IDS[::8])
def test_the_module_and_the_generator_are_left_alone(case: Case) -> None:
    module = case.module()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    state = torch.random.get_rng_state()
    derive_structure(module, case.args)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert not any(m.training for m in module.modules())


class Cached(nn.Sequential):
    """Returns what no graph can, beside its outputs."""

    def forward(self, input: Tensor) -> dict[str, object]:
        return {"logits": super().forward(input), "cache": Cached()}


def test_what_is_returned_beside_the_outputs_is_left_out() -> None:
    module = Cached(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    assert [g.size for g in derive_structure(module.eval(), (torch.ones(2, 4),)).groups] == [6]


def test_members_of_tied_tensors_come_in_pairs() -> None:
    group: Group = next(c for c in CASES if c.name == "GPT, tied").structure.group("wte")
    assert {"wte.weight", "head.weight"} <= {m.tensor for m in group.members}
    assert "'wte.weight' both makes and reads" in group.why or "LayerNorm" in group.why


@pytest.mark.parametrize("seed", range(12))
def test_narrow_networks_without_biases_are_not_refused_by_bad_luck(seed):
    """With three units per layer and no biases, all outputs are zero at many random weights."""
    g = torch.Generator().manual_seed(seed)
    widths = [5, *torch.randint(1, 4, (5,), generator=g).tolist(), 4]
    parts = []
    for n, m in zip(widths, widths[1:], strict=False):
        parts += [nn.Linear(n, m, bias=False), nn.ReLU()]
    structure = derive_structure(nn.Sequential(*parts[:-1]), (torch.zeros(4, 5),))
    assert all(group.separable for group in structure.groups)


class Table(nn.Module):
    """Words that are found in a table by indexing, of which perhaps one is written over."""

    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.table, self.head, self.f = nn.Parameter(torch.randn(11, 6)), nn.Linear(6, 2), f

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.f(self.table[ids]))


def write(value: float | Tensor) -> Callable[[Tensor], Tensor]:
    def f(x: Tensor) -> Tensor:
        return x.index_put((torch.arange(3), torch.tensor([0, 0, 1])), torch.as_tensor(value))

    return f


@pytest.mark.parametrize(
    ("f", "sizes"),
    [(lambda x: x, [6]), (write(0.0), [6]), (write(torch.zeros(3, 1)), [6]), (write(torch.arange(6.0)), [])],
    ids=["plain", "one number", "one number for each", "a number for each unit"],
)
def test_an_embedding_may_be_written_as_indexing(f: Callable[[Tensor], Tensor], sizes: list[int]) -> None:
    found = derive_structure(Table(f).eval(), (torch.arange(12).reshape(3, 4) % 11,))
    assert [g.size for g in found.groups] == sizes
    for group in found.groups:
        assert {(m.tensor, m.dim, m.role) for m in group.members} == {("table", 1, "in"), ("head.weight", 1, "out")}
