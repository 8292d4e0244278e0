"""Twenty architectures of today, each as small as it can be, as modules and examples of their arguments."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.attention_modules import BERT, GPT2, T5, Experts, Llama, ViT
from tests.hugging_face import KINDS, Logits, inputs, network
from tests.image_modules import ConvNeXtBlock, Dense, Inverted, PreActivated, Residual, UNet, conv, pooled


@dataclass(frozen=True, eq=False)
class Named:
    """A module that is made anew where it is needed."""

    name: str
    make: Callable[[], nn.Module]

    def module(self) -> nn.Module:
        """The module in eval mode, with the weights of seed 0 (the global generator is left as it was)."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            # what `make` gives may be shared between calls
            return copy.deepcopy(self.make()).eval()


@dataclass(frozen=True, eq=False)
class Architecture(Named):
    """A module, and the arguments of its forward pass (two examples)."""

    args: Callable[[], tuple[Tensor, ...]]


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def tokens(*shape: int, high: int = 11) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(1))


# -- others


class Recurrent(nn.Module):
    """Two layers whose first state is zeros like an entry of a weight, read at the last step."""

    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.words, self.rnn, self.head = nn.Embedding(11, 6), kind(6, 8, 2, batch_first=True), nn.Linear(8, 3)
        self.lstm = isinstance(self.rnn, nn.LSTM)

    def forward(self, x: Tensor) -> Tensor:
        zero = torch.zeros_like(cast(Any, self.rnn).weight_hh_l0[0]).expand(2, len(x), 8).contiguous()
        out, _ = self.rnn(self.words(x), (zero, zero) if self.lstm else zero)
        return self.head(out[:, -1])


class Graph(nn.Module):
    """Two rounds of messages along edges, normalised by degree, and the mean over the vertices."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.own, self.other = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
        self.message, self.head = nn.Linear(12, 5), nn.Linear(6, 3)
        self.back = nn.Linear(5, 6)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = F.relu(self.inp(x))
        near = edges + torch.eye(edges.size(-1), dtype=edges.dtype)
        near = near / near.sum(-1, keepdim=True)
        h = F.elu(self.own(h) + near @ self.other(h))
        n = h.size(1)
        pairs = torch.cat([h[:, :, None].expand(-1, n, n, -1), h[:, None].expand(-1, n, n, -1)], -1)
        sent = (near[..., None] * F.mish(self.message(pairs))).sum(2)
        return self.head((h + self.back(sent)).mean(1))


class Tabular(nn.Module):
    """Numbers beside embeddings of categories."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(5, 3), nn.Embedding(4, 2)])
        self.norm = nn.BatchNorm1d(4)
        self.body = nn.Sequential(nn.Linear(9, 8), nn.PReLU(8), nn.BatchNorm1d(8), nn.Linear(8, 6), nn.Hardswish())
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor, kinds: Tensor) -> Tensor:
        parts = [table(kinds[:, i]) for i, table in enumerate(self.tables)]
        return self.head(self.body(torch.cat([*parts, self.norm(x)], 1)))


class Towers(nn.Module):
    """Two towers whose outputs are compared by their normalised inner products."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 5))
        self.right = nn.Sequential(nn.Embedding(11, 6), nn.Flatten(), nn.Linear(18, 7), nn.Tanh(), nn.Linear(7, 5))
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        left, right = F.normalize(self.left(x), dim=-1), F.normalize(self.right(ids), dim=-1)
        return self.scale.exp() * (left * right).sum(-1, keepdim=True)


def autoencoder() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5), nn.GELU(), nn.Linear(5, 64)),
        *(nn.Unflatten(1, (4, 4, 4)), nn.ConvTranspose2d(4, 1, 2, 2)),
    )


def image() -> tuple[Tensor, ...]:
    return (noise(2, 3, 8, 8),)


def words() -> tuple[Tensor, ...]:
    return (tokens(2, 5),)


def masked() -> tuple[Tensor, ...]:
    mask = torch.ones(2, 5, dtype=torch.int64)
    mask[1, 3:] = 0
    return tokens(2, 5), mask


HAND_WRITTEN = [
    Architecture(
        "ResNet", lambda: pooled(conv(3, 4), Residual(4, 4), Residual(4, 6, 2), Residual(6, 6), width=6), image
    ),
    Architecture(
        "WideResNet",
        lambda: pooled(conv(3, 4), PreActivated(4, 6), PreActivated(6, 6), nn.BatchNorm2d(6), nn.ReLU(), width=6),
        image,
    ),
    Architecture("DenseNet", lambda: pooled(conv(3, 4), Dense(4, 3), Dense(7, 3), conv(10, 5, 1), width=5), image),
    Architecture(
        "MobileNetV2", lambda: pooled(conv(3, 4, act=nn.ReLU6), Inverted(4, 6), Inverted(4, 8), width=4), image
    ),
    Architecture(
        "EfficientNet",
        lambda: pooled(conv(3, 4, act=nn.SiLU), Inverted(4, 6, nn.SiLU, 3), Inverted(4, 6, nn.SiLU, 2), width=4),
        image,
    ),
    Architecture("ConvNeXt", lambda: pooled(nn.Conv2d(3, 6, 2, 2), ConvNeXtBlock(6), ConvNeXtBlock(6), width=6), image),
    Architecture("U-Net", UNet, image),
    Architecture("autoencoder", autoencoder, lambda: (noise(2, 1, 8, 8),)),
    Architecture("ViT", lambda: ViT(by_hand=True), lambda: (noise(2, 3, 4, 4),)),
    Architecture("ViT by TransformerEncoder", lambda: ViT(by_hand=False), lambda: (noise(2, 3, 4, 4),)),
    Architecture("GPT-2", GPT2, words),
    Architecture("Llama", Llama, words),
    Architecture("experts", lambda: Llama(Experts), words),
    Architecture("BERT", BERT, masked),
    Architecture("T5", T5, lambda: (tokens(2, 5), tokens(2, 4))),
    Architecture("LSTM", lambda: Recurrent(nn.LSTM), words),
    Architecture("GRU", lambda: Recurrent(nn.GRU), words),
    Architecture("graph", Graph, lambda: (noise(2, 4, 4), (noise(2, 4, 4) > 0).float())),
    Architecture("tabular", Tabular, lambda: (noise(2, 4), tokens(2, 2, high=4))),
    Architecture("two towers", Towers, lambda: (noise(2, 4), tokens(2, 3))),
]


# -- from transformers


def logits(kind: str) -> nn.Module:
    pytest.importorskip("transformers")
    return Logits(network(kind))


HUGGING_FACE = [
    Architecture(
        KINDS[kind][0], partial(logits, kind), masked if kind == "bert" else lambda kind=kind: (inputs(kind, 2),)
    )
    for kind in ("lm", "llama", "bert", "vit", "resnet", "mixtral")
]
