"""The parts of the random modules of ``attack.py``: operations and layers on sequences of 3 tokens with 4 numbers."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.certify.torch_layers import TORCH

__all__ = ["BLOCKS"]

Step = Callable[["Block", Tensor], Tensor]


class Block(nn.Module):
    """f(block, h) on sequences h of 3 tokens with 4 numbers each, with parts and a few tensors of its own."""

    def __init__(self, f: Step, **parts: nn.Module) -> None:
        super().__init__()
        self.f, self.parts = f, nn.ModuleDict(parts)
        self.vector, self.matrix = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4, 4))

    def forward(self, h: Tensor) -> Tensor:
        return self.f(self, h)

    def own(self, h: Tensor, name: str = "own") -> Tensor:
        return self.parts[name](h)


def _heads(h: Tensor) -> Tensor:
    return h.view(-1, 3, 2, 2).transpose(1, 2)


def _attend(**options: Any) -> Step:
    def f(m: Block, h: Tensor) -> Tensor:
        q = _heads(h)
        given: dict[str, Any] = {
            k: v.to(h.dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in options.items()
        }
        out: Tensor = F.scaled_dot_product_attention(q, q * m.vector[:2], q + m.vector[2:], **given)
        return out.transpose(1, 2).reshape(h.shape)

    return f


def _to_itself(m: Block, h: Tensor) -> Tensor:
    return m.parts["own"](h, h, h)[0]


def _transformer(norm: Callable[[], nn.Module], before: bool) -> Callable[[], Block]:
    def f(m: Block, h: Tensor) -> Tensor:
        if before:
            h = h + _attend(is_causal=True)(m, m.own(h))
            return h + F.gelu(m.own(m.own(h, "two"), "layer"))
        h = m.own(h + _attend()(m, h))
        return m.own(h + F.silu(m.own(h, "layer")) * m.own(h, "layer"), "two")

    return lambda: Block(f, own=norm(), two=norm(), layer=nn.Linear(4, 4))


def _mixture(m: Block, h: Tensor) -> Tensor:
    share = m.own(h, "router").softmax(-1)
    return sum(share[..., i : i + 1] * m.own(h, f"expert{i}").relu() for i in range(2))  # type: ignore[return-value]


def _rows(m: Block, h: Tensor) -> Tensor:
    return m.own(h.flatten(1)).view(h.shape)


def _flat(m: Block, h: Tensor) -> Tensor:
    """Rows that are all the same, and a norm of them."""
    return m.own(h.mean(-1, keepdim=True).expand(-1, 3, 4) * 1.0)


def _written(m: Block, h: Tensor) -> Tensor:
    mask = torch.tensor([[True, False, False, True], [False] * 4, [True] * 4])
    return torch.where(mask, h, m.vector) + h.masked_fill(~mask, 0.5).gather(2, torch.zeros_like(h, dtype=torch.long))


SEEN = torch.tensor([[True, False, False], [True, True, False], [False, False, False]])
TRIANGLE = torch.zeros(3, 3).masked_fill(~torch.ones(3, 3, dtype=torch.bool).tril(), -inf)
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "leaky": lambda h: F.leaky_relu(h, 0.1), "steep": lambda h: F.leaky_relu(h, 1.7),
    "negative leak": lambda h: F.leaky_relu(h, -0.4), "gelu": F.gelu,
    "gelu tanh": lambda h: F.gelu(h, approximate="tanh"),
    "silu": F.silu, "mish": F.mish, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "erf": torch.erf, "elu": F.elu,
    "kink": lambda h: F.elu(h, 0.3), "selu": F.selu, "celu": lambda h: F.celu(h, 0.5), "softplus": F.softplus,
    "softplus cut": lambda h: F.softplus(h, 3.0, 1.0), "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid,
    "softsign": F.softsign, "logsigmoid": F.logsigmoid, "relu6": F.relu6, "hardtanh": F.hardtanh, "abs": torch.abs,
    "exp": lambda h: h.clamp(max=3.0).exp(), "sin": torch.sin, "cos": lambda h: (3 * h).cos(), "square": torch.square,
    "cube": lambda h: h**3, "fourth": lambda h: h**4, "root": lambda h: (h.square() + 1e-3).sqrt(),
    "rsqrt": lambda h: (h.abs() + 0.1).rsqrt(), "odd power": lambda h: (h.abs() + 0.1) ** 1.7,
    "negative power": lambda h: (h.square() + 0.2) ** -2, "log": lambda h: (h.abs() + 0.01).log(),
    "quotient": lambda h: h / (1 + h.square()), "reciprocal": lambda h: -1 / (h.abs() + 0.3),
    "bare log": lambda h: h.log().tanh(), "bare root": lambda h: h.sqrt().sigmoid(),
    "bare rsqrt": lambda h: h.rsqrt().erf(),
    "bare power": lambda h: (h**1.5).softmax(-1), "bare reciprocal": lambda h: h.reciprocal().clamp(-1, 1),
    "bare log, sine": lambda h: h.log().sin(), "own division": lambda h: (h / h.sum(-1, keepdim=True)).tanh(),
    "overflow": lambda h: (h**4).exp().tanh() + (h * 1e200 * h.abs() * 1e200).tanh(),
    "maximum": lambda h: torch.maximum(h, h.flip(-1)), "minimum": lambda h: torch.minimum(h, h.roll(1, 1)),
    "clamp": lambda h: h.clamp(-0.3, 0.7), "softmax": lambda h: h.softmax(-1) * 3, "softmax 1": lambda h: h.softmax(1),
    "log_softmax": lambda h: h.log_softmax(-1), "cumsum": lambda h: h.cumsum(1),
    "amax": lambda h: h - h.amax(-1, keepdim=True),
    "amin": lambda h: h + h.amin((1, 2), keepdim=True), "var": lambda h: h * h.var(-1, keepdim=True),
    "std": lambda h: h / (h.std(1, keepdim=True, correction=0) + 1),
    "constant deviation": lambda h: h + (h[..., :1] * torch.ones(4, dtype=h.dtype)).std(-1, keepdim=True),
    "logsumexp": lambda h: h - h.logsumexp(-1, keepdim=True),
    "logsumexp of all": lambda h: h * h.logsumexp((1, 2), keepdim=True).tanh(),
    "prod": lambda h: h + h.prod(-1, keepdim=True), "prod of rows": lambda h: h.prod(1).unsqueeze(1) - h,
    "maximum pool": lambda h: F.max_pool1d(h, 3, 1, 1), "average pool": lambda h: F.avg_pool1d(h, 3, 1, 1),
    "root mean square": lambda h: h * (h.square().mean(-1, keepdim=True) + 1e-6).rsqrt(),
    "causal softmax": lambda h: (h @ h.transpose(1, 2) + TRIANGLE.to(h.dtype)).softmax(-1) @ h,
    "layer norm of two axes": lambda h: F.layer_norm(h, (3, 4)), "tiny eps": lambda h: F.layer_norm(h, (4,), eps=1e-30),
    "no eps": lambda h: F.layer_norm(h, (4,), eps=0.0).tanh(), "rms, no eps": lambda h: F.rms_norm(h, (4,), eps=0.0),
}  # fmt: skip
RECURRENT = {
    "LSTM": lambda: nn.LSTM(4, 4, batch_first=True), "GRU": lambda: nn.GRU(4, 4, batch_first=True),
    "RNN": lambda: nn.RNN(4, 4, batch_first=True),
    "two LSTMs": lambda: nn.LSTM(4, 2, 2, batch_first=True, bidirectional=True),
    "RNN relu": lambda: nn.RNN(4, 4, nonlinearity="relu", batch_first=True),
    "GRU, no bias": lambda: nn.GRU(4, 4, bias=False, batch_first=True),
}  # fmt: skip
LAYERS = {
    "linear": lambda: nn.Linear(4, 4), "LayerNorm": lambda: nn.LayerNorm(4),
    "tiny LayerNorm": lambda: nn.LayerNorm(4, 1e-20),
    "RMSNorm": lambda: nn.RMSNorm(4), "GroupNorm": lambda: nn.GroupNorm(3, 3),
    "GroupNorm of all": lambda: nn.GroupNorm(1, 3),
    "InstanceNorm": lambda: nn.InstanceNorm1d(3, affine=True), "BatchNorm": lambda: nn.BatchNorm1d(3),
    "kept InstanceNorm": lambda: nn.InstanceNorm1d(3, track_running_stats=True), "PReLU": lambda: nn.PReLU(3),
    "one PReLU": lambda: nn.PReLU(), "convolution": lambda: nn.Conv1d(3, 3, 3, padding=1),
    "dilated": lambda: nn.Conv1d(3, 3, 3, padding=2, dilation=2),
    "depthwise": lambda: nn.Conv1d(3, 3, 3, padding=1, groups=3),
    "transposed": lambda: nn.ConvTranspose1d(3, 3, 3, padding=1),
    "transposed, grouped": lambda: nn.ConvTranspose1d(3, 3, 3, padding=1, groups=3),
}  # fmt: skip
FLAT = ("LayerNorm", "tiny LayerNorm", "RMSNorm", "GroupNorm")
BLOCKS: dict[str, Any] = (
    {name: lambda f=f: Block(lambda m, h: f(h)) for name, f in FUNCTIONS.items()}
    | {name: lambda f=f: Block(lambda m, h: h + m.own(h)[0], own=f()) for name, f in RECURRENT.items()}
    | {name: lambda f=f: Block(Block.own, own=f()) for name, f in LAYERS.items()}
    | {f"torch: {k}": lambda make=make: Block(_rows, own=make(12)) for k, make in TORCH.items()}
    | {f"flat {k}": lambda k=k: Block(_flat, own=LAYERS[k]()) for k in FLAT}
    | {
        "attention": lambda: Block(_attend()), "causal": lambda: Block(_attend(is_causal=True)),
        "masked": lambda: Block(_attend(attn_mask=SEEN)), "added mask": lambda: Block(_attend(attn_mask=TRIANGLE)),
        "whole masked": lambda: Block(_attend(attn_mask=torch.zeros(3, 3).masked_fill(~SEEN, -inf))),
        "MultiheadAttention": lambda: Block(_to_itself, own=nn.MultiheadAttention(4, 2, batch_first=True)),
        "pre-norm": _transformer(lambda: nn.LayerNorm(4), True),
    "post-norm": _transformer(lambda: nn.LayerNorm(4), False),
        "pre-norm, RMS": _transformer(lambda: nn.RMSNorm(4), True),
        "squeeze": lambda: Block(lambda m, h: h * m.own(h.mean(1, keepdim=True).relu()).sigmoid(), own=nn.Linear(4, 4)),
        "mixture": lambda: Block(_mixture, router=nn.Linear(4, 2), expert0=nn.Linear(4, 4), expert1=nn.Linear(4, 4)),
        "gate": lambda: Block(lambda m, h: h + F.silu(m.own(h)) * (h @ m.matrix), own=nn.Linear(4, 4)),
        "masks": lambda: Block(_written),
    "products": lambda: Block(lambda m, h: h @ m.matrix @ m.matrix.t() * m.vector),
        "bilinear": lambda: Block(lambda m, h: torch.einsum("bti,ij->btj", h, m.matrix) * h),
        "weight norm": lambda: Block(lambda m, h: h @ torch._weight_norm(m.matrix, m.vector, 1)),
        "residual": lambda: Block(lambda m, h: h + m.own(h.relu()) / 2, own=nn.Linear(4, 4)),
    }
)  # fmt: skip
