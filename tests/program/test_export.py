"""Traced programs compute what the module computes, and leave it alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import isthmus as im
from isthmus.errors import InputError, UnsupportedError
from isthmus.program import export as program_module
from isthmus.program.export import Node, Program, Ref, trace
from tests.structure.cases import CASES, Case, noise, tokens
from tests.structure.models import Lambda, between
from tests.structure.sequences import GPT, LanguageModel, Transformer


@pytest.mark.parametrize("case", CASES, ids=[c.name for c in CASES])
def test_run_equals_the_module(case: Case) -> None:
    module = case.module()
    program, params = case.program, module.state_dict()
    assert set(program.tensors.values()) == set(params)
    assert program.batch == case.args[0].shape[0]
    assert len(program.inputs) == len(case.args)
    # a batch of another size, and another floating-point type
    args = tuple(torch.cat([x, x[:1]]) for x in case.args)
    for have, want in zip(tree_leaves(program.run(params, *args)), tree_leaves(module(*args)), strict=True):
        torch.testing.assert_close(have, want)
    double = {k: v.double() if v.is_floating_point() else v for k, v in params.items()}
    args = tuple(x.double() if x.is_floating_point() else x for x in args)
    for have, want in zip(tree_leaves(program.run(double, *args)), tree_leaves(module.double()(*args)), strict=True):
        assert have.dtype == torch.float64
        torch.testing.assert_close(have, want, rtol=1e-12, atol=1e-12)


def test_shapes_hold_the_batch_of_the_example() -> None:
    program = trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), (noise(5, 3, 6, 6),))
    assert [n.shape for n in program.nodes] == [(5, 4, 4, 4), (5, 64)]
    lstm = next(n for n in trace(LanguageModel().eval(), (tokens(3, 5),)).nodes if n.op == "aten.lstm.input")
    assert lstm.shape is None
    assert lstm.shapes == ((3, 5, 8), (2, 3, 8), (2, 3, 8))


def test_a_single_row_is_doubled() -> None:
    program = trace(between(), (noise(1, 4),))
    assert program.batch == 2
    assert program.run(dict(between().state_dict()), noise(7, 4)).shape == (7, 3)


def test_inputs_of_several_kinds() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor, factor: float, *, shift: Tensor | None = None) -> Tensor:
            return self.fc(x) * factor + (0 if shift is None else shift)

    module = Scaled()
    program = trace(module, (noise(3, 4), 2.5), {"shift": noise(3, 2)})
    assert program.inputs == ("x", "shift")
    x, shift = noise(6, 4), noise(6, 2)
    torch.testing.assert_close(program.run(module.state_dict(), x, shift), module(x, 2.5, shift=shift))


def test_outputs_are_the_tensors_among_what_is_returned() -> None:
    class Rich(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> dict[str, object]:
            return {"logits": self.fc(x), "loss": None, "size": 3, "more": [x, self.fc.bias]}

    module = Rich()
    program = trace(module, (noise(3, 4),))
    logits, x, bias = program.run(module.state_dict(), noise(5, 4))
    torch.testing.assert_close(logits, module(noise(5, 4))["logits"])
    assert torch.equal(x, noise(5, 4))
    assert torch.equal(bias, module.fc.bias)


def test_where_names_the_line_or_the_module() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x).relu()

    nodes = trace(Written(), (noise(3, 4),)).nodes
    assert nodes[0].where.startswith("test_export.py:")
    assert nodes[0].where.endswith("in forward: return self.fc(x).relu(), module 'fc' (Linear)")
    assert trace(between(nn.ReLU()), (noise(3, 4),)).nodes[1].where == "module '1' (ReLU)"


def test_tied_tensors_are_read_under_their_first_name() -> None:
    module = GPT(tied=True).eval()
    program = trace(module, (tokens(3, 5),))
    assert program.tied == {"head.weight": "wte.weight"}
    read = {program.tensors[name] for n in program.nodes for name in n.refs() if name in program.tensors}
    assert "wte.weight" in read
    assert "head.weight" not in read


def test_buffers_outside_the_state_dict_are_constants() -> None:
    module = nn.Linear(4, 2)
    module.register_buffer("gain", torch.tensor([2.0, 3.0]), persistent=False)
    module.forward = lambda x: F.linear(x, module.weight, module.bias) * module.gain * torch.tensor([1.0, 0.5])  # type: ignore[method-assign,operator]
    program = trace(module, (noise(3, 4),))
    assert sorted(v.tolist() for v in program.constants.values()) == [[1.0, 0.5], [2.0, 3.0]]
    torch.testing.assert_close(program.run(module.state_dict(), noise(5, 4)), module(noise(5, 4)))


def test_in_place_operations_are_read_as_pure_ones() -> None:
    def twice(x: Tensor) -> Tensor:
        y = x * 1
        z = y.view(-1)
        y += 1
        return y + z.view_as(y)

    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(True), nn.Dropout(0.5, True), Lambda(twice)).eval()
    program = trace(module, (noise(3, 4),))
    params, x = dict(module.state_dict()), noise(5, 4)
    before = {k: v.clone() for k, v in params.items()}
    torch.testing.assert_close(program.run(params, x), module(x))
    assert not any(n.op.split(".")[1].endswith("_") for n in program.nodes if "." in n.op)
    assert all(torch.equal(v, before[k]) for k, v in params.items())


def test_attention_is_not_fused_in_eval_mode() -> None:
    before = torch.backends.mha.get_fastpath_enabled()
    with torch.no_grad():
        program = trace(Transformer().eval(), (noise(3, 7, 5),))
    assert torch.backends.mha.get_fastpath_enabled() is before
    assert not any("fast_path" in n.op or "transformer_encoder" in n.op for n in program.nodes)
    assert sum("attention" in n.op for n in program.nodes) == 2


def test_what_cannot_be_followed_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    def choose(x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x

    def block(x: Tensor) -> Tensor:
        with torch.no_grad():
            return x * 2

    with pytest.raises(UnsupportedError, match=r"Sequential: torch.export cannot follow its forward pass: Could not"):
        trace(between(Lambda(choose)), (noise(3, 4),))
    with pytest.raises(UnsupportedError, match="gradient-mode blocks"):
        trace(nn.Sequential(nn.Linear(4, 6), Lambda(block)), (noise(3, 4),))
    assert capfd.readouterr() == ("", "")


def test_tracing_is_silent_and_leaves_no_trace() -> None:
    module = LanguageModel().train()
    before, state = {k: v.clone() for k, v in module.state_dict().items()}, torch.random.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trace(module, (tokens(3, 5),))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert module.training
    assert module(tokens(3, 5)).shape == (3, 5, 11)


def test_named_arguments_have_their_defaults() -> None:
    node = trace(nn.Sequential(nn.Linear(4, 6), nn.Softmax(1)), (noise(3, 4),)).nodes[1]
    assert node.named() == {"self": Ref("linear"), "dim": 1, "dtype": None}
    python = Node("n", "getitem", lambda x, i: x[i], (Ref("x"), 1))
    assert python.named() == {"a0": Ref("x"), "a1": 1}
    assert python.refs() == ["x"]


def test_live_values() -> None:
    relu = torch.ops.aten.relu.default
    nodes = tuple(Node(n, "aten.relu.default", relu, (Ref(r),)) for n, r in (("a", "x"), ("dead", "x"), ("b", "a")))
    program = Program(("x",), {}, {}, nodes, (Ref("b"), Ref("a")), 2)
    assert program.live() == {"x", "a", "b"}
    first, second = program.run({}, torch.tensor([-1.0, 2.0]))
    assert first.tolist() == second.tolist() == [0.0, 2.0]


def test_misuse_of_run() -> None:
    module = between()
    program = trace(module, (noise(3, 4),))
    with pytest.raises(InputError, match="inputs: expected 1 tensors, got 0"):
        program.run(module.state_dict())
    with pytest.raises(InputError, match=r"params: expected the key '0.bias'"):
        program.run({}, noise(3, 4))


# -- programs that know how many examples there are


class Counting(nn.Module):
    """Two layers, the second of which may ask how many examples there are."""

    def __init__(self, forward: Callable[[nn.Linear, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.how = nn.Linear(4, 6), nn.Linear(6, 3), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self.last, self.first(x).relu())


class ZeroState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.LSTM(2, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        b = len(x)
        return self.out(self.rnn(x.view(b, 2, 2), (torch.zeros(1, b, 6).to(x), torch.zeros(1, b, 6).to(x)))[0][:, -1])


FOLLOWED = {
    "view": lambda last, h: last(h.view(len(h), -1)),
    "expand": lambda last, h: last(h) + torch.ones(1, 3).to(h).expand(len(h), -1),
    "repeat": lambda last, h: last(h) + torch.ones(1, 3).to(h).repeat(len(h), 1),
    "int": lambda last, h: last(h) + torch.zeros(int(h.shape[0]), 3).to(h),
    "twice": lambda last, h: last(h.reshape(len(h) * 2, 3).reshape(len(h), 6)),
    "a loop over features": lambda last, h: last(torch.stack([h[: len(h), i] for i in range(6)], 1)),
    "unused": lambda last, h: (len(h), last(h))[1],
}

FROZEN = {
    "loop": lambda last, h: torch.stack([last(h[i]) for i in range(len(h))]),
    "iteration": lambda last, h: torch.stack([last(v) for v in h]),
    "chunk": lambda last, h: torch.cat([last(v) for v in h.chunk(len(h))]),
    "one less": lambda last, h: torch.cat([last(h)[: len(h) - 1], last(h)[len(h) - 1 :]]),
    "constant": lambda last, h: last(h) + torch.tensor([0.0] * len(h)).to(h)[:, None],
    "root": lambda last, h: last(h) * len(h) ** 0.5 / h.new_ones(h.shape[0]).sum().sqrt(),
    "branch": lambda last, h: last(h) if len(h) < 100 else last(h) * 1.0,
    "branch on 2": lambda last, h: last(h) if len(h) > 2 else last(h * 1.0),
}

BRANCHES = {
    "more than 2": lambda last, h: last(h) if h.shape[0] > 2 else last(h * 1.0),
    "fewer than 32": lambda last, h: last(h) if h.shape[0] < 32 else last(h * 1.0),
    "of three": lambda last, h: last(h) if h.shape[0] % 3 else last(h * 1.0),
    "not 100": lambda last, h: last(h) if h.shape[0] != 100 else last(h * 1.0),
    "pairs": lambda last, h: torch.cat([last(v) for v in h.split(2)]),
}


def line(make: Callable[[], nn.Module]) -> tuple[im.Objective, im.Path]:
    x, y = noise(37, 4).double(), torch.arange(37) % 3
    objective = im.Objective(make().double().eval(), data=(x, y), memory=20_000)
    torch.manual_seed(1)
    return objective, im.Path.through([make().double().state_dict() for _ in range(2)])


def by_hand(objective: im.Objective, module: nn.Module, params: dict[str, Tensor]) -> float:
    module.load_state_dict(params)
    x, y = objective.data
    return float(F.cross_entropy(module(x), y).detach())


@pytest.mark.parametrize("name", [*FOLLOWED, "zero state of an LSTM"])
def test_a_number_that_follows_the_batch_is_found_by_comparing_traces(name: str) -> None:
    def make() -> nn.Module:
        return Counting(FOLLOWED[name]) if name in FOLLOWED else ZeroState()

    objective, path = line(make)
    program, module = objective.program, make().double().eval()
    assert program.compared[1:] == (2, 1021)
    for n in (1, 3, 37):
        x = objective.data[0][:n]  # type: ignore[index]
        torch.testing.assert_close(program.run(path.start, x), objective.outputs(path.start)[:n])
    measured = im.profile(objective, path, 3)
    assert measured.loss.tolist() == pytest.approx([by_hand(objective, module, path.at(t)) for t in (0.0, 0.5, 1.0)])
    if name not in ("repeat", "zero state of an LSTM", "a loop over features"):  # for others affine forms have no rule
        assert im.certify(objective, path, gap=0.2).proved
    if name not in ("zero state of an LSTM", "a loop over features"):
        assert objective.structure.groups


@pytest.mark.parametrize("name", FROZEN)
def test_a_graph_for_one_number_of_examples_is_not_used_and_its_line_is_named(name: str) -> None:
    objective, path = line(lambda: Counting(FROZEN[name]))
    with pytest.raises(UnsupportedError, match=r"test_export.py:\d+.*for 4 examples only.*write x.shape\[0\]"):
        _ = objective.program
    measured, module = im.profile(objective, path, 3), Counting(FROZEN[name]).double()
    assert measured.loss.tolist() == pytest.approx([by_hand(objective, module, path.at(t)) for t in (0.0, 0.5, 1.0)])
    certificate = im.certify(objective, path, num_points=3)
    assert not certificate.proved
    assert "write x.shape[0] where forward needs the number of examples, not len(x)" in certificate.segments[0].why
    assert objective.structure.groups, "units do not depend on the number of examples"


@pytest.mark.parametrize("name", BRANCHES)
def test_a_branch_on_the_number_of_examples_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedError, match=r"branches on the number of examples \(.*x\.shape\[0\].*\)"):
        trace(Counting(BRANCHES[name]), (noise(4, 4),))
    program = trace(Counting(BRANCHES[name]), (noise(4, 4),), every_batch=False)
    assert program.batch == 4


def test_a_number_of_examples_in_the_code_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"runs on 4 examples and not on 2 .*write x.shape\[0\]"):
        trace(Counting(lambda last, h: last(h) + torch.zeros(4, 3)), (noise(4, 4),))


def test_ordinary_modules_are_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = program_module._try_export
    monkeypatch.setattr(program_module, "_try_export", lambda *a: (calls.append(1), real(*a))[1])
    assert trace(between(nn.ReLU()), (noise(4, 4),)).compared == ()
    assert len(calls) == 1
    trace(Counting(FOLLOWED["view"]), (noise(4, 4),))
    assert len(calls) == 4


class Loose(nn.Module):
    """Arguments by name only, and a reshape by the number of examples of another input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.layer(inputs["x"]) * inputs["mask"].view(inputs["x"].shape[0], -1).sum(1, keepdim=True)


def test_inputs_that_forward_does_not_name_have_any_number_of_examples_in_one_trace() -> None:
    module = Loose()
    program = trace(module, (), {"x": noise(4, 4), "mask": noise(4, 3)})
    assert program.compared == ()
    x, mask = noise(7, 4), noise(7, 3)
    torch.testing.assert_close(program.run(module.state_dict(), x, mask), module(x=x, mask=mask))
