"""Mean-field networks: every layer averages over its units (Shevchenko and Mondelli 2020, (1.1), (3.1), (4.1))."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from math import erf, sqrt

import torch
from torch import Tensor, nn

from isthmus.errors import InputError, UnsupportedError
from isthmus.models.networks import ACTIVATIONS
from isthmus.params import Params

Init = str | Callable[[int, tuple[int, int], torch.Generator], Tensor]
"""A name of ``_INITS``, or a function (layer, shape [units, inputs], generator) -> weights of that shape."""

MEAN_FIELD_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {**ACTIVATIONS, "clipped_relu": partial(nn.Hardtanh, 0, 4)}
"""The activations of `mlp`, and ReLU clipped at 4."""

_CUT = 2.0
"""The normal distributions below are cut at this many standard deviations: condition (A4) wants bounded ones."""
_BUMP = 0.95
"""The bumps of the bimodal distribution stand at plus and minus this, with no mass between them near 0."""


class Average(nn.Module):
    """Divides `n` features by n, so that the linear layer that reads them takes the average over n units.

    >>> Average(4)(torch.ones(1, 4)).sum()
    tensor(1.)
    """

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def forward(self, x: Tensor) -> Tensor:
        """x / n."""
        return x / self.n

    def extra_repr(self) -> str:
        """The number of units."""
        return str(self.n)


def mean_field(
    widths: Sequence[int],
    activation: str = "relu",
    *,
    bias: bool = True,
    hidden_bias: bool = False,
    init: Init = "unimodal",
    seed: int | None = None,
) -> nn.Sequential:
    """y = (1/N) W_{L+1} sigma( ... (1/N) W_2 sigma(W_1 x)), widths = (inputs, hidden widths..., outputs).

    Two layers are (3.1) of Shevchenko and Mondelli 2020, more are (1.1), which is (4.1) without its further
    parameters. The layers are Linear, activation, ``Average``, Linear, ...: each average is over the units of the layer
    before, so widths may differ. `bias`: x gets a further feature 1, whose weights are the bias of the first linear
    layer. `hidden_bias` gives one to the other hidden layers too, not averaged, which the paper's (4.1) does not have.
    The output has none. Weights are drawn as by `mean_field_init`, from `seed`; None: from a seed that torch's default
    generator gives, as for other fresh modules. Errors: no hidden layer, a width below 1, an unknown activation.

    `widths`: of inputs, hidden layers and outputs. `activation`: by name. `init`: "unimodal", "bimodal" or a function,
    see ``mean_field_init``.

    >>> mean_field((3, 8, 1), "tanh", seed=0)
    Sequential(
      (0): Linear(in_features=3, out_features=8, bias=True)
      (1): Tanh()
      (2): Average(8)
      (3): Linear(in_features=8, out_features=1, bias=False)
    )
    """
    module = mean_field_outline(widths, activation, bias=bias, hidden_bias=hidden_bias).to_empty(device="cpu")
    seed = int(torch.randint(2**62, ())) if seed is None else seed
    module.load_state_dict(mean_field_init(module, init, seed))
    return module


def mean_field_outline(
    widths: Sequence[int], activation: str = "relu", *, bias: bool = True, hidden_bias: bool = False
) -> nn.Sequential:
    """The network of ``mean_field`` on the meta device: shapes without weights. Errors: as there.

    >>> mean_field_outline((3, 8, 1))[0].weight.device
    device(type='meta')
    """
    widths = tuple(widths)
    _check_widths(widths)
    if activation not in MEAN_FIELD_ACTIVATIONS:
        raise InputError("activation", expected=f"one of {', '.join(MEAN_FIELD_ACTIVATIONS)}", got=repr(activation))
    parts: list[nn.Module] = []
    for l, (n, m) in enumerate(pairwise(widths), start=1):
        with_bias = bias if l == 1 else hidden_bias and l < len(widths) - 1
        parts += [nn.Linear(n, m, bias=with_bias, device="meta"), MEAN_FIELD_ACTIVATIONS[activation](), Average(m)]
    return nn.Sequential(*parts[:-2])


def _check_widths(widths: tuple[int, ...]) -> None:
    if len(widths) < 3:
        raise InputError("widths", expected="inputs, at least one hidden width, outputs", got=widths)
    if bad := [n for n in widths if isinstance(n, bool) or not isinstance(n, int) or n < 1]:
        raise InputError("widths", expected="whole numbers >= 1", got=repr(bad[0]))


def mean_field_init(module: nn.Module, init: Init = "unimodal", seed: int | torch.Generator = 0) -> Params:
    """Fresh weights of a mean-field network: independent, of a distribution that does not depend on the widths N.

    "unimodal": normal, cut at two standard deviations; "bimodal": two such bumps, at -0.95 and 0.95. Both have mean 0
    and variance 1 in every layer but the first, where the variance is 1 / (number of features), for features of
    variance 1. A function (layer from 1, shape, generator) -> weights may be given in their place. The last
    column of a layer with bias is its bias: the weight of the feature 1. `seed` may be a generator to draw from.

    `module`: a network of ``mean_field``. `init`: one of the names, or a function. Errors: ``InputError`` for another
    name and for weights of another shape, ``UnsupportedError`` for another module.

    >>> p = mean_field_init(mean_field((3, 4000, 1), seed=0), "bimodal")
    >>> round(float(p["3.weight"].square().mean()), 1), bool((p["3.weight"].abs() < 0.2).any())
    (1.0, False)
    """
    if isinstance(init, str) and init not in _INITS:
        raise InputError("init", expected=f"one of {', '.join(_INITS)}, or a function", got=repr(init))
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    draw = _INITS[init] if isinstance(init, str) else init
    out: Params = {}
    for l, (name, linear) in enumerate(linear_layers(module), start=1):
        shape = (linear.out_features, linear.in_features + (linear.bias is not None))
        drawn = draw(l, shape, generator)
        if tuple(drawn.shape) != shape:
            raise InputError(f"init, layer {l}", expected=f"weights of shape {shape}", got=tuple(drawn.shape))
        drawn = drawn.to(linear.weight)
        out[f"{name}.weight"] = drawn[:, : linear.in_features].contiguous()
        if linear.bias is not None:
            out[f"{name}.bias"] = drawn[:, -1].contiguous()
    return out


def linear_layers(module: nn.Module) -> list[tuple[str, nn.Linear]]:
    """The linear layers of a mean-field network with their names, in order; refuses any other module.

    What stands between two of them must be activations without weights and one ``Average`` over the units.
    """
    found: list[tuple[str, nn.Linear]] = []
    averages, before, width = 0, "", None
    for name, part in module.named_children() if isinstance(module, nn.Sequential) else ():
        if isinstance(part, nn.Linear):
            if found and (averages, width) != (1, part.in_features):
                raise UnsupportedError(f"layer {name!r}", f"it does not read one Average of layer {before!r}")
            found.append((name, part))
            averages, before, width = 0, name, part.out_features
        elif isinstance(part, Average):
            averages += 1
            if part.n != width:
                raise UnsupportedError(f"layer {name!r}", f"Average({part.n}) does not average over the layer before")
        else:
            _check_activation(name, part, bool(found))
    if len(found) < 2 or not isinstance(list(module.children())[-1], nn.Linear):
        raise UnsupportedError(type(module).__name__, "it is no mean-field network", "write mean_field(widths)")
    return found


def _check_activation(name: str, part: nn.Module, follows: bool) -> None:
    if not follows or any(True for _ in part.parameters()):
        raise UnsupportedError(f"layer {name!r} ({type(part).__name__})", "it is no linear layer and no activation")


def _normal(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Normal numbers cut at +-_CUT, rescaled to variance 1, in float64."""
    mass = erf(_CUT / sqrt(2))
    density = 2 / sqrt(2 * torch.pi) * float(torch.exp(torch.tensor(-(_CUT**2) / 2, dtype=torch.float64)))
    spread = sqrt(1 - _CUT * density / mass)
    u = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
    return sqrt(2) * torch.erfinv(u * mass) / spread


def _unimodal(l: int, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    return _normal(shape, generator) / (sqrt(shape[1]) if l == 1 else 1)


def _bimodal(l: int, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    side = torch.randint(2, shape, generator=generator) * 2 - 1
    return (_BUMP * side + sqrt(1 - _BUMP**2) * _normal(shape, generator)) / (sqrt(shape[1]) if l == 1 else 1)


_INITS: dict[str, Callable[[int, tuple[int, int], torch.Generator], Tensor]] = {
    "unimodal": _unimodal,
    "bimodal": _bimodal,
}
"""The initial distributions by name."""
