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
from torch.nn.utils import parametrizations, prune

import isthmus as im
from isthmus.training.fit import Recipe, fit
from tests.problems import blobs

N = 23
X, Y = blobs(N, (6,), 3)
TOKENS = torch.randint(20, (N, 5), generator=torch.Generator().manual_seed(0))


class Written(nn.Module):
    """A linear layer with a forward pass, and attributes, of the test's choice."""

    def __init__(self, forward: Callable, prepare: Callable = lambda self: None) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.gain = nn.Parameter(torch.zeros(1))
        self.how = forward
        prepare(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


def by_hand(module: nn.Module, params: dict, x: Tensor, y: Tensor) -> float:
    """Load the parameters, forward, mean: on copies."""
    module = copy.deepcopy(module)
    module.load_state_dict(params)
    with torch.no_grad():
        return float(F.cross_entropy(module(x.clone()), y))


def moved(module: nn.Module, seed: int = 0) -> dict:
    g = torch.Generator().manual_seed(seed)
    state = module.state_dict(keep_vars=True)
    noise = {id(v): torch.randn(v.shape, generator=g).to(v) / 2 for v in module.parameters()}
    return {k: v.detach() + noise[id(v)] if id(v) in noise else v.detach().clone() for k, v in state.items()}


def buffer(name: str, value: Tensor, persistent: bool = True) -> Callable:
    return lambda self: self.register_buffer(name, value.clone(), persistent=persistent)


def attribute(name: str, value: Callable) -> Callable:
    return lambda self: setattr(self, name, value())


# -- writing


class Bounded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(20, 6, max_norm=1.0), nn.Linear(6, 3)

    def forward(self, t: Tensor) -> Tensor:
        return self.out(self.embed(t).mean(1))


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


# -- dependence between examples

MIXERS: dict[str, Callable] = {
    "sum over those before": lambda self, x: self.layer(x.cumsum(0)),
    "statistics of the batch": lambda self, x: self.layer((x - x.mean(0)) / x.std(0, correction=0).clamp(min=0.1)),
    "sorted": lambda self, x: self.layer(x.sort(0).values),
    "the first": lambda self, x: self.layer(x) + self.layer(x[:1]),
    "the last": lambda self, x: self.layer(x) + self.layer(x[-1:]),
    "the largest": lambda self, x: self.layer(x / x.abs().max()),
    "attention": lambda self, x: self.layer((x @ x.T).softmax(1) @ x),
    "weakly": lambda self, x: self.layer(x) + 1e-4 * x.mean(),
    "hidden by a zero": lambda self, x: self.layer(x) + self.gain * x.mean(),
    "neighbours": lambda self, x: self.layer(x.roll(1, 0)),
    "their number": lambda self, x: self.layer(x) * (2 if x.shape[0] > 4 else 1),
    "their order": lambda self, x: self.layer(x) * torch.linspace(1, 1.01, len(x))[:, None].to(x),
}


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dependence_between_examples_is_found(name, dtype):
    with pytest.raises(im.UnsupportedError, match="depends on the rest of its batch; examples must stand on axis 0"):
        im.Objective(Written(MIXERS[name]).eval(), data=(X.to(dtype), Y))


@pytest.mark.parametrize("recurrent", [nn.LSTM, nn.GRU, nn.RNN])
def test_sequence_first_is_refused_and_the_remedy_named(recurrent):
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e, self.r, self.out = nn.Embedding(20, 6), recurrent(6, 8), nn.Linear(8, 20)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.r(self.e(x))[0])

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(z.transpose(1, 2), y, reduction="none").mean(1)

    with pytest.raises(im.UnsupportedError, match=rf"stand on axis 0.*\(batch_first=True for {recurrent.__name__}\)"):
        im.Objective(First().eval(), loss, (TOKENS, TOKENS))


def test_an_output_whose_shape_depends_on_the_batch():
    squeezed = Written(lambda self, x: self.layer(x[:, None]).squeeze())
    with pytest.raises(im.UnsupportedError, match=r"shape of an example's output .*\(1, 3\) with others, \(3,\) for 1"):
        im.Objective(squeezed, data=(X.float(), Y))


def test_examples_that_do_not_fit_are_not_blamed_on_their_number():
    table = nn.Sequential(nn.Embedding(5, 2), nn.Flatten(), nn.Linear(4, 3))
    tokens = torch.tensor([[0, 1], [2, 3], [3, -1], [1, 2], [4, 0], [0, 0]])
    with pytest.raises(im.InputError, match=r"data: expected examples that Sequential accepts, got index out of range"):
        im.Objective(table, data=(tokens, torch.zeros(6, dtype=torch.int64)))
    many = torch.zeros(5000, 2, dtype=torch.int64)
    good, labels = im.Objective(table, data=(many, many[:, 0])), many[:, 0].clone()
    for odd in (-1, 9):
        many[1234, 1] = odd
        for make in (lambda: im.Objective(table, data=(many, labels)), lambda: good.on((many, labels))):
            with pytest.raises(im.InputError, match=r"data: .*got index out of range"):
                make()
    with pytest.raises(im.InputError, match=r"write x.long\(\), for numbers that are looked up"):
        im.Objective(table, data=(tokens.abs().float(), torch.zeros(6, dtype=torch.int64)))


def test_numbers_of_examples_written_into_forward_are_not_blamed_on_the_data():
    fixed = Written(lambda self, x: self.layer(x) + torch.zeros(64, 3))
    with pytest.raises(im.UnsupportedError, match=r"on 64 examples and not on 6.*test_probe.py.*write x.shape\[0\]"):
        im.Objective(fixed, data=(X.float(), Y))
    plain = Written(lambda self, x: F.linear(x, torch.zeros(3, 6)) + self.layer(x))
    for x in (X.float(), X):
        objective = im.Objective(plain, data=(x, Y))
        assert objective.program.run(objective.check(plain), x).dtype == x.dtype
    narrow = Written(lambda self, x: F.linear(x, torch.zeros(3, 6, dtype=torch.float32)) + self.layer(x))
    im.Objective(narrow, data=(X.float(), Y))
    with pytest.raises(im.UnsupportedError, match=r"does not run in float64.*test_probe.py.*write dtype=x.dtype"):
        im.Objective(narrow, data=(X, Y))


def test_rounding_is_no_dependence():
    deep = nn.Sequential(*(m for _ in range(12) for m in (nn.Linear(64, 64), nn.Tanh())), nn.Linear(64, 3)).double()
    with torch.no_grad():
        for p in deep.parameters():
            p.mul_(6)  # chaotic: float32 rounding grows to order one
    x, y = blobs(N, (64,), 3)
    im.Objective(deep.float(), data=(x.float(), y))


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


# -- modules of many kinds


def shared_norm() -> nn.Module:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.bn, self.head = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
            self.features = nn.Sequential(self.fc, self.bn, nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.features(x))

    return Twice()


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def pruned() -> nn.Module:
    module = plain()
    prune.l1_unstructured(module[0], "weight", 0.3)
    return module


def run_once(module: nn.Module) -> nn.Module:
    module(torch.ones(2, 6))
    return module


class Extra(nn.Linear):
    factor = 3

    def get_extra_state(self) -> dict:
        return {"factor": self.factor}

    def set_extra_state(self, state: dict) -> None:
        self.factor = state["factor"]

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.factor


class Masked(nn.Module):
    """Causal attention, with a mask of minus infinities among the buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.out = nn.Linear(2, 2), nn.Linear(6, 3)
        self.register_buffer("mask", torch.triu(torch.full((3, 3), -torch.inf), 1))

    def forward(self, x: Tensor) -> Tensor:
        h = x.view(-1, 3, 2)
        return self.out(((self.q(h) @ h.mT + self.mask).softmax(-1) @ h).flatten(1))


KINDS: dict[str, Callable[[], nn.Module]] = {
    "shared BatchNorm": shared_norm,
    "pruned": pruned,
    "pruned, after a pass": lambda: run_once(pruned()),
    "weight_norm": lambda: run_once(nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 5)), nn.ReLU(), nn.Linear(5, 3))),
    "weight_norm, new": lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 5)), nn.Linear(5, 3)),
    "spectral_norm": lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(6, 5)), nn.ReLU(), nn.Linear(5, 3)),
    "spectral_norm, new": lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 5)), nn.Linear(5, 3)),
    "lazy, after a pass": lambda: run_once(nn.Sequential(nn.LazyLinear(5), nn.ReLU(), nn.Linear(5, 3))),
    "DataParallel": lambda: nn.DataParallel(plain()),
    "DataParallel inside": lambda: nn.Sequential(nn.DataParallel(nn.Linear(6, 5)), nn.ReLU(), nn.Linear(5, 3)),
    "compiled": lambda: torch.compile(plain(), backend="eager"),  # type: ignore[return-value]
    "AveragedModel": lambda: torch.optim.swa_utils.AveragedModel(plain()),
    "fx": lambda: torch.fx.symbolic_trace(plain()),
    "extra state": lambda: Extra(6, 3),
    "mask": Masked,
}


@pytest.mark.parametrize("name", KINDS)
def test_modules_of_many_kinds_work(name):
    module = KINDS[name]().double().eval()
    a, b = (moved(module, s) if name != "extra state" else dict(module.state_dict()) for s in (0, 1))
    bare = getattr(module, "_orig_mod", module)
    values = {k.removeprefix("_orig_mod."): v for k, v in a.items()}
    with torch.no_grad():
        twin = KINDS[name]().double().eval()
        twin = getattr(twin, "_orig_mod", twin)
        twin.load_state_dict(values)
        truth = float(F.cross_entropy(twin(X), Y))
    objective = im.Objective(module, data=(X, Y))
    assert objective.loss(a) == pytest.approx(truth, rel=1e-12)
    assert objective.describe()["module"] == {"DataParallel": "Sequential", "fx": "GraphModule"}.get(
        name, type(bare).__name__
    )
    path = im.connect(objective, a, b, im.Linear()).path
    measured = im.profile(objective, path, 3, bn="interpolate")
    assert measured.loss.tolist() == pytest.approx([objective.loss(path.at(t)) for t in (0.0, 0.5, 1.0)], rel=1e-9)


@pytest.mark.parametrize("bn", ["interpolate", "keep", "recompute"])
def test_statistics_under_two_names_stay_one(bn):
    module = shared_norm().double().eval()
    objective = im.Objective(module, data=(X, Y))
    a, b = moved(module, 0), moved(module, 1)
    b["bn.running_mean"] = b["features.1.running_mean"] = torch.full((6,), 0.3, dtype=torch.float64)
    measured = im.profile(objective, im.connect(objective, a, b).path, 3, bn=bn)
    assert bool(measured.loss.isfinite().all())
    if bn == "interpolate":
        assert float(measured.loss[-1]) == pytest.approx(by_hand(module, b, X, Y), rel=1e-12)


def test_modules_that_cannot_be_moved_are_refused_in_a_line():
    lazy = nn.Sequential(nn.LazyLinear(5), nn.Linear(5, 3))
    with pytest.raises(im.UnsupportedError, match=r"no shape yet; run one forward pass first: module\(x\[:1\]\)"):
        im.Objective(lazy, data=(X, Y))
    with pytest.raises(im.UnsupportedError, match=r"torch\.jit compiled it; pass the Python module"):
        im.Objective(torch.jit.script(plain()), data=(X.float(), Y))
    with pytest.raises(im.UnsupportedError, match=r"float8_e4m3fn; call module.float\(\) first"):
        im.Objective(plain().to(torch.float8_e4m3fn), data=(X.float(), Y))
    quantised = torch.ao.quantization.quantize_dynamic(plain(), {nn.Linear}, torch.qint8)
    with pytest.raises(im.UnsupportedError, match="quantised and cannot move; pass the floating-point module"):
        im.Objective(quantised, data=(X.float(), Y))


def test_float8_checkpoints_are_widened():
    module = plain().eval()
    objective = im.Objective(module, data=(X.float(), Y))
    narrow = {k: v.to(torch.float8_e4m3fn) for k, v in module.state_dict().items()}
    assert objective.loss(narrow) == objective.loss({k: v.float() for k, v in narrow.items()})


def test_extra_state_stays_the_modules_own():
    module = Extra(6, 3).double().eval()
    objective, params = im.Objective(module, data=(X, Y)), dict(module.state_dict())
    loss = objective.loss(params)
    assert objective.loss({k: v for k, v in params.items() if k != "_extra_state"}) == loss
    with pytest.raises(im.InputError, match=r"params\['_extra_state'\]: expected the extra state of the objective's"):
        objective.loss(params | {"_extra_state": {"factor": 2}})  # type: ignore[dict-item]


@pytest.mark.parametrize("functional", [False, True])
def test_sparse_gradients_train(functional):
    class Sparse(Bounded):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(20, 6, sparse=True)

        def forward(self, t: Tensor) -> Tensor:
            h = F.embedding(t, self.embed.weight, sparse=True) if functional else self.embed(t)
            return self.out(h.mean(1))

    module = Sparse().double().eval()
    objective = im.Objective(module, data=(TOKENS, Y))
    start = moved(module)
    found = fit(objective.batch_loss, objective.loss, start, N, Recipe(steps=40, lr=0.05), generator=torch.Generator())
    assert found.loss < 0.9 * objective.loss(start)
    assert module.embed.sparse


def test_infinities_that_move_are_refused_and_masks_are_not():
    module = Masked().double().eval()
    objective = im.Objective(module, data=(X, Y))
    a, b = moved(module, 0), moved(module, 1)
    with pytest.raises(im.InputError, match=r"a\['mask'\]: expected finite numbers, got 3 entries"):
        im.connect(objective, a, b | {"mask": a["mask"].nan_to_num(neginf=-9.0)})
    infinite = {"q.bias": torch.full((2,), torch.inf, dtype=torch.float64)}
    with pytest.raises(im.InputError, match=r"a\['q.bias'\]: expected finite numbers"):
        im.connect(objective, a | infinite, b | infinite)
    path = im.connect(objective, a, b).path
    certified = im.certify(objective, path, num_points=5)
    assert certified.bound >= objective.loss(path.at(0.5))


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
