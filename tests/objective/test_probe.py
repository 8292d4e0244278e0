"""What an objective finds out about a module before it trusts it, and that nothing of the caller's is written."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import isthmus as im
from isthmus.training.fit import Recipe, fit
from tests.objective.written import TOKENS, Bounded, N, Written, X, Y, attribute, buffer, by_hand, moved, run_once


class Steps:
    """A counter in an object of the user's own."""

    count = 0


def counts(self, x):
    self.n += 1
    return self.layer(x)


def counts_and_multiplies(self, x):
    self.n += 1
    return self.layer(x) * self.n


def averages(self, x):
    self.m.mul_(0.9).add_(x.mean(0), alpha=0.1)
    return self.layer(x)


def observes(self, x):
    self.m.data.copy_(x.abs().amax(0))
    return self.layer(x)


def clamps(self, x):
    self.layer.weight.data.clamp_(-0.1, 0.1)
    return self.layer(x)


def subtracts(self, x):
    x -= 0.5
    return self.layer(x)


def zeroes(self, x):
    x.view(len(x), 2, 3)[:, 0] = 0
    return self.layer(x)


def keeps(self, x):
    self.last = self.layer(x)
    return self.last


def warms_up(self, x):
    self.calls += 1
    return self.layer(x) * (1 if self.calls < 4 else 2)


def collects(self, x):
    self.seen.append(x.mean())
    return self.layer(x) * len(self.seen)


def adds_up(self, x):
    self.total += 1
    return self.layer(x) + self.total


def steps(self, x):
    self.steps.count += 1
    return self.layer(x) * (1 if self.steps.count < 4 else 2)


WRITERS = {
    "max_norm": (Bounded, TOKENS),
    "counter": (lambda: Written(counts, buffer("n", torch.zeros((), dtype=torch.int64))), X),
    "counter outside the state": (lambda: Written(counts_and_multiplies, buffer("n", torch.zeros(()), False)), X),
    "average": (lambda: Written(averages, buffer("m", torch.zeros(6))), X),
    "observer": (lambda: Written(observes, buffer("m", torch.zeros(6))), X),
    "clamped weights": (lambda: Written(clamps), X),
    "input": (lambda: Written(subtracts), X),
    "input through a view": (lambda: Written(zeroes), X),
    "first ReLU": (lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 3)), X),
    "new attribute": (lambda: Written(keeps), X),
    "number of calls": (lambda: Written(warms_up, attribute("calls", int)), X),
    "list": (lambda: Written(collects, attribute("seen", list)), X),
    "tensor that is no buffer": (lambda: Written(adds_up, attribute("total", lambda: torch.zeros(3))), X),
    "object": (lambda: Written(steps, attribute("steps", Steps)), X),
}


@pytest.mark.parametrize("name", WRITERS)
def test_writes_go_into_copies_and_are_forgotten(name):
    make, x = WRITERS[name]
    module, x = make().double().eval(), x.clone()
    params, before = moved(module), (copy.deepcopy(module), x.clone())
    given = {k: v.clone() for k, v in params.items()}
    truth = by_hand(module, params, x, Y)
    objective = im.Objective(module, data=(x, Y))
    values = [objective.loss(params) for _ in range(5)]
    assert values == pytest.approx([truth] * 5, rel=1e-12)
    path = im.Path.through([params, moved(module, 1)])
    measured = im.profile(objective, path, 3)
    middle = by_hand(module, {k: v.clone() for k, v in path.at(0.5).items()}, x, Y)
    assert float(measured.loss[1]) == pytest.approx(middle, rel=1e-12)
    fit(objective.batch_loss, objective.loss, params, N, Recipe(steps=2), generator=torch.Generator())
    assert torch.equal(x, before[1])
    assert all(torch.equal(v, given[k]) for k, v in params.items())
    assert all(torch.equal(v, before[0].state_dict()[k]) for k, v in module.state_dict().items())
    own = [{k: v for k, v in vars(m).items() if not k.startswith("_")} for m in (module, before[0])]
    assert own[0].keys() == own[1].keys()
    assert getattr(module, "seen", []) == []
    assert getattr(module, "calls", 0) == 0
    assert getattr(getattr(module, "steps", None), "count", 0) == 0


def test_a_forward_that_registers_buffers_must_have_run():
    def grows(self, x):
        if not hasattr(self, "offset"):
            self.register_buffer("offset", torch.zeros(3).to(x))
        return self.layer(x) + self.offset

    module = Written(grows).double()
    with pytest.raises(im.UnsupportedError, match=r"registers or removes 'offset'; run one forward pass first"):
        im.Objective(module, data=(X, Y))
    module(X)
    im.Objective(module, data=(X, Y))


# -- weights that are not those given


def test_weights_that_forward_finds_elsewhere_are_noticed():
    view = Written(
        lambda self, x: self.layer(x) + x @ self.t, lambda self: setattr(self, "t", self.layer.weight.data.t())
    )
    several = Written(lambda self, x: x @ self.all[0].t(), lambda self: setattr(self, "all", [self.layer.weight]))
    closure = nn.Linear(6, 3)
    closure.forward = lambda x: F.linear(x, closure.weight)  # type: ignore[method-assign]
    for module in (view, several, closure):
        with pytest.raises(im.UnsupportedError, match=r"whatever parameters it is given; read them as self\.name"):
            im.Objective(module, data=(X.float(), Y))


def test_constants_in_attributes_are_as_precise_as_the_rest():
    module = Written(lambda self, x: self.layer(x * self.scale), attribute("scale", lambda: torch.tensor([0.1] * 6)))
    objective = im.Objective(module, data=(X.float(), Y))
    params = moved(module)
    assert objective.cast(torch.float64).loss(params) == pytest.approx(objective.loss(params), rel=1e-6)


# -- random numbers and training mode

RANDOM: dict[str, Callable] = {
    "dropout": lambda self, x: self.layer(F.dropout(x, 0.05)),
    "tiny": lambda self, x: self.layer(x + 1e-12 * torch.rand_like(x)),
    "Python's": lambda self, x: self.layer(x) * (0 if random.random() < 1e-6 else 1),
    "numpy's": lambda self, x: self.layer(x) * (0 if np.random.rand() < 1e-6 else 1),  # noqa: NPY002
    "own generator": lambda self, x: self.layer(x + 0 * torch.randn(6, generator=torch.Generator()).to(x)),
    "seed": lambda self, x: (torch.manual_seed(0), self.layer(x))[1],
}


@pytest.mark.parametrize("name", RANDOM)
def test_random_numbers_are_found_however_rarely_they_matter(name):
    module = Written(RANDOM[name]).eval()
    states = random.getstate(), np.random.get_state(legacy=False)["state"]["key"].copy(), torch.get_rng_state()  # noqa: NPY002
    with pytest.raises(im.UnsupportedError, match="draws random numbers"):
        im.Objective(module, data=(X, Y))
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], states[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])


class Rarely(nn.Linear):
    """Drops in training mode, and only now and then."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(self._dropped(input))

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.05, self.training and len(x) > 100)


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Dropout(0.05), nn.Linear(6, 3)),
        nn.Sequential(Rarely(6, 3)),
        nn.Sequential(nn.utils.spectral_norm(nn.Linear(6, 3))),
        nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 3))),
        nn.Sequential(nn.Linear(6, 3), nn.RReLU()),
        nn.Sequential(nn.Unflatten(1, (3, 2)), nn.InstanceNorm1d(3, track_running_stats=True), nn.Flatten()),
    ],
    ids=["dropout", "now and then", "spectral norm", "spectral norm, new", "rrelu", "instance norm"],
)  # fmt: skip
def test_a_module_forgotten_in_training_mode_is_refused(module):
    module = nn.Sequential(*module, nn.LazyLinear(3))
    run_once(module.eval()).double()
    with pytest.raises(im.UnsupportedError, match=r"call module.eval\(\)"):
        im.Objective(module.train(), data=(X, Y))
    im.Objective(module.eval(), data=(X, Y))


def test_training_mode_is_let_be_where_it_changes_nothing():
    im.Objective(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Dropout(0.0), nn.Linear(5, 3)).train(), data=(X, Y))
    encoder = nn.TransformerEncoderLayer(6, 2, 12, dropout=0.0, batch_first=True)
    im.Objective(nn.Sequential(nn.Unflatten(1, (1, 6)), encoder, nn.Flatten(), nn.Linear(6, 3)).train(), data=(X, Y))


def test_attention_without_dropout_draws_nothing():
    def attends(self, x):
        h = x.view(-1, 1, 3, 2)
        return self.layer(F.scaled_dot_product_attention(h, h, h).flatten(1))

    im.Objective(Written(attends).eval(), data=(X, Y))


def test_counters_that_no_output_reads_may_differ():
    def trained(self, x):
        if self.training:
            self.n += 1
        return self.layer(x)

    def acting(self, x):
        return self.layer(x) * (1 + self.n % 3)

    for forward, acts in ((trained, False), (acting, True)):
        module = Written(forward, buffer("n", torch.tensor(5))).double().eval()
        objective = im.Objective(module, data=(X, Y))
        a, b = moved(module, 0), moved(module, 1) | {"n": torch.tensor(6)}
        assert objective.idle("n") is not acts
        if acts:
            with pytest.raises(im.InputError, match=r"b\['n'\]: expected the torch.int64 tensor of the other end"):
                im.connect(objective, a, b)
            continue
        path = im.connect(objective, a, b).path
        measured = im.profile(objective, path, 5)
        assert measured.loss.tolist() == pytest.approx([objective.loss(path.at(i / 4)) for i in range(5)], rel=1e-12)
        assert im.certify(objective, path).proved
