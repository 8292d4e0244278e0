"""Definition 1: theta_i against masked networks, the searches against chance, and the path that goes through them."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import inf

import pytest
import torch
from torch import nn
from torch.nn.utils import stateless

import isthmus as im
from isthmus.params import cast, equal
from isthmus.stability.dropout.measure import StableLayer
from isthmus.stability.dropout.search import LARGEST_SCALE, SCALES, _Entry, _features
from isthmus.stability.dropout.subsets import SEARCHES, kept_count
from isthmus.structure.chain import chain_of
from isthmus.training.fit import Recipe, fit
from tests.problems import Problem, classify, perceptron, random_params
from tests.stability.chains import CHAINS, searches, small_vgg


@pytest.fixture(scope="module")
def trained() -> Problem:
    """Two small networks that tell 240 handwritten digits apart, so that dropping units costs something."""
    made = classify("trained", perceptron([64, 24, 20, 22, 10]), (64,), 10)
    digits = im.data.load("digits").flat().subset(240, None)
    objective, ends = made.objective.on((digits.x_train.double(), digits.y_train)), []
    for start in (made.a, made.b):
        recipe = Recipe(lr=0.003, batch=60, steps=600, check=50)
        g = torch.Generator().manual_seed(0)
        ends.append(fit(objective.batch_loss, objective.loss, start, 240, recipe, generator=g, target=0.005).params)
    return replace(made, objective=objective, a=ends[0], b=ends[1])


def hooked_outputs(problem: Problem, layer: StableLayer) -> torch.Tensor:
    """The user's module run as it is, its hidden outputs multiplied by masks in hooks, its last layer scaled."""
    module = problem.objective.skeleton
    assert isinstance(module, nn.Sequential)
    parts = [p for p in module if isinstance(p, nn.Linear | nn.Conv2d)]
    L, handles = len(parts), []
    number: dict[nn.Module, int] = {p: l for l, p in enumerate(parts, 1)}

    def before(part: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        j, x = number[part] - 1, inputs[0]
        if j not in layer.kept:
            return inputs
        width = parts[j - 1].weight.shape[0]
        mask = torch.zeros(width, dtype=x.dtype)
        mask[layer.kept[j]] = layer.factors[j] * (layer.scale if j == L - 1 else 1.0)
        units = x.unflatten(1, (width, -1)) if x.dim() == 2 else x
        return ((units * mask.reshape(1, -1, *(1,) * (units.dim() - 2))).reshape(x.shape),)

    for part in parts:
        handles.append(part.register_forward_pre_hook(before))
    try:
        with torch.no_grad():
            return stateless.functional_call(module, dict(problem.a), (problem.objective.data[0],))
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize(
    ("make", "scale"),
    [*product(CHAINS.values(), SCALES), (small_vgg, "output")],
    ids=[*(f"{name}-{scale}" for name, scale in product(CHAINS, SCALES)), "vgg-output"],
)
def test_theta_i_is_the_module_with_masked_outputs(make, scale):
    problem = make()
    s = im.dropout_stability(problem.objective, problem.a, masks=6, scale=scale, search="gates")
    y, widths = problem.objective.data[1], s.widths
    assert [layer.entry for layer in s.layers] == list(range(1, len(widths) - 1))
    for layer, vertex in zip(s.layers, s.vertices().values(), strict=True):
        outputs = hooked_outputs(problem, layer)
        loss, error = problem.objective.of_outputs([(outputs, y)])
        assert layer.loss == pytest.approx(loss, rel=1e-10, abs=1e-12)
        assert layer.error == pytest.approx(error)
        torch.testing.assert_close(problem.objective.outputs(vertex), outputs, rtol=1e-9, atol=1e-9)
        assert layer.epsilon == pytest.approx(loss - problem.objective.loss(problem.a), abs=1e-10)
        assert set(layer.kept) == set(range(layer.entry, len(widths) - 1))
        for j, units in layer.kept.items():
            assert len(units) == widths[j] // 2
            assert torch.equal(units, units.unique())
            if scale != "each":
                assert layer.factors[j] == (1.0 if scale == "none" else widths[j] / len(units))
    assert s.epsilon == max(layer.epsilon for layer in s.layers) == s.limited_by.epsilon


def test_better_scales_are_never_worse(trained):
    found = {
        scale: im.dropout_stability(trained.objective, trained.a, masks=3, scale=scale)
        for scale in ("layer", "output", "each")
    }
    # the first entry layer draws the same three subsets for all
    layer, output, each = (found[k].layers[0].loss for k in ("layer", "output", "each"))
    assert each < output < layer
    assert found["each"].layers[0].factors != found["output"].layers[0].factors
    again = found["each"].layers[0]
    value = trained.objective.loss(found["each"].vertices()[1])
    assert value == pytest.approx(again.loss, rel=1e-10)


def test_a_factor_for_every_layer_is_a_minimum_in_each_factor(trained):
    s = im.dropout_stability(trained.objective, trained.a, masks=3, scale="each")
    layer = s.layers[0]
    for j in (1, 2):
        for change in (0.98, 1.02):
            moved = replace(layer, factors=layer.factors | {j: layer.factors[j] * change})
            outputs = hooked_outputs(trained, moved)
            assert trained.objective.of_outputs([(outputs, trained.objective.data[1])])[0] >= layer.loss - 1e-6


def test_informed_searches_beat_chance_at_the_same_price(trained):
    def worst(search: str, end: im.Params) -> float:
        return max(
            im.dropout_stability(trained.objective, end, masks=40, search=search, seed=seed).epsilon
            for seed in range(2)
        )

    for end in (trained.a, trained.b):
        chance, greedy, gates = (worst(k, end) for k in ("random", "greedy", "gates"))
        assert gates < 0.7 * chance
        assert greedy < 0.9 * chance


@searches
def test_every_search_keeps_to_its_price_and_repeats(trained, search):
    state = torch.random.get_rng_state()
    one, two = (im.dropout_stability(trained.objective, trained.a, masks=24, search=search, seed=5) for _ in range(2))
    assert one.to_dict() == two.to_dict()
    assert torch.equal(state, torch.random.get_rng_state())
    for layer in one.layers:
        assert len(layer.trace) == 24
        assert layer.loss == min(layer.trace) == layer.curve[-1]
        assert list(layer.curve) == sorted(layer.curve, reverse=True)
        assert (len(layer.expected) == 24) is (search == "random")
    other = im.dropout_stability(trained.objective, trained.a, masks=24, search=search, seed=6)
    assert other.to_dict()["layers"] != one.to_dict()["layers"]


@searches
@pytest.mark.parametrize("masks", [1, 2, 3, 9])
def test_small_budgets(trained, search, masks):
    s = im.dropout_stability(trained.objective, trained.a, masks=masks, search=search)
    assert all(layer.loss < inf and len(layer.trace) == masks for layer in s.layers)


def test_slopes_are_the_derivatives_of_the_masked_loss(trained):
    chain = chain_of(trained.objective.program, trained.objective.structure)
    features = _features(trained.objective, chain, trained.a)
    entry = _Entry(trained.objective, chain, trained.a, chain.read(trained.a), 2, features[2], 2, "output")
    kept = {2: torch.arange(10), 3: torch.arange(4, 15)}
    index = torch.arange(0, 240, 3)
    slopes = entry.slopes(kept, 1.3, index)
    x, y = trained.objective.data
    few = trained.objective.on((x[index], y[index]))

    def loss(member: dict[int, torch.Tensor]) -> float:
        h = chain.features(trained.a, x[index], 2, 1000)
        h = chain.through(trained.a, h * member[2] * 2.0, 3)
        z = chain.through(trained.a, h * member[3] * 2.0 * 1.3, 4)
        return few.of_outputs([(z, y[index])])[0]

    member = {j: torch.zeros(n, dtype=torch.float64) for j, n in ((2, 20), (3, 22))}
    for j, units in kept.items():
        member[j][units] = 1
    for j, unit in ((2, 3), (2, 15), (3, 7), (3, 0)):  # kept and dropped units alike
        ends = []
        for step in (1e-6, -1e-6):
            moved = {k: v.clone() for k, v in member.items()}
            moved[j][unit] += step
            ends.append(loss(moved))
        assert float(slopes[j][unit]) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5, abs=1e-9)


# every chain and every search in some case
PAIRS = [(name, search) for i, name in enumerate(CHAINS) for j, search in enumerate(SEARCHES) if (i + j) % 2 == 0]


@pytest.mark.parametrize(
    ("make", "search"),
    [*((CHAINS[name], search) for name, search in PAIRS), (small_vgg, "gates")],
    ids=[*map("-".join, PAIRS), "vgg-gates"],
)
def test_the_path_goes_through_every_theta_i_and_no_higher(make, search):
    """Theorem 1: the largest loss on the path is the largest of theta_i, or an end; proved."""
    problem = make()
    method = im.Dropout(masks=6, search=search, every_vertex=True)
    connection = im.connect(problem.objective, problem.a, problem.b, method, seed=4)
    rows = [row for end in "ab" for row in connection.stats["dropped"][end]]
    losses = [problem.objective.loss(p) for p in connection.path.knots]
    top = max(*(row["loss"] for row in rows), losses[0], losses[-1])
    assert im.profile(problem.objective, connection.path, 5).max == pytest.approx(top, rel=1e-10)
    certificate = im.certify(problem.objective, connection.path)
    assert certificate.proved
    assert top <= certificate.bound <= top * (1 + 1e-9) + certificate.slack
    assert certificate.slack < 1e-4 * top
    assert all(k <= chain_of(problem.objective.program, problem.objective.structure).widths[int(j)] // 2
               for row in rows for j, k in row["kept"].items())  # fmt: skip


@searches
def test_the_vertices_of_the_path_are_those_of_the_measurement(trained, search):
    """The same seed gives the same subsets; a scale is smaller on the path where the larger end does not need it."""
    method = im.Dropout(masks=20, search=search, every_vertex=True)
    connection = im.connect(trained.objective, trained.a, trained.b, method, seed=4)
    s = im.dropout_stability(trained.objective, trained.a, masks=20, search=search, seed=4)
    enough = max(map(trained.objective.loss, (trained.a, trained.b)))
    met = 0
    for layer, row, vertex in zip(s.layers, connection.stats["dropped"]["a"], s.vertices().values(), strict=True):
        assert row["loss"] == pytest.approx(layer.loss) if layer.loss > enough else row["loss"] <= enough
        assert abs(row["scale"]) <= abs(layer.scale)
        if row["scale"] == layer.scale:
            met += 1
            distances = [
                max(float((v - knot[k]).abs().max()) for k, v in vertex.items()) for knot in connection.path.knots
            ]
            assert min(distances) <= 1e-12
    assert met > 0


def test_a_scale_is_no_larger_than_the_larger_end_needs():
    """Networks that are far better than their halves must be: without this the scales would be at their bound."""
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    module = nn.Sequential(nn.Linear(2, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False)).double()
    objective = im.Objective(module, data=(x, torch.tensor([0, 1])))
    a = {"0.weight": torch.eye(2).repeat(2, 1).double(), "2.weight": (2 * torch.eye(2) - 1).repeat(1, 2).double()}
    a["0.weight"][2:] *= -1
    connection = im.connect(objective, a, a, im.Dropout(masks=20))
    row = connection.stats["dropped"]["a"][0]
    assert row["separates_data"]
    assert 1 <= row["scale"] < 3
    certificate = im.certify(objective, connection.path)
    assert certificate.excess - certificate.slack <= 1e-12
    assert certificate.slack <= 1e-10


def test_float32_networks_are_measured_in_float32(trained):
    objective, a = trained.objective.cast(torch.float32), cast(trained.a, torch.float32)
    low = im.dropout_stability(objective, a, masks=20, search="gates")
    high = im.dropout_stability(trained.objective, cast(a, torch.float64), masks=20, search="gates")
    assert low.vertices()[1]["0.weight"].dtype == torch.float32
    assert objective.loss(low.vertices()[1]) == pytest.approx(low.layers[0].loss, rel=1e-4)
    assert low.epsilon < 3 * high.epsilon + 0.1


def test_inputs_are_not_written_and_test_data_are_measured(trained):
    before = {k: v.clone() for k, v in trained.a.items()}
    x, y = trained.objective.data
    test = trained.objective.on((x[:50] + 0.1, y[:50]))
    s = im.dropout_stability(trained.objective, trained.a, masks=5, search="gates", test=test)
    assert equal(trained.a, before)
    assert (s.test_loss, s.test_error) == test.measure(trained.a)
    for layer, vertex in zip(s.layers, s.vertices().values(), strict=True):
        assert (layer.test_loss, layer.test_error) == pytest.approx(test.measure(vertex))
    plain = s.to_dict()
    assert plain["layers"][0]["kept"]["1"] == s.layers[0].kept[1].tolist()
    assert plain["epsilon"] == s.epsilon


def test_a_penalty_is_left_out():
    problem = classify("ridge", perceptron([5, 8, 6, 4]), (5,), penalty=im.Ridge(0.1))
    bare = classify("ridge", perceptron([5, 8, 6, 4]), (5,))
    one, two = (im.dropout_stability(p.objective, p.a, masks=4) for p in (problem, bare))
    assert one.loss == pytest.approx(two.loss, rel=1e-12)
    assert one.epsilon == pytest.approx(two.epsilon, rel=1e-12)


def test_whether_a_subset_separates_is_judged_at_the_largest_scale():
    """Also where the best scale is negative, and where more layers follow."""
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    layers = [nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2)]
    objective = im.Objective(nn.Sequential(*layers).double(), data=(x, torch.tensor([0, 1])))
    eye = torch.eye(2).double()
    for sign in (1.0, -1.0):
        a = {"0.weight": eye, "2.weight": eye, "4.weight": sign * (2 * eye - 1), "4.bias": torch.zeros(2).double()}
        for layer in im.dropout_stability(objective, a, keep=1.0, masks=1).layers:
            assert layer.separates
            assert 10 < layer.scale * sign <= LARGEST_SCALE


def test_other_losses_and_other_fractions(trained):
    x, y = trained.objective.data
    target = nn.functional.one_hot(y, 10).double()
    for loss in ("mse", lambda out, t: (out - t).abs().pow(1.5).sum(1)):
        objective = im.Objective(trained.objective.skeleton, loss, (x, target), convex=True, dtype=torch.float64)
        found = {
            by: im.dropout_stability(objective, trained.a, masks=12, search=by).layers[0].loss
            for by in ("random", "gates")
        }
        assert found["gates"] < found["random"]
    wide = im.dropout_stability(trained.objective, trained.a, keep=0.8, masks=12, search="gates")
    assert [len(v) for v in wide.layers[0].kept.values()] == [kept_count(n, 0.8) for n in (24, 20, 22)]
    assert wide.epsilon < im.dropout_stability(trained.objective, trained.a, masks=12, search="gates").epsilon
    whole = im.dropout_stability(trained.objective, trained.a, keep=1.0, masks=4, scale="none", search="gates")
    assert whole.epsilon == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep": 0.0}, r"keep.*\(0, 1\]"),
        ({"keep": 1.2}, "1.2"),
        ({"masks": 0}, "at least 1"),
        ({"scale": "best"}, "'each'.*'best'"),
        ({"search": "magic"}, "'gates'.*'magic'"),
    ],
)
def test_refusals(trained, options, words):
    with pytest.raises(im.InputError, match=words):
        im.dropout_stability(trained.objective, trained.a, **options)


def test_networks_without_hidden_layers_and_losses_without_gradients_are_refused():
    module = nn.Linear(3, 2).double()
    data = (torch.ones(4, 3).double(), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(im.InputError, match="hidden layer"):
        im.dropout_stability(im.Objective(module, data=data), random_params(module, 0))
    problem = classify("more subsets than can be tried", perceptron([5, 20, 20, 4]), (5,))
    x, y = problem.objective.data

    def flat(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return out.detach().square().sum(1)

    objective = im.Objective(problem.objective.skeleton, flat, (x, y), convex=True, dtype=torch.float64)
    assert im.dropout_stability(objective, problem.a, masks=2).epsilon < inf
    with pytest.raises(im.InputError, match="search='random'"):
        im.dropout_stability(objective, problem.a, masks=40, search="gates")
    bad = problem.a | {"0.bias": torch.full_like(problem.a["0.bias"], float("nan"))}
    with pytest.raises(im.InputError, match=r"0\.bias"):
        im.dropout_stability(problem.objective, bad)


def test_a_penalty_counts_for_what_limits():
    """theta_i of the smaller loss has the larger weights: with a penalty it is what a path through it meets."""
    problem = classify("penalty", perceptron([5, 8, 8, 4]), (5,))
    plain = im.dropout_stability(problem.objective, problem.b, masks=4, seed=1)
    assert plain.limited_by.entry == 1
    # theta_2 has all rows of layer 1, theta_1 half of them
    penalty = im.Ridge(100.0, ("0.weight",))
    heavy = im.Objective(problem.objective.skeleton, data=problem.objective.data, penalty=penalty)
    found = im.dropout_stability(heavy, problem.b, masks=4, seed=1)
    assert [layer.loss for layer in found.layers] == pytest.approx([layer.loss for layer in plain.layers], rel=1e-12)
    for layer, vertex in zip(found.layers, found.vertices().values(), strict=True):
        assert layer.penalty == pytest.approx(heavy.penalty_of(vertex), rel=1e-12)
        assert heavy.loss(vertex) == pytest.approx(layer.loss + layer.penalty, rel=1e-9)
    top = max(found.layers, key=lambda layer: layer.loss + layer.penalty)
    assert found.limited_by is top
    assert top.entry == 2
    assert found.to_dict()["layers"][0]["penalty"] == found.layers[0].penalty
    assert all(layer.penalty == 0 for layer in plain.layers)
