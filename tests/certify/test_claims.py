"""The kernel: sound on random edits, complete on the constructions, and not to be fooled."""

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.certify.claims import claim
from isthmus.structure.liveness import live_units
from tests.problems import (
    PROBLEMS,
    Problem,
    blobs,
    classify,
    convolutional,
    odd_widths,
    perceptron,
    two_layers,
    with_ridge,
)

quick = {"dropout": im.Dropout(masks=2), "subnetwork": im.Subnetwork(inner=im.Trained(recipe=im.Recipe(steps=20)))}


def exact(objective: im.Objective, path: im.Path, **options) -> im.Certificate:
    """The exact claims alone: where there is none, the segment is measured, not bounded numerically."""
    return im.certify(objective, path, budget=0, **options)


def kinds(problem: Problem, path: im.Path) -> list[str]:
    return [s.claim for s in exact(problem.objective, path).segments]


def change(params, name, index, by=0.1):
    out = dict(params)
    out[name] = out[name].clone()
    out[name][index] += by
    return out


# -- what must be caught


@pytest.mark.parametrize("method", quick.values(), ids=quick.keys())
@pytest.mark.parametrize("make", [two_layers, odd_widths, convolutional], ids=lambda m: m.__name__)
def test_one_broken_entry_at_any_vertex_is_caught_where_it_stands(make, method):
    """Change one weight of a live hidden unit at one vertex: exactly the two segments that meet there fall."""
    problem = make()
    path = im.connect(problem.objective, problem.a, problem.b, method).path
    before = kinds(problem, path)
    assert "measured" not in before
    structure = problem.objective.structure
    for k in range(1, len(path)):
        knots = list(path.knots)
        live = live_units([path.knots[k - 1], path.knots[k]], structure)
        group = structure.groups[0]
        unit = int(live[group.name].nonzero()[0])
        name = next(m.tensor for m in group.members if m.role == "in" and m.tensor.endswith("weight"))
        knots[k] = change(knots[k], name, (unit, 0))
        certificate = exact(problem.objective, im.Path.through(knots))
        assert not certificate.proved
        assert set(certificate.unproved()) <= {k - 1, k}
        assert certificate.unproved()
        assert name in certificate.segments[certificate.unproved()[0]].why
        others = [i for i in range(len(path)) if i not in (k - 1, k)]
        assert [certificate.segments[i].claim for i in others] == [before[i] for i in others]


def test_a_broken_entry_that_cannot_matter_changes_nothing():
    """The row of a dead unit may be anything: the certificate must not depend on it."""
    problem = two_layers()
    path = im.connect(problem.objective, problem.a, problem.b, im.Dropout(masks=2)).path
    knots = list(path.knots)
    live = live_units([knots[2]], problem.objective.structure)["0"]
    dead = int((~live).nonzero()[0])
    knots[2] = change(knots[2], "0.weight", (dead, 1), 7.0)
    assert kinds(problem, im.Path.through(knots))[1] == kinds(problem, path)[1]


def test_labels_are_carried_along_but_never_believed():
    problem = two_layers()
    path = im.Path.through([problem.a, problem.b])
    certificate = exact(problem.objective, path, labels=["nothing moves here (b)"])
    assert certificate.segments[0].claim == "measured"
    assert certificate.segments[0].label == "nothing moves here (b)"
    with pytest.raises(im.InputError, match=r"one per segment \(1\), got 2"):
        exact(problem.objective, path, labels=["x", "y"])


def test_halves_swapped_by_a_straight_line_are_not_unchanged():
    """Exchanging two units in one straight segment crosses other functions, though its ends compute the same one."""
    problem = two_layers()
    swapped = problem.objective.structure.permute(problem.a, {"0": torch.arange(9).flip(0)})
    torch.testing.assert_close(problem.objective.outputs(problem.a), problem.objective.outputs(swapped))
    certificate = exact(problem.objective, im.Path.through([problem.a, swapped]))
    middle = problem.objective.outputs(im.Curve((problem.a, swapped)).at(0.5))
    assert float((middle - problem.objective.outputs(problem.a)).abs().max()) > 0.1
    assert certificate.segments[0].claim == "measured"


# -- what must be found


def test_last_layer_lines_are_convex_and_equal_points_unchanged():
    problem = two_layers()
    moved = change(change(problem.a, "2.weight", (0, 0), 3.0), "2.bias", 1, -2.0)
    assert kinds(problem, im.Path.through([problem.a, moved])) == ["convex"]
    assert kinds(problem, im.Path.through([problem.a, problem.a])) == ["unchanged"]


def test_a_curve_in_the_last_layer_is_bounded_by_its_control_points():
    problem = two_layers()
    far = {k: (v * 5 if k.startswith("2.") else v) for k, v in problem.a.items()}
    near = {k: (v * 0.5 if k.startswith("2.") else v) for k, v in problem.a.items()}
    curve = im.Curve((problem.a, far, near))
    certificate = exact(problem.objective, im.Path((curve,)))
    assert certificate.segments[0].claim == "convex"
    assert certificate.bound == pytest.approx(max(problem.objective.loss(p) for p in (problem.a, far, near)))
    assert max(problem.objective.loss(curve.at(i / 50)) for i in range(51)) <= certificate.bound


def test_weight_handed_between_equal_units_is_unchanged_in_deep_networks():
    problem = odd_widths()
    a = {k: v.clone() for k, v in problem.a.items()}
    for name in ("2.weight", "2.bias"):  # units 0 and 2 of the second hidden layer made equal
        a[name][2] = a[name][0]
    b = {k: v.clone() for k, v in a.items()}
    b["4.weight"][:, 2] += b["4.weight"][:, 0]
    b["4.weight"][:, 0] = 0
    assert kinds(problem, im.Path.through([a, b])) == ["unchanged"]
    b["4.weight"][0, 2] += 1e-9
    assert kinds(problem, im.Path.through([a, b])) == ["measured"]


def test_units_dead_through_other_dead_units_are_found():
    problem = odd_widths()
    a = {k: v.clone() for k, v in problem.a.items()}
    a["8.weight"][:, 1:] = 0  # only unit 0 of the last hidden layer is alive, and it reads
    a["6.weight"][0, 1:] = 0  # only unit 0 of the layer before
    live = live_units([a], problem.objective.structure)
    assert [int(v.sum()) for v in live.values()][2:] == [1, 1]
    b = change(change(a, "6.weight", (3, 2), 5.0), "4.weight", (4, 0), 5.0)
    assert kinds(problem, im.Path.through([a, b])) == ["unchanged"]
    assert kinds(problem, im.Path.through([a, change(a, "4.weight", (0, 0))])) == ["measured"]


def test_an_undeclared_loss_is_not_taken_for_convex():
    problem = two_layers()
    objective = im.Objective(perceptron([5, 9, 4]).double(), lambda z, y: z.sum(1).sin(), problem.objective.data)
    moved = change(problem.a, "2.bias", 0, 2.0)
    row = exact(objective, im.Path.through([problem.a, moved])).segments[0]
    assert row.claim == "measured"
    assert "not declared convex" in row.why


def test_a_penalty_makes_unchanged_segments_convex():
    problem = with_ridge()
    path = im.connect(problem.objective, problem.a, problem.b, im.Dropout(masks=2)).path
    assert set(kinds(problem, path)) == {"convex"}


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


# -- soundness


@pytest.mark.parametrize("make", PROBLEMS, ids=lambda m: m.__name__)
def test_no_claim_is_false_on_random_edits(make):
    """Random networks with random dead and equal units, random edits: every claim is checked on the outputs."""
    problem = make()
    objective, structure = problem.objective, problem.objective.structure
    g = torch.Generator().manual_seed(7)
    found = {"unchanged": 0, "convex": 0, "measured": 0}
    names = [k for k, v in problem.a.items() if v.is_floating_point() and not k.endswith("running_var")]
    for trial in range(60):
        a = {k: v.clone() for k, v in problem.a.items()}
        for group in structure.groups:
            some = torch.randperm(group.size, generator=g)[: int(torch.randint(0, group.size, (1,), generator=g))]
            a = structure.silence(a, {group.name: some})
            if trial % 3 == 0:  # two equal units
                for m in group.ins:
                    a[m.tensor] = (
                        a[m.tensor].clone().index_copy(m.dim, m.index[1], a[m.tensor].index_select(m.dim, m.index[0]))
                    )
        control = [a]
        for _ in range(1 + trial % 2):  # lines and quadratic curves
            point = {k: v.clone() for k, v in control[-1].items()}
            for _ in range(int(torch.randint(1, 4, (1,), generator=g))):
                name = names[int(torch.randint(0, len(names), (1,), generator=g))]
                flat = point[name].view(-1)
                flat[int(torch.randint(0, len(flat), (1,), generator=g))] += 1.0
            control.append(point)
        curve = im.Curve(tuple(control))
        kind = claim(curve.control, objective.program, structure, convex=True).kind
        found[kind] += 1
        outputs = [objective.outputs(curve.at(t)) for t in (0.0, 0.2, 0.5, 0.7, 1.0)]
        scale = max(float(z.abs().max()) for z in outputs)
        if kind == "unchanged":
            assert all(float((z - outputs[0]).abs().max()) <= 1e-12 * scale for z in outputs)
        elif kind == "convex":
            corners = [objective.outputs(p) for p in curve.control]
            for t, z in zip((0.0, 0.2, 0.5, 0.7, 1.0), outputs, strict=True):
                n = len(corners) - 1
                weights = [(1 - t) ** (n - i) * t**i * (2 if (n, i) == (2, 1) else 1) for i in range(n + 1)]
                want = sum(w * c for w, c in zip(weights, corners, strict=True))
                assert float((z - want).abs().max()) <= 1e-12 * scale
    assert all(found.values()), found


# -- the certificate around it


def test_paths_that_are_not_finite_get_no_certificate():
    problem = two_layers()
    for value in (float("nan"), float("inf")):
        bad = dict(problem.b) | {"0.bias": torch.full_like(problem.b["0.bias"], value)}
        with pytest.raises(im.InputError, match=r"knot 1: expected finite weights.*'0.bias'"):
            exact(problem.objective, im.Path.through([problem.a, bad]))
    huge = {k: v * 1e200 for k, v in problem.b.items()}
    with pytest.raises(im.InputError, match="expected a finite loss"):
        exact(problem.objective, im.Path.through([problem.a, huge]))
    with pytest.raises(im.InputError, match="gap: expected a number > 0"):
        im.certify(problem.objective, im.Path.through([problem.a, problem.b]), gap=0)


def test_the_certificate_answers_questions():
    problem = two_layers()
    path = im.connect(problem.objective, problem.a, problem.b, im.Dropout(masks=2)).path
    broken = im.Path.through([problem.a, problem.b]) + path.reversed()
    c = exact(problem.objective, broken)
    assert c.unproved() == [0]
    assert not c.proved
    assert c.bound == max(s.bound for s in c.segments)
    assert c.excess == c.bound - max(c.ends)
    assert c.ends == (problem.objective.loss(problem.a), problem.objective.loss(problem.a))
    assert sum(c.counts.values()) == len(broken)
    assert c.dtype == "float64"
    assert 0 < c.slack < 1e-10 * max(1, c.bound)
    assert c.to_dict()["segments"][0]["claim"] == "measured"


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


@pytest.mark.parametrize("name", ["2.weight", "2.bias"])
@pytest.mark.parametrize("where", ["start", "end", "both"])
def test_units_are_equal_only_if_every_incoming_weight_is_at_every_control_point(name, where):
    """Equal but for one tensor, or at one end: handing weight over then changes the function."""
    problem = odd_widths()
    a = {k: v.clone() for k, v in problem.a.items()}
    for tensor in ("2.weight", "2.bias"):
        a[tensor][2] = a[tensor][0]
    b = {k: v.clone() for k, v in a.items()}
    b["4.weight"][:, 2] += b["4.weight"][:, 0]
    b["4.weight"][:, 0] = 0
    for point, on in ((a, "start"), (b, "end")):
        if where in (on, "both"):
            point[name][2] += 0.5
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
