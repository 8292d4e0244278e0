"""Theorems 3.2, 5.1 and 6.1 of Nguyen 2019: the loss on the whole path stays below the higher end, and it is proved."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.models import seeded
from isthmus.objective.data import single
from isthmus.params import cast, equal, norm
from isthmus.pipeline import train
from isthmus.training.fit import Recipe
from tests.problems import blobs, perceptron, random_params

F64 = torch.float64
N = 12


def leaky():
    return nn.LeakyReLU(0.2)


def hinge(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Multi-class hinge loss: convex, not smooth."""
    margin = (1 + z - z.gather(1, y[:, None])).clamp_min(0)
    return margin.scatter(1, y[:, None], 0).sum(1)


def setting(
    widths: Sequence[int], activation: Callable[[], nn.Module] = nn.ReLU, *, bias: bool = True, n: int = N,
    loss: Any = "cross_entropy", seed: int = 0,
) -> tuple[im.Objective, Any, Any]:  # fmt: skip
    module = perceptron(list(widths), activation, bias=bias).double()
    x, y = blobs(n, (widths[0],), widths[-1], seed)
    if loss == "mse":
        y = torch.randn(n, widths[-1], generator=torch.Generator().manual_seed(seed), dtype=F64)
    convex = not isinstance(loss, str)
    return im.Objective(module, loss, (x, y), convex=convex or None), random_params(module, 1), random_params(module, 2)


def bad(params, seed=3):
    """Half of the units of layer 1 dead, the last layers of rank 1 and 0."""
    g = torch.Generator().manual_seed(seed)
    out = {k: v.clone() for k, v in params.items()}
    names = [k for k in out if k.endswith("weight")]
    half = len(out[names[0]]) // 2
    out[names[0]][half:] = 0
    if "0.bias" in out:
        out["0.bias"][half:] = 0
    m, n = out[names[-2]].shape
    out[names[-2]] = torch.randn(m, 1, generator=g, dtype=F64) @ torch.randn(1, n, generator=g, dtype=F64)
    out[names[-1]] = torch.zeros_like(out[names[-1]])
    return out


def below(objective, path, tolerance=1e-9, points=21):
    """On dense samples of every segment no loss above the higher end; returns the largest excess."""
    top = max(objective.loss(path.start), objective.loss(path.end))
    worst = max(objective.loss(s.at(k / (points - 1))) for s in path.segments for k in range(points)) - top
    assert worst <= tolerance * max(1.0, top)
    return worst


def check(objective, connection, theorem, segments):
    assert connection.outcome is im.Outcome.CONSTRUCTED
    assert connection.stats["theorem"] == theorem
    assert len(connection.path) == segments == len(connection.stats["segments"])
    below(objective, connection.path)
    certificate = im.certify(objective, connection.path, model="box", labels=connection.stats["segments"])
    assert certificate.proved, [certificate.segments[i].why for i in certificate.unproved()]
    assert certificate.excess <= 1e-9 * max(1.0, *certificate.ends)
    assert connection.stats["excess"] <= certificate.excess
    return certificate


UNPROVED = im.Sublevel(prove=False)
"""Where the test proves the path itself."""
WIDE = (5, 2 * N + 1, 2 * N, 2 * N, 3)
NARROWING = (5, 2 * N, 9, 6, 3)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.ELU, nn.Tanh])
def test_theorem_6_1_six_straight_segments_per_layer_and_one(activation, bias):
    objective, a, b = setting(WIDE, activation, bias=bias)
    connection = im.connect(objective, a, b, im.Sublevel(theorem="6.1", prove=False))
    certificate = check(objective, connection, "6.1 (case 2)", 19)
    assert all(isinstance(s, im.Curve) and s.is_straight for s in connection.path.segments)
    # all dead-unit moves and hand-overs are seen to be exact: three of six, and those into the last layer are convex
    assert certificate.counts["unchanged"] >= 12
    assert connection.stats["drift"] < 1e-12


@pytest.mark.parametrize("loss", ["cross_entropy", "mse", hinge], ids=["ce", "mse", "hinge"])
@pytest.mark.parametrize("bias", [True, False])
def test_theorem_5_1_six_segments_and_a_level_curve(loss, bias):
    objective, a, b = setting(NARROWING, leaky, loss=loss, bias=bias)
    connection = im.connect(objective, a, b, im.Sublevel())
    certificate = check(objective, connection, "5.1", 7)
    assert certificate.segments[6].claim == "analytic"
    curve = connection.path.segments[6]
    assert isinstance(curve, im.LevelCurve)
    first, last = objective.outputs(a), objective.outputs(b)
    for k in range(21):
        t = k / 20
        found = objective.outputs(curve.at(t))
        assert float((found - torch.lerp(first, last, t)).abs().max()) <= 1e-12 * float(first.abs().max() + 1)
    for segment in connection.path.segments[:6]:
        for t in (0.3, 1.0):
            assert float((objective.outputs(segment.at(t)) - first).abs().max()) <= 1e-12 * float(first.abs().max() + 1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [leaky, nn.Identity])
def test_theorem_3_2_one_level_curve_on_independent_data(activation, bias):
    objective, a, b = setting((N, 14, 9, 6, 3), activation, bias=bias)
    connection = im.connect(objective, a, b, im.Sublevel())
    check(objective, connection, "3.2", 1)
    lowest = max(objective.loss(im.Curve((a, b)).at(t)) for t in (0.0, 0.5, 1.0))
    assert lowest > 0  # the straight line is another path


def test_layers_up_to_some_k_may_be_wide_below_narrowing_ones():
    objective, a, b = setting((5, 2 * N, 2 * N, 9, 6, 3), leaky)
    connection = im.connect(objective, a, b, UNPROVED)
    assert connection.stats["theorem"] == "5.1"  # n_2 > n_3 > ...: layer 1 will do
    objective, a, b = setting((5, 2 * N, 2 * N + 4, 9, 6, 3), leaky)
    check(objective, im.connect(objective, a, b, UNPROVED), "5.1", 7)
    mixed = im.Sublevel(theorem="5.1")
    parts = [
        nn.Linear(5, 2 * N),
        nn.ReLU(),
        nn.Linear(2 * N, 2 * N),
        nn.ReLU(),
        nn.Linear(2 * N, 9),
        leaky(),
        nn.Linear(9, 3),
    ]
    module = nn.Sequential(*parts).double()
    objective = im.Objective(module, data=objective.data)
    connection = im.connect(objective, random_params(module, 1), random_params(module, 2), mixed)
    check(objective, connection, "5.1 with layer 2 in place of layer 1", 13)


@pytest.mark.parametrize("which", ["a", "b", "both"])
def test_bad_ends_dead_units_and_layers_of_low_rank(which):
    objective, a, b = setting(NARROWING, leaky)
    a, b = (bad(p, 3 + i) if which in (name, "both") else p for i, (name, p) in enumerate((("a", a), ("b", b))))
    connection = im.connect(objective, a, b, im.Sublevel())
    assert connection.outcome.ok
    text = " ".join(connection.stats["segments"])
    assert ("at A, Lemma 3.4" in text) == (which in ("a", "both"))
    assert ("at B, Lemma 3.4" in text) == (which in ("b", "both"))
    certificate = check(objective, connection, "5.1", len(connection.path))
    assert certificate.counts["analytic"] == (5 if which == "both" else 3)


def test_dead_units_at_b_are_repaired_by_two_segments_more():
    objective, a, b = setting(WIDE)
    dead = {k: v.clone() for k, v in b.items()}
    dead["4.bias"][: int(1.7 * N)] = -100.0
    for start, goal, segments in ((a, dead, 21), (dead, a, 19)):  # at the start any rank will do
        connection = im.connect(objective, start, goal, UNPROVED)
        check(objective, connection, "6.1 (case 2)", segments)


def test_nearly_equal_samples_cost_digits_of_the_weights_not_of_the_outputs():
    x, y = blobs(N, (5,), 3)
    for gap, conditions in ((1e-3, 1e6), (1e-7, 1e11)):
        x = x.clone()
        x[N // 2 :] = x[: N // 2] + gap * torch.randn(N // 2, 5, generator=torch.Generator().manual_seed(1), dtype=F64)
        objective, a, b = setting(NARROWING, leaky)
        objective = objective.on((x, y))
        connection = im.connect(objective, a, b, im.Sublevel())
        assert connection.outcome.ok
        assert conditions / 1e4 < connection.stats["conditions"]["b"]["F_1"] < conditions
        below(objective, connection.path)


def test_one_input_of_which_all_kinks_lie_outside_the_data():
    """With d = 1 random layers have features of rank 2: Lemma 5.2 must run."""
    objective, a, b = setting((1, 2 * N, 9, 6, 3), leaky)
    for p in (a, b):
        p["0.bias"] = p["0.bias"].sign() * 100
    connection = im.connect(objective, a, b, im.Sublevel())
    check(objective, connection, "5.1", 9)


def test_convolutional_networks_where_a_linear_layer_reads_the_channels():
    """6 channels at 9 positions are 54 units for 12 samples."""
    parts = [nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    x, y = blobs(N, (1, 6, 6), 3)
    for top, theorem, segments in (
        ([nn.Linear(54, 2 * N), nn.Tanh(), nn.Linear(2 * N, 3)], "6.1 (case 2)", 13),
        ([nn.Linear(54, 8), leaky(), nn.Linear(8, 3)], "5.1", 7),
    ):
        module = nn.Sequential(*parts, *top).double()
        objective = im.Objective(module, data=(x, y))
        connection = im.connect(objective, random_params(module, 1), random_params(module, 2), UNPROVED)
        check(objective, connection, theorem, segments)


def test_convolutions_that_read_convolutions_count_positions_as_samples():
    x, y = blobs(3, (1, 5, 5), 3)
    parts = [nn.Conv2d(1, 16, 3, padding="same"), nn.ReLU(), nn.Conv2d(16, 8, 3, stride=2), nn.Tanh(), nn.Flatten()]
    module = nn.Sequential(*parts, nn.Linear(32, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    objective = im.Objective(module, data=(x, y))
    a, b = random_params(module, 1), random_params(module, 2)
    connection = im.connect(objective, a, b, UNPROVED)
    check(objective, connection, "6.1 (case 2)", 19)
    more = objective.on(blobs(8, (1, 5, 5), 3))
    refused = im.connect(more, a, b, im.Sublevel())
    assert "n_1: 16, needed >= 8 units for 32 rows" in " ".join(refused.stats["premises"]) or not refused.outcome.ok


@pytest.mark.parametrize("widths", [WIDE, NARROWING])
def test_float32_networks_get_float32_paths_that_lose_only_their_rounding(widths):
    objective, a, b = setting(widths, leaky)
    narrow = objective.cast(torch.float32)
    a, b = cast(a, torch.float32), cast(b, torch.float32)
    connection = im.connect(narrow, a, b, im.Sublevel())
    assert connection.outcome.ok
    assert equal(connection.path.start, a)
    assert equal(connection.path.end, b)
    assert all(v.dtype == torch.float32 for s in connection.path.segments for v in s.at(0.3).values())
    certificate = im.certify(narrow, connection.path)
    assert certificate.proved
    assert certificate.excess < 1e-4
    strict = im.connect(narrow, a, b, im.Sublevel(tolerance=1e-12))
    assert strict.outcome is im.Outcome.IMPRECISE
    with pytest.raises(im.OutcomeError, match="below the stated tolerance"):
        im.connect(narrow, a, b, im.Sublevel(tolerance=1e-12), throw=True)


def test_a_path_that_cannot_be_vouched_for_is_an_outcome():
    """A slope of 0.01 in six layers takes all digits."""
    objective, a, b = setting((5, 2 * N, 20, 17, 14, 11, 8, 3), lambda: nn.LeakyReLU(0.005))
    connection = im.connect(objective, a, b, im.Sublevel())
    assert connection.outcome is im.Outcome.IMPRECISE
    assert connection.stats["growth"] > 1e6
    assert connection.stats["digits_lost"] > 6
    assert connection.stats["deviation"] * 8 > connection.stats["allowed"]


def test_weights_grow_little():
    objective, a, b = setting(NARROWING, leaky)
    connection = im.connect(objective, a, b, UNPROVED)
    largest = max(norm(s.at(k / 10)) for s in connection.path.segments for k in range(11))
    growth = connection.stats["growth"]
    assert growth == pytest.approx(largest / max(norm(a), norm(b)), rel=0.05)
    assert growth < 4


@pytest.mark.parametrize("widths", [(64, 80, 24, 12, 10), (64, 80, 80, 10)])
def test_digits_between_trained_and_random_networks(widths):
    """Real data: many pixels are constant, so that X has not full column rank."""
    data = im.data.load("digits").flat()
    x, y = data.x_train[:40].double(), data.y_train[:40]
    own = (x - x.mean(0), y)
    module = perceptron(list(widths), leaky).double()
    objective = im.Objective(module, data=own)
    assert im.sublevel_conditions(objective).rank_data == 40 < 64
    recipe = Recipe(optimizer="adam", lr=3e-3, batch=40, steps=300)
    starts = [seeded(lambda: perceptron(list(widths), leaky).double(), seed) for seed in (1, 2)]
    a, b = (train(start, own, recipe, seed=1).params for start in starts)
    assert max(objective.loss(a), objective.loss(b)) < 1e-2
    for start, goal in ((a, b), (a, random_params(module, 3))):
        theorem = "5.1" if len(widths) == 5 else "6.1"
        connection = im.connect(objective, start, goal, im.Sublevel(theorem=theorem, prove=False))
        assert connection.outcome.ok
        certificate = im.certify(objective, connection.path, model="box")
        assert certificate.proved
        assert certificate.excess <= 1e-10 * max(1.0, *certificate.ends)
        assert connection.stats["drift"] < 1e-12
        assert max(v for k, v in connection.stats["conditions"]["b"].items() if k[0] == "F") < 1e6


# -- refusals


def premises(objective, a, b, method=None):
    connection = im.connect(objective, a, b, method or im.Sublevel())
    assert connection.outcome is im.Outcome.PREMISE_FAILS
    assert len(connection.path) == 1
    assert equal(connection.path.end, b)
    return " | ".join(connection.stats["premises"]), connection.stats.get("largest_subproblem")


def test_what_fails_is_named_with_its_numbers_and_the_samples_that_would_do():
    text, largest = premises(*setting((5, 17, 16, 3)))
    assert f"Theorem 6.1 (case 2): n_1: 17, needed >= 2N = {2 * N}" in text
    assert f"Theorem 3.2: rank of [X, 1]: 6, needed N = {N}" in text
    assert "Assumption 2.1: slope of relu, layer 1" in text
    assert largest == {"theorem": "6.1 (case 2)", "examples": 8}
    objective, a, b = setting((5, 17, 16, 3))
    assert im.connect(objective.subset(8), a, b, im.Sublevel()).outcome.ok
    assert not im.connect(objective.subset(9), a, b, im.Sublevel()).outcome.ok
    _, largest = premises(*setting((5, 9, 7, 3), leaky))
    assert largest == {"theorem": "3.2", "examples": 6}


def test_widths_must_narrow_strictly_and_the_activation_be_onto():
    assert "n_2: 9, needed > n_3 = 9" in premises(*setting((5, 2 * N, 9, 9, 3), leaky))[0]
    text, _ = premises(*setting((5, 2 * N, 9, 6, 3), nn.ELU))
    assert "Assumption 2.1: slope of elu, layer 2, on negative numbers: none, needed > 0" in text
    text, _ = premises(*setting(WIDE, nn.Identity))
    assert "Assumption 2.2 for identity, layer 1: 0, needed 1" in text


def test_equal_samples_penalties_and_losses_that_are_not_convex():
    objective, a, b = setting(NARROWING, leaky)
    x, y = single(objective.data[0]), objective.data[1]
    twice = objective.on((torch.cat([x[:6], x[:6]]), y))
    assert "least distance of two samples (Assumption 2.4): 0, needed > 1e-12" in premises(twice, a, b)[0]
    module = perceptron(list(NARROWING), leaky).double()
    ridge = im.Objective(module, data=(x, y), penalty=im.Ridge(1e-3))
    assert "the penalty" in premises(ridge, a, b)[0]
    bent = im.Objective(module, lambda z, y: z.sum(1).sin(), (x, y))
    with pytest.raises(im.InputError, match="not declared convex"):
        im.connect(bent, a, b, im.Sublevel())


def test_networks_that_are_no_plain_chain():
    x, y = blobs(N, (5,), 3)
    module = nn.Sequential(nn.Linear(5, 30), nn.BatchNorm1d(30), nn.ReLU(), nn.Linear(30, 3)).double().eval()
    a, b = random_params(module, 1), random_params(module, 2)
    assert "networks without normalisation" in premises(im.Objective(module, data=(x, y)), a, b)[0]


def test_a_theorem_can_be_named_and_options_are_checked():
    objective, a, b = setting((N, 2 * N + 2, 2 * N, 3), leaky)
    names = [im.connect(objective, a, b, im.Sublevel(theorem=t)).stats["theorem"] for t in ("3.2", "5.1", "6.1", None)]
    assert names == ["3.2", "6.1 (case 2)", "6.1 (case 2)", "6.1 (case 2)"]
    wrong: list[dict[str, Any]] = [{"theorem": "4.2"}, {"tolerance": 0.0}, {"limit": 1.0}]
    for options in wrong:
        with pytest.raises(im.InputError, match=next(iter(options))):
            im.Sublevel(**options)
    linear = im.Objective(nn.Linear(5, 3).double(), data=blobs(N, (5,), 3))
    p, q = random_params(linear._materialised(), 1), random_params(linear._materialised(), 2)
    check(linear, im.connect(linear, p, q, im.Sublevel()), "convexity", 1)


def test_repeated_runs_are_identical_and_another_seed_draws_other_units():
    objective, a, b = setting(WIDE)
    b["0.bias"][: int(1.7 * N)] = -100.0
    paths = [im.connect(objective, a, b, UNPROVED, seed=s).path for s in (0, 0, 1)]
    assert all(equal(p, q) for p, q in zip(paths[0].knots, paths[1].knots, strict=True))
    assert not all(equal(p, q) for p, q in zip(paths[0].knots, paths[2].knots, strict=True))
