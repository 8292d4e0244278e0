"""Every layer of torch.nn without weights, and what else is common between two layers, each between two of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shape = tuple[int, ...]
ROWS, LINE, IMAGE, VOLUME = (3, 4), (2, 6), (4, 3, 4), (2, 2, 3, 4)


class Between(nn.Module):
    """A layer, f on what it gives in some shape, a layer."""

    def __init__(self, f: Callable[[Tensor], Tensor], shape: Shape, width: int = 4) -> None:
        super().__init__()
        self.f, self.shape = f, shape
        self.first = nn.Linear(width, torch.Size(shape).numel())
        if isinstance(f, nn.Module):
            f.eval()
        with torch.no_grad():
            read = f(torch.ones(1, *shape)).numel()
        self.last = nn.Linear(read, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.f(self.first(x).view(-1, *self.shape)).flatten(1))


class Pair(nn.Module):
    """f of the two halves of an axis."""

    def __init__(self, f: Callable[[Tensor, Tensor], Tensor], dim: int = 1) -> None:
        super().__init__()
        self.f, self.dim = f, dim

    def forward(self, h: Tensor) -> Tensor:
        return self.f(*h.chunk(2, self.dim))


def away(h: Tensor) -> Tensor:
    """Away from 0, where what is divided by has no bound on wide intervals."""
    return h.sigmoid() + 2


def _each(names: str, shape: Shape = ROWS) -> dict[str, tuple[Callable[[], nn.Module], Shape]]:
    return {name: (getattr(nn, name), shape) for name in names.split()}


def _over(
    kind: str, *args: object, note: str = "", **options: object
) -> dict[str, tuple[Callable[[], nn.Module], Shape]]:
    """The same layer over one, two and three axes."""
    shapes = (LINE, IMAGE, VOLUME)
    return {
        f"{kind}{n}d{note}": (lambda kind=f"{kind}{n}d": getattr(nn, kind)(*args, **options), shape)
        for n, shape in enumerate(shapes, start=1)
    }


TORCH_LAYERS: dict[str, tuple[Callable[[], Callable[[Tensor], Tensor]], Shape]] = {
    **_each("ELU Hardshrink Hardsigmoid Hardswish Hardtanh Identity LeakyReLU LogSigmoid Mish PReLU RReLU ReLU ReLU6"),
    **_each("SELU CELU GELU SiLU Sigmoid Softplus Softshrink Softsign Tanh Tanhshrink GLU Flatten"),
    **_each("Dropout Dropout1d AlphaDropout FeatureAlphaDropout"),
    **_each("Dropout2d Softmax2d", IMAGE),
    **_each("Dropout3d", VOLUME),
    "Hardshrink of more": (lambda: nn.Hardshrink(1.5), ROWS),
    "Softshrink of more": (lambda: nn.Softshrink(1.5), ROWS),
    "Threshold": (lambda: nn.Threshold(0.1, 0.1), ROWS),
    "Threshold that jumps": (lambda: nn.Threshold(-0.2, 3.0), ROWS),
    "Softmax": (lambda: nn.Softmax(-1), ROWS),
    "Softmin": (lambda: nn.Softmin(-1), ROWS),
    "LogSoftmax": (lambda: nn.LogSoftmax(-1), ROWS),
    "Unflatten": (lambda: nn.Unflatten(1, (3, 1)), ROWS),
    **_over("ReflectionPad", 1),
    **_over("ReplicationPad", 1),
    **_over("ZeroPad", 1),
    **_over("CircularPad", 1),
    **_over("ConstantPad", 1, 0.5),
    **_over("MaxPool", 2, 1),
    **_over("MaxPool", 2, 2, 1, ceil_mode=True, note=" beyond the padding"),
    **_over("AvgPool", 2, 1),
    **_over("AvgPool", 2, 2, 1, True, note=" beyond the padding"),
    **_over("AdaptiveAvgPool", 2),
    **_over("AdaptiveMaxPool", 2),
    **_over("LPPool", 1, 2),
    **_over("InstanceNorm", 4),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(2), VOLUME),
    "LocalResponseNorm": (lambda: nn.LocalResponseNorm(3), IMAGE),
    "PixelShuffle": (lambda: nn.PixelShuffle(2), IMAGE),
    "PixelUnshuffle": (lambda: nn.PixelUnshuffle(2), (1, 2, 4)),
    "ChannelShuffle": (lambda: nn.ChannelShuffle(2), IMAGE),
    "Upsample": (lambda: nn.Upsample(scale_factor=2), VOLUME),
    "Upsample, nearest-exact": (lambda: nn.Upsample(scale_factor=1.5, mode="nearest-exact"), LINE),
    "Upsample, nearest-exact of images": (lambda: nn.Upsample(scale_factor=1.5, mode="nearest-exact"), IMAGE),
    "Upsample, nearest-exact of volumes": (lambda: nn.Upsample(scale_factor=1.5, mode="nearest-exact"), VOLUME),
    "Upsample, linear": (lambda: nn.Upsample(size=7, mode="linear"), LINE),
    "Upsample, trilinear": (lambda: nn.Upsample(scale_factor=2, mode="trilinear"), VOLUME),
    "UpsamplingBilinear2d": (lambda: nn.UpsamplingBilinear2d(scale_factor=2), IMAGE),
    "UpsamplingNearest2d": (lambda: nn.UpsamplingNearest2d(scale_factor=2), IMAGE),
    "Fold": (lambda: nn.Fold((3, 3), (2, 2)), (4, 4)),
    "Unfold": (lambda: nn.Unfold(2), IMAGE),
    "Bilinear": (lambda: Pair(nn.Bilinear(2, 2, 3), -1), ROWS),
    "CosineSimilarity": (lambda: Pair(lambda p, q: F.cosine_similarity(away(p), away(q), -1)), (4, 3)),
    "PairwiseDistance": (lambda: Pair(nn.PairwiseDistance()), (4, 3)),
    "PairwiseDistance by moduli": (lambda: Pair(nn.PairwiseDistance(1, keepdim=True)), (4, 3)),
    "PairwiseDistance by the largest": (lambda: Pair(nn.PairwiseDistance(float("inf"))), (4, 3)),
}
"""Layers of torch.nn, by the name of the class and perhaps a note."""


def _moved(h: Tensor) -> Tensor:
    """Other names of operations that move entries."""
    h = torch.rot90(h.swapdims(2, 3), 1, (2, 3)).moveaxis(1, 3).mT.adjoint().tile(2, 1, 1)
    return h.ravel().view_as(h).reshape_as(h.flatten(1))


FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], Shape]] = {
    "logaddexp": (lambda h: torch.logaddexp(h[:, :1], h), ROWS),
    "normalize": (lambda h: F.normalize(away(h), dim=-1), ROWS),
    "normalize by moduli": (lambda h: F.normalize(away(h), 1.0, dim=1), ROWS),
    "norms": (lambda h: h.norm(dim=(1, 2), keepdim=True) + h.norm(float("inf"), (1, 2), True), ROWS),
    "steps": (lambda h: h.sign() * h + h.floor() - h.ceil() + h.trunc() + h.round() + h.sgn(), ROWS),
    "between two": (lambda h: torch.lerp(h, h.flip(1), h.sigmoid()) + torch.lerp(h, 2 * h, 0.3), ROWS),
    "added products": (lambda h: torch.addcmul(h, h, h.flip(2), value=-0.3).true_divide(3), ROWS),
    "fmax, fmin": (lambda h: torch.fmax(h, h.flip(1)) - torch.fmin(h, h.flip(2)), ROWS),
    "logarithms": (lambda h: away(h).log2() + away(2 * h).log10() + away(h).log1p(), ROWS),
    "exponentials": (lambda h: h.tanh().expm1() + h.sigmoid().exp2() + h.tanh().sinh() - h.tanh().cosh(), ROWS),
    "erfc": (lambda h: h.erfc(), ROWS),
    "differences": (lambda h: h.diff(dim=1) + h.diff(2, dim=1), ROWS),
    "variance and mean": (lambda h: torch.cat([*torch.var_mean(h, 1), *torch.std_mean(h, 1, correction=0)], 1), ROWS),
    "windows of unequal size": (lambda h: F.adaptive_max_pool2d(h, (2, 3)), (2, 5, 4)),
    "moved by other names": (_moved, (2, 3, 4)),
}  # fmt: skip

TORCH: dict[str, Callable[..., nn.Module]] = {
    **{name: lambda width=4, f=f, s=s: Between(f(), s, width) for name, (f, s) in TORCH_LAYERS.items()},
    **{name: lambda width=4, f=f, s=s: Between(f, s, width) for name, (f, s) in FUNCTIONS.items()},
}
"""Models by name, of so many numbers and as many outputs."""
