"""Names of networks, as the command line takes them: ``mlp:64-60x4-10``, ``hf:FOLDER``, ``file.py:FACTORY``."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from isthmus.errors import InputError
from isthmus.models.conv5 import conv5
from isthmus.models.hugging_face import HUGGING_FACE, from_folder
from isthmus.models.lstm import LanguageModel
from isthmus.models.mean_field import MEAN_FIELD_ACTIVATIONS, mean_field, mean_field_outline
from isthmus.models.networks import ACTIVATIONS, convnet, mlp, vgg11
from isthmus.models.user_code import from_code

_WIDTHS = "whole numbers >= 1 joined by '-', with NxK for N repeated K times"
_MAX_LAYERS = 10_000
_MAX_PARAMETERS = 2**30
"""A network with a name has at most so many parameters: 4 GB in float32, 200 times the largest of the papers."""


@dataclass(frozen=True)
class Entry:
    """One name: its syntax, one line on it, its source, what its inputs are, and how it is built.

    `flat`: inputs are rows. `whole`: they are whole numbers (of words), not floating point. `name`, `syntax`: as typed.
    `line`: what it is. `reference`: the paper. `build`: makes it.
    """

    name: str
    syntax: str
    line: str
    reference: str
    flat: bool
    build: Callable[[tuple[str, ...], _Wanted], nn.Module]
    whole: bool = False


@dataclass(frozen=True)
class _Wanted:
    """What the caller knows of the network beyond its name."""

    spec: str
    inputs: tuple[int, ...] | None
    outputs: int | None
    like: Mapping[str, Tensor] | None

    @property
    def image(self) -> dict[str, Any]:
        """The arguments of an image network that the data decide."""
        out: dict[str, Any] = {} if self.outputs is None else {"classes": self.outputs}
        if self.inputs is not None:
            if len(self.inputs) != 3 or self.inputs[1] != self.inputs[2]:
                raise InputError(
                    f"model {self.spec!r}",
                    expected="square images [channels, side, side]",
                    got=f"examples of shape {list(self.inputs)}",
                    instead="an mlp, which takes flat rows",
                )
            out |= {"in_channels": self.inputs[0], "image": self.inputs[1]}
        return out


def by_name(
    spec: str,
    *,
    inputs: int | Sequence[int] | None = None,
    outputs: int | None = None,
    like: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """The network that `spec` names (see ``MODELS`` for the syntax), with fresh weights.

    `inputs` is the shape of one example (or their number, for flat ones) and `outputs` the number of classes: an mlp
    is checked against them, an image network takes its channels, image side and classes from them. `like` is a state
    dict that the result must fit; ``"mlp"`` alone reads its widths from there. ``dropout=`` changes no key, so
    checkpoints fit the network with and without it. ``hf:FOLDER`` is the network of ``transformers`` that the
    ``config.json`` in a folder describes (extra ``isthmus[hf]``); its `like` may have other names. Any other spec is
    ``MODULE:FACTORY`` or ``path/to/file.py:FACTORY``, where FACTORY is called without arguments, or is a module
    itself; **this runs the user's code**. Names of ``MODELS`` win over modules.
    Errors: unknown name, malformed widths, more than ``_MAX_PARAMETERS``, no such module or factory, not an
    ``nn.Module``, does not fit. A network of ``MODELS`` is checked before any of its weights is allocated.

    >>> by_name("mlp:64-60x2-10:tanh:nobias")
    Sequential(
      (0): Linear(in_features=64, out_features=60, bias=False)
      (1): Tanh()
      (2): Linear(in_features=60, out_features=60, bias=False)
      (3): Tanh()
      (4): Linear(in_features=60, out_features=10, bias=False)
    )
    """
    name, *options = spec.split(":")
    shape = (inputs,) if isinstance(inputs, int) else None if inputs is None else tuple(inputs)
    wanted = _Wanted(spec, shape, outputs, like)
    if name in MODELS:
        _outline(name, tuple(options), wanted)
        return MODELS[name].build(tuple(options), wanted)
    if name == HUGGING_FACE and options:
        return from_folder(spec.partition(":")[2])
    if not options:
        expected = f"one of {', '.join(MODELS)}, hf:FOLDER, MODULE:FACTORY or FILE.py:FACTORY"
        raise InputError("model", expected=expected, got=repr(spec), instead="for example 'mlp:64-60-10'")
    module = from_code(spec, MODELS)
    if like is not None:
        _check_fits(module, like, spec)
    return module


def parameters_of(
    spec: str,
    *,
    inputs: Sequence[int] | None = None,
    outputs: int | None = None,
    like: Mapping[str, Tensor] | None = None,
) -> int:
    """How many parameters ``by_name`` makes, allocating none. `spec`, `inputs`, `outputs`, `like`, errors: as there.

    >>> parameters_of("mlp:64-60-10")
    4510
    """
    name, *options = spec.split(":")
    return _outline(name, tuple(options), _Wanted(spec, None if inputs is None else tuple(inputs), outputs, like))


def _outline(name: str, options: tuple[str, ...], wanted: _Wanted) -> int:
    """The number of parameters of the network, which is built without memory for them and checked against `like`."""
    try:
        with torch.device("meta"):
            module = MODELS[name].build(options, wanted)
    except RuntimeError:  # a single tensor has more bytes than a number of 64 bits can say
        count, got = _MAX_PARAMETERS + 1, "2^63 bytes or more"
    else:
        count = sum(p.numel() for p in module.parameters())
        got = f"{count:,}"
        if wanted.like is not None:
            _check_fits(module, wanted.like, wanted.spec)
    if count > _MAX_PARAMETERS:
        expected = f"at most {_MAX_PARAMETERS:,} parameters"
        instead = "a larger network in a file of your own, FILE.py:FACTORY"
        raise InputError(f"model {wanted.spec!r}", expected=expected, got=got, instead=instead)
    return count


def _is_outline() -> bool:
    """Whether the network is only built for its shapes."""
    return torch.get_default_device().type == "meta"


def _parse_widths(text: str, spec: str) -> tuple[int, ...]:
    """The widths of ``64-60x4-10``.

    >>> _parse_widths("64-60x4-10", "mlp:64-60x4-10")
    (64, 60, 60, 60, 60, 10)
    """
    widths: list[int] = []
    for part in text.split("-"):
        if not (match := re.fullmatch(r"([1-9][0-9]{0,8})(?:x([1-9][0-9]{0,4}))?", part, flags=re.ASCII)):
            instead = "for example 'mlp:64-60x4-10'"
            raise InputError(f"model {spec!r}", expected=_WIDTHS, got=repr(part), instead=instead)
        widths += [int(match[1])] * int(match[2] or 1)
        if len(widths) > _MAX_LAYERS:
            raise InputError(f"model {spec!r}", expected=f"at most {_MAX_LAYERS} layers", got=f"{len(widths)} or more")
    if len(widths) < 2:
        raise InputError(
            f"model {spec!r}", expected="at least two widths", got=repr(text), instead="for example 'mlp:64-60-10'"
        )
    return tuple(widths)


def _parse_rates(text: str, spec: str) -> float | tuple[float, ...]:
    """The dropout rates of ``0.25``, for every hidden layer, or of ``0.25x3-0.5x7``, for each.

    >>> _parse_rates("0.25", ""), _parse_rates("0.25x2-0.5", "")
    (0.25, (0.25, 0.25, 0.5))
    """
    rates: list[float] = []
    for part in text.split("-"):
        if not (match := re.fullmatch(r"(0?\.[0-9]{1,9}|0)(?:x([1-9][0-9]{0,3}))?", part, flags=re.ASCII)):
            expected = "a rate in [0, 1), or rates joined by '-', with RxK for R repeated K times"
            raise InputError(f"model {spec!r}", expected=expected, got=repr(part), instead="for example 'dropout=0.25'")
        rates += [float(match[1])] * int(match[2] or 1)
    return rates[0] if re.fullmatch(r"[0-9.]+", text) else tuple(rates)


def _without_dropout(options: tuple[str, ...], spec: str) -> tuple[tuple[str, ...], float | tuple[float, ...]]:
    """The other options, and the rates of the option ``dropout=RATES``: 0 without it."""
    found = [o for o in options if o.startswith("dropout=")]
    if len(found) > 1:
        raise InputError(f"model {spec!r}", expected="one dropout=", got=" and ".join(found))
    rates = _parse_rates(found[0].removeprefix("dropout="), spec) if found else 0.0
    return tuple(o for o in options if o not in found), rates


def _build_mlp(options: tuple[str, ...], wanted: _Wanted) -> nn.Module:
    spec = wanted.spec
    options, rates = _without_dropout(options, spec)
    sized = bool(options) and options[0][:1].isdigit()
    words = options[1:] if sized else options
    activation, bias = _activation_and_bias(words, ACTIVATIONS, "nobias, dropout=RATES", spec)
    if sized:
        widths = _parse_widths(options[0], spec)
    elif wanted.like is not None:
        widths, bias = _widths_of(wanted.like, spec)
    else:
        raise InputError(
            f"model {spec!r}",
            expected="widths, or a state dict to read them from",
            got="neither",
            instead="for example 'mlp:64-60-10'",
        )
    _check_ends(widths, wanted)
    return mlp(widths, bias=bias, activation=activation, dropout=rates)


def _build_mean_field(options: tuple[str, ...], wanted: _Wanted) -> nn.Module:
    spec = wanted.spec
    if not options:
        raise InputError(f"model {spec!r}", expected="widths", got="none", instead="for example 'meanfield:784-800-10'")
    widths = _parse_widths(options[0], spec)
    activation, bias = _activation_and_bias(options[1:], MEAN_FIELD_ACTIVATIONS, "nobias", spec)
    _check_ends(widths, wanted)
    return (mean_field_outline if _is_outline() else mean_field)(widths, activation, bias=bias)


def _activation_and_bias(
    words: tuple[str, ...], activations: Collection[str], others: str, spec: str
) -> tuple[str, bool]:
    """The activation among the words (default "relu"), and whether "nobias" is not."""
    named = [w for w in words if w != "nobias"]
    if unknown := [w for w in named if w not in activations]:
        expected = f"{_WIDTHS}, then {others} or one of {', '.join(activations)}"
        raise InputError(f"model {spec!r}", expected=expected, got=repr(unknown[0]))
    if len(named) > 1:
        raise InputError(f"model {spec!r}", expected="one activation", got=" and ".join(named))
    return (named[0] if named else "relu"), "nobias" not in words


def _check_ends(widths: tuple[int, ...], wanted: _Wanted) -> None:
    n = None if wanted.inputs is None else prod(wanted.inputs)
    for what, width, want in (("inputs", widths[0], n), ("outputs", widths[-1], wanted.outputs)):
        if want is not None and width != want:
            raise InputError(f"model {wanted.spec!r}", expected=f"{want} {what}, as the data have", got=width)


def _widths_of(like: Mapping[str, Tensor], spec: str) -> tuple[tuple[int, ...], bool]:
    """The widths, and whether there are biases, of the mlp whose state dict `like` is."""
    weights = [like[key] for i in range(len(like)) if (key := f"{2 * i}.weight") in like]
    bias = "0.bias" in like
    parts = ("weight", "bias") if bias else ("weight",)
    keys = {f"{2 * i}.{part}" for i in range(len(weights)) for part in parts}
    if not weights or keys != set(like) or any(w.ndim != 2 for w in weights):
        expected = "the state dict of an mlp: 0.weight, 0.bias, 2.weight, ..."
        instead = "the network's own definition, FILE.py:FACTORY"
        raise InputError(f"model {spec!r}", expected=expected, got=_first_six(like), instead=instead)
    return (weights[0].shape[1], *map(len, weights)), bias


def _first_six(like: Mapping[str, Tensor]) -> str:
    return ", ".join(list(like)[:6]) + (", ..." if len(like) > 6 else "") if like else "an empty one"


def _one_size(options: tuple[str, ...], wanted: _Wanted, words: tuple[str, ...] = ()) -> tuple[int | None, set[str]]:
    """The number in the options, if any, and the words among them."""
    sizes = [o for o in options if o not in words]
    if len(sizes) > 1 or (sizes and not re.fullmatch(r"[1-9][0-9]{0,5}", sizes[0], flags=re.ASCII)):
        expected = f"one whole number >= 1, then {' or '.join((*words, 'dropout=RATES'))}"
        raise InputError(f"model {wanted.spec!r}", expected=expected, got=repr(":".join(options)))
    return (int(sizes[0]) if sizes else None), set(options) & set(words)


def _build_convnet(options: tuple[str, ...], wanted: _Wanted) -> nn.Module:
    options, rates = _without_dropout(options, wanted.spec)
    channels, words = _one_size(options, wanted, ("nopool", "nobias"))
    pool, bias = "nopool" not in words, "nobias" not in words
    return convnet(channels or 32, pool=pool, bias=bias, dropout=rates, **wanted.image)


def _build_vgg11(options: tuple[str, ...], wanted: _Wanted) -> nn.Module:
    options, rates = _without_dropout(options, wanted.spec)
    width, words = _one_size(options, wanted, ("he",))
    return vgg11(width=width or 64, dropout=rates, he=_he(words), **wanted.image)


def _build_vgg11_bn(options: tuple[str, ...], wanted: _Wanted) -> nn.Module:
    options, rates = _without_dropout(options, wanted.spec)
    width, words = _one_size(options, wanted, ("he",))
    return vgg11(width=width or 64, batch_norm=True, dropout=rates, he=_he(words), **wanted.image)


def _he(words: Collection[str]) -> bool:
    """Whether weights are drawn as the option "he" says; an outline has none to draw."""
    return "he" in words and not _is_outline()


def _build_conv5(options: tuple[str, ...], wanted: _Wanted) -> nn.Module:
    widths = [o for o in options if o != "lrn"]
    if len(widths) > 1:
        raise InputError(f"model {wanted.spec!r}", expected=f"{_WIDTHS}, then lrn", got=repr(":".join(options)))
    chosen = _parse_widths(widths[0], wanted.spec) if widths else (32, 64, 1024)
    return conv5(chosen, normalise="lrn" in options, **wanted.image)


def _build_lstm(options: tuple[str, ...], wanted: _Wanted) -> nn.Module:
    spec, text = wanted.spec, options[0] if options else "200x2"
    match = re.fullmatch(r"([1-9][0-9]{0,5})(?:x([1-9][0-9]?))?", text, flags=re.ASCII)
    if match is None or len(options) > 1:
        expected = "WIDTH or WIDTHxLAYERS"
        raise InputError(f"model {spec!r}", expected=expected, got=repr(":".join(options)), instead="lstm:200x2")
    if wanted.inputs is not None and len(wanted.inputs) != 1:
        expected = "sequences of word numbers [T], as of ptb"
        raise InputError(f"model {spec!r}", expected=expected, got=f"examples of shape {list(wanted.inputs)}")
    words = (
        wanted.outputs
        if wanted.like is None
        else wanted.like["output.bias"].shape[0]
        if "output.bias" in wanted.like
        else None
    )
    if words is None:
        raise InputError(
            f"model {spec!r}", expected="data with words, or a state dict to read their number from", got="neither"
        )
    return LanguageModel(words, int(match[1]), int(match[2] or 2))


_VGG = "Simonyan and Zisserman 2014; Kuditipudi et al. 2019, section 6"
MODELS: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            "mlp",
            "mlp[:WIDTHS][:ACTIVATION][:nobias][:dropout=RATES], as in mlp:784-245x10-10 or mlp:64-60x4-10:tanh:nobias",
            "fully connected; without WIDTHS they are read from the checkpoint; dropout=0.25 drops units in training",
            "Nguyen, Brechet and Mondelli 2021, section 6",
            True,
            _build_mlp,
        ),
        Entry(
            "convnet",
            "convnet[:CHANNELS][:nopool][:nobias][:dropout=RATES], as in convnet:32",
            "three 3x3 convolutions and one linear layer; convnet:32:nopool:nobias is the paper's",
            "Kuditipudi et al. 2019, section 6 and appendix D.1",
            False,
            _build_convnet,
        ),
        Entry(
            "vgg11",
            "vgg11[:WIDTH][:he][:dropout=RATES], as in vgg11:64 or vgg11:64:he:dropout=0.25x3-0.5x7",
            "VGG-11 for images of 32 x 32 pixels; he: He's random weights; dropout drops whole channels in training",
            _VGG,
            False,
            _build_vgg11,
        ),
        Entry(
            "vgg11_bn", "vgg11_bn[:WIDTH][:he][:dropout=RATES]", "the same with BatchNorm", _VGG, False, _build_vgg11_bn
        ),
        Entry(
            "conv5",
            "conv5[:CHANNELS-CHANNELS-WIDTHS][:lrn], as in conv5:32-64-1024",
            "two 5x5 convolutions with pooling, then linear layers; lrn: local response normalisation",
            "Freeman and Bruna 2017, section 4.2",
            False,
            _build_conv5,
        ),
        Entry(
            "lstm",
            "lstm[:WIDTH[xLAYERS]], as in lstm:200x2",
            "a language model: embedding, LSTM layers, one linear layer on the vocabulary of the data",
            "Zaremba et al. 2014; Freeman and Bruna 2017, section 4.3",
            False,
            _build_lstm,
            whole=True,
        ),
        Entry(
            "meanfield",
            "meanfield:WIDTHS[:ACTIVATION][:nobias], as in meanfield:784-800-10",
            "fully connected, every layer averages over the units before it (1/N)",
            "Shevchenko and Mondelli 2020, (1.1) and (3.1)",
            True,
            _build_mean_field,
        ),
    )
}
"""The networks with a name, in the order of ``isthmus --help``."""


def _check_fits(module: nn.Module, like: Mapping[str, Tensor], spec: str) -> None:
    have = {k: tuple(v.shape) for k, v in module.state_dict().items()}
    want = {k: tuple(v.shape) for k, v in like.items()}
    for key in sorted(have.keys() | want.keys()):
        if have.get(key) != want.get(key):
            got, expected = (f"{key} {list(s[key])}" if key in s else f"no {key}" for s in (have, want))
            raise InputError(f"model {spec!r}", expected=f"a network with {expected}, as the checkpoint has", got=got)
