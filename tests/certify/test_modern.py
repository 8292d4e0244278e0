"""Lines between tuned pairs of small transformers: proved, close, and refused by name where that cannot be."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isthmus as im
from tests.hugging_face import Logits, network

Data = tuple[Tensor | tuple[Tensor, ...], Tensor]


class Decoder(nn.Module):
    """A causal transformer of one block with rotated keys, grouped queries and a gated layer."""

    def __init__(self, words: int = 11, width: int = 8) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(words, width), nn.Linear(width, words, bias=False)
        self.one, self.two = nn.RMSNorm(width), nn.LayerNorm(width)
        self.q, self.kv, self.out = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.gate, self.up, self.down = nn.Linear(width, 12), nn.Linear(width, 12), nn.Linear(12, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.words(x)
        n, t, d = h.shape
        g = self.one(h)
        angle = torch.arange(t, dtype=h.dtype)[:, None] * torch.tensor([1.0, 0.1], dtype=h.dtype)
        cos, sin = torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()
        q, k = self.q(g).view(n, t, 2, 4).transpose(1, 2), self.kv(g).view(n, t, 2, 4).transpose(1, 2)
        q, k, v = self._turned(q, cos, sin), self._turned(k[:, :1], cos, sin), k[:, 1:]
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        h = h + self.out(seen.transpose(1, 2).reshape(n, t, d))
        g = self.two(h)
        return self.head(h + self.down(F.silu(self.gate(g)) * self.up(g)))

    @staticmethod
    def _turned(v: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return v * cos + torch.cat([-v[..., 2:], v[..., :2]], -1) * sin


def decoder() -> tuple[nn.Module, Data]:
    """Token losses, some of which count nowhere."""
    x = torch.randint(0, 11, (6, 5), generator=torch.Generator().manual_seed(0))
    return Decoder(), (x, torch.cat([x[:, 1:], torch.full((6, 1), -100)], 1))


def bert() -> tuple[nn.Module, Data]:
    """Classes of padded sequences."""
    pytest.importorskip("transformers")
    g = torch.Generator().manual_seed(0)
    x, lengths = torch.randint(0, 60, (8, 6), generator=g), torch.randint(2, 7, (8, 1), generator=g)
    mask = (torch.arange(6) < lengths).long()
    return Logits(network("bert")), ((x, mask), torch.arange(8) % 3)


def tuned(net: nn.Module, data: Data, steps: int = 5) -> nn.Module:
    """A few steps of Adam away."""
    net, (x, y) = deepcopy(net), data
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(steps):
        z = net(*(x if isinstance(x, tuple) else (x,)))
        optimizer.zero_grad()
        F.cross_entropy(z.flatten(0, -2), y.flatten()).backward()
        optimizer.step()
    return net


@pytest.mark.parametrize("make", [decoder, bert], ids=lambda f: f.__name__)
def test_the_line_of_a_tuned_pair_is_proved_closely(make: Callable[[], tuple[nn.Module, Data]]):
    torch.manual_seed(0)
    net, data = make()
    net = net.eval()
    objective = im.Objective(net, "cross_entropy", data)
    path = im.Path.through([net.state_dict(), tuned(net, data).state_dict()])
    c = im.certify(objective, path)
    assert c.proved, c.segments[0].why
    top = max(objective.cast(torch.float64).measure(path.at(k / 20)) for k in range(21))
    assert top[0] <= c.bound <= 1.02 * top[0]
    assert c.error_bound is not None
    assert c.error_bound >= top[1]


class Experts(nn.Module):
    """Two of three experts by the scores of a router: sorted by expert, multiplied in groups, and put back."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(4, 3), nn.Parameter(torch.randn(3, 4, 2))

    def forward(self, x: Tensor) -> Tensor:
        share, chosen = self.router(x).softmax(-1).topk(2)
        spread = torch.zeros(len(x), 3, dtype=x.dtype).scatter(1, chosen, share)
        each = (x.unsqueeze(0) @ self.experts).tanh() * spread.t().unsqueeze(2)
        best, worst = spread.argmax(1), spread.sort(1).indices[:, 0]
        out = torch.zeros(len(x), 2, dtype=x.dtype).index_add(0, torch.arange(len(x)), each.sum(0))
        return out + torch.nn.functional.one_hot(best, 3)[:, :2] * 0.1 - worst.unsqueeze(1) * 0.1


@pytest.mark.parametrize("apart", [1e-3, 3.0])
def test_a_choice_is_followed_where_it_does_not_move_and_else_refused_by_name(apart: float):
    torch.manual_seed(0)
    a = Experts()
    b = {k: v + apart * torch.randn_like(v) for k, v in a.state_dict().items()}
    objective = im.Objective(a, data=(torch.randn(6, 4), torch.arange(6) % 2))
    path = im.Path.through([a.state_dict(), b])
    c = im.certify(objective, path, budget=16)
    if apart > 1:
        assert c.segments[0].claim == "measured"
        assert "topk (test_modern.py" in c.segments[0].why
        assert "which entries are the greatest depends on t" in c.segments[0].why
    else:
        assert c.proved
        top = max(objective.cast(torch.float64).loss(path.at(k / 40)) for k in range(41))
        assert top <= c.bound <= 1.01 * top
