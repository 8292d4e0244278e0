"""The parts that modules drawn at random are made of."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    def __init__(self, inner: nn.Module, *, in_place: bool) -> None:
        super().__init__()
        self.inner, self.in_place = inner, in_place

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner(x)
        if self.in_place:
            out = out * 1.0
            out += x
            return out
        return x + out


class Branches(nn.Module):
    """Two ways, joined by concatenation, sum, product, or the larger of the two."""

    def __init__(self, left: nn.Module, right: nn.Module, how: str) -> None:
        super().__init__()
        self.left, self.right, self.how = left, right, how

    def forward(self, x: Tensor) -> Tensor:
        p, q = self.left(x), self.right(x)
        if self.how == "cat":
            return torch.cat([p, q], 1)
        if self.how == "gate":
            return p * torch.sigmoid(q)
        return torch.maximum(p, q) if self.how == "maximum" else p + q


class Twice(nn.Module):
    """One block applied twice (tied weights), the second time scaled."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(F.relu(self.inner(x)) * 0.5)


class Aliased(nn.Module):
    """One layer under two names."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.alias = nn.Sequential(layer, nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.alias(x)


class Written(nn.Module):
    """In-place operations on values of its own."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        y = x * 1.5
        if self.kind == "clamp_":
            return y.clamp_(-2.0, 2.0)
        if self.kind == "view":
            y[:, 0] = 0.25
            return y
        if self.kind == "mul_":
            return y.mul_(x.tanh()).add_(0.1)
        z = y.clone()
        z[:, ::2].relu_()
        return z


class Reshaped(nn.Module):
    """The same numbers through another shape and back, or flattened, in the spellings that people use."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "view(size)":
            return x.view(x.size(0), -1)
        if self.kind == "view(shape)":
            return x.view(x.shape[0], -1)
        if self.kind == "view(len)":
            return x.view(len(x), -1)
        if self.kind == "flatten":
            return torch.flatten(x, 1)
        if self.kind == "unsqueeze":
            return x.unsqueeze(-1).expand(-1, -1, 2).mean(-1) if x.dim() == 2 else x.flatten(1)
        return x.reshape(-1, x[0].numel())


class Pointwise(nn.Module):
    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x)


class Context(nn.Module):
    """Attention pooling over the positions with one context vector: [n, T, d] -> [n, d]."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.v = nn.Parameter(torch.randn(d))

    def forward(self, h: Tensor) -> Tensor:
        return (h * torch.softmax(h @ self.v, 1)[..., None]).sum(1)


class Attention(nn.Module):
    def __init__(self, d: int, *, causal: bool) -> None:
        super().__init__()
        self.qkv, self.out, self.causal = nn.Linear(d, 3 * d), nn.Linear(d, d), causal

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=self.causal))


class Recurrent(nn.Module):
    def __init__(self, d: int, h: int, kind: str, *, start: bool) -> None:
        super().__init__()
        self.cell = nn.LSTM(d, h, batch_first=True) if kind == "lstm" else nn.GRU(d, h, batch_first=True)
        self.h, self.kind, self.start = h, kind, start

    def forward(self, x: Tensor) -> Tensor:
        if not self.start:
            return self.cell(x)[0]
        zero = x.new_zeros(1, x.shape[0], self.h)
        return self.cell(x, (zero, zero) if self.kind == "lstm" else zero)[0]


class Last(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "last":
            return x[:, -1]
        return x.mean(1) if self.kind == "mean" else x.amax(1)


class TwoInputs(nn.Module):
    """Two towers: an image-like and a plain input, or a number beside a token."""

    def __init__(self, left: nn.Module, right: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.left, self.right, self.head = left, right, head

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return self.head(torch.cat([self.left(x), self.right(other)], 1))


class Buffered(nn.Module):
    """A mask with minus infinity, a fixed permutation, and a scale that no state_dict holds."""

    order: Tensor
    mask: Tensor
    scale: Tensor

    def __init__(self, d: int, *, kind: str) -> None:
        super().__init__()
        self.kind = kind
        if kind == "permutation":
            self.register_buffer("order", torch.randperm(d))
        elif kind == "mask":
            self.register_buffer("mask", torch.where(torch.arange(d) == 0, float("-inf"), 0.0))
        else:
            self.register_buffer("scale", torch.rand(d) + 0.5, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "permutation":
            return x[:, self.order]
        return (x + self.mask).relu() if self.kind == "mask" else x * self.scale


ACTIVATIONS: list[Callable[[], nn.Module]] = [
    nn.ReLU, lambda: nn.ReLU(inplace=True), nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.Softplus, nn.PReLU,
    lambda: nn.LeakyReLU(0.1), lambda: nn.LeakyReLU(0.2, inplace=True), nn.Hardtanh, nn.Identity,
]  # fmt: skip


def statistics(norm: nn.Module) -> nn.Module:
    """Running statistics that are not the trivial ones."""
    for name, b in norm.named_buffers():
        if "mean" in name:
            b.normal_()
        elif "var" in name:
            b.uniform_(0.3, 2.0)
    return norm


class Tied(nn.Module):
    """A language model with tied embeddings: [n, T] -> [n, T, V], or its transpose."""

    def __init__(self, vocabulary: int, d: int, body: nn.Module, *, transpose: bool) -> None:
        super().__init__()
        self.embedding, self.body = nn.Embedding(vocabulary, d), body
        self.out = nn.Linear(d, vocabulary, bias=False)
        self.out.weight = self.embedding.weight
        self.transpose = transpose

    def forward(self, tokens: Tensor) -> Tensor:
        z = self.out(self.body(self.embedding(tokens)))
        return z.transpose(1, 2) if self.transpose else z
