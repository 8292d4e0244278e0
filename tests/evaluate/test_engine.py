"""The engine against the slow twin, and how much it computes."""

import pytest
import torch
from torch import Tensor, nn

import isthmus as im
from isthmus.evaluate import engine
from isthmus.evaluate.engine import Engine
from isthmus.evaluate.plan import combine
from isthmus.evaluate.routes import General
from isthmus.paths import Curve
from tests.evaluate.networks import CASES, Case, TwoInputs, ends, flops, objective_of, slow
from tests.problems import PROBLEMS, blobs, perceptron, random_params

TS = [0.0, 0.125, 0.4, 0.77, 1.0]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def agree(objective, segment, kind=None, ts=TS):
    ready = Engine(objective).prepare(segment)
    assert kind is None or ready.kind == kind
    fast, true = ready.measure(ts), slow(objective, segment, ts)
    assert fast[0] == pytest.approx(true[0], rel=TOLERANCE[objective.dtype])
    assert fast[1] == pytest.approx(true[1], abs=0.0 if objective.dtype == torch.float64 else 0.05)
    return ready


def changing(a, b, *prefixes):
    """The segment from `a` that ends with the tensors of `b` under these prefixes."""
    return Curve((a, {k: b[k] if k.startswith(prefixes) else v for k, v in a.items()}))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_a_segment_on_which_all_moves(case, dtype, monkeypatch):
    monkeypatch.setattr(engine, "WORTH_READING", 0.0)
    a, b, c = ends(case, dtype, 3)
    objective = objective_of(case, dtype)
    kind = "plain" if case.name == "not exportable" else "general"
    agree(objective, Curve((a, b)), kind)
    agree(objective, Curve((a, c, b)), kind)
    agree(objective, Curve((a, c, c, b)), kind)


@pytest.mark.parametrize(("inputs", "kind"), [(64, "general"), (2, "plain")])
def test_no_graph_is_read_where_all_moves_and_the_first_layer_is_a_small_part(inputs, kind):
    module = perceptron([inputs, 32, 32, 3])
    objective = im.Objective(module, data=blobs(20, (inputs,), 3), dtype=torch.float64)
    segment = Curve((random_params(module, 1), random_params(module, 2)))
    first, again = (im.profile(objective, im.Path((segment,)), 3) for _ in range(2))
    assert bool(objective.graphs.known) == (first.reading > 0) == (kind == "general")
    assert again.reading == 0
    agree(objective, segment, kind)


@pytest.mark.parametrize(("zeros", "kind"), [((3, 5), "plain"), ((slice(None), 5), "general"), ((3,), "general")])
def test_the_graph_is_read_for_units_of_zeros_and_not_for_a_single_one(zeros, kind):
    module = perceptron([2, 32, 32, 3])
    objective = im.Objective(module, data=blobs(20, (2,), 3), dtype=torch.float64)
    a, b = (random_params(module, seed) for seed in (1, 2))
    a["2.weight"][zeros] = 0.0
    agree(objective, Curve((a, b)), kind)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_every_single_tensor(case, dtype):
    a, b, c = ends(case, dtype, 3)
    objective = objective_of(case, dtype)
    engine = Engine(objective)
    for name in a:
        for control in ((a, {**a, name: b[name]}), ({**b, name: a[name]}, {**b, name: c[name]}, b)):
            segment = Curve(control)
            fast, true = engine.prepare(segment).measure(TS), slow(objective, segment, TS)
            assert fast[0] == pytest.approx(true[0], rel=TOLERANCE[dtype]), name


@pytest.mark.parametrize("case", CASES[:5], ids=lambda c: c.name)
@pytest.mark.parametrize("memory", [1, 700, 20_000, 300_000, 1 << 30])
def test_the_memory_limit_changes_nothing(case, memory):
    a, b, c = ends(case, count=3)
    objective = objective_of(case, n=23, memory=memory)
    engine = Engine(objective)
    assert memory != 1 or engine.network.chunk == 1
    first = next(iter(a)).split(".")[0]
    for segment in (Curve((a, b)), Curve((a, c, b)), changing(a, b, list(a)[-1]), changing(a, b, list(a)[2])):
        fast, true = engine.prepare(segment).measure(TS), slow(objective.cast(torch.float64), segment, TS)
        assert fast[0] == pytest.approx(true[0], rel=1e-12), first


def test_blocks_are_used_when_what_is_kept_does_not_fit():
    case = CASES[2]
    a, b = ends(case)
    small, large = (objective_of(case, n=24, memory=m) for m in (3000, 1 << 30))
    segment = changing(a, b, "4.")
    few = Engine(small).prepare(segment)
    many = Engine(large).prepare(segment)
    assert isinstance(few.route, General)
    assert isinstance(many.route, General)
    assert len(few.route._blocks()) > 1
    assert len(many.route._blocks()) == 1
    assert few.measure(TS)[0] == pytest.approx(slow(large, segment, TS)[0], rel=1e-12)


@pytest.mark.parametrize("make", PROBLEMS, ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "method",
    [
        im.Linear(),
        im.Dropout(masks=2),
        im.Subnetwork(inner=im.Trained(recipe=im.Recipe(steps=5), hub_steps=5, attempts=1)),
    ],
)
def test_the_paths_of_the_methods(make, method):
    problem = make()
    path = im.connect(problem.objective, problem.a, problem.b, method).path
    engine = Engine(problem.objective)
    kinds = set()
    for segment in path.segments:
        ready = engine.prepare(segment)
        kinds.add(ready.kind)
        fast, true = ready.measure(TS), slow(problem.objective, segment, TS)
        assert fast[0] == pytest.approx(true[0], rel=1e-11)
        assert fast[1] == pytest.approx(true[1], abs=0, nan_ok=True)
    assert kinds == ({"general"} if isinstance(method, im.Linear) else {"unchanged", "affine"})


@pytest.mark.parametrize("penalty", [im.Ridge(1e-2), im.L1(1e-2), im.Ridge(1e-2, names=("0.weight",))], ids=repr)
def test_penalties(penalty):
    case = CASES[0]
    a, b, c = ends(case, count=3)
    objective = objective_of(case, penalty=penalty)
    agree(objective, Curve((a, b)))
    agree(objective, Curve((a, c, b)))
    agree(objective, changing(a, b, "6."), "affine")
    agree(objective, changing(a, b, "2."))
    dead = {**a, "4.weight": torch.zeros_like(a["4.weight"])}
    agree(objective, changing(dead, b, "0."), "unchanged")


def test_several_inputs_by_position_and_by_name():
    module = TwoInputs().double().eval()
    a, b = random_params(module, 1), random_params(module, 2)
    (x, y), (z, _) = blobs(10, (5,), 4), blobs(10, (5,), 4, seed=1)
    for inputs in ((x, z), {"z": z, "x": x}):
        objective = im.Objective(module, "cross_entropy", (inputs, y))
        agree(objective, Curve((a, b)), "general")
        agree(objective, changing(a, b, "last"), "affine")
        agree(objective, changing(a, b, "one"), "general")


def test_a_mean_squared_error_and_a_loss_of_the_users_own():
    module = perceptron([3, 6, 2]).double()
    a, b = random_params(module, 1), random_params(module, 2)
    x, _ = blobs(20, (3,), 4)
    for loss in ("mse", lambda out, y: (out - y).abs().sum(1)):
        objective = im.Objective(module, loss, (x, x[:, :2].clone()))
        fast = Engine(objective).prepare(Curve((a, b))).measure(TS)
        assert fast[0] == pytest.approx(slow(objective, Curve((a, b)), TS)[0], rel=1e-12)
        assert all(e != e for e in fast[1])  # no error rate is defined


def test_values_that_are_not_finite_are_reported_as_the_module_gives_them():
    case = CASES[0]
    a, b = ends(case)
    b = {**b, "2.weight": torch.full_like(b["2.weight"], float("inf"))}
    losses = Engine(objective_of(case)).prepare(Curve((a, b))).measure([0.0, 0.5])[0]
    assert losses[0] == pytest.approx(objective_of(case).loss(a), rel=1e-12)
    assert losses[1] != losses[1]


def test_a_narrow_path_is_widened():
    case = CASES[0]
    a, b = ends(case, torch.float32)
    wide = objective_of(case, torch.float32).cast(torch.float64)
    fast = Engine(wide).prepare(Curve((a, b))).measure(TS)[0]
    control = tuple({k: v.double() for k, v in p.items()} for p in (a, b))
    assert fast == pytest.approx(slow(wide, Curve(control), TS)[0], rel=1e-12)


def test_ends_are_exact_whatever_the_other_values_are():
    huge, one = torch.full((1,), float("inf")), torch.ones(1)
    for values in ([one, huge], [one, huge, huge]):
        found = combine(values, 0.0)
        assert torch.equal(found, one)
        assert found is not one  # the caller may overwrite it
        assert torch.equal(combine(values[::-1], 1.0), one)


# -- how much is computed


@pytest.fixture
def wide():
    """A perceptron whose products are its cost, and the cost of one pass."""
    case = Case("wide", lambda: perceptron([40, 64, 64, 64, 4]), (40,))
    objective = objective_of(case, n=50)
    a, b = ends(case)
    assert Engine(objective).network.program(a) is not None  # traced and checked before anything is counted
    return objective, a, b, flops(lambda: objective.loss(a))


def counted(objective, segment, points=20):
    ts = [k / (points - 1) for k in range(points)]
    engine = Engine(objective)
    engine.network.program(segment.start)
    return flops(lambda: engine.prepare(segment, points).measure(ts))


def test_dead_units_cost_one_evaluation(wide):
    objective, a, b, one = wide
    a = {**a, "4.weight": a["4.weight"].clone()}
    a["4.weight"][:, :40] = 0
    moved = {**a, "2.weight": a["2.weight"].clone()}
    moved["2.weight"][:40] = b["2.weight"][:40]
    assert Engine(objective).prepare(Curve((a, moved))).kind == "unchanged"
    assert counted(objective, Curve((a, moved))) < one  # the dead units are not multiplied either
    agree(objective, Curve((a, moved)))


def test_equal_units_cost_one_evaluation(wide):
    objective, a, _, one = wide
    a = {k: v.clone() for k, v in a.items()}
    for name in ("2.weight", "2.bias"):
        a[name][1] = a[name][0]
    moved = {**a, "4.weight": a["4.weight"].clone()}
    moved["4.weight"][:, 0] = a["4.weight"][:, 0] + a["4.weight"][:, 1]
    moved["4.weight"][:, 1] = 0
    agree(objective, Curve((a, moved)), "unchanged")
    assert counted(objective, Curve((a, moved))) <= 1.1 * one


def test_the_last_layer_costs_two_evaluations(wide):
    objective, a, b, one = wide
    segment = changing(a, b, "6.")
    agree(objective, segment, "affine")
    assert counted(objective, segment, 20) == counted(objective, segment, 200) <= 2.1 * one


def test_a_bezier_of_the_last_layer_costs_one_evaluation_per_control_point(wide):
    objective, a, b, one = wide
    control = (a, changing(a, b, "6.").end, {**a, "6.bias": b["6.bias"]}, a)
    agree(objective, Curve(control), "affine")
    assert counted(objective, Curve(control), 100) <= 4.1 * one


def test_layers_below_the_change_are_computed_once(wide):
    objective, a, b, one = wide
    n = objective.num_examples
    layer = 2 * n * 64 * 64
    below = 2 * n * 40 * 64
    segment = changing(a, b, "4.")
    # layers 1 and 2 once, layer 3 at both ends, layer 4 at every t
    expected = below + layer + 2 * layer + 20 * 2 * n * 64 * 4
    assert counted(objective, segment, 20) == pytest.approx(expected, rel=0.1)
    assert counted(objective, segment, 20) < 0.25 * 20 * one


def test_the_first_product_is_interpolated_when_all_layers_move():
    case = Case("wide input", lambda: perceptron([300, 64, 64, 4]), (300,))
    objective = objective_of(case, n=50)
    a, b = ends(case)
    first, rest = 2 * 50 * 300 * 64, 2 * 50 * (64 * 64 + 64 * 4)
    assert counted(objective, Curve((a, b)), 20) == pytest.approx(2 * first + 20 * rest, rel=0.1)
    agree(objective, Curve((a, b)), "general")


def test_products_too_small_to_be_worth_it_are_not_interpolated():
    for inputs, points, mixed in ((5, 60, 0), (300, 60, 1), (300, 2, 0)):
        case = Case("", lambda n=inputs: perceptron([n, 64, 4]), (inputs,))
        a, b = ends(case)
        ready = Engine(objective_of(case)).prepare(Curve((a, b)), points)
        assert isinstance(ready.route, General)
        assert len(ready.route.plan.mixed) == mixed


def test_units_dead_on_the_whole_segment_are_left_out(wide):
    objective, a, b, one = wide
    a, b = ({k: v.clone() for k, v in p.items()} for p in (a, b))
    for p in (a, b):
        for name in ("2.weight", "4.weight", "6.weight"):
            p[name][:, :48] = 0
    agree(objective, Curve((a, b)), "general")
    assert counted(objective, Curve((a, b)), 20) < 0.3 * 20 * one


def test_what_a_segment_ends_with_serves_the_next(wide):
    objective, a, b, one = wide
    dead = {**a, "6.weight": a["6.weight"].clone()}
    dead["6.weight"][:, :40] = 0
    rows = {**dead, "4.weight": dead["4.weight"].clone()}
    rows["4.weight"][:40] = b["4.weight"][:40]
    path = im.Path.through([a, dead, rows, {**rows, "6.weight": b["6.weight"]}])
    objective.structure  # noqa: B018  derived before anything is counted
    im.profile(objective, path, 3)
    total = flops(lambda: im.profile(objective, path, 30))
    assert total < 3 * one  # of 88 points; both affine segments and nothing for the one between
    true = [objective.loss(path.at(float(t))) for t in im.profile(objective, path, 4).t]
    assert im.profile(objective, path, 4).loss.tolist() == pytest.approx(true, rel=1e-12)


def test_nothing_is_written_into_what_the_user_gave(wide):
    objective, a, b, _ = wide
    before = [{k: v.clone() for k, v in p.items()} for p in (a, b)]
    x = objective.data[0].clone()
    im.profile(objective, im.Path.through([a, b]), 5)
    assert all(torch.equal(p[k], q[k]) for p, q in zip((a, b), before, strict=True) for k in p)
    assert torch.equal(objective.data[0], x)


class Masked(nn.Module):
    """Classes that are ruled out by a mask of minus infinity, at the very end."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 4)
        self.register_buffer("mask", torch.tensor([0.0, 0.0, 0.0, -torch.inf]))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.mask


@pytest.mark.parametrize("degree", [1, 2])
def test_infinite_outputs_that_stay_are_no_obstacle(degree):
    g = torch.Generator().manual_seed(0)
    module = Masked()
    x, y = torch.randn(20, 5, generator=g), torch.randint(0, 3, (20,), generator=g)
    state = module.state_dict()
    points = [
        {k: v if k == "mask" else torch.randn(v.shape, generator=g) for k, v in state.items()}
        for _ in range(degree + 1)
    ]
    objective, path = im.Objective(module, data=(x, y)), im.Path((im.Curve(tuple(points)),))
    p = im.profile(objective, path, 9)
    want = [objective.loss(path.at(float(t))) for t in p.t]
    assert p.loss.tolist() == pytest.approx(want, rel=1e-6)
    assert im.certify(objective, path).bound >= max(want) - 1e-6


def test_complex_weights_are_measured():
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(5, 8, dtype=torch.cfloat))
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((x.to(self.w.dtype) @ self.w).abs())

    g = torch.Generator().manual_seed(0)
    module = Complex()
    x, y = torch.randn(20, 5, generator=g), torch.randint(0, 3, (20,), generator=g)
    a, b = ({k: torch.randn(v.shape, generator=g, dtype=v.dtype) for k, v in module.state_dict().items()} for _ in "ab")
    objective, path = im.Objective(module, data=(x, y)), im.Path.through([a, b])
    want = [objective.loss(path.at(k / 60)) for k in range(61)]
    assert im.profile(objective, path, 61).loss.tolist() == pytest.approx(want, rel=1e-5)
    assert im.certify(objective, path).segments[0].claim == "measured"
