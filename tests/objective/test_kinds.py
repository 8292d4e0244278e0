"""Modules of many kinds: they work, or are refused in a line that says why."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import isthmus as im
from isthmus.training.fit import Recipe, fit
from tests.objective.written import TOKENS, Bounded, N, X, Y, by_hand, moved, plain, run_once


def shared_norm() -> nn.Module:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.bn, self.head = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
            self.features = nn.Sequential(self.fc, self.bn, nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.features(x))

    return Twice()


def pruned() -> nn.Module:
    module = plain()
    prune.l1_unstructured(module[0], "weight", 0.3)
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


def test_what_holds_no_weights_that_move_is_refused():
    with pytest.raises(im.InputError, match=r"module: expected a torch\.nn\.Module, got function"):
        im.Objective(plain, data=(X, Y))  # type: ignore[arg-type]
    sparse = nn.Sequential(nn.Linear(6, 3))
    sparse.register_buffer("mask", torch.eye(3).to_sparse())
    with pytest.raises(
        im.UnsupportedError, match=r"'mask' of module '' .*: it is not dense .*; register v.to_dense\(\)"
    ):
        im.Objective(sparse, data=(X, Y))
    coded = nn.Sequential(nn.Linear(6, 3))
    coded.register_buffer("coded", torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8))
    with pytest.raises(im.UnsupportedError, match="it is quantised and cannot move; pass the floating-point module"):
        im.Objective(coded, data=(X, Y))
