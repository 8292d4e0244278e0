"""What may move along a path: real and complex tensors do, integers and booleans do not, whoever takes the path."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import isthmus as im
from isthmus import params as P
from isthmus.certify import verify_certificate
from isthmus.paths import Curve
from isthmus.structure.liveness import changed_tensors
from isthmus.training.fit import Recipe, fit


def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def data():
    return torch.randn(40, 8, generator=generator()), torch.arange(40) % 3


class Buffered(nn.Module):
    """A layer and a buffer, joined by a function."""

    def __init__(self, buffer, join, name="buffer"):
        super().__init__()
        self.layer = nn.Linear(8, 3)
        self.register_buffer(name, buffer)
        self.join, self.name = join, name

    def forward(self, x):
        return self.join(self.layer(x), getattr(self, self.name))


class Fourier(nn.Module):
    """A filter with complex weights, then a layer."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(5, dtype=torch.cfloat, generator=generator()))
        self.layer = nn.Linear(8, 3)

    def forward(self, x):
        return self.layer(torch.fft.irfft(torch.fft.rfft(x, dim=1) * self.w, n=8, dim=1))


def ends(module, name="buffer", other=None):
    a = {k: v.clone() for k, v in module.state_dict().items()}
    b = {k: torch.randn(v.shape, generator=generator()) if v.is_floating_point() else v for k, v in a.items()}
    return a, b if other is None else {**b, name: other}


CONSUMERS = {
    "connect": lambda o, p: im.connect(o, p.start, p.end),
    "profile": lambda o, p: im.profile(o, p, 5),
    "adaptive": lambda o, p: im.profile(o, p, tol=0.1),
    "recompute": lambda o, p: im.profile(o, p, 5, bn="recompute"),
    "certify": lambda o, p: im.certify(o, p),
    "verify": lambda o, p: verify_certificate(o, p, im.certify(o, Curved(p.start)).to_dict()),
    "straighten": lambda o, p: im.straighten(o, p, 100.0),
    "geometry": lambda o, p: im.geometry(o, p.start, p.end, [100.0]),
    "strings": lambda o, p: im.connect(o, p.start, p.end, im.StringSampling(threshold=100.0)),
}


def Curved(point):
    return im.Path((Curve((point, point)),))


ACTING = {
    "an index": (torch.arange(3), lambda z, k: z[:, k], torch.tensor([2, 1, 0]), "buffer"),
    "a boolean mask": (
        torch.tensor([True, True, False]),
        lambda z, k: z * k,
        torch.tensor([False, True, True]),
        "buffer",
    ),
    "a scale": (torch.tensor(1, dtype=torch.int32), lambda z, k: z * k, torch.tensor(5, dtype=torch.int32), "buffer"),
    "a counter that acts": (torch.tensor(3), lambda z, k: z * (k + 1), torch.tensor(5), "num_batches_tracked"),
}


@pytest.mark.parametrize("consume", CONSUMERS.values(), ids=CONSUMERS.keys())
@pytest.mark.parametrize(("buffer", "join", "other", "name"), ACTING.values(), ids=ACTING.keys())
def test_integers_that_differ_and_act_are_refused_by_all_who_take_a_path(data, buffer, join, other, name, consume):
    module = Buffered(buffer, join, name).eval()
    objective = im.Objective(module, data=data)
    path = im.Path.through(list(ends(module, name, other)))
    with pytest.raises(im.InputError, match=rf"'{name}'\]: expected the torch.\w+ tensor of the other end .*got other"):
        consume(objective, path)


def test_integers_that_differ_inside_a_curve_are_refused(data):
    module = Buffered(torch.arange(3), lambda z, k: z[:, k]).eval()
    objective, (a, _) = im.Objective(module, data=data), ends(module)
    path = im.Path((Curve((a, {**a, "buffer": torch.tensor([2, 1, 0])}, a)),))
    for consume in (im.profile, im.certify):
        with pytest.raises(im.InputError, match="buffer"):
            consume(objective, path)


def test_integers_that_do_not_act_may_differ(data):
    module = Buffered(torch.tensor(3), lambda z, k: z)
    objective = im.Objective(module, data=data)
    a, b = ends(module, other=torch.tensor(9))
    path = im.connect(objective, a, b).path
    assert int(path.end["buffer"]) == 9
    assert im.certify(objective, path).proved
    assert im.profile(objective, path, 5).loss[2] == pytest.approx(objective.loss(P.lerp(a, b, 0.5)), rel=1e-6)
    normalised = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).eval()
    objective = im.Objective(normalised, data=data)
    a, b = ends(normalised, "1.num_batches_tracked", torch.tensor(7))
    b["1.running_var"] = b["1.running_var"].abs() + 1
    assert im.connect(objective, a, b).outcome.ok
    assert im.profile(objective, im.Path.through([a, b]), 5).max > 0


def test_masks_of_minus_infinity_may_stay_and_may_not_move(data):
    mask = torch.tensor([0.0, 0.0, -torch.inf])
    module = Buffered(mask, lambda z, k: (z + k).clamp(min=-9)).eval()
    objective = im.Objective(module, data=data)
    a, b = ends(module, other=mask.clone())
    connection = im.connect(objective, a, b)
    z = F.linear(data[0], (a["layer.weight"] + b["layer.weight"]) / 2, (a["layer.bias"] + b["layer.bias"]) / 2)
    want = float(F.cross_entropy((z + mask).clamp(min=-9), data[1]))
    assert im.profile(objective, connection.path, 3).loss[1] == pytest.approx(want, rel=1e-5)
    assert connection.path.length == pytest.approx(P.distance(a, {**b, "buffer": a["buffer"]}), rel=1e-6)
    bent = Curve((a, {**b, "buffer": mask.clone()}, a))
    assert bent.length > 0
    assert im.certify(objective, connection.path).bound >= im.profile(objective, connection.path, 21).max - 1e-6
    moved = {**b, "buffer": torch.tensor([0.0, -torch.inf, 0.0])}
    with pytest.raises(im.InputError, match=r"a\['buffer'\]: expected finite numbers, got 1 entries"):
        im.connect(objective, a, moved)
    with pytest.raises(im.InputError, match=r"knot 0: expected finite weights.*'buffer'"):
        im.certify(objective, im.Path.through([a, moved]))


# -- complex tensors


def filtered(point, data, kappa=0.0):
    z = torch.fft.irfft(torch.fft.rfft(data[0], dim=1) * point["w"], n=8, dim=1)
    z = F.linear(z, point["layer.weight"], point["layer.bias"])
    return float(F.cross_entropy(z, data[1])) + kappa * sum(float(v.abs().square().sum()) for v in point.values())


def test_complex_tensors_move_like_real_ones(data, tmp_path):
    module = Fourier().eval()
    a = {k: v.clone() for k, v in module.state_dict().items()}
    b = {k: torch.randn(v.shape, dtype=v.dtype, generator=generator()).flip(0) for k, v in a.items()}
    assert not torch.equal(a["w"], b["w"])
    objective = im.Objective(module, data=data, penalty=im.Ridge(0.01))
    connection = im.connect(objective, a, b)
    middle = {k: 0.7 * a[k] + 0.3 * b[k] for k in a}
    measured = im.profile(objective, connection.path, 11)
    assert measured.loss[3] == pytest.approx(filtered(middle, data, 0.01), rel=1e-5)
    assert objective.loss(connection.path.at(0.3)) == pytest.approx(filtered(middle, data, 0.01), rel=1e-5)
    assert objective.cast(torch.float64).loss(a) == pytest.approx(filtered(a, data, 0.01), rel=1e-5)
    assert objective.cast(torch.float64).check(a)["w"].dtype is torch.complex128
    apart = sum(float((a[k] - b[k]).abs().square().sum()) for k in a) ** 0.5
    assert connection.path.length == pytest.approx(apart, rel=1e-5)
    assert P.norm(a) == pytest.approx(sum(float(v.abs().square().sum()) for v in a.values()) ** 0.5, rel=1e-5)
    assert im.Objective(module, data=data, penalty=im.L1(1.0)).penalty_of({**a}) == pytest.approx(
        sum(float(v.abs().sum()) for v in a.values()), rel=1e-5
    )
    im.save(connection, tmp_path / "path.safetensors")
    again = im.load_connection(tmp_path / "path.safetensors").path
    assert P.equal(again.at(0.3), connection.path.at(0.3))
    with pytest.raises(im.InputError, match=r"a\['w'\]: expected finite numbers"):
        im.connect(objective, {**a, "w": a["w"] * torch.inf}, b)
    with pytest.raises(im.UnsupportedError, match="does not run in bfloat16"):
        im.profile(objective, connection.path, 5, screen="bf16")


def test_no_proof_overlooks_a_complex_tensor(data):
    module = Fourier().eval()
    a = {k: v.clone() for k, v in module.state_dict().items()}
    objective = im.Objective(module, data=data)
    turned = {**a, "w": -a["w"], "layer.weight": -a["layer.weight"]}
    for b in (turned, {**a, "w": -a["w"]}):
        assert "w" in changed_tensors([a, b])
        path = im.Path.through([a, b])
        proof = im.certify(objective, path)
        assert not proof.proved
        assert proof.bound >= im.profile(objective, path, 21).max - 1e-6
    still = {**a, "layer.weight": -a["layer.weight"]}
    proof = im.certify(objective, im.Path.through([a, still]))
    assert not proof.proved, "what rounding does to complex numbers is not bounded"
    assert proof.bound >= im.profile(objective, im.Path.through([a, still]), 21).max - 1e-6


def test_a_product_with_complex_weights_is_affine_in_them():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([1.0 + 2.0j]))

        def forward(self, x):
            return x * self.w

    x, y = torch.randn(5, 1, dtype=torch.cfloat, generator=generator()), torch.zeros(5, 1, dtype=torch.cfloat)
    objective = im.Objective(Turned(), lambda z, y: (z - y).abs().square().sum(1), (x, y), convex=True)
    path = im.Path.through([{"w": torch.tensor([2.0j])}, {"w": torch.tensor([1.0 + 0j])}])
    proof = im.certify(objective, path)
    assert (proof.proved, proof.segments[0].claim) == (False, "measured")
    assert proof.bound == pytest.approx(4 * float(x.abs().square().mean()), rel=1e-5)
    measured = im.profile(objective, path, 3).loss.tolist()
    assert measured == pytest.approx([k * float(x.abs().square().mean()) for k in (4, 1.25, 1)], rel=1e-5)


@pytest.mark.parametrize(("weight", "entry"), [(torch.cfloat, torch.float32), (torch.float32, torch.cfloat)])
def test_affine_forms_refuse_complex_numbers(weight, entry):
    class Squared(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(1, dtype=weight))

        def forward(self, x):
            return x * self.w * self.w

    x, y = torch.randn(5, 1, dtype=entry, generator=generator()), torch.zeros(5, 1, dtype=torch.cfloat)
    objective = im.Objective(Squared(), lambda z, y: (z - y).abs().square().sum(1), (x, y), convex=True)
    unit = 1j if weight.is_complex else 1.0
    path = im.Path.through([{"w": torch.tensor([v * unit], dtype=weight)} for v in (-1.0, 2.0)])
    assert im.profile(objective, path, 4).loss[3] == pytest.approx(16 * float(x.abs().square().mean()), rel=1e-5)
    proof = im.certify(objective, path)
    assert not proof.proved
    assert "complex" in proof.segments[0].why
    assert proof.bound == pytest.approx(im.profile(objective, path).max, rel=1e-5)


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "lbfgs"])
def test_complex_weights_are_trained(optimizer):
    goal = torch.tensor([3.0 - 1.0j, 2.0j])

    def loss(p, index=None):
        return (p["w"] - goal).abs().square().sum()

    recipe = Recipe(optimizer, lr=0.05, steps=400, batch=1)
    start = {"w": torch.zeros(2, dtype=torch.cfloat)}
    found = fit(loss, lambda p: float(loss(p)), start, 1, recipe, generator=generator(), target=1e-3)
    assert found.loss <= 1e-3


# -- narrow and packed numbers


def test_half_precision_is_widened_and_trained_in_float32(data):
    torch.manual_seed(0)
    x, y = data[0], (data[0][:, 0] * data[0][:, 1] > 0).long()
    module = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 2)).half()
    a, b = ends(module)
    b = {k: v.half() for k, v in b.items()}
    objective = im.Objective(module, data=(x.half(), y))
    assert objective.dtype is torch.float32
    float32 = im.Objective(module.float(), data=(x.half().float(), y))
    assert objective.loss(a) == float32.loss(P.cast(a, torch.float32))
    connection = im.connect(objective, a, b, im.StringSampling(threshold=2 * max(map(objective.loss, (a, b)))))
    assert P.equal(connection.path.start, P.cast(a, torch.float32))
    assert P.equal(P.cast(connection.path.start, torch.float16), a)
    assert im.profile(objective, connection.path, 5).max > 0
    kept = im.Objective(module.half(), data=(x.half(), y), dtype=torch.float16)
    assert kept.dtype is torch.float16
    with pytest.raises(im.InputError, match=r"got torch.float16; write objective.cast\(torch.float32\)"):
        fit(lambda p, i: p["w"].sum(), lambda p: 1.0, {"w": torch.ones(1).half()}, 1, Recipe(), generator=generator())


def test_the_precision_is_that_of_the_widest_tensor(data):
    module = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 3).double())
    objective = im.Objective(module, data=data)
    assert objective.dtype is torch.float64
    assert objective.loss(module.state_dict()) > 0


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16])
def test_narrow_weights_are_widened_exactly(data, kind):
    module = nn.Linear(8, 3)
    objective, (a, b) = im.Objective(module, data=data), ends(module)
    a, b = ({k: v.to(kind) for k, v in p.items()} for p in (a, b))
    assert objective.loss(a) == objective.loss({k: v.float() for k, v in a.items()})
    assert im.connect(objective, a, b).path.start["weight"].dtype is torch.float32
    if kind.itemsize == 1:
        with pytest.raises(im.InputError, match=r"float16 or wider.*write isthmus.params.cast"):
            im.Path.through([a, b])


PACKED = {
    "sparse": (lambda w: w.to_sparse(), r"it is sparse; write tensor.to_dense\(\)"),
    "quantised": (
        lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8),
        r"it is quantised; write tensor.dequantize\(\)",
    ),
    "complex": (lambda w: w.cfloat(), "expected torch.float32, got torch.complex64"),
    "wide": (lambda w: w.double(), r"write objective.cast\(torch.float64\)"),
    "half of the other kind": (lambda w: w.bfloat16(), r"got torch.bfloat16; write objective.cast\(torch.bfloat16\)"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("pack", "message"), PACKED.values(), ids=PACKED.keys())
def test_packed_weights_are_refused_with_what_to_write(data, pack, message):
    module = nn.Linear(8, 3)
    dtype = torch.float16 if "bfloat16" in message else torch.float32
    objective = im.Objective(module, data=data, dtype=dtype)
    state = P.cast(module.state_dict(), dtype)
    with pytest.raises(im.InputError, match=message):
        objective.loss({**state, "weight": pack(module.weight.detach())})


@pytest.mark.filterwarnings("ignore")
def test_quantised_modules_are_refused(data):
    module = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(8, 3)), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(im.UnsupportedError, match=r"its weights are quantised and cannot move.*floating-point module"):
        im.Objective(module, data=data)


def test_ends_from_files_are_not_copied_again_and_tied_tensors_stay_one(data, monkeypatch):
    net = nn.Sequential(nn.Linear(data[0].shape[1], 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    net[4].weight = net[2].weight
    objective = im.Objective(net, "mse", (data[0], torch.zeros(len(data[0]), 4)))
    a = {k: v.detach().clone() for k, v in net.state_dict().items()}
    b = {k: v + 1 for k, v in a.items()} | {"0.bias": a["0.bias"].clone()}
    held = {"a.pt": objective.check(a), "b.pt": objective.check(b)}
    monkeypatch.setattr("isthmus.storage.checkpoints.load_params", lambda path, like: held[path.name])
    for ends, own in (((a, b), False), (("a.pt", "b.pt"), True)):
        path = im.connect(objective, *ends, im.Linear()).path
        for point, given in ((path.start, held["a.pt"]), (path.end, held["b.pt"])):
            assert point["2.weight"] is point["4.weight"]
            assert (point["2.weight"].data_ptr() == given["2.weight"].data_ptr()) == own
        assert path.end["0.bias"] is path.start["0.bias"]
