"""Claims about residual, normalised and recurrent networks, and about tails without activations."""

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.certify.claims import claim
from tests.certify.exact import change, exact, kinds
from tests.problems import Problem, blobs, classify, convolutional


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x):
        h = self.one(x).relu()
        return self.out(h + self.two(h).relu())


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.out = nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 4)

    def forward(self, x):
        return self.out(self.norm(self.one(x)).relu())


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(3, 6, batch_first=True), nn.Linear(6, 4)

    def forward(self, x):
        return self.out(self.lstm(x)[0][:, -1])


def test_residual_networks():
    problem = classify("residual", Residual(), (5,))  # type: ignore[arg-type]
    assert kinds(problem, im.Path.through([problem.a, change(problem.a, "out.weight", (0, 0))])) == ["convex"]
    assert kinds(problem, im.Path.through([problem.a, change(problem.a, "two.weight", (0, 0))])) == ["measured"]
    a = dict(problem.a) | {"out.weight": problem.a["out.weight"].clone(), "two.weight": problem.a["two.weight"].clone()}
    a["out.weight"][:, 2] = 0
    assert kinds(problem, im.Path.through([a, change(a, "one.weight", (2, 0))])) == ["measured"], "unit 2 is still read"
    a["two.weight"][:, 2] = 0
    assert kinds(problem, im.Path.through([a, change(a, "one.weight", (2, 0))])) == ["unchanged"]


def test_units_that_a_normalisation_mixes_are_never_dead():
    problem = classify("normalised", Normalised(), (5,))  # type: ignore[arg-type]
    a = dict(problem.a) | {"out.weight": problem.a["out.weight"].clone()}
    a["out.weight"][:, 2] = 0
    b = change(a, "one.weight", (2, 0), 1.0)
    assert float((problem.objective.outputs(a) - problem.objective.outputs(b)).abs().max()) > 1e-3
    assert kinds(problem, im.Path.through([a, b])) == ["measured"]


def derived(problem: Problem, path: im.Path) -> list[str]:
    """The claims alone, whether or not the rounding of the losses that they rest on has a bound."""
    objective = problem.objective
    return [claim(s.control, objective.program, objective.structure, convex=True).kind for s in path.segments]  # type: ignore[attr-defined]


def test_recurrent_units():
    """Of an LSTM, whose steps are followed one by one: the rounding of its losses has a bound."""
    problem = classify("recurrent", Recurrent(), (4, 3))  # type: ignore[arg-type]
    a = {k: v.clone() for k, v in problem.a.items()}
    a["out.weight"][:, 2] = 0
    b = change(a, "lstm.weight_ih_l0", (2, 0), 1.0)
    assert kinds(problem, im.Path.through([a, b])) == ["measured"], "other units still read unit 2"
    a["lstm.weight_hh_l0"][:, 2] = 0
    b = change(a, "lstm.weight_ih_l0", (2, 0), 1.0)
    torch.testing.assert_close(problem.objective.outputs(a), problem.objective.outputs(b))
    assert derived(problem, im.Path.through([a, b])) == ["unchanged"]
    row = exact(problem.objective, im.Path.through([a, b])).segments[0]
    assert row.claim == "unchanged"


def test_batchnorm_in_evaluation_mode():
    problem = convolutional()
    shifted = change(problem.a, "4.bias", 0)
    assert kinds(problem, im.Path.through([problem.a, shifted])) == ["measured"]
    last = change(problem.a, "9.bias", 0)
    assert kinds(problem, im.Path.through([problem.a, last])) == ["convex"]


def test_modules_that_cannot_be_exported_are_measured_and_say_why():
    class Branching(nn.Linear):
        def forward(self, input):
            return super().forward(input) if float(input.sum()) > -1e9 else input

    x, y = blobs(12, (5,), 4)
    objective = im.Objective(Branching(5, 4).double(), data=(x, y))
    a = {k: v.detach().clone() for k, v in Branching(5, 4).double().state_dict().items()}
    row = exact(objective, im.Path.through([a, change(a, "bias", 0)])).segments[0]
    assert row.claim == "measured"
    assert "Branching" in row.why


def test_a_channel_is_live_while_one_of_its_pixels_is_read():
    problem = convolutional()
    a = {k: v.clone() for k, v in problem.a.items()}
    a["7.weight"][:, 8:12] = 0  # channel 2 of the second convolution, four pixels
    b = change(a, "3.weight", (2, 0), 0.5)
    assert kinds(problem, im.Path.through([a, b])) == ["unchanged"]
    a["7.weight"][0, 9] = 0.3
    b = change(a, "3.weight", (2, 0), 0.5)
    assert float((problem.objective.outputs(a) - problem.objective.outputs(b)).abs().max()) > 0
    assert kinds(problem, im.Path.through([a, b])) == ["measured"]


def linear_head(name: str, *tail: nn.Module) -> Problem:
    return classify(name, nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 4), *tail), (5,))


def straightness(problem: Problem, path: im.Path) -> float:
    """How far the outputs at the middle are from the mean of the ends."""
    a, m, b = (problem.objective.outputs(path.at(t)) for t in (0.0, 0.5, 1.0))
    return float((m - (a + b) / 2).abs().max())


@pytest.mark.parametrize(
    ("tail", "names", "kind"),
    [
        ((), ["0.weight"], "convex"),
        ((), ["1.weight", "1.bias"], "convex"),
        ((), ["0.weight", "1.weight"], "measured"),
        ((), ["0.bias", "1.weight"], "measured"),
        ((nn.BatchNorm1d(4),), ["0.weight"], "convex"),
        ((nn.BatchNorm1d(4),), ["2.weight", "2.bias"], "convex"),
        ((nn.BatchNorm1d(4),), ["1.weight", "2.running_mean"], "convex"),
        ((nn.BatchNorm1d(4),), ["1.weight", "2.weight"], "measured"),
        ((nn.BatchNorm1d(4),), ["2.running_mean", "2.weight"], "measured"),
        ((nn.BatchNorm1d(4),), ["2.running_var"], "measured"),
    ],
)
def test_products_of_moving_values_are_not_affine(tail, names, kind):
    problem = linear_head("linear", *tail)
    b = {k: v + 0.7 if k in names else v for k, v in problem.a.items()}
    path = im.Path.through([problem.a, b])
    assert kinds(problem, path) == [kind]
    assert (straightness(problem, path) > 1e-6) == (kind == "measured")


def test_a_certificate_says_which_statistics_it_is_about():
    module = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    a, b = {k: v.clone() for k, v in module.state_dict().items()}, {k: v * 2 for k, v in module.state_dict().items()}
    objective = im.Objective(module.eval(), data=(torch.randn(6, 4), torch.arange(6) % 3))
    path = im.Path.through([a, {**a, "3.weight": b["3.weight"]}, {**a, "0.weight": b["0.weight"]}])
    c = im.certify(objective, path)
    assert [s.claim for s in c.segments] == ["convex", "bounded"]
    for s in c.segments:
        assert "; running statistics are those of the path, not computed again" in s.why
    assert im.verify_certificate(objective, path, c) == []
