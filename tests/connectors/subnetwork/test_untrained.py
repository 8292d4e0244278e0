"""Paths through subnetworks that nobody trained: memorising (Corollary 4.3) and separating ones (Corollary 4.4)."""

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.connectors.subnetwork.train import Start, measure
from isthmus.connectors.subnetwork.untrained import memorising, separating
from isthmus.params import Params, cast, equal
from isthmus.premises import separability
from isthmus.premises.memorise import line_capacity, slab_capacity
from isthmus.structure.chain import chain_of
from isthmus.structure.network_units import random_units
from isthmus.training.fit import Recipe, fit
from tests.problems import Problem, blobs, classify, perceptron, random_params

MAKERS = {"memorise": memorising, "separate": separating}

INNER = {"memorise": im.Memorised(), "separate": im.Separated()}


def trained(module: nn.Module, objective: im.Objective, seed: int, target: float) -> Params:
    """A low point, found from He's random weights."""
    start = random_params(module, seed, objective.dtype)
    names = set(objective.parameter_names)
    fixed = {k: v for k, v in start.items() if k not in names}
    fitted = fit(
        lambda p, i: objective.batch_loss({**fixed, **p}, i),
        lambda p: objective.loss({**fixed, **p}),
        {k: v for k, v in start.items() if k in names},
        objective.num_examples,
        Recipe(steps=3000, batch=50),
        generator=torch.Generator().manual_seed(seed),
        target=target,
    )
    return {**fixed, **fitted.params}


def pair(module: nn.Module, data, loss="cross_entropy", target=1e-2) -> Problem:
    module = module.double().eval()
    objective = im.Objective(module, loss, data)
    return Problem("pair", objective, trained(module, objective, 1, target), trained(module, objective, 2, target))


@pytest.fixture(scope="module")
def digits():
    """Two 64-60-60-60-10 networks on 200 digits."""
    d = im.data.load("digits").flat()
    data = d.x_train[:200].double(), d.y_train[:200]
    return pair(perceptron([64, 60, 60, 60, 10]), data)


def rise(certificate: im.Certificate) -> float:
    """How far the losses that were evaluated rise, and those that are proved, but for what these allow for rounding."""
    return max(certificate.witness[1] - max(certificate.ends), certificate.excess - certificate.slack)


def checked(problem: Problem, method: im.Subnetwork, points: int = 41) -> im.Certificate:
    """The path is proved, its samples are below the bound, its ends are exact."""
    connection = im.connect(problem.objective, problem.a, problem.b, method)
    assert equal(connection.path.start, problem.a)
    assert equal(connection.path.end, problem.b)
    certificate = im.certify(problem.objective, connection.path)
    assert certificate.proved, [certificate.segments[i].why for i in certificate.unproved()]
    assert im.profile(problem.objective, connection.path, points).max <= certificate.bound * (1 + 1e-12)
    assert connection.stats["limited_by"]["loss"] <= certificate.bound
    assert certificate.slack < 1e-2 * max(certificate.ends)  # the weights that memorise are large
    rows = connection.stats["subnetworks"]
    last = max(row["layer"] for row in rows)
    assert all(row["steps"] == 0 for row in rows if row["layer"] < last or isinstance(method.inner, im.Separated))
    return certificate


@pytest.mark.parametrize("xi", ["memorise", "separate"])
def test_digits_are_connected_without_training_and_without_excess(digits, xi):
    line = im.profile(digits.objective, im.connect(digits.objective, digits.a, digits.b).path, 11).max
    certificate = checked(digits, im.Subnetwork(inner=INNER[xi]))
    assert rise(certificate) < 1e-12
    assert line > 20 * certificate.bound
    assert certificate.counts == {"convex": 8, "unchanged": 7}


def test_own_subsets_and_the_same_seed(digits):
    method = im.Subnetwork(subsets="own", draws=2, inner=im.Separated())
    assert rise(checked(digits, method, 3)) < 1e-12
    one, two = (im.connect(digits.objective, digits.a, digits.b, method, seed=5) for _ in range(2))
    assert all(equal(p, q) for p, q in zip(one.path.knots, two.path.knots, strict=True))


@pytest.mark.parametrize("xi", ["memorise", "separate"])
def test_without_biases(xi):
    x, y = blobs(60, (12,), 3)
    problem = pair(perceptron([12, 40, 40, 40, 3], bias=False), (x.abs(), y))
    assert rise(checked(problem, im.Subnetwork(inner=INNER[xi], draws=3), 5)) < 1e-12


def test_without_biases_and_with_inputs_on_both_sides():
    """No half-space holds the inputs: scores pass as positive and negative parts; memorising refuses by name."""
    x, y = blobs(24, (12,), 3)
    problem = pair(perceptron([12, 40, 40, 3], bias=False), (torch.cat([x, -x]), torch.cat([y, (y + 1) % 3])))
    assert rise(checked(problem, im.Subnetwork(inner=im.Separated()), 5)) < 1e-12
    with pytest.raises(im.InputError, match=r"features of layer 0.*half-space"):
        im.connect(problem.objective, problem.a, problem.b, im.Subnetwork(inner=im.Memorised()))


def test_scores_that_are_all_negative_pass_relu_too(monkeypatch):
    """Separators from a linear program give class 0 the score 0 and its examples no positive one."""
    monkeypatch.setattr(separability, "_FIRST", 1)
    monkeypatch.setattr(separability, "_STEPS", 1)
    problem = classify("random", perceptron([5, 24, 24, 4]), (5,))
    chain = chain_of(problem.objective.program, problem.objective.structure)
    begin = Start(chain, problem.a, 0, {l: torch.arange(12) for l in (1, 2)})
    assert separating(problem.objective, begin, torch.Generator(), 1e-3).loss <= 1e-3


@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU, nn.Sigmoid])
def test_other_activations_separate_and_do_not_memorise(activation):
    problem = pair(perceptron([6, 16, 16, 3], activation), blobs(40, (6,), 3))
    assert rise(checked(problem, im.Subnetwork(draws=3, inner=im.Separated()), 5)) < 1e-12
    with pytest.raises(im.UnsupportedError, match="layer 1: memorising needs linear layers with ReLU"):
        im.connect(problem.objective, problem.a, problem.b, im.Subnetwork(inner=im.Memorised()))


class Net(nn.Sequential):
    """Two convolutions with BatchNorm and pooling, three linear layers."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(12, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(),
            nn.Linear(256, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 3),
        )  # fmt: skip


@pytest.mark.parametrize("xi", ["memorise", "separate"])
def test_convolutional_networks(xi):
    problem = pair(Net(), blobs(60, (1, 8, 8), 3))
    assert rise(checked(problem, im.Subnetwork(inner=INNER[xi], draws=3), 5)) < 1e-12


def test_memorising_reads_the_last_convolution_directly():
    module = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 30), nn.ReLU(), nn.Linear(30, 3))
    assert rise(checked(pair(module, blobs(60, (1, 8, 8), 3)), im.Subnetwork(inner=im.Memorised()), 5)) < 1e-12


def test_regression_is_memorised_to_rounding():
    x, _ = blobs(30, (3,), 4)
    data = x, torch.stack([x.sum(1), x.prod(1)], 1)
    for bias in (True, False):
        module = perceptron([3, 20, 30, 60, 2], bias=bias).double()
        objective = im.Objective(module, "mse", data if bias else (x.abs(), data[1]))
        ends = random_params(module, 1), random_params(module, 2)
        connection = im.connect(objective, *ends, im.Subnetwork(draws=3, inner=im.Memorised()))
        losses = {row["layer"]: row["loss"] for row in connection.stats["subnetworks"]}
        assert max(losses[l] for l in (0, 1, 2)) < 1e-10
        assert im.certify(objective, connection.path).proved


def start(widths, N, l, *, classes=4, dtype=torch.float64, fraction=0.5):
    """xi_l on random features of random labels."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(N, widths[0], generator=g, dtype=torch.float64).to(dtype)
    module = perceptron(widths).to(dtype)
    objective = im.Objective(module, data=(x, torch.randint(0, classes, (N,), generator=g)))
    chain = chain_of(objective.program, objective.structure)
    hidden = {p: widths[p] for p in range(1, chain.L)}
    held = random_units(hidden, {p: int(fraction * n) for p, n in hidden.items()}, g)
    return objective, Start(chain, random_params(module, 3, dtype), l, held), g


def test_the_promised_number_of_examples_fits_and_far_more_do_not():
    widths = [8, 10, 16, 40, 4]
    promised = line_capacity(8, 20, 1)
    objective, begin, g = start(widths, promised, 0)
    found = memorising(objective, begin, g, 1e-3)
    assert found.loss <= 1e-3
    assert measure(objective, begin.chain, begin.params, 0, begin.reads, found.weights)[1] == 0.0
    objective, begin, g = start(widths, 2 * promised, 0)
    with pytest.raises(
        im.InputError,
        match=rf"layers 2 and 3: expected enough to memorise {2 * promised} examples, got room for {promised}",
    ):
        memorising(objective, begin, g)
    objective, begin, g = start([8, 20, 12, 4], 8 * slab_capacity(10, 6, 1), 1)
    with pytest.raises(im.InputError, match="layer 2: expected enough to memorise 240 examples, got room for 30"):
        memorising(objective, begin, g)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", MAKERS)
def test_both_precisions(kind, dtype):
    objective, begin, g = start([12, 24, 24, 24, 3], 10, 0, classes=3, dtype=dtype)
    found = MAKERS[kind](objective, begin, g, 1e-2)
    assert found.loss <= 1e-2
    assert all(v.dtype == dtype for v in found.weights.A.values())


def test_a_precision_that_does_not_suffice_is_refused_by_name(digits):
    objective = digits.objective.cast(torch.float32)
    a, b = cast(digits.a, torch.float32), cast(digits.b, torch.float32)
    with pytest.raises(im.InputError, match=r"xi_0 in float32: expected a loss.*write objective.cast\(torch.float64\)"):
        im.connect(objective, a, b, im.Subnetwork(inner=im.Memorised()))
    assert rise(im.certify(objective, im.connect(objective, a, b, im.Subnetwork(inner=im.Separated())).path)) < 1e-12


def test_what_cannot_be_separated_is_refused_with_the_proof():
    x = torch.cat([torch.eye(5), torch.eye(5)[:1]]).double()
    objective = im.Objective(perceptron([5, 9, 9, 2]).double(), data=(x, torch.tensor([0, 1, 0, 1, 0, 1])))
    problem = classify("inseparable", perceptron([5, 9, 9, 2]), (5,), 2)
    with pytest.raises(im.InputError, match=r"features of layer 0: expected linearly separable.*no margin exceeds"):
        im.connect(objective, problem.a, problem.b, im.Subnetwork(inner=im.Separated()))


def test_too_few_units_for_the_classes():
    problem = classify("thin", perceptron([5, 12, 6, 12, 4]), (5,))
    with pytest.raises(im.InputError, match="free units of layer 2: expected at least 4 to pass the classes on, got 3"):
        im.connect(problem.objective, problem.a, problem.b, im.Subnetwork(inner=im.Separated()))


def test_losses_and_fields_that_do_not_fit_are_refused():
    problem = classify("plain", perceptron([5, 9, 9, 4]), (5,))
    x, y = problem.objective.data
    soft = im.Objective(problem.objective.skeleton, data=(x, torch.nn.functional.one_hot(y, 4).double()))
    for xi in ("memorise", "separate"):
        with pytest.raises(im.UnsupportedError, match="cross_entropy with class labels"):
            im.connect(soft, problem.a, problem.b, im.Subnetwork(inner=INNER[xi]))
    with pytest.raises(im.InputError, match="fraction: expected numbers"):
        im.Subnetwork(fraction="search", inner=im.Separated())
    with pytest.raises(im.InputError, match="inner: expected a Trained, a Memorised or a Separated"):
        im.Subnetwork(inner="guess")  # type: ignore[arg-type]


@pytest.mark.parametrize("subsets", ["own", "same"])
def test_other_units_are_drawn_and_the_error_says_how_often(subsets):
    """From few units of layer 2 random labels are not separable, whichever they are."""
    module = perceptron([60, 40, 8, 16, 4]).double()
    x, y = blobs(50, (60,), 4)
    objective = im.Objective(module, data=(x, y[torch.randperm(50, generator=torch.Generator().manual_seed(0))]))
    a, b = random_params(module, 1), random_params(module, 2)
    with pytest.raises(im.InputError, match=r"features of layer [12]: expected linearly separable") as error:
        im.connect(objective, a, b, im.Subnetwork(subsets=subsets, draws=2, inner=im.Separated()))
    assert any("2 draw(s) of I_" in note for note in error.value.__notes__)
