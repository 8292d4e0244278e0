"""The premises of Nguyen 2019: ranks and widths as they are, and activations read from the graph."""

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.evaluate.level_network import independent_examples, rank_of, singular_values
from isthmus.structure.activations import activation_of, design
from isthmus.structure.chain import chain_of
from tests.problems import blobs, perceptron, random_params

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (3, 30), (30, 3), (4, 4)])
def test_singular_values_and_ranks_are_those_of_torch(shape):
    M = randn(*shape)
    torch.testing.assert_close(singular_values(M), torch.linalg.svdvals(M), rtol=1e-12, atol=1e-12)
    low = randn(shape[0], 2) @ randn(2, shape[1], seed=1)
    assert rank_of(low) == 2 == int(torch.linalg.matrix_rank(low))
    assert rank_of(torch.zeros(*shape, dtype=F64)) == 0
    assert rank_of(randn(*shape), tol=2.0) == 0


def test_independent_examples_are_counted_in_order():
    x = randn(7, 5)
    assert independent_examples(x) == 5
    x[2] = x[0] - 3 * x[1]
    assert independent_examples(x) == 2
    assert independent_examples(torch.zeros(3, 2)) == 0


ACTIVATIONS = [
    (nn.ReLU(), None, True),
    (nn.LeakyReLU(0.3), 0.3, True),
    (nn.LeakyReLU(-0.3), -0.3, True),
    (nn.Identity(), 1.0, False),
    (nn.Dropout(0.5), 1.0, False),
    (nn.ELU(), None, True),
    (nn.Hardtanh(), None, True),
    (nn.Tanh(), None, True),
    (nn.Softplus(), None, True),
    (nn.GELU(), None, True),
    (nn.Mish(), None, None),
]


@pytest.mark.parametrize(("activation", "slope", "independent"), ACTIVATIONS, ids=lambda v: str(v))
def test_activations_are_read_from_the_graph(activation, slope, independent):
    module = nn.Sequential(nn.Linear(3, 4), activation, nn.Linear(4, 2)).eval()
    objective = im.Objective(module, data=(torch.randn(5, 3), torch.zeros(5, dtype=torch.int64)))
    found = activation_of(chain_of(objective.program, objective.structure).layer(1))
    assert (found.slope, found.independent, found.plain) == (slope, independent, True)
    assert found.onto == (slope is not None and slope > 0)


@pytest.mark.parametrize("name", ["relu", "elu", "tanh", "gelu", "leaky_relu", "softplus"])
def test_shifts_of_independent_activations_have_full_rank_and_those_of_the_identity_two(name):
    """Assumption 2.2, seen in numbers: 12 shifts on 40 points."""
    t, b = torch.linspace(-3, 3, 40, dtype=F64)[:, None], torch.linspace(-2, 2, 12, dtype=F64)[None]
    function = getattr(torch.nn.functional, name)
    assert rank_of(function(t + b)) == 12
    assert rank_of(t + b) == 2


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(2, 5, 3),
        nn.Conv2d(2, 5, 3, padding=1, stride=2),
        nn.Conv2d(2, 5, (3, 2), padding="same", dilation=2),
        nn.Conv2d(2, 5, 3, padding="valid"),
        nn.Conv2d(2, 5, 4, padding="same", bias=False),
    ],
    ids=str,
)
def test_the_design_of_a_convolution_times_its_weights_is_the_convolution(convolution):
    x = randn(3, 2, 8, 7)
    convolution = convolution.double()
    flat = convolution(x).flatten(1).shape[1]
    module = nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), nn.Linear(flat, 2)).double()
    objective = im.Objective(module, data=(x, torch.zeros(3, dtype=torch.int64)))
    chain, params = chain_of(objective.program, objective.structure), module.state_dict()
    D = design(chain, 1, params, x)
    A = chain.read(params).A[1]
    found = torch.einsum("rck,ock->ro", D, A)
    want = convolution(x) if convolution.bias is None else convolution(x) - convolution.bias[:, None, None]
    torch.testing.assert_close(found, want.permute(0, 2, 3, 1).reshape(-1, 5), rtol=1e-10, atol=1e-10)
    h = torch.relu(convolution(x))
    D = design(chain, 2, params, h)
    found = torch.einsum("rck,ock->ro", D, chain.read(params).A[2]) + params["3.bias"]
    torch.testing.assert_close(found, objective.outputs(params), rtol=1e-10, atol=1e-10)


def test_the_design_of_a_convolution_in_one_dimension():
    x = randn(3, 2, 9)
    module = nn.Sequential(nn.Conv1d(2, 4, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(20, 2)).double()
    objective = im.Objective(module, data=(x, torch.zeros(3, dtype=torch.int64)))
    chain, params = chain_of(objective.program, objective.structure), module.state_dict()
    found = torch.einsum("rck,ock->ro", design(chain, 1, params, x), chain.read(params).A[1]) + params["0.bias"]
    torch.testing.assert_close(found, module[0](x).permute(0, 2, 1).reshape(-1, 4), rtol=1e-10, atol=1e-10)


def test_conditions_of_a_network_at_good_and_bad_points():
    module = perceptron([9, 16, 7, 3], lambda: nn.LeakyReLU(0.1)).double()
    x, y = blobs(8, (9,), 3)
    objective = im.Objective(module, data=(x, y))
    good = random_params(module, 1)
    bad = {**good, "0.weight": torch.zeros_like(good["0.weight"]), "2.weight": torch.zeros_like(good["2.weight"])}
    c = im.sublevel_conditions(objective, good, bad)
    assert (c.examples, c.widths, c.rank_data) == (8, (9, 16, 7, 3), 8)
    assert c.rank_features[0] == {1: 8, 2: 7}
    assert c.rank_features[1][1] == 1
    assert c.property_3_1 == (True, False)
    s = torch.linalg.svdvals(good["2.weight"])
    assert c.full_rank[0][2] == pytest.approx(float(s[-1] / s[0]))
    F = torch.nn.functional.leaky_relu(x @ good["0.weight"].T + good["0.bias"], 0.1)
    s = torch.linalg.svdvals(F)
    assert c.condition_features[0][1] == pytest.approx(float(s[0] / s[-1]))
    held = {t.name: t.holds for t in c.connected}
    assert held == {"6.1 (case 2)": False, "3.2": True, "5.1": True}
    assert [(t.name, t.level, t.holds) for t in c.descent] == [("4.2", 2, False), ("4.2", 1, True), ("3.2", 0, True)]
    assert next(t for t in c.connected if t.name == "6.1 (case 2)").failing == ["n_2: 7, needed >= 2N = 16"]


def test_conditions_count_distances_of_samples():
    module = perceptron([2, 8, 3]).double()
    x, y = blobs(4, (2,), 3)
    x[3] = x[1]
    c = im.sublevel_conditions(im.Objective(module, data=(x, y)))
    failing = [text for t in c.connected for text in t.failing if "2.4" in text]
    assert failing == ["least distance of two samples (Assumption 2.4): 0, needed > 1e-12"]
    assert c.rank_features == ()


def test_networks_of_other_kinds_are_refused_by_name():
    x, y = blobs(4, (6,), 3)
    normal = nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 3)).double().eval()
    with pytest.raises(im.UnsupportedError, match="networks without normalisation"):
        im.sublevel_conditions(im.Objective(normal, data=(x, y)))
