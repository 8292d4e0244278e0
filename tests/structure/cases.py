"""One small model per rule: what it is, and the groups that it must have."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isthmus.program import Program, trace
from isthmus.structure import Structure, structure_of


@dataclass(frozen=True, eq=False)
class Case:
    """A module, the arguments of its forward pass, and name -> size of its groups (negative: not separable)."""

    name: str
    make: Callable[[], nn.Module]
    args: tuple[Any, ...]
    groups: dict[str, int]

    @cached_property
    def program(self) -> Program:
        """Its program, traced once."""
        return trace(self.module(), self.args)

    @cached_property
    def structure(self) -> Structure:
        """Its groups, derived once and not verified."""
        return structure_of(self.program, {k: v.shape for k, v in self.module().state_dict().items()})

    def module(self) -> nn.Module:
        """The module in eval mode, with the weights of seed 0 (the global generator is left as it was)."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            # modules that stand in the list below are shared between calls
            return copy.deepcopy(self.make()).eval()


class Lambda(nn.Module):
    """A function as a module."""

    def __init__(self, f: Callable[..., Any]) -> None:
        super().__init__()
        self.f = f

    def forward(self, *x: Tensor) -> Any:
        return self.f(*x)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def tokens(*shape: int, high: int = 11) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(1))


def between(*middle: nn.Module, width: int = 6) -> nn.Module:
    """A perceptron with something between its two layers."""
    return nn.Sequential(nn.Linear(4, width), *middle, nn.Linear(width, 3))


def between_convs(*middle: nn.Module, read: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), *middle, nn.Conv2d(read, 2, 1))


class BasicBlock(nn.Module):
    def __init__(self, inside: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.down = nn.Sequential()
        if stride > 1:
            self.down = nn.Sequential(nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += self.down(x)
        return self.relu(y)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.Sequential(BasicBlock(4, 4, 1), BasicBlock(4, 6, 2))
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.stem(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class PaddedShortcut(nn.Module):
    """The parameter-free shortcut of CIFAR ResNets: every second pixel, new channels padded with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return self.fc(F.relu(self.conv(x) + short).mean((2, 3)))


class LanguageModel(nn.Module):
    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM, tied: bool = False, **options: Any) -> None:
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


class Branches(nn.Module):
    """Two branches side by side, then one half of each read apart."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(4, 5)
        self.join = nn.Linear(8, 6)
        self.first, self.rest = nn.Linear(2, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.join(torch.cat([self.left(x).relu(), torch.tanh(self.right(x))], dim=1))
        first, rest = x.split([2, 4], dim=1)
        return self.first(first) * 2 + self.rest(rest)


class Gated(nn.Module):
    """SwiGLU with a per-unit gain, and RMSNorm in front of the head."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = (nn.Linear(m, n, bias=False) for m, n in ((4, 6), (4, 6), (6, 5)))
        self.gain = nn.Parameter(torch.rand(6))
        self.norm, self.head = nn.RMSNorm(5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.down(F.silu(self.gate(x)) * self.up(x) * self.gain)))


class LowRank(nn.Module):
    """A weight with a low-rank update, W + B A: the rank is a group of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.W, self.B, self.A = (nn.Parameter(torch.randn(s)) for s in ((6, 4), (6, 2), (2, 4)))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(F.linear(x, self.W + self.B @ self.A)))


class Raw(nn.Module):
    """Weights by hand: x @ W, addmm, einsum, an explicit transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.U, self.V, self.W, self.b = (nn.Parameter(torch.randn(s)) for s in ((4, 6), (6, 5), (7, 5), (5,)))
        self.X = nn.Parameter(torch.randn(7, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.addmm(self.b, (x @ self.U).sigmoid(), self.V)
        return torch.einsum("bi,ij->bj", F.softplus(x.matmul(self.W.t())), self.X)


class Reshaped(nn.Module):
    """Channels taken through views and transposes, and read in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(36, 6)
        self.mix, self.out = nn.Linear(3, 5), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).permute(0, 2, 3, 1).reshape(x.size(0), -1)
        x = self.fc(x).view(-1, 2, 3)
        return self.out(self.mix(x).relu().transpose(1, 2).flatten(1))


class Shared(nn.Module):
    """One layer applied twice: what it makes is what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.loop, self.out = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.loop(self.loop(self.inp(x).relu()).relu()).relu())


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
        x = (self.inp(x) + self.table[self.where]).movedim(1, 0)
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


class Skips(nn.Module):
    """DenseNet and U-Net: everything before is read again."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.norm, self.up = nn.BatchNorm2d(10), nn.ConvTranspose2d(10, 4, 2, 2)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x).relu()
        both = torch.cat([F.max_pool2d(a, 2), F.max_pool2d(self.b(a).relu(), 2)], 1)
        return self.out(torch.cat([a, self.up(self.norm(both))], 1))


class Squeezed(nn.Module):
    """Squeeze and excitation: each channel times a function of the channel means."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 1)
        self.down, self.up = nn.Linear(6, 4), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        return self.out(x * self.up(self.down(x.mean((2, 3))).relu()).sigmoid()[:, :, None, None])


class Several(nn.Module):
    """Two inputs, one by keyword in other uses; two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(2, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.maximum(self.a(x), self.b(y))
        return self.c(h), self.c(-h)


def vgg() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(True), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(True), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(20, 6), nn.ReLU(True), nn.Dropout(), nn.Linear(6, 3)),
    )


ACTIVATIONS = [
    *(nn.ReLU(), nn.LeakyReLU(), nn.ELU(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Tanh(), nn.Sigmoid()),
    *(nn.Softplus(), nn.Hardtanh(), nn.ReLU6(), nn.Mish(), nn.Hardswish(), nn.SELU(), nn.Softsign(), nn.PReLU()),
    *(nn.Identity(), nn.Dropout(0.5), nn.LogSigmoid(), nn.Hardsigmoid(), nn.CELU(), nn.PReLU(6)),
]
X, IMAGE, LINE, SEQUENCE = noise(3, 4), noise(3, 3, 8, 8), noise(3, 3, 9), noise(3, 7, 5)
RESIDUAL = {"wte": -12, "block.qkv.heads": 3, "block.qkv.head_dim": -4, "block.qkv.value_dim": 4, "block.up": 24}
ENCODER = {"embedding": -8} | {
    f"encoder.layers.{i}.{k}": n
    for i in (0, 1)
    for k, n in (("self_attn.heads", 2), ("self_attn.head_dim", -4), ("linear1", 16))
}

CASES = [
    Case("perceptron", lambda: between(nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 6)), (X,), {"0": 6, "2": 5, "4": 6}),
    Case("no bias", lambda: nn.Sequential(nn.Linear(4, 6, False), nn.ReLU(), nn.Linear(6, 3, False)), (X,), {"0": 6}),
    *(Case(f"activation {f}", lambda f=f: between(f), (X,), {"0": 6}) for f in ACTIVATIONS),
    Case("BatchNorm1d", lambda: between(nn.BatchNorm1d(6), nn.ReLU()), (X,), {"0": 6}),
    Case("LayerNorm", lambda: between(nn.LayerNorm(6), nn.ReLU()), (X,), {"0": -6}),
    Case("softmax", lambda: between(nn.Softmax(1)), (X,), {"0": -6}),
    Case("GLU", lambda: nn.Sequential(nn.Linear(4, 12), nn.GLU(), nn.Linear(6, 3)), (X,), {"0": 6}),
    Case("log_softmax out", lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3), nn.LogSoftmax(1)), (X,), {"0": 6}),
    Case("max pool, flatten", lambda: between_convs(nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5), nn.Unflatten(1, (5, 1, 1)), read=5), (IMAGE,), {"0": 4, "4": 5}),
    *(
        Case(f"pool {pool}", lambda pool=pool: between_convs(pool), (IMAGE,), {"0": 4})
        for pool in (nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(2), nn.AdaptiveMaxPool2d(2), nn.Upsample(scale_factor=2))
    ),
    Case("conv1d", lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.AvgPool1d(2), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(4, 3)), (LINE,), {"0": 4}),
    Case("conv same", lambda: between_convs(nn.ReLU(), nn.Conv2d(4, 5, 3, padding="same", dilation=2), nn.Tanh(), read=5), (IMAGE,), {"0": 4, "2": 5}),
    Case("transposed conv", lambda: between_convs(nn.ConvTranspose2d(4, 5, 2, 2), nn.ReLU(), read=5), (IMAGE,), {"0": 4, "1": 5}),
    Case("GroupNorm", lambda: between_convs(nn.GroupNorm(2, 4), nn.ReLU()), (IMAGE,), {"0.groups": 2, "0": -2}),
    Case("InstanceNorm", lambda: nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.InstanceNorm2d(4, affine=True), nn.Conv2d(4, 2, 1)), (IMAGE,), {"0": 4}),
    Case("VGG with BatchNorm", vgg, (IMAGE,), {"0": 4, "4": 5, "9": 6}),
    Case("ResNet", ResNet, (IMAGE,), {"stem": 4, "blocks.0.conv1": 4, "blocks.1.conv1": 6, "blocks.1.conv2": 6}),
    Case("padded shortcut", PaddedShortcut, (IMAGE,), {"stem": 4, "conv": 2, "conv#2": 2}),
    Case("LSTM", LanguageModel, (tokens(3, 5),), {"embedding": 6, "rnn.hidden.0": 8, "rnn.hidden.1": 8}),
    Case("LSTM without bias", lambda: LanguageModel(bias=False), (tokens(3, 5),), {"embedding": 6, "rnn.hidden.0": 8, "rnn.hidden.1": 8}),
    Case("LSTM, both directions", lambda: LanguageModel(bidirectional=True), (tokens(3, 5),), {"embedding": 6} | {f"rnn.hidden.{i}{r}": 8 for i in (0, 1) for r in ("", ".reverse")}),
    Case("LSTM, tied", lambda: LanguageModel(tied=True), (tokens(3, 5),), {"embedding": -6, "rnn.hidden.0": 6}),
    Case("LSTM, last state", LastState, (noise(3, 4, 3),), {f"rnn.hidden.{i}{r}": 5 for i in (0, 1) for r in ("", ".reverse")}),
    Case("GRU", lambda: LanguageModel(nn.GRU), (tokens(3, 5),), {"embedding": 6, "rnn.hidden.0": 8, "rnn.hidden.1": 8}),
    Case("plain RNN", lambda: LanguageModel(nn.RNN), (tokens(3, 5),), {"embedding": 6, "rnn.hidden.0": 8, "rnn.hidden.1": 8}),
    Case("GPT", GPT, (tokens(3, 5),), RESIDUAL),
    Case("GPT, tied", lambda: GPT(tied=True), (tokens(3, 5),), RESIDUAL),
    Case("GPT, hand-written attention", lambda: GPT(HandBlock), (tokens(3, 5),), {"wte": -12, "block.qkv": 3, "block.qkv#2": -4, "block.qkv#3": 4, "block.up": 24}),
    Case("TransformerEncoder", Transformer, (SEQUENCE,), ENCODER),
    Case("TransformerEncoder, norm first", lambda: Transformer(norm_first=True, activation="gelu"), (SEQUENCE,), ENCODER),
    Case("ViT", ViT, (noise(3, 3, 4, 4),), {"patch": 8, "attention.heads": 2, "attention.head_dim": -4}),
    Case("cat and split", Branches, (X,), {"left": 3, "right": 5, "join": 2, "join#2": 4}),
    Case("SwiGLU, RMSNorm", Gated, (X,), {"gate": 6, "down": -5}),
    Case("low rank", LowRank, (X,), {"A": 2, "W": 6}),
    Case("raw weights", Raw, (X,), {"U": 6, "V": 5, "W": 7}),
    Case("reshapes", Reshaped, (noise(3, 3, 5, 5),), {"conv": 4, "fc": 2, "fc#2": 3, "mix": 5}),
    Case("shared layer", Shared, (X,), {"inp": 6}),
    Case("weight_norm", lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.utils.parametrizations.weight_norm(nn.Linear(6, 5)), nn.ReLU(), nn.Linear(5, 3)), (X,), {"0": -6, "2.parametrizations.weight": 5}),
    Case("maxout", lambda: nn.Sequential(nn.Linear(4, 12), nn.Unflatten(1, (6, 2)), Lambda(lambda x: x.amax(-1)), nn.Linear(6, 3)), (X,), {"0": 6, "0#2": -2}),
    Case("channel shuffle", lambda: between_convs(nn.Unflatten(1, (2, 2)), Lambda(lambda x: x.transpose(1, 2).flatten(1, 2))), (IMAGE,), {"0": 2, "0#2": 2}),
    Case("rotary positions", Rotary, (tokens(3, 5),), {"embedding": -16, "q.heads": 2, "v.value_dim": 8}),
    Case("attention by einsum", EinsumAttention, (SEQUENCE,), {"q": 3, "q#2": -4, "v": 4}),
    Case("attention weights", WindowAttention, (SEQUENCE,), {"inp": 8, "attention": -2, "attention#2": -4}),
    Case("cells", Cells, (noise(3, 4, 3),), {"lstm": 5, "gru": 4}),
    Case("hand-written LSTM", HandRecurrent, (noise(3, 4, 3),), {"inp": 5}),
    Case("learned first state", LearnedState, (noise(3, 4, 3),), {"rnn.hidden.0": 5}),
    Case("moves", Moves, (SEQUENCE,), {"inp": 6, "wide": 4}),
    Case("dense and U-shaped", Skips, (IMAGE,), {"a": 4, "b": 6, "up": 4}),
    Case("squeeze and excitation", Squeezed, (IMAGE,), {"conv": 6, "down": 4}),
    Case("several inputs and outputs", Several, (X, noise(3, 2)), {"a": 6}),
]  # fmt: skip
