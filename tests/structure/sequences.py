"""The networks of the cases: recurrent networks and attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LanguageModel(nn.Module):
    def __init__(self, kind: Callable[..., nn.Module] = nn.LSTM, tied: bool = False, **options: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.rnn = kind(6, 6 if tied else 8, 2, batch_first=True, **options)
        self.head = nn.Linear((6 if tied else 8) * (2 if options.get("bidirectional") else 1), 11)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.embedding(x))[0])


class LastState(nn.Module):
    """A classifier on the last hidden states of both directions of the second layer."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 5, 2, bidirectional=True)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        _, (h, _) = self.rnn(x.transpose(0, 1))
        return self.head(torch.cat([h[-2], h[-1]], dim=1))


class Block(nn.Module):
    """A block of a GPT: fused queries, keys and values, pre-normalisation."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = (
            z.view(b, t, self.heads, d // self.heads).transpose(1, 2) for z in self.qkv(self.ln1(x)).split(d, dim=2)
        )
        y = self.attend(q, k, v).transpose(1, 2).contiguous().view(b, t, d)
        x = x + self.proj(y)
        return x + self.down(F.gelu(self.up(self.ln2(x))))


class HandBlock(Block):
    """The same, with attention written out."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__(d, heads)
        self.register_buffer("mask", torch.tril(torch.ones(8, 8, dtype=torch.bool)), persistent=False)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        t = q.size(-2)
        scores = q @ k.transpose(-2, -1) / q.size(-1) ** 0.5
        scores = scores.masked_fill(~self.get_buffer("mask")[:t, :t], float("-inf"))
        return F.softmax(scores, dim=-1) @ v


class GPT(nn.Module):
    def __init__(self, block: type[Block] = Block, tied: bool = False) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(11, 12), nn.Embedding(8, 12)
        self.block = block(12, 3)
        self.ln = nn.LayerNorm(12)
        self.head = nn.Linear(12, 11, bias=False)
        if tied:
            self.head.weight = self.wte.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.wte(x) + self.wpe(torch.arange(x.size(1), device=x.device))
        return self.head(self.ln(self.block(x)))


class Transformer(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True, **options)
        self.embedding = nn.Linear(5, 8)
        self.position = nn.Parameter(torch.randn(1, 7, 8))
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x) + self.position[:, : x.shape[1]]
        return self.head(self.encoder(x).mean(1))


class ViT(nn.Module):
    """Patches by convolution, a class token, positions, nn.MultiheadAttention."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 2, 2)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.position = nn.Parameter(torch.randn(1, 5, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.size(0), -1, -1), x], 1) + self.position
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(x[:, 0])


class Rotary(nn.Module):
    """Rotary positions turn pairs of dimensions of queries and keys: they mix, the heads and values do not."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(11, 16), nn.RMSNorm(16)
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16, bias=False) for _ in range(4))
        self.head = nn.Linear(16, 11)
        self.register_buffer("rates", 10.0 ** -torch.arange(4.0), persistent=False)

    def turn(self, x: Tensor) -> Tensor:
        angles = torch.outer(torch.arange(x.size(-2)).to(x.dtype), self.get_buffer("rates").to(x.dtype))
        angles = torch.cat([angles, angles], -1)
        a, b = x.chunk(2, -1)
        return x * angles.cos() + torch.cat([-b, a], -1) * angles.sin()

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        q, k, v = (f(self.norm(x)).unflatten(-1, (2, 8)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(self.turn(q), self.turn(k), v).transpose(1, 2).flatten(2)
        return self.head(x + self.o(y))


class EinsumAttention(nn.Module):
    """Attention written with einsum on weights of three axes."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Parameter(torch.randn(5, 3, 4)) for _ in range(3))
        self.o = nn.Parameter(torch.randn(3, 4, 2))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("btd,dhk->bthk", x, w) for w in (self.q, self.k, self.v))
        weights = torch.einsum("bthk,bshk->bhts", q, k).softmax(-1)
        return torch.einsum("bthk,hkd->btd", torch.einsum("bhts,bshk->bthk", weights, v), self.o)


class WindowAttention(nn.Module):
    """nn.MultiheadAttention with its weights returned, and a looked-up table of relative positions per unit."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.attention, self.out = nn.Linear(5, 8), nn.MultiheadAttention(8, 2), nn.Linear(8, 3)
        self.table = nn.Parameter(torch.randn(9, 8))
        self.register_buffer("where", torch.arange(7) % 4)

    def forward(self, x: Tensor) -> Tensor:
        x = (self.inp(x) + self.table[self.get_buffer("where")]).movedim(1, 0)
        y, weights = self.attention(x, x, x)
        return self.out(x + y).mean(0) + weights.amax((1, 2))[:, None]


class Cells(nn.Module):
    """Recurrent cells in a loop: LSTMCell feeds GRUCell."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru, self.out = nn.LSTMCell(3, 5), nn.GRUCell(5, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.size(0), 5)
        g = x.new_zeros(x.size(0), 4)
        for step in x.unbind(1):
            h, c = self.lstm(step, (h, c))
            g = self.gru(h, g)
        return self.out(g)


class HandRecurrent(nn.Module):
    """An LSTM written out: the gates are chunks of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.loop, self.out = nn.Linear(3, 20), nn.Linear(5, 20, bias=False), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.size(0), 5)
        for t in range(x.size(1)):
            i, f, g, o = (self.inp(x[:, t]) + self.loop(h)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.out(h)


class LearnedState(nn.Module):
    """A first state that is a parameter has one axis for both layers, and ties them."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.GRU(3, 5, 2, batch_first=True), nn.Linear(5, 2)
        self.state = nn.Parameter(torch.randn(2, 1, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x, self.state.expand(-1, x.size(0), -1).contiguous())[0][:, -1])


class Writes(nn.Module):
    """Entries overwritten through views, along time."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.other, self.out = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 2)
        self.first = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.inp(x)
        y[:, 0] = self.first
        y[:, 1:3] = self.other(x)[:, 4:6]
        y[:, 5] *= 2
        return self.out(y.relu().sum(1))


class MeanState(nn.Module):
    """The last states of both layers averaged, from first states of ones: the layers are tied."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.GRU(3, 5, 2, batch_first=True), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        ones = x.new_zeros(2, x.size(0), 5) + 1
        return self.out(self.rnn(x, ones)[1].mean(0))


class Banded(nn.Module):
    """Attention of two heads that share keys and values by broadcasting, scores cut off by tril."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(5, 6), nn.Linear(5, 3), nn.Linear(5, 4), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(2, (2, 3)).transpose(1, 2)
        k, v = self.k(x)[:, None], self.v(x)[:, None]
        return self.out((torch.tril(q @ k.mT) @ v).movedim(1, 2).flatten(2))


class Moves(nn.Module):
    """Operations that only move entries, along time and along units."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.wide, self.out = nn.Linear(5, 6), nn.Linear(12, 4), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.stack([self.inp(x), self.inp(-x)], dim=1).relu()
        x = x.flip(2).index_select(2, torch.tensor([0, 3, 5])).narrow(2, 0, 2)
        a, b = x.unbind(1)
        x = self.wide(torch.cat([a, b], dim=2)).repeat(1, 1, 2).swapaxes(1, 2)
        return self.out(x.transpose(1, 2).squeeze(0)).sum(1)


class Packed(nn.Module):
    """Queries, keys and values in one layer, taken apart by unbind; fewer keys and values repeated by number."""

    def __init__(self, shared: int, fused: bool = False) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(5, 36), nn.Linear(12, 2)
        self.kv = nn.Linear(5, 6 * shared, bias=False)  # what is added to all keys alike, softmax does not see
        self.shared, self.fused = shared, fused

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, 4, 3).permute(2, 0, 3, 1, 4).unbind(0)
        few, own = (z.transpose(1, 2) for z in self.kv(x).view(b, t, self.shared, 2, 3).unbind(3))
        if self.fused:
            y = F.scaled_dot_product_attention(q, few, own, enable_gqa=True)
        else:
            few, own = (z.repeat_interleave(4 // self.shared, dim=1) for z in (few, own))
            y = F.scaled_dot_product_attention(q, few, own)
        y = y + F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))


class Winners(nn.Module):
    """Units that are chosen by what they compute: the best two stay, and the very best counts twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(5, 6), nn.Linear(6, 3)
        self.vectors = nn.Embedding(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        best, which = x.topk(2, -1)
        few = torch.zeros_like(x).scatter(-1, which, best)
        first = x.argmax(-1, keepdim=True)
        few = few + F.one_hot(first.squeeze(-1), 6) * x.gather(-1, first)
        return self.out(few) + x.sort(-1).values[..., :1] + self.vectors(which[..., 0]) * x.max(-1, keepdim=True)[0]


class Along(nn.Module):
    """Everything that runs along time or writes at places in it."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        x = x.cumsum(1).roll(2, 1).diff(dim=1, prepend=x[:, :1]).cummax(1).values
        places = torch.tensor([0, 3])
        x = x.index_add(1, places, x[:, :2]).index_put((torch.tensor([0, 1]), places), x[0, 0])
        x = x + x.gather(1, torch.zeros(1, 1, 1, dtype=torch.int64).expand(len(x), 7, 6))
        x = x.scatter_add(1, torch.ones(len(x), 2, 6, dtype=torch.int64), x[:, 2:4])
        return self.out(x.relu())


class Renumbered(nn.Module):
    """The numbers of the best two units, the first of which is always said to be unit 3."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.vectors = nn.Linear(5, 6), nn.Embedding(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        _, which = self.inp(x).topk(2, -1)
        return self.vectors(which.scatter(-1, torch.zeros_like(which[..., :1]), 3)).sum(-2)
