"""What once went wrong with rotations: experts inside of experts, experts with tables, frames that differ."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import isthmus as im
from isthmus.alignment.change import change
from isthmus.params import Params, equal
from tests.alignment.test_rotations import Even, drawn, problem, words


class Expert(nn.Module):
    """A hidden layer whose units are looked up in a table and masked."""

    table: Tensor
    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 6), nn.Linear(6, 8)
        self.register_buffer("table", torch.arange(6))
        self.register_buffer("mask", torch.ones(6, dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.gelu(self.up(x))[..., self.table] * self.mask)


class Counting(nn.Module):
    """A hidden layer with BatchNorm, which counts its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.relu(self.norm(self.up(x).transpose(1, 2)).transpose(1, 2)))


class Plain(nn.Module):
    """A hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 4), nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.gelu(self.up(x)))


class Mixed(nn.Module):
    """Experts weighted by a router."""

    def __init__(self, experts: list[nn.Module]) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(8, len(experts)), nn.ModuleList(experts)

    def forward(self, x: Tensor) -> Tensor:
        shares = self.router(x).softmax(-1)
        each = [shares[..., i : i + 1] * expert(x) for i, expert in enumerate(self.experts)]
        return torch.stack(each).sum(0)


class Words(nn.Module):
    """A table of words, such a mixture, and a head."""

    def __init__(self, feed: nn.Module) -> None:
        super().__init__()
        self.e, self.norm, self.feed, self.h = nn.Embedding(11, 8), nn.RMSNorm(8), feed, nn.Linear(8, 2)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.e(ids)
        return self.h(x + self.feed(self.norm(x)))


MIXTURES = {
    "tables": lambda: Mixed([Expert() for _ in range(3)]),
    "counters": lambda: Mixed([Counting() for _ in range(3)]),
    "mixtures": lambda: Mixed([Mixed([Plain() for _ in range(2)]) for _ in range(3)]),
}


def weights(module: nn.Module, seed: int) -> Params:
    """Random weights; whole numbers, and variances, as they are in the module."""
    kept = {k: v for k, v in module.state_dict().items() if not v.is_floating_point() or k.endswith("running_var")}
    return drawn(module, seed) | kept


@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures_of_other_things(name):
    module = Words(MIXTURES[name]()).double().eval()
    objective = im.Objective(module, lambda out, y: out.flatten(1).square().mean(1), (words(), torch.zeros(4)))
    a, b, other = (weights(module, seed) for seed in range(3))
    found = im.align(objective, a, b, im.RotationMatching(5))
    assert found.function_error <= 1e-12
    assert any("experts exchanged" in name for name in found.rotations)
    assert found.frame is not None
    ends = [found.frame.fold(p) for p in (a, found.target)]
    held = {m.tensor for g in objective.structure.groups for m in g.members}
    held |= {name for t in found.frame.turns for name in t.tensors}
    compared = [k for k in held if a[k].is_floating_point() and "running" not in k]
    reached = sum(float((ends[0][k] * ends[1][k]).sum()) for k in compared)
    assert found.runs[0].similarity == pytest.approx(reached, rel=1e-9)
    assert change(objective, other, found.apply(other), 4) <= 1e-12
    back = found.inverse().apply(found.target)
    for k, v in b.items():
        torch.testing.assert_close(back[k], v, rtol=1e-10, atol=1e-10)
        assert v.is_floating_point() or torch.equal(found.target[k], a[k])


def test_one_after_another_where_other_gains_are_equal():
    module = Even().double().eval()
    module.ln3 = nn.LayerNorm(12).double()
    objective = im.Objective(module, lambda out, y: out.flatten(1).square().mean(1), (words(), torch.zeros(4)))
    a, b = (drawn(module, seed) | {"ln3.weight": torch.ones(12).double()} for seed in range(2))
    a |= {"ln3.bias": torch.zeros(12).double()}
    b |= {"ln3.bias": torch.zeros(12).double()}
    free, bound = im.align(objective, a, b, im.RotationMatching(3)), im.align(
        objective, drawn(module, 2), b, im.RotationMatching(3)
    )  # fmt: skip
    assert "wte" in free.rotations
    assert "wte" not in bound.rotations
    for first, second in ((free, bound), (bound, free)):
        step = second.apply(first.apply(b))
        both = first.then(second).apply(b)
        for k, v in step.items():
            torch.testing.assert_close(both[k], v, rtol=1e-10, atol=1e-10)


def test_a_stored_inverse_gives_the_same_bytes(tmp_path):
    objective, _, b = problem("mixture")
    back = im.align(*problem("mixture"), im.RotationMatching(3)).inverse()
    im.save_alignment(back, tmp_path / "back")
    assert equal(im.load_alignment(tmp_path / "back", objective).apply(b), back.apply(b))


class Summed(nn.Module):
    """A hidden layer whose biases, or whose rows, depend on the lengths of its rows."""

    def __init__(self, rows: bool) -> None:
        super().__init__()
        self.rows, self.up, self.down = rows, nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        w = self.up.weight
        h = self.up(x) / w.norm(dim=1) if self.rows else nn.functional.linear(x, w, w.sum(1))
        return self.down(h.relu() + self.up.bias)


@pytest.mark.parametrize("rows", [False, True])
def test_a_sum_over_weights_turns_nothing_and_stops_nothing(rows: bool) -> None:
    module, x = Summed(rows).double(), torch.randn(7, 8, dtype=torch.float64)
    objective = im.Objective(module, "mse", (x, torch.zeros(7, 3, dtype=torch.float64)))
    a, b = ({k: torch.randn_like(v) for k, v in module.state_dict().items()} for _ in range(2))
    aligned = im.align(objective, a, b, im.RotationMatching())
    assert not aligned.rotations
    torch.testing.assert_close(objective.outputs(aligned.apply(b)), objective.outputs(b), rtol=1e-9, atol=1e-9)
