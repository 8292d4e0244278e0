"""A search that is stopped says what it has proved; one that was stopped or killed goes on to the same certificate."""

import itertools
from functools import cache, partial

import pytest
import torch
from torch import Tensor, nn

import isthmus as im
from isthmus.certify.kernel import Kernel
from isthmus.storage.state import FolderMemory
from tests.problems import two_layers

GAP = 1e-5


class Killed(BaseException):
    """What no handler expects."""


def at(count, error):
    """A progress that ends the work at that sub-interval."""

    def progress(what, done, total):
        if what == "bounding" and done == count:
            raise error

    return progress


@cache
def curve():
    p = two_layers()
    path = im.Path((im.Curve((p.a, {k: -9 * v for k, v in p.b.items()}, p.b)),))
    return p.objective, path, im.certify(p.objective, path, GAP).to_dict()


@pytest.mark.parametrize("left", [3, 4, 1000])
def test_what_was_stopped_holds_and_goes_on(left, tmp_path):
    objective, path, whole = curve()
    count = max(whole["evaluations"] - left, 3)
    stop = at(count, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        im.certify(objective, path, GAP, progress=stop)
    if count == 3:  # a part of the path has no bound yet
        with pytest.raises(KeyboardInterrupt):
            im.certify(objective, path, GAP, memory=tmp_path, progress=stop)
    else:
        found = im.certify(objective, path, GAP, memory=tmp_path, progress=stop)
        assert (found.proved, found.stopped, found.spent, found.evaluations) == (True, True, False, count)
        assert found.bound >= whole["witness"]["loss"]
        assert found.cost < whole["cost"]
        assert "the search was stopped after " in found.summary
        assert im.verify_certificate(objective, path, found.to_dict()) == []
        assert im.verify_certificate(objective, path, found.to_dict() | {"stopped": False})
    assert im.certify(objective, path, GAP, memory=tmp_path).to_dict() == whole


def test_what_was_killed_goes_on(tmp_path, monkeypatch):
    objective, path, whole = curve()
    last = whole["evaluations"] - 3
    with pytest.raises(Killed):
        im.certify(objective, path, GAP, memory=tmp_path, progress=at(last, Killed()))
    computed, own = [], Kernel.bound
    monkeypatch.setattr(
        Kernel, "bound", lambda self, *place, **model: computed.append(place) or own(self, *place, **model)
    )
    assert im.certify(objective, path, GAP, memory=tmp_path).to_dict() == whole
    assert len(computed) <= 3 + 7  # those that were left, and those that say what is dear
    assert im.certify(objective, path, memory=tmp_path).to_dict() == im.certify(objective, path).to_dict()
    (segment,) = path.segments
    with pytest.raises(im.FileError, match="another"):
        im.certify(objective, im.Path((segment.reversed(),)), memory=tmp_path)


@cache
def spent(model: str):
    p = two_layers()
    last = {k: p.b[k] if k.startswith("4") else v for k, v in p.a.items()}  # what enters the last layer stays
    certify = partial(im.certify, p.objective, im.Path.through([p.a, last, p.b]), 1e-9, model=model, budget=5)
    return certify, certify().to_dict()


@pytest.mark.parametrize("model", ["auto", "chord"])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_killed_at_any_bound_it_takes_as_many(count, model, tmp_path, monkeypatch):
    certify, whole = spent(model)
    own, calls = Kernel.bound, itertools.count(1)
    monkeypatch.setattr(FolderMemory, "due", lambda self, step: True)

    def bound(*place, **model):
        if next(calls) == count:
            raise Killed
        return own(*place, **model)

    assert whole["spent"]
    monkeypatch.setattr(Kernel, "bound", bound)
    with pytest.raises(Killed):
        certify(memory=tmp_path)
    assert certify(memory=tmp_path).to_dict() == whole  # now the calls are beyond that number


class Times(nn.Module):
    """A network with a factor that no weight and no name tells of."""

    def __init__(self, factor: float, shift: float) -> None:
        super().__init__()
        self.own, self.factor = nn.Linear(2, 2), factor
        self.register_buffer("shift", torch.full((), shift), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.own(x).tanh() + self.shift


def test_bounds_of_another_module_of_the_same_name_and_weights_are_not_taken(tmp_path):
    def certified(factor: float, shift: float) -> im.Certificate:
        objective = im.Objective(Times(factor, shift), "mse", (torch.eye(2), torch.zeros(2, 2)))
        ends = [{k: torch.full(v.shape, w) for k, v in objective.skeleton.state_dict().items()} for w in (-1.0, 2.0)]
        return im.certify(objective, im.Path.through(ends), 0.1, memory=tmp_path)

    first = certified(1.0, 0.0)
    assert certified(1.0, 0.0) == first
    for factor, shift in ((1.01, 0.0), (1.0, 0.01)):
        with pytest.raises(im.FileError, match="the state of another search"):
            certified(factor, shift)
