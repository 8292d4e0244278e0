"""Data that stay in a loader, functions of the parameters in place of data, half precisions, one point in memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset

import isthmus as im
from isthmus.paths import Segment
from isthmus.storage.on_file import StoredCurve
from tests.problems import blobs, perceptron, random_params, small_convnet

X, Y = blobs(23, (5,), 4)
NET = perceptron([5, 8, 4]).double()
A, B = random_params(NET, 1), random_params(NET, 2)
PATH = im.Path.through([A, B])


def loader(x: Tensor = X, y: Tensor = Y, **options: Any) -> DataLoader:
    return DataLoader(TensorDataset(x, y), batch_size=5, **options)


class Endless(IterableDataset):
    """Examples without numbers, which may begin or end in another way at every pass."""

    def __init__(self, first: int = 0, fewer: int = 0) -> None:
        self.first, self.fewer, self.passes = first, fewer, 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = range(self.first * self.passes, 23 - self.fewer * self.passes)
        self.passes += 1
        return iter([(X[i], Y[i]) for i in order])


def test_streamed_data_give_the_numbers_of_those_in_memory() -> None:
    held, streamed = im.Objective(NET, data=(X, Y)), im.Objective(NET, data=loader(), stream=True)
    assert streamed.passes == 1
    assert streamed.measure(A) == pytest.approx(held.measure(A), rel=1e-12)
    assert streamed.passes == 2
    found = im.profile(streamed, PATH, 5)
    assert streamed.passes == 7, "one pass for each point"
    assert found.loss.tolist() == pytest.approx(im.profile(held, PATH, 5).loss.tolist(), rel=1e-12)
    assert streamed.outputs(A).allclose(held.outputs(A), rtol=1e-12)
    index = torch.tensor([22, 3, 7])
    assert float(streamed.batch_loss(A, index)) == pytest.approx(float(held.batch_loss(A, index)), rel=1e-12)
    assert streamed.subset(7).loss(A) == pytest.approx(held.subset(7).loss(A), rel=1e-12)
    assert streamed.cast(torch.float32).dtype is torch.float32
    assert [g.size for g in streamed.structure.groups] == [8]


def test_streamed_data_say_what_they_take() -> None:
    streamed = im.Objective(NET, data=loader(), stream=True)
    assert "23 examples, streamed, 0.00024 of 0.0011 MB in memory" in repr(streamed)
    told, held = streamed.describe(), im.Objective(NET, data=(X, Y)).describe()
    assert {k: told[k] for k in held} == held, "the digest is that of the examples"
    assert (told["streamed"], told["bytes"], told["bytes_held"]) == (True, 23 * 48, 5 * 48)


@pytest.mark.parametrize(
    ("data", "memory", "streams"),
    [(loader(), None, False), (loader(), 23 * 48 - 1, True), (loader(), 23 * 48, False)]
    + [(DataLoader(Endless(), batch_size=5), 23 * 48 - 1, True), ((X, Y), 1, False), ([(X, Y)], 1, False)],
)
def test_data_are_streamed_where_they_are_larger_than_the_memory(data: Any, memory: int | None, streams: bool) -> None:
    objective = im.Objective(NET, data=data, memory=memory)
    assert objective.in_memory is not streams
    assert objective.loss(A) == pytest.approx(im.Objective(NET, data=(X, Y)).loss(A), rel=1e-12)


def test_running_statistics_are_those_of_data_in_memory() -> None:
    net = small_convnet().double().eval()
    x, y = blobs(9, (1, 8, 8), 4)
    path = im.Path.through([random_params(net, 1), random_params(net, 2)])
    held, streamed = im.Objective(net, data=(x, y)), im.Objective(net, data=loader(x, y), stream=True)
    assert im.profile(streamed, path, 3).loss.tolist() == pytest.approx(im.profile(held, path, 3).loss.tolist())


SHUFFLED = {
    "a shuffling loader": loader(shuffle=True),
    "a random sampler": loader(sampler=RandomSampler(TensorDataset(X, Y))),
    "another beginning": DataLoader(Endless(first=1), batch_size=5),
    "another end": DataLoader(Endless(fewer=1), batch_size=5),
}


@pytest.mark.parametrize("data", SHUFFLED.values(), ids=SHUFFLED.keys())
def test_passes_that_differ_are_refused(data: DataLoader) -> None:
    with pytest.raises(im.InputError, match=r"same examples in the same order on every pass.*stream=False"):
        im.Objective(NET, data=data, stream=True).loss(A)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda o: o.data, "the data: they are streamed, and this needs them in memory; write stream=False"),
        (lambda o: im.connect(o, A, B, im.Subnetwork()), "they are streamed, and this needs them in memory"),
        (lambda o: im.profile(o, PATH, 3, screen="bf16"), "needs the data in memory; leave screen out"),
        (lambda o: o.batch_loss(A, torch.tensor([0])), "needs examples by their number; give a DataLoader of a data"),
        (lambda o: o.on((X, Y)) and im.Objective(NET, data=(X, Y), stream=True), "got tensors in memory"),
    ],
)
def test_what_streamed_data_do_not_give(ask: Any, message: str) -> None:
    objective = im.Objective(NET, data=DataLoader(Endless(), batch_size=5), stream=True)
    with pytest.raises((im.UnsupportedError, im.InputError), match=message):
        ask(objective)


# -- functions of the parameters


def by_hand(params: Mapping[str, Tensor]) -> dict[str, float]:
    z = torch.relu(X @ params["0.weight"].T + params["0.bias"]) @ params["2.weight"].T + params["2.bias"]
    return {"loss": float(F.cross_entropy(z, Y)), "error": float((z.argmax(1) != Y).double().mean())}


def test_a_function_of_the_parameters_is_measured() -> None:
    seen, numbers = im.Objective(NET, data=(X, Y)), im.Objective(NET, evaluate=by_hand)
    assert numbers.measure(A) == pytest.approx(seen.measure(A), rel=1e-12)
    for objective in (numbers, numbers.cast(torch.float64)):
        found, want = im.profile(objective, PATH, 5), im.profile(seen, PATH, 5)
        assert found.loss.tolist() == pytest.approx(want.loss.tolist(), rel=1e-12)
        assert found.error.tolist() == want.error.tolist()
    assert im.connect(numbers, A, B, im.Linear()).outcome.ok
    assert repr(numbers) == "Objective(Sequential, by_hand, 84 parameters)"
    assert (numbers.describe()["loss"], numbers.describe()["named"]) == ("by_hand", False)
    assert not im.certify(numbers, PATH).proved


@pytest.mark.parametrize(
    "ask",
    [
        *(lambda o: o.outputs(A), lambda o: o.losses(A), lambda o: o.batch_loss(A, torch.tensor([0]))),
        *(lambda o: o.data, lambda o: o.program, lambda o: o.structure, lambda o: o.on((X, Y)), lambda o: o.subset(1)),
        *(lambda o: im.connect(o, A, B, im.Subnetwork()), lambda o: im.connect(o, A, B, im.StringSampling())),
        *(lambda o: im.dropout_stability(o, A), lambda o: im.noise_stability(o, A)),
    ],
)
def test_what_numbers_alone_do_not_give(ask: Any) -> None:
    with pytest.raises(im.UnsupportedError, match="evaluate= gives only the loss of parameters, and this needs grad"):
        ask(im.Objective(NET, evaluate=by_hand))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"evaluate": lambda params: {"accuracy": 1.0}}, "evaluate: .*the key 'loss', got the keys accuracy"),
        ({"evaluate": lambda params: 1.0}, "evaluate: .*got float"),
        ({"evaluate": lambda params: {"loss": "low"}}, "evaluate: expected numbers"),
        ({"evaluate": by_hand, "data": (X, Y)}, "data: expected nothing beside evaluate="),
        ({"evaluate": by_hand, "loss": "mse"}, "loss: expected nothing beside evaluate="),
    ],
)
def test_functions_that_give_no_loss(options: dict[str, Any], message: str) -> None:
    with pytest.raises(im.InputError, match=message):
        im.Objective(NET, **options).loss(A)


# -- precision and memory


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precisions_are_evaluated_as_they_are_and_compared_in_float32(dtype: torch.dtype) -> None:
    net = perceptron([5, 8, 4]).to(dtype)
    objective = im.Objective(net, data=(X, Y), dtype=dtype)
    assert objective.outputs(net).dtype == dtype
    assert objective.losses(net).dtype == torch.float32
    assert objective.loss(net) == pytest.approx(F.cross_entropy(net(X.to(dtype)).float(), Y).item(), rel=1e-6)
    wide = im.Objective(net, data=(X, Y)).loss(net)
    assert 0 < abs(objective.loss(net) - wide) < 0.05
    y = X[:, :4] + 1e-3
    regression = im.Objective(net, "mse", (X, y), dtype=dtype)
    assert regression.loss(net) == pytest.approx(F.mse_loss(net(X.to(dtype)).float(), y.float()).item(), rel=1e-6)


class Counted(Segment):
    """A segment that refuses to give a point while another one is alive."""

    def __init__(self, inner: Segment) -> None:
        self.inner, self.alive = inner, weakref.WeakSet()

    def at(self, t: float) -> dict[str, Tensor]:
        assert not self.alive, "two points of a path are in memory"
        point = {k: v.clone() for k, v in self.inner.at(t).items()}
        self.alive.update(v for v in point.values())
        return point

    @property
    def start(self) -> dict[str, Tensor]:
        return self.inner.start

    @property
    def end(self) -> dict[str, Tensor]:
        return self.inner.end

    @property
    def length(self) -> float:
        return self.inner.length

    def reversed(self) -> Segment:
        return self.inner.reversed()

    def split(self, t: float) -> tuple[Segment, Segment]:
        return self.inner.split(t)


@pytest.mark.parametrize("stream", [False, True])
def test_one_point_of_a_path_is_in_memory_at_a_time(stream: bool) -> None:
    objective = im.Objective(NET, data=loader(), stream=stream)
    path = im.Path((Counted(PATH.segments[0]),))
    assert im.profile(objective, path, 5).loss.tolist() == pytest.approx(im.profile(objective, PATH, 5).loss.tolist())


def test_a_path_is_measured_in_its_file(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = im.Objective(NET, data=(X, Y))
    path = im.Path((im.Curve((A, random_params(NET, 3), B)), im.Curve((B, A))))
    im.save(path, tmp_path / "path.safetensors")
    asked = []
    monkeypatch.setattr(StoredCurve, "at", lambda self, t, at=StoredCurve.at: asked.append(t) or at(self, t))
    found = im.profile(objective, tmp_path / "path.safetensors", 5)
    assert found.loss.tolist() == pytest.approx(im.profile(objective, path, 5).loss.tolist(), rel=1e-12)
    assert set(asked) == {0.0, 0.25, 0.5, 0.75, 1.0}
    whole = (tmp_path / "path.safetensors").read_bytes()
    (tmp_path / "bad.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(im.IsthmusError, match="is damaged"):
        im.profile(objective, str(tmp_path / "bad.safetensors"))
