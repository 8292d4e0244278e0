"""What the networks of today are made of, between two layers: norms, attention, rotations, gates, recurrent layers."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SEEN = torch.tensor([[True, False, False], [True, True, False], [False, False, False]])
FAR = torch.finfo(torch.float32).min


class Layers(nn.Module):
    """f(parts, h) between two layers, where h holds sequences of 3 tokens with 4 numbers each."""

    def __init__(self, f: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.f, self.first, self.last = f, nn.Linear(4, 12), nn.Linear(12, 4)
        self.parts = nn.ModuleDict(parts)
        self.vector = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).view(-1, 3, 4)
        return self.last(self.f(self, h).flatten(1))


def attend(**options: Any) -> Callable[..., Tensor]:
    """Two heads of width 2 that attend to themselves."""

    def f(m: Layers, h: Tensor) -> Tensor:
        q = h.view(-1, 3, 2, 2).transpose(1, 2)
        given: Any = {
            k: v.to(h.dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in options.items()
        }
        return F.scaled_dot_product_attention(q, q * m.vector[:2], q + m.vector[2:], **given).transpose(1, 2)

    return f


def grouped(m: Layers, h: Tensor) -> Tensor:
    q = h.view(-1, 3, 2, 2).transpose(1, 2)
    return F.scaled_dot_product_attention(q, q[:, :1], q[:, 1:], scale=0.5, enable_gqa=True).transpose(1, 2)


def by_hand(m: Layers, h: Tensor, mask: Tensor) -> Tensor:
    """Attention with a mask that is added, whose last row sees nothing but what is far away."""
    scores = h @ h.transpose(1, 2) / 2 + mask.to(h.dtype)
    return scores.softmax(-1) @ h


def rotated(m: Layers, h: Tensor) -> Tensor:
    angles = torch.arange(3)[:, None] * torch.tensor([1.0, 0.1, 1.0, 0.1], dtype=h.dtype)
    turned = torch.cat([-h[..., 2:], h[..., :2]], -1)
    return h * angles.cos() + turned * angles.sin()


def recurrent(m: Layers, h: Tensor) -> Tensor:
    return m.parts["own"](h)[0]


def image(m: Layers, h: Tensor) -> Tensor:
    return m.parts["own"](h.view(-1, 3, 2, 2))


def padded(m: Layers, h: Tensor) -> Tensor:
    """The mean over what a comparison of constants keeps, and a mask cast from numbers."""
    ones = torch.tensor([1.0, 0.0, 1.0])
    keep = (ones > 0.5) & (ones >= 1) & (ones != 0) & ~(ones < 0.5) & ~(ones <= 0) & (ones == 1)
    keep = keep.to(h.dtype)
    far = torch.zeros(3).masked_fill(torch.tensor([0.0, 1.0, 0.0]).bool(), -inf).to(h.dtype)
    mean = (h * keep[:, None]).sum(1) / keep.sum().clamp(min=1e-9)
    return (mean[:, None] + (h + far[:, None]).softmax(1)) * h.gather(1, torch.zeros(len(h), 3, 4, dtype=torch.long))


def to_itself(m: Layers, h: Tensor) -> Tensor:
    return m.parts["own"](h, h, h)[0]


def own(m: Layers, h: Tensor) -> Tensor:
    return m.parts["own"](h)


def volume(m: Layers, h: Tensor) -> Tensor:
    return m.parts["own"](h.view(-1, 1, 3, 2, 2))


def of_length_one(m: Layers, h: Tensor) -> Tensor:
    weight: Any = m.parts["own"].weight
    return h @ torch._weight_norm(weight + 2, m.vector, 1)


def deviations(m: Layers, h: Tensor) -> Tensor:
    return h / (h.var(1, keepdim=True) + 1) + h.std((1, 2), correction=0)[:, None, None]


def greatest(m: Layers, h: Tensor) -> Tensor:
    return h.amax(-1, keepdim=True) - h.amin((1, 2))[:, None, None] + torch.clamp(h, min=m.vector)


def special(m: Layers, h: Tensor) -> Tensor:
    return h.erf() + (h.abs() + 0.5).log() + (h.abs() + 0.1) ** 1.5 + h**3


SCALES = {"special functions": 0.1, "deviations": 0.3}
"""Where a wide interval would reach numbers that a function is not defined for."""


def written(m: Layers, h: Tensor) -> Tensor:
    """Through a view, so that the graph is rewritten."""
    h = m.parts["own"](h).clone()
    h[:, 0] = 0.5
    return attend()(m, h.softmax(-1) + h.log_softmax(-1)) + F.layer_norm(h, (4,)).view(-1, 3, 2, 2)


MODERN: dict[str, Callable[[], nn.Module]] = {
    "LayerNorm": lambda: Layers(own, own=nn.LayerNorm(4)),
    "LayerNorm of two axes": lambda: Layers(lambda m, h: F.layer_norm(h, (3, 4))),
    "RMSNorm": lambda: Layers(own, own=nn.RMSNorm(4)),
    "GroupNorm": lambda: Layers(image, own=nn.GroupNorm(3, 3)),
    "InstanceNorm": lambda: Layers(image, own=nn.InstanceNorm2d(3, affine=True)),
    "InstanceNorm, kept": lambda: Layers(image, own=nn.InstanceNorm2d(3, track_running_stats=True)),
    "weight norm": lambda: Layers(of_length_one, own=nn.Linear(4, 4)),
    "deviations": lambda: Layers(deviations),
    "softmax": lambda: Layers(lambda m, h: h.softmax(-1) * h.softmax(1)),
    "log_softmax": lambda: Layers(lambda m, h: h.log_softmax(-1)),
    "attention": lambda: Layers(attend()),
    "causal attention": lambda: Layers(attend(is_causal=True)),
    "masked attention": lambda: Layers(attend(attn_mask=SEEN)),
    "added masks": lambda: Layers(attend(attn_mask=torch.zeros(3, 3).masked_fill(~SEEN, -inf))),
    "grouped queries": lambda: Layers(grouped),
    "repeated places": lambda: Layers(lambda m, h: h.repeat_interleave(2, 1)[:, ::2]),
    "MultiheadAttention": lambda: Layers(to_itself, own=nn.MultiheadAttention(4, 2, batch_first=True)),
    "far away": lambda: Layers(lambda m, h: by_hand(m, h, FAR * (1.0 - (torch.arange(3) < 2).float()))),
    "infinitely far": lambda: Layers(lambda m, h: by_hand(m, h, torch.full((3, 3), -inf).triu(1))),
    "rotary": lambda: Layers(rotated),
    "waves": lambda: Layers(lambda m, h: h.sin() + (2 * h).cos()),
    "special functions": lambda: Layers(special),
    "swiglu": lambda: Layers(lambda m, h: F.silu(m.parts["own"](h)) * h, own=nn.Linear(4, 4)),
    "greatest": lambda: Layers(greatest),
    "written into": lambda: Layers(written, own=nn.LayerNorm(4)),
    "padding": lambda: Layers(padded),
    "LSTM": lambda: Layers(recurrent, own=nn.LSTM(4, 2, 2, batch_first=True, bidirectional=True)),
    "GRU": lambda: Layers(recurrent, own=nn.GRU(4, 4, bias=False, batch_first=True)),
    "RNN": lambda: Layers(recurrent, own=nn.RNN(4, 4, batch_first=True)),
    "rectified RNN": lambda: Layers(recurrent, own=nn.RNN(4, 4, nonlinearity="relu", batch_first=True)),
    "transposed": lambda: Layers(lambda m, h: own(m, h)[..., :4], own=nn.ConvTranspose1d(3, 3, 2, 2, 1, 1, groups=3)),
    "transposed images": lambda: Layers(image, own=nn.ConvTranspose2d(3, 3, 1)),
    "volumes": lambda: Layers(volume, own=nn.Conv3d(1, 1, 3, padding=1)),
    "transposed volumes": lambda: Layers(volume, own=nn.ConvTranspose3d(1, 1, 1)),
}
