"""The networks on which the papers show their results, each one ``nn.Sequential`` of numbered layers.

Dropout stands in the same place as the activation that it follows: the keys are those of the network without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import nn

from isthmus.errors import InputError

_ModuleT = TypeVar("_ModuleT", bound=nn.Module)

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
}
"""The activations of `mlp` by name, with torch's default slopes and scales."""

_POOLINGS = 5
"""VGG halves the image this many times."""
_VGG_HIDDEN = 10
"""Hidden layers of VGG-11: eight convolutions and two linear layers."""


def _positive(what: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(what, expected="a whole number >= 1", got=repr(value))


def _rates(dropout: float | Sequence[float], hidden: int) -> tuple[float, ...]:
    """One dropout rate for each hidden layer."""
    rates = tuple(dropout) if isinstance(dropout, Sequence) else (dropout,) * hidden
    if len(rates) != hidden:
        raise InputError("dropout", expected=f"one rate, or {hidden} for the hidden layers", got=f"{len(rates)} rates")
    if not all(0 <= rate < 1 for rate in rates):
        raise InputError("dropout", expected="rates in [0, 1)", got=rates)
    return rates


def _dropped(activation: nn.Module, rate: float, dropout: type[nn.Module] = nn.Dropout2d) -> nn.Module:
    """The activation, then dropout of its units, as one layer."""
    return nn.Sequential(activation, dropout(rate)) if rate else activation


def mlp(
    widths: Sequence[int], *, bias: bool = True, activation: str = "relu", dropout: float | Sequence[float] = 0.0
) -> nn.Sequential:
    """A fully connected network: Linear, activation, Linear, ..., Linear.

    `widths` = (inputs, hidden widths..., outputs). The input is flat: [batch, widths[0]]. Linear layer l (from 1)
    has the keys ``"{2(l-1)}.weight"`` and ``".bias"``. `dropout`: the rate at which the units of every hidden layer
    are dropped in training, or one rate per hidden layer. Errors: fewer than two widths, a width below 1, an unknown
    activation, rates outside [0, 1) or not as many as hidden layers.

    `bias`: of all layers. `activation`: one of ``ACTIVATIONS``.

    >>> list(mlp((64, 60, 10)).state_dict())
    ['0.weight', '0.bias', '2.weight', '2.bias']
    """
    widths = tuple(widths)
    if len(widths) < 2:
        raise InputError("widths", expected="at least two numbers, inputs and outputs", got=widths)
    for width in widths:
        _positive("widths", width)
    if activation not in ACTIVATIONS:
        raise InputError("activation", expected=f"one of {', '.join(ACTIVATIONS)}", got=repr(activation))
    layers: list[nn.Module] = []
    for (n_in, n_out), rate in zip(pairwise(widths), (*_rates(dropout, len(widths) - 2), 0), strict=True):
        layers += [nn.Linear(n_in, n_out, bias=bias), _dropped(ACTIVATIONS[activation](), rate, nn.Dropout)]
    return nn.Sequential(*layers[:-1])


def convnet(
    channels: int = 32,
    *,
    classes: int = 10,
    in_channels: int = 1,
    image: int = 28,
    pool: bool = True,
    bias: bool = True,
    dropout: float | Sequence[float] = 0.0,
) -> nn.Sequential:
    """Three 3x3 convolutions of `channels` filters that keep the image size, ReLU, and one linear layer.

    The MNIST network of Kuditipudi et al. 2019 (section 6 and appendix D.1). With ``pool=True`` each ReLU is
    followed by 2x2 max pooling (28 -> 14 -> 7 -> 3), which the paper does not have: it makes every pass about six
    times cheaper. ``convnet(pool=False, bias=False)`` is the network of the paper's published code.
    `dropout` drops whole channels after each ReLU, at one rate or at one per convolution.
    Input [batch, in_channels, image, image].

    `classes`: outputs. `in_channels`: of the images, `image`: their side in pixels. `pool`: pool after each ReLU.
    `bias`: of all layers. Errors: ``InputError`` for numbers below 1 and for an image that pooling leaves nothing of.

    >>> [tuple(p.shape) for p in convnet(4, bias=False).parameters()]
    [(4, 1, 3, 3), (4, 4, 3, 3), (4, 4, 3, 3), (10, 36)]
    """
    for what, value in (("channels", channels), ("classes", classes), ("in_channels", in_channels)):
        _positive(what, value)
    if image < (8 if pool else 1):
        raise InputError("image", expected=f"a side of at least {8 if pool else 1} pixels", got=image)
    layers: list[nn.Module] = []
    for n_in, rate in zip((in_channels, channels, channels), _rates(dropout, 3), strict=True):
        layers += [nn.Conv2d(n_in, channels, 3, padding=1, bias=bias), _dropped(nn.ReLU(), rate)]
        if pool:
            layers.append(nn.MaxPool2d(2))
    side = image // 8 if pool else image
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * side * side, classes, bias=bias))


def vgg11(
    *,
    classes: int = 10,
    width: int = 64,
    in_channels: int = 3,
    batch_norm: bool = False,
    image: int = 32,
    dropout: float | Sequence[float] = 0.0,
    he: bool = False,
) -> nn.Sequential:
    """VGG-11 for small images: eight 3x3 convolutions in five stages, ReLU, max pooling, three linear layers.

    Channels are width x (1, 2, 4, 4, 8, 8, 8, 8), so 64 ... 512 at ``width=64``; each stage ends in 2x2 max
    pooling; the two hidden linear layers have 8 x width units (512; the ImageNet network has 4096). Eleven weight
    layers, as in the CIFAR-10 experiments of Kuditipudi et al. 2019 (section 6) and of Nguyen, Brechet and
    Mondelli 2021 (section 6, appendix C); neither prints the width of its linear layers. `dropout` drops whole
    channels of the convolutions and single units of the linear layers, at one rate or at one per hidden layer:
    (0.25,) * 3 + (0.5,) * 7 in Kuditipudi et al. (appendix D.1). `he` starts the convolutions from N(0, 2 / (9 n_out))
    and zero biases (He et al. 2015), without which SGD does not leave the start of this depth.
    Input [batch, in_channels, image, image], image >= 32.

    `classes`: outputs. `width`: channels of the first stage. `in_channels`: of the images, `image`: their side in
    pixels. `batch_norm`: after each convolution. Errors: ``InputError`` for numbers below 1 and for an image below 32
    pixels.

    >>> sum(isinstance(layer, (nn.Conv2d, nn.Linear)) for layer in vgg11(width=4))
    11
    """
    for what, value in (("classes", classes), ("width", width), ("in_channels", in_channels)):
        _positive(what, value)
    if image < 2**_POOLINGS:
        raise InputError("image", expected=f"a side of at least {2**_POOLINGS} pixels", got=image)
    rates = _rates(dropout, _VGG_HIDDEN)
    layers: list[nn.Module] = []
    n_in, l = in_channels, 0
    for stage in ((1,), (2,), (4, 4), (8, 8), (8, 8)):
        for multiple in stage:
            n_out = multiple * width
            convolution = nn.Conv2d(n_in, n_out, 3, padding=1)
            if he:
                for p in convolution.parameters():
                    nn.init.normal_(p, 0.0, (2 / (9 * n_out)) ** 0.5 if p.ndim == 4 else 0.0)
            layers.append(convolution)
            layers += [nn.BatchNorm2d(n_out)] if batch_norm else []
            layers.append(_dropped(nn.ReLU(), rates[l]))
            n_in, l = n_out, l + 1
        layers.append(nn.MaxPool2d(2))
    side = image // 2**_POOLINGS
    head = mlp((n_in * side * side, n_in, n_in, classes), dropout=rates[l:])
    return nn.Sequential(*layers, nn.Flatten(), *head)


def seeded(factory: Callable[[], _ModuleT], seed: int) -> _ModuleT:
    """What `factory` builds when torch's CPU generator starts from `seed`; the generator is put back afterwards.

    Errors: those of `factory`.

    >>> a, b = (seeded(lambda: mlp((3, 2)), 0) for _ in range(2))
    >>> torch.equal(a[0].weight, b[0].weight)
    True
    """
    with torch.random.fork_rng(devices=[]):
        # not torch.manual_seed: that would also seed every accelerator, which the fork does not restore
        torch.random.default_generator.manual_seed(seed)
        return factory()
