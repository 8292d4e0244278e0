"""Networks by function and by name."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from isthmus.errors import InputError
from isthmus.models import ACTIVATIONS, MODELS, by_name, convnet, mlp, seeded, vgg11


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {k: tuple(v.shape) for k, v in module.state_dict().items()}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_mlp_is_the_formula():
    net = seeded(lambda: mlp((5, 7, 3), activation="tanh"), 0).double()
    x = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    p = net.state_dict()
    hidden = torch.tanh(x @ p["0.weight"].T + p["0.bias"])
    assert torch.allclose(net(x), hidden @ p["2.weight"].T + p["2.bias"], atol=1e-14)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_runs(name: str):
    net = mlp((3, 4, 4, 2), bias=False, activation=name)
    assert list(net.state_dict()) == ["0.weight", "2.weight", "4.weight"]
    assert isinstance(net[1], ACTIVATIONS[name])
    assert net(torch.ones(2, 3)).shape == (2, 2)


@pytest.mark.parametrize("widths", [(), (3,), (3, 0), (3, -1, 2), (3, 2.5), (True, 2)])
def test_mlp_refuses_bad_widths(widths: tuple):
    with pytest.raises(InputError, match="widths"):
        mlp(widths)


def test_parameter_counts_of_the_papers():
    # each counted by hand: convolutions n_out * n_in * 9 + n_out, linear layers n_out * n_in + n_out
    assert count(convnet(32, pool=False, bias=False)) == 32 * 9 + 2 * 32 * 32 * 9 + 10 * 32 * 28 * 28
    assert count(convnet(32)) == 320 + 2 * 9248 + 10 * 32 * 9 + 10
    channels = (3, 64, 128, 256, 256, 512, 512, 512, 512)
    convolutions = sum(b * a * 9 + b for a, b in pairwise(channels))
    assert count(vgg11()) == convolutions + 2 * (512 * 512 + 512) + 512 * 10 + 10
    assert count(vgg11(batch_norm=True)) - count(vgg11()) == 2 * sum(channels[1:])
    assert count(by_name("mlp:784-245x10-10")) == 784 * 245 + 245 + 9 * (245 * 245 + 245) + 2450 + 10


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (convnet(4), (2, 1, 28, 28)),
        (convnet(4, in_channels=3, image=32, classes=7), (2, 3, 32, 32)),
        (convnet(3, image=9, pool=False), (2, 1, 9, 9)),
        (vgg11(width=2), (2, 3, 32, 32)),
        (vgg11(width=2, batch_norm=True, in_channels=1, image=70, classes=4), (2, 1, 70, 70)),
    ],
)
def test_image_networks_run_and_export(net: nn.Sequential, shape: tuple[int, ...]):
    net.eval()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    exported = torch.export.export(net, (x,), strict=False)
    assert torch.allclose(exported.module()(x), net(x), atol=1e-5)
    assert net(x).shape == (2, shape_of_last(net))


def shape_of_last(net: nn.Sequential) -> int:
    last = net[-1]
    assert isinstance(last, nn.Linear)
    return last.out_features


@pytest.mark.parametrize(
    "make",
    [
        lambda: convnet(0),
        lambda: convnet(image=7),
        lambda: vgg11(width=0),
        lambda: vgg11(image=31),
        lambda: mlp((2, 2), activation="swish"),
    ],
)
def test_networks_refuse(make):
    with pytest.raises(InputError, match="expected"):
        make()


RATES = "0.25x3-0.5x7"


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        ("mlp:6-5x2-3:dropout=0.25", 6),
        ("mlp:6-5x2-3:dropout=0.25-0:nobias", 6),
        ("convnet:4:nopool:dropout=.5", (1, 8, 8)),
        (f"vgg11:2:dropout={RATES}", (3, 32, 32)),
        (f"vgg11_bn:2:he:dropout={RATES}", (3, 32, 32)),
    ],
)
def test_dropout_changes_no_key_and_nothing_in_evaluation_mode(spec: str, shape: int | tuple[int, ...]):
    plain_spec = ":".join(part for part in spec.split(":") if not part.startswith("dropout"))
    dropped, plain = (seeded(lambda s=s: by_name(s, inputs=shape), 0).eval() for s in (spec, plain_spec))
    assert list(dropped.state_dict()) == list(plain.state_dict())
    by_name(spec, like=plain.state_dict(), inputs=shape)
    by_name(plain_spec, like=dropped.state_dict(), inputs=shape)
    x = torch.randn(2, *((shape,) if isinstance(shape, int) else shape), generator=torch.Generator().manual_seed(0))
    assert torch.equal(dropped(x), plain(x))
    assert not torch.equal(seeded(lambda: dropped.train()(x), 1), plain(x))


def test_dropout_zeroes_whole_channels_and_single_units_at_the_given_rates():
    net = vgg11(width=64, dropout=(0.25,) * 3 + (0.5,) * 7).train()
    kinds = [m for m in net.modules() if isinstance(m, nn.Dropout | nn.Dropout2d)]
    assert [m.p for m in kinds] == [0.25] * 3 + [0.5] * 7
    assert [type(m) for m in kinds] == [nn.Dropout2d] * 8 + [nn.Dropout] * 2
    seen = seeded(lambda: convnet(64, pool=False, dropout=0.5).train()[1](torch.ones(50, 64, 4, 4)), 0)
    assert set(seen.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(seen.amin((2, 3)), seen.amax((2, 3)))
    assert 0.45 < float((seen == 0).double().mean()) < 0.55
    assert not [m for m in mlp((4, 3, 2), dropout=0.0).modules() if isinstance(m, nn.Dropout)]
    assert isinstance(mlp((4, 3, 2), dropout=0.1)[1], nn.Sequential)
    assert isinstance(mlp((4, 3, 3, 2), dropout=(0, 0.1))[1], nn.ReLU)


@pytest.mark.parametrize("rates", [1.0, -0.1, (0.1,), (0.1,) * 3, float("nan")])
def test_rates_that_do_not_fit_are_refused(rates):
    with pytest.raises(InputError, match="dropout"):
        mlp((4, 3, 3, 2), dropout=rates)


def test_he_weights_have_the_variance_of_the_paper_and_no_bias():
    net = seeded(lambda: vgg11(width=16, he=True), 0)
    plain = seeded(lambda: vgg11(width=16), 0)
    convolutions = [m for m in net if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 8
    for m in convolutions[1:]:
        assert float(m.weight.detach().var()) == pytest.approx(2 / (9 * m.out_channels), rel=0.1)
        assert m.bias is not None
        assert not m.bias.any()
    assert [tuple(v.shape) for v in net.state_dict().values()] == [tuple(v.shape) for v in plain.state_dict().values()]


def test_seeded_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first = seeded(lambda: mlp((4, 4)), 5)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(9)
    second = seeded(lambda: mlp((4, 4)), 5)
    assert all(torch.equal(v, second.state_dict()[k]) for k, v in first.state_dict().items())
    other = seeded(lambda: mlp((4, 4)), 6).state_dict()
    assert not torch.equal(first.state_dict()["0.weight"], other["0.weight"])
    with pytest.raises(ZeroDivisionError):
        seeded(lambda: 1 / 0, 0)  # type: ignore[arg-type]
    torch.manual_seed(3)
    assert torch.equal(before, torch.random.get_rng_state())


def test_names_build_what_they_say():
    assert shapes(by_name("mlp:64-60x2-10")) == shapes(mlp((64, 60, 60, 10)))
    assert shapes(by_name("mlp:6-5:nobias:gelu")) == shapes(mlp((6, 5), bias=False))
    assert shapes(by_name("convnet:8")) == shapes(convnet(8))
    assert shapes(by_name("convnet:nobias:8:nopool")) == shapes(convnet(8, pool=False, bias=False))
    assert shapes(by_name("vgg11:4", inputs=(1, 32, 32), outputs=5)) == shapes(vgg11(width=4, in_channels=1, classes=5))
    assert shapes(by_name("vgg11_bn:4")) == shapes(vgg11(width=4, batch_norm=True))
    assert list(MODELS) == ["mlp", "convnet", "vgg11", "vgg11_bn", "conv5", "lstm", "meanfield"]
    assert all(e.syntax.startswith(e.name) and e.line and e.reference for e in MODELS.values())


@pytest.mark.parametrize("bias", [True, False])
def test_mlp_alone_reads_the_checkpoint(bias: bool):
    net = mlp((6, 5, 4, 3), bias=bias, activation="tanh")
    again = by_name("mlp:tanh", like=net.state_dict(), inputs=6, outputs=3)
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(torch.ones(1, 6)), net(torch.ones(1, 6)))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("resnet", "one of mlp, convnet, vgg11, vgg11_bn"),
        ("mlp", "widths, or a state dict"),
        ("mlp:", "got ''"),
        ("mlp:64", "at least two widths"),
        ("mlp:64--10", "got ''"),
        ("mlp:64-0-10", "got '0'"),
        ("mlp:64-60x-10", "got '60x'"),
        ("mlp:64-60x0-10", "got '60x0'"),
        ("mlp:64-٣-10", "whole numbers"),
        ("mlp:64-6e1-10", "got '6e1'"),
        ("mlp:2-1x99999-2", "at most 10000 layers"),
        ("mlp:64-10:swish", "got 'swish'"),
        ("mlp:64-10:relu:tanh", "one activation"),
        ("mlp:6-5-3:dropout=1", "a rate in [0, 1)"),
        ("mlp:6-5-3:dropout=", "got ''"),
        ("mlp:6-5-3:dropout=0.1x0", "got '0.1x0'"),
        ("mlp:6-5-3:dropout=0.1:dropout=0.2", "one dropout="),
        ("mlp:6-5-3:dropout=0.1-0.2", "one rate, or 1 for the hidden layers, got 2 rates"),
        ("vgg11:4:dropout=0.25x3", "10 for the hidden layers, got 3 rates"),
        ("convnet:8:he", "one whole number"),
        ("convnet:8:9", "one whole number"),
        ("convnet:big", "one whole number"),
        ("vgg11:nobias", "one whole number"),
        ("conv5:8", "at least two widths"),
        ("conv5:8-4:big", "then lrn"),
        ("lstm:8x0", "WIDTH or WIDTHxLAYERS"),
        ("lstm:8:9", "WIDTH or WIDTHxLAYERS"),
        ("lstm:8", "data with words"),
        ("no_such_module:make", "installed module, got no module named 'no_such_module'"),
        ("no/such/file.py:make", "got no file no/such/file.py"),
        ("a b:make", "MODULE:FACTORY"),
        ("isthmus.models:nothing", "got 'nothing'"),
        ("isthmus.models:convnet.deep", "got 'convnet.deep'"),
        ("isthmus.models:mlp", "without arguments, got TypeError"),
        ("isthmus.models:MODELS", "torch.nn.Module, got dict"),
    ],
)
def test_names_that_are_refused(spec: str, words: str):
    with pytest.raises(InputError) as caught:
        by_name(spec)
    assert words in str(caught.value)


def test_names_are_checked_against_data_and_checkpoint():
    with pytest.raises(InputError, match="64 inputs, as the data have, got 32"):
        by_name("mlp:32-10", inputs=(1, 8, 8))
    with pytest.raises(InputError, match="10 outputs"):
        by_name("mlp:64-3", inputs=64, outputs=10)
    with pytest.raises(InputError, match="square images"):
        by_name("convnet", inputs=64)
    with pytest.raises(InputError, match=r"network with 0.bias \[5\], as the checkpoint has, got 0.bias \[4\]"):
        by_name("mlp:3-4-2", like=mlp((3, 5, 2)).state_dict())
    with pytest.raises(InputError, match=r"network with no 0.bias"):
        by_name("mlp:3-4-2", like=mlp((3, 4, 2), bias=False).state_dict())
    for other in (convnet(2).state_dict(), {}, {"0.weight": torch.ones(2, 2), "x": torch.ones(1)}):
        with pytest.raises(InputError, match="state dict of an mlp"):
            by_name("mlp", like=other)


def write(folder: Path, text: str) -> str:
    file = folder / "nets.py"
    file.write_text(text)
    return str(file)


def test_networks_of_the_user(tmp_path: Path):
    (tmp_path / "neighbour_of_nets.py").write_text("WIDTH = 5\n")
    file = write(
        tmp_path,
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom torch import nn\n"
        "from neighbour_of_nets import WIDTH\n"
        "@dataclass\nclass Sizes:\n    n: int = WIDTH\n"
        "def make():\n    return nn.Linear(Sizes().n, 2)\n"
        "class Net(nn.Linear):\n    def __init__(self):\n        super().__init__(4, 2)\n"
        "ready = make()\nclass Space:\n    make = make\n",
    )
    for name, width in (("make", 5), ("Net", 4), ("ready", 5), ("Space.make", 5)):
        assert shapes(by_name(f"{file}:{name}"))["weight"] == (2, width)
    assert isinstance(by_name("torch.nn:Identity"), nn.Identity)
    with pytest.raises(InputError, match=r"defines \(dataclass, Sizes, make, Net"):
        by_name(f"{file}:other")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def broken(:\n", "import without an error, got SyntaxError"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
        ("import module_that_is_not_there\n", "No module named 'module_that_is_not_there'"),
        ("def make():\n    raise RuntimeError('boom')\n", "RuntimeError: boom"),
        ("def make():\n    return 3\n", "torch.nn.Module, got int"),
    ],
)
def test_failures_of_the_users_code(tmp_path: Path, text: str, words: str):
    with pytest.raises(InputError) as caught:
        by_name(f"{write(tmp_path, text)}:make")
    assert words in str(caught.value)
