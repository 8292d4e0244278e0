"""Small networks that together use every operation that has a rule for affine forms."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isthmus as im
from isthmus.params import Params
from tests.certify.made import SHAPES, Made
from tests.certify.modern import MODERN, SCALES
from tests.certify.torch_layers import TORCH
from tests.problems import blobs, perceptron, random_params, small_convnet


@dataclass(frozen=True)
class Case:
    """A network, the shape of one example, and whether the examples are whole numbers."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = (5,)
    tokens: bool = False
    scale: float = 1.0

    @cache  # noqa: B019 - the cases live as long as the tests
    def objective(self, **options) -> im.Objective:
        x, y = blobs(10, self.shape, 4)
        if self.tokens:
            x = (x.abs() * 3).long().clamp(max=10)
        return im.Objective(self.make().double().eval(), "cross_entropy", (x, y), **options)

    def control(self, degree: int, seed: int = 0) -> list[Params]:
        """Random control points: every tensor moves, running variances stay positive."""
        module = self.make()
        points = [random_params(module, 10 * seed + i) for i in range(degree + 1)]
        return [{k: v * self.scale if v.is_floating_point() else v for k, v in p.items()} for p in points]


class Function(nn.Module):
    """f(h, parts) after a first layer, then a last layer."""

    def __init__(self, f: Callable[..., Tensor], read: int, **parts: nn.Module) -> None:
        super().__init__()
        self.f, self.first, self.last = f, nn.Linear(5, 6), nn.Linear(read, 4)
        self.parts = nn.ModuleDict(parts)
        self.gain, self.inner = nn.Parameter(torch.ones(6)), nn.Parameter(torch.ones(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.f(self, self.first(x)))


class Images(nn.Module):
    """f between a first convolution (4 channels, 6 x 6) and a last layer."""

    def __init__(self, f: Callable[..., Tensor], read: int) -> None:
        super().__init__()
        self.f, self.first, self.last = f, nn.Conv2d(2, 4, 3, padding=1), nn.Linear(read, 4)
        self.second = nn.Conv2d(4, 4, 3, padding="same", groups=2)
        self.norm = nn.BatchNorm2d(4)
        self.gain = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.f(self, self.first(x)))


class Plain(nn.Module):
    """x @ W^T + b by hand, through transposed and sliced parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.ones(7, 5)), nn.Parameter(torch.ones(7, 4))
        self.bias = nn.Parameter(torch.ones(9))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(torch.addmm(self.bias[:7], x, self.first.t()))
        return h @ self.second - self.bias[5:]


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix, self.last = nn.Embedding(11, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.table(x)
        scores = self.mix(h) @ h.transpose(1, 2) / 6
        return self.last((scores @ h).mean(1))


def activation(name: str, f: nn.Module, scale: float = 1.0) -> Case:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 7), deepcopy(f), nn.Linear(7, 6), deepcopy(f), nn.Linear(6, 4))

    return Case(name, make, scale=scale)


ACTIVATIONS = [
    activation(type(f).__name__ + note, f, scale)
    for f, note, scale in (
        (nn.ReLU(), "", 1),
        (nn.LeakyReLU(0.2), "", 1),
        (nn.LeakyReLU(1.5), " steep", 1),
        (nn.Tanh(), "", 1),
        (nn.Sigmoid(), "", 2),
        (nn.SiLU(), "", 2),
        (nn.GELU(), "", 2),
        (nn.GELU("tanh"), " tanh", 2),
        (nn.ELU(), "", 1),
        (nn.ELU(0.5), " with a kink", 1),
        (nn.SELU(), "", 1),
        (nn.CELU(0.7), "", 1),
        (nn.Softplus(), "", 1),
        (nn.Softplus(2.0, threshold=2.0), " that torch cuts off", 1),
        (nn.Hardtanh(-0.7, 0.4), "", 1),
        (nn.ReLU6(), "", 4),
        (nn.PReLU(), "", 1),
        (nn.Identity(), "", 1),
        (nn.Dropout(0.5), "", 1),
        (nn.AlphaDropout(0.5), "", 1),
    )
]


def _residual(m: Function, h: Tensor) -> Tensor:
    return torch.cat([h + m.parts["inner"](h.relu()) - 0.5 * h, (1 - h) * m.gain, -h / 3], 1)


def _gated(m: Function, h: Tensor) -> Tensor:
    return torch.maximum(h * torch.sigmoid(m.parts["inner"](h)), h.clamp(min=-0.2, max=0.9))


def _split(m: Function, h: Tensor) -> Tensor:
    left, right = h.chunk(2, 1)
    return torch.stack([left, right.flip(1)], 1).permute(0, 2, 1).reshape(h.size(0), -1)[:, 1:]


def _rare_moves(m: Function, h: Tensor) -> Tensor:
    n = h.size(0)
    h = h.clone().contiguous().unflatten(1, (2, 3)).transpose(1, 2).movedim(1, 2).to(h.dtype)
    h = h.roll(1, 2).swapaxes(1, 2).narrow(1, 0, 3).unsqueeze(1).expand(n, 2, 3, 2).select(1, 1).type_as(h)
    one, two = h.index_select(1, torch.tensor([2, 0])).split(1, 1)
    three, four = torch.split(h.contiguous().view(n, 6), [2, 4], 1)
    five, _ = h.flatten(1).tensor_split(2, 1)
    six, *_ = h.unbind(1)
    wide = F.interpolate(h, scale_factor=2.0)
    parts = [one.squeeze(1), two.squeeze(1), three, four, five, six, wide.mean(1)]
    return torch.concat([F.relu6(torch.cat(parts, 1)), F.hardtanh(+three).clamp(min=0.1), four.clamp(max=0.3)], 1)


def _rare_products(m: Function, h: Tensor) -> Tensor:
    one = torch.mm(h, m.inner.t()) + torch.bmm(h.unsqueeze(1), h.unsqueeze(2)).squeeze(2)
    return torch.cat([one.clamp_min(0.0).clamp_max(2.0), torch.mv(h, m.gain).unsqueeze(1)], 1)


def _normalised(m: Images, h: Tensor) -> Tensor:
    h = F.relu(m.norm(h), inplace=True)
    return F.max_pool2d(h + m.second(h) * m.gain, 2).flatten(1)


def _enlarged(m: Images, h: Tensor) -> Tensor:
    h = F.dropout2d(h, training=False)
    h = F.relu6(m.second(F.interpolate(h[:, :, :3, :3], scale_factor=2)))
    return F.avg_pool2d(F.pad(h, (0, 1, 0, 1), mode="replicate"), 3, 2).flatten(1)


def _averaged(m: Images, h: Tensor) -> Tensor:
    h = F.avg_pool2d(m.second(h).relu(), 3, 1, 1)
    return F.adaptive_avg_pool2d(F.pad(h, (1, 1, 0, 1)), (2, 3)).flatten(1) + h.mean((2, 3)).sum(1, keepdim=True)


def _overlapping(m: Images, h: Tensor) -> Tensor:
    h = F.max_pool2d(h, 3, 2, 1)
    return torch.cat([F.adaptive_max_pool2d(h, 1).flatten(1), F.max_pool2d(h, 2, 1, 0, 2).squeeze(3).squeeze(2)], 1)


def _line() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 4, 3, padding=1), nn.MaxPool1d(3, 2, 1), nn.BatchNorm1d(4), nn.PReLU(4), nn.AvgPool1d(2),
        nn.AdaptiveAvgPool1d(2), nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(4, 4),
    )  # fmt: skip


CASES = [
    *ACTIVATIONS,
    Case("linear, three layers", lambda: nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 4))),
    Case("deep", lambda: perceptron([5, 8, 8, 8, 8, 4])),
    Case("BatchNorm", lambda: nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4))),
    Case("BatchNorm alone", lambda: nn.Sequential(nn.BatchNorm1d(5, affine=False), nn.Linear(5, 4))),
    Case("residual", lambda: Function(_residual, 18, inner=nn.Linear(6, 6))),
    Case("gated", lambda: Function(_gated, 6, inner=nn.Linear(6, 6))),
    Case("moved entries", lambda: Function(_split, 5)),
    Case("rare moves", lambda: Function(_rare_moves, 25)),
    Case("rare products", lambda: Function(_rare_products, 7)),
    Case("parameters by hand", Plain),
    Case("tokens", Words, (3,), True),
    Case("convolutions", small_convnet, (1, 8, 8)),
    Case("normalised images", lambda: Images(_normalised, 36), (2, 6, 6)),
    Case("averaged images", lambda: Images(_averaged, 24), (2, 6, 6)),
    Case("enlarged images", lambda: Images(_enlarged, 36), (2, 6, 6)),
    Case("overlapping windows", lambda: Images(_overlapping, 8), (2, 6, 6)),
    Case("one dimension", _line, (2, 9)),
    *(Case(name, partial(Made, f), (4,)) for name, f in SHAPES.items()),
    *(Case(name, make, (4,), scale=SCALES.get(name, 1.0)) for name, make in MODERN.items()),
    *(Case(f"torch: {name}", make, (4,)) for name, make in TORCH.items()),
]
