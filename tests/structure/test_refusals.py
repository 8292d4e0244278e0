"""What no rule covers is refused, naming the operation and its line, or the parameter."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isthmus.errors import InputError, IsthmusError, UnsupportedError
from isthmus.program.export import trace
from isthmus.structure import Structure, derive_structure, structure_of, verify
from tests.structure.cases import noise
from tests.structure.models import Lambda, between, between_convs, vgg

X, IMAGE = noise(3, 4), noise(3, 3, 8, 8)


class Unused(nn.Module):
    def __init__(self, buffer: bool = False) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)
        if buffer:
            self.register_buffer("spare", torch.ones(3))
        else:
            self.spare = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


def fft(x: Tensor) -> Tensor:
    return torch.fft.fft(x).real


def attend(x: Tensor, **options: Any) -> Tensor:
    x = x.view(-1, 1, 2, 3)
    return F.scaled_dot_product_attention(x, x, x, **options).flatten(1)


def put_in(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, [0, 2]] = 0.0
    return y


REFUSED: list[tuple[Callable[[], nn.Module], Tensor, str]] = [
    (lambda: between(Lambda(fft)), X, "aten.fft_fft.default (models.py"),
    (Unused, X, "parameter 'spare': it is not used"),
    (lambda: Unused(buffer=True), X, "parameter 'spare': it is not used"),
    (lambda: nn.Sequential(nn.LSTM(4, 6, proj_size=2), Lambda(lambda y: y[0])), X, "proj_size"),
    (lambda: between(Lambda(lambda x: torch.einsum("...i->...i", x))), X, "einsum: the equation '...i->...i' is not"),
    (lambda: between(Lambda(lambda x: torch.einsum("ii,bj->bj", x[:, :3], x))), X, "repeats an index"),
    (lambda: between(Lambda(lambda x: attend(x, dropout_p=0.5))), X, "attention: its dropout is in training mode"),
    (lambda: between(Lambda(put_in)), X, "only leading axes that are indexed have a rule"),
    (lambda: between(Lambda(lambda x: x[x > 0].sum() + x)), X, "how many entries its result has depends on the data"),
]


@pytest.mark.parametrize(("make", "x", "message"), REFUSED)
def test_what_no_rule_covers_is_refused_by_name(make: Callable[[], nn.Module], x: Tensor, message: str) -> None:
    with pytest.raises(UnsupportedError, match=re.escape(message)):
        derive_structure(make().eval(), (x,))


def test_the_module_path_is_named_where_the_user_wrote_no_line() -> None:
    with pytest.raises(UnsupportedError, match=re.escape("fractional_max_pool2d.default (module '1' (")):
        derive_structure(between_convs(nn.FractionalMaxPool2d(2, output_size=4)).eval(), (IMAGE,))


NAMED: list[tuple[Callable[[Tensor], Tensor], str]] = [
    (lambda x: x.cumsum(1), "aten.cumsum.default (models.py"),
    (lambda x: x * torch.arange(6), "aten.mul.Tensor (models.py"),
    (lambda x: x[:, [1, 0, 2, 3, 5, 4]], "aten.index.Tensor (models.py"),
    (lambda x: torch.stack([x[:, i] * (i + 1) for i in range(6)], 1), "aten.select.int (models.py"),
    (lambda x: x * (x.argmax(1, keepdim=True) > 2), "computes with the numbers of the units chosen"),
    (lambda x: x * (x.argmax() > 2), "aten.argmax.default (models.py"),
    (lambda x: x + F.one_hot(x.argmax(1), 8)[:, :6], "treats each position in its own way"),
    (lambda x: x + x.gather(0, torch.zeros(1, 3, dtype=torch.int64)).sum(1), "aten.gather.default (models.py"),
]


@pytest.mark.parametrize(("f", "why"), NAMED)
def test_units_that_cannot_be_exchanged_are_named_with_the_line(f: Callable[[Tensor], Tensor], why: str) -> None:
    module = nn.Sequential(nn.Linear(4, 6), Lambda(f), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    structure = derive_structure(module.eval(), (X,))
    assert [(g.name, g.size) for g in structure.groups] == [("3", 5)]
    assert list(structure.fixed) == ["0"]
    assert why in structure.fixed["0"]


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_number_that_nothing_reads_is_no_matter(shape: tuple[int, ...]) -> None:
    class Counting(nn.Module):
        calls: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
            self.register_buffer("calls", torch.zeros(shape))

        def forward(self, x: Tensor) -> Tensor:
            self.calls.add_(1.0)
            return self.net(x)

    module = Counting()
    structure = derive_structure(module.eval(), (X,))
    assert [(g.name, g.size) for g in structure.groups] == [("net.0", 6)]


class Residual(nn.Module):
    def __init__(self, stop: bool = False) -> None:
        super().__init__()
        self.first, self.inner = nn.Conv1d(3, 4, 7, 4), nn.Conv1d(4, 4, 3, padding=1)
        self.last, self.stop = nn.Linear(4, 2), stop

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first(x))
        h = h + F.relu(self.inner(h)) if not self.stop or x.size(-1) > 100 else h
        return self.last(h.mean(-1))


def test_a_long_input_is_verified_on_the_shortest_that_does_the_same() -> None:
    long = noise(2, 3, 12_000)
    structure = derive_structure(Residual().eval(), (long,))
    assert "verified on inputs of (2, 3, 16), the shortest" in structure.verified
    assert "those given have (2, 3, 12000)" in structure.verified
    # where a shorter input would go another way, or does not fit, the whole is used
    other = derive_structure(Residual(stop=True).eval(), (long,))
    flat = nn.Sequential(nn.Conv1d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, 2))
    assert other.verified == "verified on inputs of (2, 3, 12000)"
    assert derive_structure(flat, (noise(2, 3, 100),)).verified == "verified on inputs of (2, 3, 100)"


TRAINED: list[tuple[nn.Module, Tensor]] = [
    (vgg(), IMAGE),
    (between(nn.Dropout()), X),
    (between_convs(nn.Dropout2d()), IMAGE),
    (between(nn.AlphaDropout()), X),
    (between(nn.BatchNorm1d(6)), X),
    (nn.LSTM(4, 4, 2, dropout=0.5), X),
]


@pytest.mark.parametrize(("module", "x"), TRAINED)
def test_training_mode_is_refused_with_the_remedy(module: nn.Module, x: Tensor) -> None:
    with pytest.raises(UnsupportedError, match=r"training mode; call module.eval\(\) first"):
        derive_structure(module.train(), (x,))


def test_writing_through_a_view_is_not_overlooked() -> None:
    def write(x: Tensor) -> Tensor:
        x = x * 1
        x[:, 0] = 0
        return x

    structure = derive_structure(between(Lambda(write)).eval(), (X,))
    assert structure.groups == ()
    assert "operation aten.select.int (models.py" in structure.fixed["0"]


def test_a_module_that_insists_on_float32_is_verified_by_its_program() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.out = nn.GRUCell(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.cell(x, torch.zeros(x.size(0), 6)))

    assert [(g.name, g.size) for g in derive_structure(Fixed(), (X,)).groups] == [("cell", 6)]


def test_a_module_in_half_precision_that_computes_in_float32_is_verified_in_float64() -> None:
    def norm(x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)

    structure = derive_structure(between(Lambda(norm)).bfloat16().eval(), (X.bfloat16(),))
    assert [(g.name, g.size, g.separable) for g in structure.groups] == [("0", 6, False)]


def test_an_unverified_structure_is_the_same() -> None:
    module = between(nn.ReLU()).eval()
    one, two = derive_structure(module, (X,)), derive_structure(module, (X,), verified=False)
    assert [(g.name, g.size) for g in one.groups] == [(g.name, g.size) for g in two.groups]


def test_dead_code_is_no_reason_to_refuse() -> None:
    def dead(x: Tensor) -> Tensor:
        torch.fft.fft(x)
        return x

    assert derive_structure(between(Lambda(dead)).eval(), (X,)).groups[0].size == 6


def structure_and_module() -> tuple[Structure, nn.Module]:
    module = between(nn.ReLU(), nn.Linear(6, 6), nn.ReLU()).eval()
    return derive_structure(module, (X,)), module


def with_group(s: Structure, i: int, **changes: Any) -> Structure:
    return Structure(tuple(replace(g, **changes) if j == i else g for j, g in enumerate(s.groups)), s.shapes)


def test_verify_names_the_group_and_the_law() -> None:
    s, module = structure_and_module()
    verify(s, module, (X,))
    with pytest.raises(UnsupportedError, match=r"group '2': the permutation law fails: an output moves by"):
        verify(with_group(s, 1, members=s.groups[1].members[:1]), module, (X,))
    w, b = s.groups[0].ins
    # a hand-written structure that calls the bias a reader and the reader a maker
    members = (w, replace(b, role="out"), *(replace(m, role="in") for m in s.groups[0].outs))
    with pytest.raises(UnsupportedError, match=r"group '0': the silence law fails"):
        verify(with_group(s, 0, members=members), module, (X,))


def test_verify_refuses_other_shapes() -> None:
    s, _ = structure_and_module()
    with pytest.raises(InputError, match=r"structure.shapes\['2.bias'\]: expected \(5,\), got \(6,\)"):
        verify(s, between(nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 6)), (X,))


def test_verify_refuses_random_and_constant_outputs() -> None:
    s, module = structure_and_module()
    noisy = nn.Sequential(*module, nn.Dropout()).train()  # type: ignore[misc]
    with pytest.raises(UnsupportedError, match="its output is random"):
        verify(s, noisy, (X,))
    with pytest.raises(UnsupportedError, match="not finite, or all zero"):
        verify(s, nn.Sequential(*module, Lambda(lambda x: x * 0)), (X,))  # type: ignore[misc]


def test_verify_catches_tied_tensors_that_part() -> None:
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), first, nn.ReLU(), second).eval()
    s = derive_structure(module, (X,))
    assert s.groups == ()
    one = derive_structure(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)), (X,)).groups[0]
    members = (*one.ins, replace(one.outs[0], tensor="2.weight"))
    with pytest.raises(UnsupportedError, match=r"'2.weight' and '4.weight' are tied, and part"):
        verify(Structure((replace(one, members=members),), s.shapes), module, (X,))


def test_a_rule_that_fails_names_its_line() -> None:
    program = trace(between(nn.ReLU()), (X,))
    with pytest.raises(IsthmusError, match=r"operation aten.linear.default \(module '0' \(Linear\)\): its axes cannot"):
        structure_of(program, {"0.weight": (6, 5), "0.bias": (6,), "2.weight": (3, 6), "2.bias": (3,)})


def test_a_forward_pass_that_writes_over_its_weights_is_verified_on_copies() -> None:
    class Overwrites(nn.Sequential):
        """Computes what it does without, and leaves other weights behind."""

        def forward(self, input: Tensor) -> Tensor:
            out = super().forward(input)
            for v in self.parameters():
                v.data.zero_()
            return out

    layers = nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)
    structure = derive_structure(nn.Sequential(*layers), (X,))
    assert verify(structure, Overwrites(*layers), (X,)).startswith("verified")
    (group,) = structure.groups
    wrong = replace(structure, groups=(replace(group, members=group.members[1:]),))
    with pytest.raises(UnsupportedError, match="law fails"):
        verify(wrong, Overwrites(*layers), (X,))
