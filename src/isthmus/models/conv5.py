"""Two 5 x 5 convolutions and linear layers: the image networks of Freeman and Bruna 2017."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from isthmus.errors import InputError


def conv5(
    widths: Sequence[int] = (32, 64, 1024),
    *,
    classes: int = 10,
    in_channels: int = 1,
    image: int = 28,
    normalise: bool = False,
) -> nn.Sequential:
    """Two 5 x 5 convolutions that keep the image size, each with ReLU and 2 x 2 max pooling, then linear layers.

    `widths`: the channels of both convolutions, then the hidden linear widths. (32, 64, 1024) is the MNIST network of
    Freeman and Bruna 2017 (section 4.2) without its dropout; (64, 64, 384, 192) with ``normalise=True`` their CIFAR-10
    network, with local response normalisation over 9 channels after the first pooling and before the second, but 2 x 2
    pooling where theirs is 3 x 3. Input [batch, in_channels, image, image]. Errors: fewer than two widths, a number
    below 1, an image of less than 4 pixels a side.

    `classes`: outputs. `in_channels`: of the images, `image`: their side in pixels. `normalise`: with local response
    normalisation.

    >>> [tuple(p.shape) for p in conv5((2, 3, 5)).parameters() if p.ndim > 1]
    [(2, 1, 5, 5), (3, 2, 5, 5), (5, 147), (10, 5)]
    """
    widths = tuple(widths)
    if len(widths) < 2:
        raise InputError("widths", expected="two numbers of channels, then hidden widths", got=widths)
    for value in (*widths, classes, in_channels):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError("widths, classes, in_channels", expected="whole numbers >= 1", got=repr(value))
    if image < 4:
        raise InputError("image", expected="a side of at least 4 pixels", got=image)
    first, second, *hidden = widths
    # TensorFlow multiplies the sum over the window, torch its mean, by alpha
    norm = [nn.LocalResponseNorm(9, alpha=1e-3, beta=0.75, k=1.0)] if normalise else []
    layers: list[nn.Module] = [nn.Conv2d(in_channels, first, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), *norm]
    norm = [nn.LocalResponseNorm(9, alpha=1e-3, beta=0.75, k=1.0)] if normalise else []
    layers += [nn.Conv2d(first, second, 5, padding=2), nn.ReLU(), *norm, nn.MaxPool2d(2), nn.Flatten()]
    flat = (second * (image // 4) ** 2, *hidden, classes)
    for n_in, n_out in pairwise(flat):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
