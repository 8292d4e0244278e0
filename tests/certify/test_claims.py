"""The kernel: sound on random edits, complete on the constructions, and not to be fooled."""

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.certify.claims import claim
from isthmus.structure.liveness import live_units
from tests.certify.exact import change, exact, kinds
from tests.problems import PROBLEMS, classify, convolutional, odd_widths, perceptron, two_layers, with_ridge

quick = {"dropout": im.Dropout(masks=2), "subnetwork": im.Subnetwork(inner=im.Trained(recipe=im.Recipe(steps=20)))}


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
        # the whole path once, as claims are of single segments
        seen = range(len(path)) if k == len(path) // 2 else range(k - 1, k + 1)
        certificate = exact(problem.objective, im.Path.through(knots[seen[0] : seen[-1] + 2]), num_points=3)
        fallen = {seen[i] for i in certificate.unproved()}
        assert fallen
        assert fallen <= {k - 1, k}
        assert name in certificate.segments[certificate.unproved()[0]].why
        others = {i: certificate.segments[i - seen[0]].claim for i in seen if i not in (k - 1, k)}
        assert others == {i: before[i] for i in others}


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
    with pytest.raises(im.InputError, match="model: expected auto or box or chord, got boxes"):
        im.certify(problem.objective, im.Path.through([problem.a, problem.a]), model="boxes")  # type: ignore[arg-type]
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


@pytest.mark.parametrize("first", ["ignored", "of no weight"])
def test_dead_units_are_found_where_the_first_example_counts_nowhere(first):
    problem = classify("first", perceptron([5, 6, 3]), (5,), 3)
    x, y = problem.objective.data
    y = torch.cat([torch.tensor([-100 if first == "ignored" else 0]), y[1:].clamp(min=1)])
    weight = None if first == "ignored" else torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    objective = im.Objective(problem.objective.skeleton, nn.CrossEntropyLoss(weight), (x, y))
    a = problem.a | {"2.weight": problem.a["2.weight"] * torch.tensor([0.0] + 5 * [1.0], dtype=torch.float64)}
    path = im.Path.through([a, change(a, "0.weight", 0)])
    found = im.certify(objective, path)
    assert found.proved
    assert found.segments[0].claim == "unchanged"
