"""Outputs that depend on the other examples of a batch are found, and what is wrong is named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isthmus as im
from tests.objective.written import TOKENS, N, Written, X, Y
from tests.problems import blobs

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
    with pytest.raises(
        im.UnsupportedError, match=r"on 64 examples and not on 6.*test_dependence.py.*write x.shape\[0\]"
    ):
        im.Objective(fixed, data=(X.float(), Y))
    plain = Written(lambda self, x: F.linear(x, torch.zeros(3, 6)) + self.layer(x))
    for x in (X.float(), X):
        objective = im.Objective(plain, data=(x, Y))
        assert objective.program.run(objective.check(plain), x).dtype == x.dtype
    narrow = Written(lambda self, x: F.linear(x, torch.zeros(3, 6, dtype=torch.float32)) + self.layer(x))
    im.Objective(narrow, data=(X.float(), Y))
    with pytest.raises(im.UnsupportedError, match=r"does not run in float64.*test_dependence.py.*write dtype=x.dtype"):
        im.Objective(narrow, data=(X, Y))


def test_rounding_is_no_dependence():
    deep = nn.Sequential(*(m for _ in range(12) for m in (nn.Linear(64, 64), nn.Tanh())), nn.Linear(64, 3)).double()
    with torch.no_grad():
        for p in deep.parameters():
            p.mul_(6)  # chaotic: float32 rounding grows to order one
    x, y = blobs(N, (64,), 3)
    im.Objective(deep.float(), data=(x.float(), y))
