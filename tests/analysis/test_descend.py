"""Theorem 4.2 of Nguyen 2019: down to the infimum without rising; and rays on which the loss stays."""

from math import isnan
from typing import Any

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.analysis.ray import ray
from isthmus.connectors.sublevel.columns import kinks
from isthmus.connectors.sublevel.judge import _Measured
from isthmus.connectors.sublevel.lower import lower
from isthmus.objective.data import single
from isthmus.params import cast, equal, norm
from isthmus.premises.memorisation import separability
from tests.connectors.sublevel.test_sublevel import below, hinge, leaky, setting
from tests.problems import blobs, perceptron, random_params

F64 = torch.float64


def falls(objective, path, rounding=1e-12, points=21):
    """On dense samples no loss above an earlier one, but for rounding."""
    lowest = objective.loss(path.start)
    for segment in path.segments:
        for k in range(points):
            value = objective.loss(segment.at(k / (points - 1)))
            assert value <= lowest + rounding * max(1.0, lowest)
            lowest = min(lowest, value)
    return lowest


def few_units(params, layer, rank):
    """A layer all of whose units are copies of the first few."""
    out = {k: v.clone() for k, v in params.items()}
    for name in (f"{layer}.weight", f"{layer}.bias"):
        if name in out:
            out[name] = out[name][torch.arange(len(out[name])) % rank]
    return out


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [leaky, nn.ReLU, nn.Tanh])
def test_a_last_hidden_layer_of_n_units_is_enough_for_any_activation(activation, bias):
    objective, a, _ = setting((5, 16, 20, 3), activation, n=20, loss="mse", bias=bias)
    start = few_units(a, 2, 3)
    low = im.descend(objective, start, 1e-20)
    assert low.outcome is im.Outcome.CONSTRUCTED
    assert low.stats["layer"] == 2
    assert len(low.path) == 3
    assert equal(low.path.start, start)
    assert equal(low.path.end, low.target)
    assert falls(objective, low.path) < 1e-20
    certificate = im.certify(objective, low.path, labels=low.stats["segments"])
    assert certificate.proved
    assert certificate.excess < 1e-9


@pytest.mark.parametrize("loss", ["cross_entropy", "mse", hinge], ids=["ce", "mse", "hinge"])
def test_narrowing_layers_above_the_wide_one(loss):
    objective, a, _ = setting((5, 16, 20, 9, 6, 3), leaky, n=20, loss=loss)
    low = im.descend(objective, few_units(a, 2, 4))
    assert low.outcome.ok
    assert (low.stats["theorem"], low.stats["layer"]) == ("4.2", 2)
    assert low.stats["outputs"]["how"].startswith("targets" if loss == "mse" else "labels raised to a margin")
    assert falls(objective, low.path) < 1e-12
    assert im.certify(objective, low.path).proved
    assert isinstance(low.path.segments[-1], im.LevelCurve)


def named(net, n=12, **options):
    """What a descent from a random point names; it succeeds."""
    widths, activations = net
    stack = []
    for i, (p, q) in enumerate(zip(widths, widths[1:], strict=False)):
        stack += [nn.Linear(p, q, **options), *([activations[i]()] if i < len(activations) else [])]
    module = nn.Sequential(*stack).double()
    low = im.descend(im.Objective(module, "mse", blobs(n, (widths[0],), widths[-1])[:1] + (targets(n, widths[-1]),)),
                     random_params(module, 3))  # fmt: skip
    assert low.outcome.ok, str(low.outcome)
    return low.stats["theorem"]


def targets(n, m):
    return torch.randn(n, m, generator=torch.Generator().manual_seed(9), dtype=F64)


def test_only_theorems_that_hold_are_named():
    """4.2 asks for functions onto R in all layers, 6.1 for N units in all; a descent may succeed without either."""
    elu = nn.ELU
    assert named(((3, 5, 12, 2), (leaky, leaky))) == "4.2"
    assert named(((3, 12, 5, 2), (leaky, leaky))) == "4.2"
    assert named(((3, 12, 12, 2), (nn.ReLU, nn.ReLU))) == "6.1 (case 1)"
    assert named(((3, 12, 2), (elu,))) == "6.1 (case 1)"
    assert named(((3, 5, 12, 2), (nn.ReLU, nn.ReLU))) == "Lemma 5.2 for layer 2, convexity above it"
    assert named(((3, 5, 12, 2), (leaky, nn.Tanh))) == "Lemma 5.2 for layer 2, convexity above it"
    assert named(((3, 12, 5, 2), (nn.ReLU, leaky))) == "Lemma 5.2 for layer 1, Theorem 3.2 above it"
    assert named(((3, 5, 12, 2), (nn.Identity, leaky))) == "Lemma 5.2 for layer 2, convexity above it"
    assert named(((3, 12, 2), (leaky,)), bias=False) == "Lemma 5.2 for layer 1, convexity above it"
    assert named(((12, 5, 2), (leaky,))) == "3.2"
    assert named(((12, 2), ())) == "convexity"


def test_120_samples_from_a_layer_of_rank_5():
    objective, a, _ = setting((8, 16, 120, 10, 3), leaky, n=120, loss="mse")
    low = im.descend(objective, few_units(a, 2, 5), 1e-20)
    assert low.outcome.ok
    assert falls(objective, low.path, points=51) < 1e-20
    certificate = im.certify(objective, low.path)
    assert certificate.proved
    assert certificate.excess < 1e-9 * certificate.ends[0]


@pytest.mark.parametrize("activation", [leaky, nn.ReLU, nn.Tanh])
def test_from_zero_where_all_samples_look_alike_to_every_layer(activation):
    objective, a, _ = setting((5, 16, 20, 3), activation, n=20, loss="mse")
    zero = {k: torch.zeros_like(v) for k, v in a.items()}
    low = im.descend(objective, zero, 1e-20)
    assert low.outcome.ok
    assert falls(objective, low.path) < 1e-20
    assert "layer 1" in low.stats["segments"][0]  # made to tell the samples apart first
    assert im.certify(objective, low.path).proved


def test_independent_data_need_no_wide_layer():
    objective, a, _ = setting((20, 9, 6, 3), leaky, n=20)
    low = im.descend(objective, {k: torch.zeros_like(v) for k, v in a.items()})
    assert (low.stats["theorem"], low.stats["layer"]) == ("3.2", 0)
    assert low.outcome.ok
    assert falls(objective, low.path) < 1e-12


def test_convolutions_may_stand_below_a_wide_linear_layer():
    parts = [
        nn.Conv2d(1, 3, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 20),
        nn.ReLU(),
        nn.Linear(20, 3),
    ]
    module = nn.Sequential(*parts).double()
    objective = im.Objective(module, data=blobs(20, (1, 6, 6), 3))
    low = im.descend(objective, random_params(module, 1))
    assert low.outcome.ok
    assert low.stats["theorem"] == "Lemma 5.2 for layer 2, convexity above it"  # they are about perceptrons
    assert falls(objective, low.path) < 1e-12


def test_other_convex_losses_go_down_line_by_line():
    huber = lambda z, y: nn.functional.smooth_l1_loss(z, y, reduction="none").sum(1)
    soft = torch.softmax(torch.randn(20, 3, generator=torch.Generator().manual_seed(2), dtype=F64), 1)
    entropy = float(-(soft * soft.log()).sum(1).mean())
    objective, a, _ = setting((5, 20, 3), leaky, n=20, loss="mse")
    x, y = objective.data
    module = perceptron([5, 20, 3], leaky).double()
    for loss, target, infimum in ((huber, y, 0.0), ("cross_entropy", soft, entropy)):
        other = im.Objective(module, loss, (x, target), convex=True)
        low = im.descend(other, a)
        assert low.outcome.ok, (str(low.outcome), low.stats)
        assert low.stats["outputs"]["how"] == "L-BFGS in the outputs"
        assert falls(other, low.path) == pytest.approx(infimum, abs=1e-10)


def test_lines_in_the_outputs_never_rise():
    objective, a, _ = setting((5, 20, 3), leaky, n=20, loss=lambda z, y: (z - 1).abs().pow(1.5).sum(1))
    Z = objective.outputs(a)
    found = lower(objective, Z, 1e-9)
    stops = [Z, *found.outputs]
    before = float("inf")
    for p, q in zip(stops, stops[1:], strict=False):
        for k in range(51):
            value = objective.of_outputs([(torch.lerp(p, q, k / 50), objective.data[1])])[0]
            assert value <= before + 1e-13
            before = value
    assert before <= 1e-6


def test_too_narrow_networks_stay_where_they_are_and_say_why():
    objective, a, _ = setting((5, 16, 19, 3), n=20)
    low = im.descend(objective, a)
    assert low.outcome is im.Outcome.PREMISE_FAILS
    assert "layer 2: n_2: 19, needed >= N = 20" in low.stats["premises"]
    assert equal(low.target, a)
    with pytest.raises(im.OutcomeError, match="no theorem"):
        im.descend(objective, a, throw=True)
    # samples that layer 1 takes for one, and no unit of it to spare
    objective, a, _ = setting((2, 1, 12, 3), n=12)
    a["0.weight"][:] = 0
    a["0.bias"][:] = 1
    low = im.descend(objective, a)
    assert "leave the rank of the features below 12: are inputs equal?" in low.stats["premises"][0]


def test_contradicting_labels_of_equal_samples_are_refused():
    objective, a, _ = setting((5, 20, 3), n=20)
    x, y = single(objective.data[0]).clone(), objective.data[1]
    x[1] = x[0]
    low = im.descend(objective.on((x, y)), a)
    assert "Assumption 2.4" in " ".join(low.stats["premises"])


def test_what_rounding_forbids_is_not_called_reached():
    objective, a, _ = setting((5, 20, 3), n=20, loss="mse")
    assert im.descend(objective, a, 1e-40).outcome is im.Outcome.IMPRECISE
    narrow = objective.cast(torch.float32)
    low = im.descend(narrow, cast(a, torch.float32), 1e-8)
    assert low.outcome.ok
    assert all(v.dtype == torch.float32 for v in low.target.values())
    assert narrow.loss(low.target) < 1e-8


def test_descend_checks_its_arguments_and_repeats():
    objective, a, _ = setting((5, 16, 20, 3), n=20)
    start = few_units(a, 2, 3)
    kept = {k: v.clone() for k, v in start.items()}
    one, two = im.descend(objective, start), im.descend(objective, start)
    assert all(equal(p, q) for p, q in zip(one.path.knots, two.path.knots, strict=True))
    assert equal(start, kept)
    wrong: list[dict[str, Any]] = [{"tolerance": 0.0}, {"limit": 0.5}]
    for options in wrong:
        with pytest.raises(im.InputError, match=next(iter(options))):
            im.descend(objective, a, **options)
    with pytest.raises(im.InputError, match=r"a\['0.bias'\]"):
        im.descend(objective, a | {"0.bias": a["0.bias"] * float("nan")})


# -- rays


@pytest.mark.parametrize("size", [1e3, 1e9])
@pytest.mark.parametrize(
    ("widths", "activation", "theorem"),
    [((5, 25, 9, 3), nn.Tanh, "5.1"), ((20, 19, 9, 3), leaky, "3.2"), ((20, 19, 3), nn.Identity, "3.2")],
)
def test_rays_reach_any_norm_at_the_same_loss(widths, activation, theorem, size):
    objective, a, _ = setting(widths, activation, n=20)
    far = ray(objective, a, size)
    assert far.outcome.ok
    assert far.stats["theorem"] == theorem
    assert norm(far.target) >= size
    assert equal(far.path.start, a)
    want = objective.loss(a)
    for segment in far.path.segments:
        for k in range(11):
            assert objective.loss(segment.at(k / 10)) == pytest.approx(want, abs=1e-12, rel=1e-12)
    certificate = im.certify(objective, far.path)
    assert certificate.proved
    assert certificate.excess < 1e-9


@pytest.mark.parametrize(
    ("widths", "activations", "k", "theorem"),
    [
        ((3, 12, 6, 4, 2), (leaky, leaky, leaky), 1, "4.2"),
        ((3, 4, 12, 5, 2), (leaky, leaky, leaky), 2, "4.2"),
        ((3, 4, 5, 12, 5, 3, 2), (leaky,) * 5, 3, "4.2"),
        ((3, 12, 6, 4, 2), (nn.ELU, leaky, leaky), 1, "3.2 above layer 1"),
        ((3, 11, 6, 2), (leaky, leaky), 1, "3.2 above layer 1"),  # with its ones, F_1 has rank 12
    ],
)
def test_rays_above_a_layer_of_exactly_n_units(widths, activations, k, theorem):
    """Theorem 4.2, second part: no unit is idle, so that the layers above must grow."""
    parts = [nn.Linear(p, q) for p, q in zip(widths, widths[1:], strict=False)]
    stack = [m for i, part in enumerate(parts) for m in (part, *([activations[i]()] if i < len(activations) else []))]
    module = nn.Sequential(*stack).double()
    x = torch.randn(12, widths[0], generator=torch.Generator().manual_seed(4), dtype=F64)
    for loss, y in (("mse", targets(12, widths[-1])), ("cross_entropy", torch.arange(12) % widths[-1])):
        objective = im.Objective(module, loss, (x, y))
        starts = [random_params(module, seed) for seed in range(2)]
        rays = [ray(objective, a, 1e5) for a in starts]
        for a, far in zip(starts, rays, strict=True):
            assert far.outcome.ok, far.stats
            assert far.stats["theorem"] == theorem
            assert equal(far.path.start, a)
            assert norm(far.target) >= 1e5
            want = objective.loss(a)
            for segment in far.path.segments:
                for j in range(17):
                    assert objective.loss(segment.at(j / 16)) == pytest.approx(want, abs=1e-10, rel=1e-10)
            assert not torch.equal(far.target[f"{2 * k}.weight"], a[f"{2 * k}.weight"])
        certificate = im.certify(objective, rays[0].path)
        assert certificate.proved
        assert certificate.excess < 1e-8


def test_under_theorem_4_2_every_point_has_a_ray():
    """Also where the features lack rank, the weights above do, or all is zero: at every level of the loss."""
    objective, a, _ = setting((3, 12, 6, 4, 2), leaky, n=12, loss="mse")
    zero = {k: torch.zeros_like(v) for k, v in a.items()}
    flat = a | {"4.weight": a["4.weight"][:, :1] @ a["4.weight"][:1]}
    gone = a | {"4.weight": torch.zeros_like(a["4.weight"])}
    large = {k: 30 * v for k, v in a.items()}
    for start in (a, zero, few_units(a, 0, 3), few_units(a, 2, 2), flat, gone, large):
        far = ray(objective, start, 1e4)
        assert far.outcome.ok, far.stats
        assert norm(far.target) >= 1e4
        want = objective.loss(start)
        losses = [objective.loss(s.at(j / 30)) for s in far.path.segments for j in range(31)]
        assert max(abs(v - want) for v in losses) <= 1e-8 * max(1.0, want)


def test_rays_from_zero_and_in_float32():
    objective, a, _ = setting((20, 19, 9, 3), leaky, n=20)
    zero = {k: torch.zeros_like(v) for k, v in a.items()}
    far = ray(objective, zero, 1e4)
    assert far.outcome.ok
    assert norm(far.target) >= 1e4
    narrow = objective.cast(torch.float32)
    far = ray(narrow, cast(a, torch.float32), 1e4)
    assert far.outcome.ok
    below(narrow, far.path, 1e-4)


def test_rays_where_no_theorem_holds():
    objective, a, _ = setting((5, 6, 3), leaky, n=20)
    with pytest.raises(
        im.UnsupportedError, match=r"every unit of every hidden layer acts.*rank of \[X, 1\]: 6, needed N = 20"
    ):
        ray(objective, a)
    with pytest.raises(im.InputError, match="size"):
        ray(objective, a, -1.0)
    ridge = im.Objective(perceptron([5, 30, 3]).double(), data=objective.data, penalty=im.Ridge(0.1))
    with pytest.raises(im.UnsupportedError, match="the penalty: it grows"):
        ray(ridge, random_params(perceptron([5, 30, 3]).double(), 1))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_one_sample_alone_has_no_spread(dtype):
    alike = torch.full((3, 2), 0.1, dtype=dtype)  # their standard deviation may be the rounding of their mean
    assert float(kinks(alike, True, 5, 1.0, torch.Generator().manual_seed(0)).abs().max()) < 10
    module = nn.Sequential(nn.Linear(3, 12), nn.LeakyReLU(0.1), nn.Linear(12, 6), nn.LeakyReLU(0.1), nn.Linear(6, 2))
    objective = im.Objective(module.to(dtype), "mse", (torch.randn(1, 3, dtype=dtype), torch.randn(1, 2, dtype=dtype)))
    low = im.descend(objective, {k: torch.zeros_like(v) for k, v in module.state_dict().items()}, prove=False)
    assert low.outcome.ok
    assert low.stats["loss"][-1] < 1e-10
    assert low.stats["rise"] < 1e-6
    assert max(float(v.abs().max()) for v in low.path.end.values()) < 1e6


def test_a_loss_that_is_no_number_is_not_passed_over():
    found = _Measured((1.0, float("nan"), 0.5), 0.0, 0.0, 1.0)
    assert isnan(found.rise)
    assert isnan(found.excess)
    assert isnan(found.provable)
    assert isnan(_Measured((1.0,), 0.0, float("nan"), 1.0).digits_lost)
    assert _Measured((1.0, 0.5, 0.75, 0.25, 1.25), 0.0, 0.0, 1.0).rise == 1.0


def _some(outputs, y):
    """A function of the user's: wrong classes where there is a label, as a loss and as an error."""
    return ((outputs.argmax(1) != y) & (y >= 0)).to(outputs)


@pytest.mark.parametrize("ignored", [-100, 0])
def test_ignored_labels_are_nothing_to_lower_nor_to_separate(ignored):
    objective, a, _ = setting((3, 12, 12, 3), leaky, n=6)
    x, y = single(objective.data[0]).clone(), torch.tensor([1, 2, 1, 2, ignored, ignored])
    x[4:] = x[:4].mean(0) + 1e-3 * x[4:]  # no hyperplane is around them
    some = im.Objective(objective.skeleton, data=(x, y), ignore_index=ignored)
    few = im.Objective(objective.skeleton, data=(x[:4], y[:4]))
    assert falls(some, im.descend(some, a, prove=False).path) < 1e-8
    one, other = (separability(o, a, layers=[0, 2]) for o in (some, few))
    alone = im.Objective(objective.skeleton, _some, (x, y), error=_some) if ignored < 0 else some
    assert [s.separable for s in separability(alone, a, layers=[0, 2]).values()] == [True, True]
    assert [s.separable for s in one.values()] == [s.separable for s in other.values()] == [True, True]
