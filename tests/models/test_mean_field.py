"""Mean-field networks and their training, beside formulas written out by hand."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad

import isthmus as im
from isthmus.models import by_name, mean_field, mean_field_init, mean_field_trials, seeded, train_mean_field
from isthmus.models.mean_field import MEAN_FIELD_ACTIVATIONS, Average, linear_layers
from isthmus.params import Params, equal
from isthmus.structure.chain import chain_of

D = 6
FORMULAS = {
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "clipped_relu": lambda z: z.clamp(0, 4),
}


def stream(k, g):
    """y = +-1 and x of a variance that depends on it."""
    y = torch.randint(2, (k, 1), generator=g) * 2.0 - 1
    return torch.randn(k, D, generator=g) * (1 + 0.2 * y), y


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("widths", [(5, 8, 3), (5, 8, 6, 7, 3)], ids=str)
def test_every_layer_averages_over_its_units(name, widths):
    net = mean_field(widths, name, hidden_bias=True, seed=1).double()
    p = net.state_dict()
    x = 5 * torch.randn(9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    h = x
    for l in range(len(widths) - 1):
        W, b = p[f"{3 * l}.weight"], p.get(f"{3 * l}.bias", torch.zeros(1))
        h = h @ W.T / (1 if l == 0 else widths[l]) + b
        h = FORMULAS[name](h) if l < len(widths) - 2 else h
    torch.testing.assert_close(net(x), h, rtol=1e-13, atol=1e-13)
    assert f"{3 * (len(widths) - 2)}.bias" not in p


def test_a_bias_is_the_weight_of_a_feature_1():
    with_bias, without = mean_field((4, 7, 2), seed=3), mean_field((5, 7, 2), bias=False, seed=3)
    p, q = with_bias.state_dict(), without.state_dict()
    assert torch.equal(torch.cat([p["0.weight"], p["0.bias"][:, None]], 1), q["0.weight"])
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(with_bias(x), without(torch.cat([x, torch.ones(6, 1)], 1)))


@pytest.mark.parametrize("init", ["unimodal", "bimodal"])
def test_initial_distributions_have_mean_0_variance_1_and_bounded_support(init):
    p = mean_field_init(mean_field((50, 3000, 200, 2), seed=0), init, seed=5)
    for key, scale in (("0.weight", 51**0.5), ("0.bias", 51**0.5), ("3.weight", 1), ("6.weight", 1)):
        v = p[key].double() * scale
        n = v.numel()
        assert abs(float(v.mean())) < 5 / n**0.5
        assert abs(float(v.square().mean()) - 1) < 8 / n**0.5
        assert float(v.abs().max()) < 2.3
        middle = float((v.abs() < 0.2).double().mean())
        assert middle == 0 if init == "bimodal" else 0.1 < middle < 0.3
    for narrow, wide in ((100, 1000), (1000, 10000)):
        few, many = (mean_field_init(mean_field((4, n, 1), seed=0), init)["3.weight"].std() for n in (narrow, wide))
        assert abs(float(few / many) - 1) < 0.3, "the distribution must not depend on N"


def test_a_users_distribution_is_used_layer_by_layer():
    seen = []

    def draw(l, shape, generator):
        seen.append((l, shape))
        return torch.full(shape, float(l))

    net = mean_field((3, 4, 5, 2), init=draw, seed=0)
    assert seen == [(1, (4, 4)), (2, (5, 4)), (3, (2, 5))]
    assert bool((net.state_dict()["3.weight"] == 2).all())
    with pytest.raises(im.InputError, match=r"init, layer 1: expected weights of shape \(4, 4\), got \(1,\)"):
        mean_field_init(net, lambda l, shape, g: torch.zeros(1))


def test_torchs_generator_is_drawn_from_only_for_a_seed():
    state = torch.random.get_rng_state()
    net = mean_field((3, 5, 1), seed=0)
    train_mean_field(net, stream_of(3), step=0.1, time=0.5)
    assert torch.equal(torch.random.get_rng_state(), state)
    one, two, three = (seeded(partial(mean_field, (3, 5, 1)), s) for s in (0, 0, 1))
    assert equal(one.state_dict(), two.state_dict())
    assert not equal(one.state_dict(), three.state_dict())


def stream_of(d):
    def sample(k, g):
        x = torch.randn(k, d, generator=g)
        return x, x[:, :1]

    return sample


def loss_of(net: nn.Module, kind: str, p: Params, x, y):
    out = functional_call(net, p, (x,))
    each = F.cross_entropy(out, y, reduction="none") if kind == "cross_entropy" else (out - y).square().sum(1)
    return each.mean()


def by_hand(net, widths, sample, kind, *, step, steps, batch, seed, xi=lambda t: 1.0, ends=True):
    """(3.3) and (4.3) word for word: autograd's gradients, times N or N^2."""
    g = torch.Generator().manual_seed(seed)
    p = mean_field_init(net, "unimodal", g)
    last = len(widths) - 2
    for k in range(steps):
        x, y = sample(batch, g)
        x = x.to(p["0.weight"])
        y = y.to(p["0.weight"]) if kind == "square" else y
        slopes = grad(partial(loss_of, net, kind))(p, x, y)
        for key, slope in slopes.items():
            l, part = int(key.split(".")[0]) // 3, key.split(".")[1]
            if not ends and l in (0, last):
                continue
            n_in, n_out = (1 if l == 0 else widths[l]), (1 if l == last else widths[l + 1])
            p = {**p, key: p[key] - step * xi(k * step) * (n_out if part == "bias" else n_in * n_out) * slope}
    return p


@pytest.mark.parametrize("kind", ["square", "cross_entropy"])
@pytest.mark.parametrize(
    ("widths", "options", "ends"),
    [
        ((D, 20, 3), {}, True),
        ((D, 20, 3), {"bias": False}, True),
        ((D, 12, 15, 9, 3), {"hidden_bias": True}, True),
        ((D, 12, 15, 9, 3), {"hidden_bias": True}, False),
        ((D, 8, 8, 3), {}, True),
    ],
    ids=str,
)
def test_training_is_sgd_with_gradients_times_N_or_N_squared(kind, widths, options, ends):
    def sample(k, g):
        x, y = stream(k, g)
        return x, (y > 0).long().flatten() if kind == "cross_entropy" else torch.cat([y, x[:, :2]], 1)

    net = mean_field(widths, "tanh", seed=0, **options).double()
    xi = lambda t: 1 / (1 + t)
    found = train_mean_field(net, sample, step=0.05, time=0.6, batch=4, seed=7, loss=kind, xi=xi, train_ends=ends)
    want = by_hand(net, widths, sample, kind, step=0.05, steps=12, batch=4, seed=7, xi=xi, ends=ends)
    start = mean_field_init(net, "unimodal", 7)
    for key in want:
        torch.testing.assert_close(found[key], want[key], rtol=1e-10, atol=1e-12)
        fixed = not ends and key.startswith(("0.", f"{3 * (len(widths) - 2)}."))
        assert torch.equal(found[key], start[key]) == fixed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stacked_trials_are_single_trainings(dtype):
    net = mean_field((D, 10, 8, 1), "clipped_relu", seed=0).to(dtype)
    options = {"step": 0.02, "time": 0.4, "batch": 3}
    before = {k: v.clone() for k, v in net.state_dict().items()}
    together = mean_field_trials(net, stream, seeds=(3, 1, 4), times=(0.0, 0.2, 0.4), **options)
    assert list(together) == [0.0, 0.2, 0.4]
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for i, seed in enumerate((3, 1, 4)):
        alone = train_mean_field(net, stream, seed=seed, **options)
        half = train_mean_field(net, stream, seed=seed, **{**options, "time": 0.2})
        assert equal(together[0.0][i], mean_field_init(net, seed=seed))
        for key, v in alone.items():
            assert v.dtype == dtype
            torch.testing.assert_close(together[0.4][i][key], v, rtol=tolerance, atol=tolerance)
            torch.testing.assert_close(together[0.2][i][key], half[key], rtol=tolerance, atol=tolerance)
        assert equal(alone, train_mean_field(net, stream, seed=seed, **options))
    assert equal(net.state_dict(), before), "the module is not written to"


def test_the_scale_of_the_steps_keeps_the_dynamics_as_N_grows():
    """Wide networks move as narrow ones do (not lazily), and end at about the same loss."""
    test = stream(2000, torch.Generator().manual_seed(5))
    moved, losses = [], []
    for N in (100, 1600):
        net = mean_field((D, N, 1), "clipped_relu", seed=0)
        runs = mean_field_trials(net, stream, step=0.02, time=10, batch=16, seeds=range(4), times=(0, 10))
        for p, q in zip(runs[0], runs[10], strict=True):
            moved.append(float((q["3.weight"] - p["3.weight"]).square().mean()))
            losses.append(float((functional_call(net, q, (test[0],)) - test[1]).square().mean()))
    assert min(moved) > 0.05
    assert max(moved) < 2 * min(moved)
    assert max(losses) < 0.96


def test_epochs_use_every_example_equally_often_and_one_pass_only_once():
    """A gradient that is the target itself counts how often each example was used."""
    x, y = torch.zeros(7, 2), torch.arange(7) % 3
    seen = torch.zeros(7, dtype=torch.int64)

    def note(outputs, labels):
        return outputs.sum(1) * 0 + labels

    labels = torch.arange(7)

    def count(outputs, y):
        seen.index_add_(0, y, torch.ones_like(y))
        return note(outputs, y)

    net = mean_field((2, 4, 3), seed=0)
    train_mean_field(net, (x, labels), step=0.5, time=7.0, batch=4, loss=count)
    assert seen.tolist() == [8] * 7
    seen.zero_()
    train_mean_field(net, (x, labels), step=0.5, time=1.5, batch=2, loss=count, reuse=False)
    assert int(seen.max()) == 1
    with pytest.raises(im.InputError, match=r"at most 7 examples, each used once, got 4 steps of 2"):
        train_mean_field(net, (x, y), step=0.5, time=2.0, batch=2, loss="cross_entropy", reuse=False)


def test_a_data_set_gives_the_same_training_as_its_batches_by_hand():
    g = torch.Generator().manual_seed(0)
    x, y = stream(10, g)
    net = mean_field((D, 9, 1), "tanh", seed=0).double()
    found = train_mean_field(net, (x, y), step=0.1, time=0.5, batch=5, seed=2)
    shuffled: list[int] = []

    def sample(k, generator):
        while len(shuffled) < k:
            shuffled.extend(torch.randperm(10, generator=generator).tolist())
        index = [shuffled.pop(0) for _ in range(k)]
        return x[index], y[index]

    want = train_mean_field(net, sample, step=0.1, time=0.5, batch=5, seed=2)
    assert equal(found, want)


def test_training_starts_where_it_is_told():
    net = mean_field((D, 9, 1), seed=0)
    own = mean_field_init(net, "bimodal", 3)
    assert equal(train_mean_field(net, stream, step=0.1, time=0.0, start=own), own)
    assert equal(train_mean_field(net, stream, step=0.1, time=0.0, start="bimodal", seed=3), own)
    with pytest.raises(im.InputError, match=r"start\['0.weight'\]: expected shape"):
        train_mean_field(net, stream, step=0.1, time=0.1, start={**own, "0.weight": torch.zeros(2, 2)})


def test_images_are_read_as_rows():
    x = torch.randn(12, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    y = torch.arange(12) % 2
    net = mean_field((6, 8, 2), seed=0)
    runs = [train_mean_field(net, (v, y), step=0.1, time=1, loss="cross_entropy") for v in (x, x.flatten(1))]
    assert equal(*runs)


def test_divergence_is_an_error_that_names_the_step():
    net = mean_field((D, 30, 1), seed=0)
    with pytest.raises(im.InputError, match=r"step: .*not finite after \d+ steps; write a smaller step"):
        train_mean_field(net, stream, step=500.0, time=500.0 * 400)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 0}, "step: expected a positive number"),
        ({"time": -1}, "time: expected a number >= 0"),
        ({"batch": 0}, "batch: expected a whole number"),
        ({"loss": "mse"}, "loss: expected one of square, cross_entropy"),
        ({"start": "trimodal"}, "init: expected one of unimodal, bimodal"),
        ({"train_ends": False}, "True for two layers"),
        ({"xi": lambda t: -1.0}, "xi: expected a positive number"),
        ({"sample": lambda k, g: (torch.zeros(k + 1, D), torch.zeros(k, 1))}, r"expected k = 2 x and as many y"),
        ({"sample": lambda k, g: (torch.zeros(k, D + 1), torch.zeros(k, 1))}, "expected 6 features per example"),
        ({"sample": lambda k, g: (torch.zeros(k, D), torch.zeros(k))}, r"y: expected shape \(2, 1\)"),
        ({"sample": (torch.zeros(3, D), torch.zeros(4, 1))}, "as many x as y"),
        ({"loss": lambda out, y: out.mean()}, "one value per example"),
    ],
    ids=lambda v: "+".join(v) if isinstance(v, dict) else "",
)
def test_what_cannot_be_trained_is_refused(options, message):
    net = mean_field((D, 9, 1), seed=0)
    arguments = {"sample": stream, "step": 0.1, "time": 1.0, "batch": 2} | options
    with pytest.raises(im.InputError, match=message):
        train_mean_field(net, arguments.pop("sample"), **arguments)
    with pytest.raises(im.InputError, match="times: expected times from 0 to 1"):
        mean_field_trials(net, stream, step=0.1, time=1.0, times=(2.0,))
    with pytest.raises(im.InputError, match="at least one seed"):
        mean_field_trials(net, stream, step=0.1, time=1.0, seeds=())


def test_other_networks_are_refused_by_name():
    linear, average = nn.Linear, Average
    for module, message in (
        (nn.Sequential(linear(2, 3), nn.ReLU(), linear(3, 1)), "'2': it does not read one Average of layer '0'"),
        (nn.Sequential(linear(2, 3), average(4), linear(3, 1)), r"Average\(4\) does not average"),
        (nn.Sequential(linear(2, 3), average(3), average(3), linear(3, 1)), "does not read one Average"),
        (nn.Sequential(linear(2, 3), nn.PReLU(), average(3), linear(3, 1)), "PReLU"),
        (nn.Sequential(linear(2, 3), average(3)), "it is no mean-field network"),
        (linear(2, 3), "it is no mean-field network"),
    ):
        with pytest.raises(im.UnsupportedError, match=message):
            linear_layers(module)


@pytest.mark.parametrize(
    ("widths", "options", "message"),
    [
        ((3, 2), {}, "at least one hidden width"),
        ((3, 0, 2), {}, "widths: expected whole numbers"),
        ((3, 4, 2), {"activation": "cube"}, "activation: expected one of"),
        ((3, 4, 2), {"init": "flat"}, "init: expected one of unimodal, bimodal"),
    ],
)
def test_bad_networks_are_refused(widths, options, message):
    with pytest.raises(im.InputError, match=message):
        mean_field(widths, **options)


@pytest.mark.parametrize(
    ("name", "widths"),
    [("tanh", (5, 9, 4)), *((name, (5, 8, 6, 7, 4)) for name in sorted(MEAN_FIELD_ACTIVATIONS))],
    ids=str,
)
def test_the_graph_is_a_chain_with_units_and_proved_paths(name, widths):
    net = mean_field(widths, name, hidden_bias=True, seed=0).double()
    x = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    objective = im.Objective(net, data=(x, torch.arange(12) % 4))
    assert [g.size for g in objective.structure.groups] == list(widths[1:-1])
    chain = chain_of(objective.program, objective.structure)
    assert chain.widths == widths
    a, b = (mean_field_init(net, seed=s) for s in (1, 2))
    torch.testing.assert_close(chain.forward(a, x), objective.outputs(a), rtol=1e-13, atol=1e-13)
    for method in (im.MeanField(), im.Dropout(masks=2)):
        assert im.certify(objective, im.connect(objective, a, b, method).path).proved
    path = im.connect(objective, a, b).path
    certificate = im.certify(objective, path, gap=0.1)
    assert certificate.proved
    assert certificate.bound >= im.profile(objective, path, 201).max


def test_names_of_mean_field_networks():
    net = by_name("meanfield:5-8x2-3:tanh:nobias", inputs=5, outputs=3)
    assert list(net.state_dict()) == ["0.weight", "3.weight", "6.weight"]
    assert isinstance(net.get_submodule("1"), nn.Tanh)
    assert list(by_name("meanfield:5-8-3").state_dict()) == ["0.weight", "0.bias", "3.weight"]
    assert isinstance(by_name("meanfield:5-8-3:clipped_relu").get_submodule("1"), nn.Hardtanh)
    for spec, message in (
        ("meanfield", "expected widths"),
        ("meanfield:5-3", "at least one hidden width"),
        ("meanfield:5-8-3:cube", "expected whole numbers .* got 'cube'"),
        ("meanfield:5-8-3:relu:tanh", "expected one activation"),
    ):
        with pytest.raises(im.InputError, match=message):
            by_name(spec)
    with pytest.raises(im.InputError, match="expected 7 inputs, as the data have"):
        by_name("meanfield:5-8-3", inputs=7)
