"""``Auto``: the cheapest step that reaches the excess, and what the steps before it cost."""

import copy
from math import inf

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.connectors.auto.check import EndLosses, check
from tests.problems import blobs, deep_linear, odd_widths, permuted, random_params


def near(params, by=1e-3):
    g = torch.Generator().manual_seed(0)
    return {k: v + by * torch.randn(v.shape, generator=g, dtype=v.dtype) for k, v in params.items()}


def auto(problem, method=None, b=None, **options):
    return im.connect(problem.objective, problem.a, problem.b if b is None else b, method or im.Auto(), **options)


def said(connection):
    return {row["method"]: row["said"] for row in connection.info.tried}


def curve_of(f, number=33):
    """An objective whose loss at the weight t is f(t), and the line from 0 to 1; the weights that were looked at."""
    seen = []

    def evaluate(params):
        seen.append(round(float(params["weight"]), 6))
        return {"loss": f(float(params["weight"]))}

    objective = im.Objective(nn.Linear(1, 1, bias=False).double(), evaluate=evaluate)
    return objective, {"weight": torch.zeros(1, 1).double()}, {"weight": torch.ones(1, 1).double()}, seen


def test_a_low_line_is_accepted_after_the_whole_grid_and_nothing_else_is_tried():
    problem = permuted()
    found = auto(problem, b=near(problem.a), method=im.Auto(excess=0.01))
    info = found.info
    assert [row["method"] for row in info.tried] == ["Linear"]
    assert (found.outcome.ok, info.found["name"], info.passes) == (True, "Linear", 2 + 31)
    assert len(found.path) == 1
    measured = im.profile(problem.objective, found, 33)
    assert info.max == pytest.approx(measured.max, rel=1e-12)
    assert info.excess <= info.asked == 0.01


def test_a_high_line_costs_one_pass_and_the_aligned_one_is_next():
    problem = permuted()
    found = auto(problem, im.Auto(excess=1e-6))
    first, second = found.info.tried
    assert (first["method"], first["passes"], first["reached"]) == ("Linear", 1.0, False)
    assert first["excess"] > 0.1
    assert (second["method"], second["reached"]) == ("Aligned(Linear)", True)
    assert found.info.found["name"] == "Aligned"
    assert found.tensors
    assert "after" not in said(found)["Linear"]


def test_the_order_of_the_points_and_where_a_line_is_left():
    objective, a, b, seen = curve_of(lambda t: float(abs(t - 0.25) < 0.05))
    found = im.connect(objective, a, b, im.Auto(excess=0.5))
    assert seen[:4] == [0.0, 1.0, 0.5, 0.25]  # the ends, the middle, and then no further
    row = found.info.tried[0]
    assert (row["t"], row["max"], row["passes"]) == (0.25, 1.0, 2.0)
    assert not found.outcome.ok
    assert "evaluate=" in said(found)["Aligned(Linear)"]
    assert all(text.startswith("skipped") for name, text in said(found).items() if name != "Linear")
    assert "nothing is left to try" in found.message


@pytest.mark.parametrize(("top", "reached"), [(1.002, False), (0.9, True)])
def test_a_rise_between_the_points_of_the_grid_is_looked_for(top, reached):
    middle = 0.5 + 1 / 64  # between two points of the grid, which are below the level
    objective, a, b, seen = curve_of(lambda t: max(0.0, top - 40 * (t - middle) ** 2))
    reading = check(objective, im.Path.through([a, b]), EndLosses(objective, a, b).under("none"), 1.0)
    assert max(objective.loss({"weight": torch.full((1, 1), k / 32).double()}) for k in range(33)) < 1.0
    assert reading.reached is reached
    assert middle in seen or reached
    assert reached or (reading.max > 1.0 and reading.points > 31)


class Ring(nn.Module):
    """Its weights are its outputs; the loss below is least on a circle."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(2).double())

    def forward(self, x):
        return x + self.w


def ring():
    """Two points of the circle, opposite ones: the line goes over the hill in the middle."""
    x = torch.zeros(1280, 2).double()
    objective = im.Objective(Ring(), lambda z, y: (z.square().sum(1) - 1).square(), (x, x))
    return objective, {"w": torch.tensor([1.0, 0.0]).double()}, {"w": torch.tensor([-1.0, 0.02]).double()}


def test_the_budget_bounds_it_and_the_message_says_what_would_be_next():
    objective, a, b = ring()
    found = im.connect(objective, a, b, im.Auto(excess=1e-12, budget=150))
    assert found.outcome is im.Outcome.BUDGET_EXHAUSTED
    assert 75 < found.info.passes <= 150
    assert "the next step would be Bezier(bends=4, epochs=" in found.message
    assert found.info.excess == min(row["excess"] for row in found.info.tried if row["excess"] is not None)
    assert found.info.found["name"] == "Bezier"
    assert found.info.excess < 0.5 * found.info.tried[0]["excess"]
    small = im.connect(objective, a, b, im.Auto(excess=1e-12, budget=3))
    assert small.info.passes <= 3
    assert small.info.found["name"] == "Linear"
    assert small.info.excess == pytest.approx(1.0, rel=1e-2)


def test_curves_get_longer_until_one_is_low_enough():
    objective, a, b = ring()
    found = im.connect(objective, a, b, im.Auto(excess=0.05))
    assert found.outcome.ok
    assert found.info.tried[-1]["reached"]
    assert "said" in found.info.tried[-1]
    assert im.profile(objective, found, 33).excess <= 0.05
    assert said(found)["Aligned(Linear)"].startswith("skipped")


def test_a_construction_is_accepted_by_its_proof():
    problem = deep_linear()
    a = {k: 3 * v for k, v in problem.a.items()}
    with torch.no_grad():
        y = torch.func.functional_call(problem.objective._materialised(), a, problem.objective.data[0]).argmax(1)
    objective = im.Objective(problem.objective.skeleton, data=(problem.objective.data[0], y), dtype=torch.float64)
    b = a | {k: -a[k] for k in ("0.weight", "0.bias", "1.weight")}  # the same function
    found = im.connect(objective, a, b, im.Auto(excess=1e-6))
    assert found.info.found["name"] == "DeepLinear"
    assert said(found)["DeepLinear"].endswith("proved")
    assert im.certify(objective, found, budget=0).excess <= 1e-6


def test_a_loss_that_is_not_convex_has_curves_only():
    problem = permuted()
    x, y = problem.objective.data
    bent = im.Objective(problem.objective.skeleton, lambda z, y: z.sin().square().mean(1), (x, y))
    found = im.connect(bent, problem.a, random_params(problem.objective.skeleton, 7), im.Auto(budget=200))
    assert {"DeepLinear", "Subnetwork"} >= {k for k, v in said(found).items() if "convex" in v}
    assert any("Bezier" in row["method"] for row in found.info.tried)


def test_statistics_of_batchnorm_are_those_of_the_step_that_won():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).double()
    x = torch.randn(40, 4).double()
    with torch.no_grad():
        net.train()(x)
    a = {k: 5 * v if k == "3.weight" else v for k, v in net.state_dict().items()}
    y = torch.func.functional_call(net.eval(), a, x).argmax(1)
    objective = im.Objective(copy.deepcopy(net).eval(), data=(x, y))
    close = {k: v + 1e-4 * torch.randn_like(v) if v.is_floating_point() else v for k, v in a.items()}
    found = im.connect(objective, a, close, im.Auto(excess=0.1))
    assert found.info.tried[0]["method"] == "Linear, interpolated statistics"
    assert (found.path.bn, found.stats["bn"], found.info.passes) == ("interpolate", "interpolate", 33)
    far = {k: v.flip(0) if k[0] in "01" and v.ndim else v for k, v in a.items()} | {"3.weight": a["3.weight"].flip(1)}
    other = im.connect(objective, a, far, im.Auto(excess=1e-6))
    assert [row["passes"] for row in other.info.tried[:2]] == [1.0, 2.0]
    assert other.info.found["name"] == "Aligned"
    assert other.path.bn is None
    assert im.profile(objective, other, 5).bn == "recompute"


def test_streamed_data_and_default_excess():
    problem = odd_widths()
    x, y = problem.objective.data
    assert isinstance(x, torch.Tensor)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8)
    objective = im.Objective(problem.objective.skeleton, data=loader, stream=True, dtype=torch.float64)
    found = im.connect(objective, problem.a, near(problem.a), im.Auto())
    assert found.outcome.ok
    assert found.info.asked == pytest.approx(0.05 * max(found.info.ends))


@pytest.mark.parametrize("wrong", [{"excess": -1e-9}, {"excess": inf}, {"excess": float("nan")}, {"budget": 2.9}])
def test_wrong_values_are_refused(wrong):
    with pytest.raises(im.InputError, match=next(iter(wrong))):
        im.Auto(**wrong)


def test_ends_whose_loss_is_not_finite_are_refused():
    problem = permuted()
    huge = {k: v * 1e200 for k, v in problem.b.items()}
    with pytest.raises(im.InputError, match="b: expected a network whose loss"):
        auto(problem, b=huge)


def test_the_same_seed_gives_the_same_steps():
    objective, a, b = ring()
    one, two = (im.connect(objective, a, b, im.Auto(excess=1e-6, budget=100), seed=3) for _ in range(2))
    assert one.info.tried == two.info.tried
    assert all(torch.equal(v, two.path.at(0.3)[k]) for k, v in one.path.at(0.3).items())
    assert one.info.found["name"] == "Bezier"


def test_complex_weights_have_no_curves_and_the_message_says_so():
    module = nn.Linear(2, 1, bias=False).to(torch.complex64)

    def evaluate(params):
        w = params["weight"]
        return {"loss": float((w.abs() - 1).square().sum())}

    objective = im.Objective(module, evaluate=evaluate)
    a, b = ({"weight": torch.full((1, 2), v, dtype=torch.complex64)} for v in (1.0, -1.0))
    found = im.connect(objective, a, b, im.Auto(excess=0.1, budget=5))
    assert not found.outcome.ok
    assert "Bezier" not in found.message.split("the next step would be")[-1] or "real weights" in found.message
    assert any("real weights" in row["said"] for row in found.info.tried if "Bezier" in row["method"])


def norms():
    """A network with BatchNorm, sure of its labels, and the same function with its units renumbered and rescaled."""
    module = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double().eval()
    x, _ = blobs(200, (5,), 3)
    a = random_params(module, 1)
    a["3.weight"] *= 5
    objective = im.Objective(module, data=(x, torch.func.functional_call(module, a, x).argmax(1)))
    b = objective.structure.permute(a, {g.name: torch.arange(g.size).flip(0) for g in objective.structure.groups})
    scale = torch.where(torch.arange(8) % 2 == 0, 4.0, 0.25).double()
    b |= {k: b[k] * scale for k in ("1.weight", "1.bias")} | {"3.weight": b["3.weight"] / scale}
    return objective, a, b


def test_a_budget_that_ends_while_a_path_is_looked_at_says_what_was_seen():
    found = im.connect(*norms(), im.Auto(excess=0.01, budget=60))
    first, second, third = found.info.tried[:3]
    assert first["method"] == "Linear, interpolated statistics"
    assert second["said"].startswith(f"at most {second['max']:.4g} at ")
    assert second["said"].endswith(" points, then the budget ended")
    assert third["said"] == "skipped: of the budget 1 passes are left"
    assert found.outcome is im.Outcome.BUDGET_EXHAUSTED
    assert found.info.passes <= 60
    seen = second["said"].partition(" at ")[2].partition(",")[0]
    assert f"Linear is 0 above the larger end at {seen}; the next step would be Aligned(Linear) (a la" in found.message


def test_steps_for_which_the_budget_does_not_do_are_named():
    module = nn.Sequential(nn.Linear(5, 504), nn.ReLU(), nn.Linear(504, 3)).double()
    objective = im.Objective(module, data=blobs(20, (5,), 3))
    a, b = random_params(module, 1), random_params(module, 2)
    rows = said(im.connect(objective, a, b, im.Auto(excess=1e-6, budget=12)))
    for name in ("Aligned(Linear)", "DeepLinear", "Sublevel", "MeanField"):
        assert rows[name] == "skipped: of the budget 0 passes are left"
    assert rows["Dropout"] == "skipped: the network has no dropout, without which few are stable"
    assert rows["Subnetwork"] == "skipped: its trainings may take 36000 passes, and 0 are left"


def test_a_path_that_was_refused_at_a_point_rises_at_least_so_far():
    p = permuted()
    found = im.connect(p.objective, p.a, p.b, im.Auto(excess=1e-6, budget=4))
    above = im.profile(p.objective, found).excess
    assert found.info.tried[0]["said"].startswith(f"{found.info.max:.4g} at t = ")
    assert found.info.excess < above
    assert f"is at least {found.info.excess:.4g} above the larger end" in found.message
