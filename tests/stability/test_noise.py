"""Every quantity and inequality of Definitions 2 to 4 against full Jacobians, one example at a time."""

from math import ceil, inf, sqrt

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

import isthmus as im
from isthmus.objective.data import single
from isthmus.params import cast
from isthmus.stability.noise.jacobian import Jacobian, Layered, spectral_norms
from isthmus.stability.noise.measure import _algorithm_1
from isthmus.structure.chain import chain_of
from tests.problems import Problem, blobs, classify, perceptron, small_convnet, tanh_regression

TIMES = (0.0, 0.3, 0.8)
DRAWS = 5


def plain_convnet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, stride=2, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 2, bias=False),
        nn.ReLU(), nn.Flatten(), nn.Linear(5, 7, bias=False), nn.ReLU(), nn.Linear(7, 4, bias=False),
    )  # fmt: skip


def with_dropout() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.25), nn.Linear(8, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 4)
    )


CASES = {
    "perceptron": lambda: classify("", perceptron([5, 8, 6, 7, 4]), (5,)),
    "without bias": lambda: classify("", perceptron([5, 8, 6, 7, 4], bias=False), (5,)),
    "two layers": lambda: classify("", perceptron([5, 8, 4]), (5,)),
    "convolutional": lambda: classify("", plain_convnet(), (1, 8, 8)),
    "BatchNorm": lambda: classify("", small_convnet(), (1, 8, 8)),
    "dropout layers": lambda: classify("", with_dropout(), (5,)),
}
MODULES = {"convolutional": plain_convnet, "BatchNorm": small_convnet, "dropout layers": with_dropout}


class Twin:
    """The literal definitions on an nn.Sequential: x^i is the value after cut i."""

    def __init__(self, problem: Problem, name: str):
        widths = {"perceptron": [5, 8, 6, 7, 4], "without bias": [5, 8, 6, 7, 4], "two layers": [5, 8, 4]}
        made = MODULES[name]() if name in MODULES else perceptron(widths[name], bias=name != "without bias")
        self.module = made.double().eval()
        self.module.load_state_dict(problem.a)
        self.module.requires_grad_(False)
        affine = [k for k, part in enumerate(self.module) if isinstance(part, nn.Linear | nn.Conv2d)]
        norms = [k for k, part in enumerate(self.module) if isinstance(part, nn.modules.batchnorm._BatchNorm)]
        self.cuts = [0] + [k + 2 if k + 1 in norms else k + 1 for k in affine]
        self.affine = [None, *affine]
        self.x = single(problem.objective.data[0])
        self.d = len(affine)

    def M(self, i, j, params=None):
        """x^i -> x^j as a function of one example (i = 0 reads the input)."""
        part = self.module[self.cuts[i] : self.cuts[j]]
        start = self.cuts[i]
        return lambda v: functional_call(
            part, {f"{int(k.split('.')[0]) - start}.{k.split('.')[1]}": w for k, w in (params or {}).items()
                   if start <= int(k.split(".")[0]) < self.cuts[j]}, (v[None],),
        )[0] if params else part(v[None])[0]  # fmt: skip

    def phi(self, i):
        """x^i -> phi(x^i), flattened: everything up to the next affine layer."""
        part = self.module[self.cuts[i] : self.affine[i + 1]]
        return lambda v: part(v[None])[0].flatten()

    def A(self, i, v):
        """The dense matrix of layer i on what it reads, for one example x^{i-1} = v."""
        h = self.module[self.cuts[i - 1] : self.affine[i]](v[None])[0] if i > 1 else v
        part = self.module[self.affine[i] : self.cuts[i]]
        return jacrev(lambda u: part(u[None])[0].flatten())(h).reshape(-1, h.numel())

    def J(self, i, j, v):
        return jacrev(lambda u: self.M(i, j)(u).flatten())(v).reshape(-1, v.numel())

    def noised(self, params, delta, i, t):
        """t theta + (1 - t) theta^i with theta^i from Algorithm 1 on the weights of layers 2 to i."""
        out = dict(params)
        for l in range(2, i + 1):
            name = f"{self.affine[l]}.weight"
            W = params[name]
            factor = delta[l - 1].repeat_interleave(W.shape[1] // len(delta[l - 1]))
            hat = W * factor.reshape(1, -1, *(1,) * (W.dim() - 2))
            out[name] = t * W + (1 - t) * hat
        return out


@pytest.fixture(scope="module", params=list(CASES))
def both(request):
    problem = CASES[request.param]()
    measured = im.noise_stability(
        problem.objective, problem.a, 0.4, draws=DRAWS, times=TIMES, examples=6, tolerance=1e-8, seed=3
    )
    return problem, measured, Twin(problem, request.param)


def close(a, b):
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=1e-6, atol=1e-12)


def test_layer_cushion_and_contraction(both):
    problem, n, twin = both
    for e, x in enumerate(twin.x[:6]):
        for i in range(1, twin.d + 1):
            before = twin.M(0, i - 1)(x) if i > 1 else x
            h = twin.phi(i - 1)(before) if i > 1 else x.flatten()
            value = twin.M(0, i)(x)
            A = twin.A(i, before)
            close(n.layer_cushion[i][e], value.norm() / (A.norm() * h.norm()))
            if not any("bias" in k for k in problem.a):
                close((A @ h).norm(), value.norm())
            if i < twin.d:
                close(n.activation_contraction[i][e], value.norm() / twin.phi(i)(value).norm())


def test_interlayer_cushion_and_its_minimum(both):
    problem, n, twin = both
    for e, x in enumerate(twin.x[:6]):
        for i in range(1, twin.d + 1):
            xi = twin.M(0, i)(x)
            found = []
            for j in range(i, twin.d + 1):
                J, xj = twin.J(i, j, xi) if j > i else torch.eye(xi.numel(), dtype=xi.dtype), twin.M(0, j)(x)
                norm = torch.linalg.svdvals(J)[0]
                close(n.jacobian_norm[i, j][e], norm)
                close(n.interlayer_cushion[i, j][e], xj.norm() / (norm * xi.norm()))
                found.append(n.interlayer_cushion[i, j][e])
                if not any("bias" in k for k in problem.a):  # the printed definition: J x^i = x^j
                    close((J @ xi.flatten()).norm(), xj.norm())
            close(n.minimal_interlayer_cushion[i][e], torch.stack(found).min())
    assert n.accuracy <= 1e-8


def draws_of(problem, n):
    g = torch.Generator().manual_seed(3)
    return [_algorithm_1(n.widths, 0.4, g, single(problem.objective.data[0])) for _ in range(DRAWS)]


def test_interlayer_smoothness_is_the_best_constant_of_both_inequalities(both):
    problem, n, twin = both
    d = twin.d
    joint = torch.full((DRAWS,), inf, dtype=torch.float64)
    for i in range(2, d):
        for j in range(i + 1, d + 1):
            rho = torch.full((DRAWS, 2, len(TIMES), 6), inf, dtype=torch.float64)
            for k, delta in enumerate(draws_of(problem, n)):
                for s, t in enumerate(TIMES):
                    for which, upto in enumerate((i, i - 1)):
                        params = twin.noised(problem.a, delta, upto, t)
                        for e, x in enumerate(twin.x[:6]):
                            xi, xj, z = twin.M(0, i)(x), twin.M(0, j)(x), twin.M(0, i, params)(x)
                            J, step = twin.J(i, j, xi), z - xi
                            linear = (J @ step.flatten()).reshape(xj.shape)
                            gap = (twin.M(i, j)(z) - xj - linear).norm()
                            if not any("bias" in key for key in problem.a):  # the definition as printed
                                close(gap, (twin.M(i, j)(z).flatten() - J @ z.flatten()).norm())
                            if gap > 1e-12:
                                rho[k, which, s, e] = (step.norm() * xj.norm() / (xi.norm() * gap)).detach()
            close(n.smoothness_times[i, j], rho.amin(3))
            close(n.smoothness_draws[i, j], rho.amin((1, 2)))
            half = rho.amin((1, 2)).sort(0, descending=True).values[ceil(DRAWS / 2) - 1]
            close(n.interlayer_smoothness[i, j], half)
            joint = torch.minimum(joint, rho.amin((1, 2, 3)))
    assert n.smoothness_draws.keys() == {(i, j) for i in range(2, d) for j in range(i + 1, d + 1)}
    want = float(joint.sort(descending=True).values[ceil(DRAWS / 2) - 1])
    assert n.smoothness == pytest.approx(want, rel=1e-6)
    assert (joint >= n.smoothness * (1 - 1e-9)).double().mean() >= 0.5


def test_epsilon_and_the_side_conditions(both):
    problem, n, twin = both
    outputs = problem.objective.outputs(problem.a)[:6]
    c = max(float(v.max()) for v in n.activation_contraction.values())
    worst = min(
        float(n.layer_cushion[i].min()) * min(float(n.interlayer_cushion[i, j].min()) for j in range(i, twin.d + 1))
        for i in range(2, twin.d + 1)
    )
    h_min = min(n.widths[1:-1])
    want = sqrt(2) * c * twin.d**1.5 * float(outputs.norm(dim=1).max()) / (sqrt(h_min) * worst)
    assert n.epsilon == pytest.approx(want)
    table = {c.name: c for c in n.conditions}
    assert table["interlayer smoothness rho"].holds == (n.smoothness >= 3 * twin.d)
    assert table["smallest hidden width h_min"].value == h_min
    assert 1 - 1e-9 <= table["sqrt(h_i) ||phi||_inf / ||phi||"].value <= sqrt(max(n.widths[1:-1])) * (1 + 1e-9)
    shares = []
    for i in range(2, twin.d + 1):
        A = twin.A(i, twin.M(0, i - 1)(twin.x[0]))
        columns = A.reshape(len(A), n.widths[i - 1], -1).norm(dim=(0, 2))
        close(n.column_share[i], columns / A.norm())
        shares.append(float(columns.max() / A.norm()))
    assert table["||[A_i]_j|| / (sqrt(p) ||A_i||_F)"].value == pytest.approx(max(shares) / sqrt(0.4))


def test_concentration_is_the_largest_unit_over_draws_and_times(both):
    problem, n, twin = both
    for i in range(1, twin.d):
        for e, x in enumerate(twin.x[:6]):
            found = []
            for delta in draws_of(problem, n):
                for t in TIMES:
                    h = twin.phi(i)(twin.M(0, i, twin.noised(problem.a, delta, i, t))(x)).reshape(n.widths[i], -1)
                    found.append(sqrt(len(h)) * float(h.norm(dim=1).max() / h.norm()) if h.any() else 0.0)
            close(n.concentration[i][e], torch.tensor(max(found), dtype=torch.float64))


def test_rho_bounds_the_noise_that_reaches_the_output():
    """The inequality of Lemma 3's proof that uses Definition 3, with the numbers found."""
    problem = CASES["without bias"]()
    n = im.noise_stability(problem.objective, problem.a, 0.2, draws=3, examples=4, times=(0.0,))
    twin = Twin(problem, "without bias")
    g = torch.Generator().manual_seed(0)
    for k in range(3):
        delta = _algorithm_1(n.widths, 0.2, g, twin.x)
        rho = min(float(v[k].min()) for v in n.smoothness_draws.values())
        for i in range(2, twin.d):
            params = twin.noised(problem.a, delta, i, 0.0)
            for x in twin.x[:4]:
                xi, xd, z = twin.M(0, i)(x), twin.M(0, twin.d)(x), twin.M(0, i, params)(x)
                moved = (twin.M(i, twin.d)(z) - xd).norm()
                reach = torch.linalg.svdvals(twin.J(i, twin.d, xi))[0] * (z - xi).norm()
                assert moved <= (reach + (z - xi).norm() * xd.norm() / (rho * xi.norm())) * (1 + 1e-9)


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (5, 60), (60, 5), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_spectral_norms_reach_the_accuracy_they_state(shape, dtype):
    g = torch.Generator().manual_seed(0)
    A = torch.randn(7, *shape, generator=g, dtype=dtype)
    A[0] = 0
    A[1] = torch.eye(*shape, dtype=dtype)  # every direction is the best one
    A[2, :, 1:] = 0
    x = torch.randn(7, shape[1], generator=g, dtype=dtype)
    tolerance = 1e-5
    value, error = spectral_norms(
        Jacobian(lambda v: (A @ v[..., None])[..., 0], x), x, tolerance=tolerance, seed=0, basis=6
    )
    exact = torch.linalg.svdvals(A)[:, 0]
    assert (error <= tolerance).all()
    assert ((value - exact).abs() <= (tolerance + 20 * torch.finfo(dtype).eps) * exact).all()
    assert value[0] == 0


def test_the_norm_of_a_convolution_is_that_of_the_map_not_of_the_kernel():
    """A kernel of ones with padding: the map on a small image is smaller than on an endless one."""
    net = nn.Sequential(
        nn.Conv2d(1, 1, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(1, 1, 3, padding=1, bias=False), nn.Flatten()
    )
    ones = torch.ones(1, 1, 4, 4).double()
    objective = im.Objective(net.double(), "mse", (ones, torch.zeros(1, 16).double()))
    kernel = torch.ones(1, 1, 3, 3).double()
    identity = nn.functional.pad(torch.ones(1, 1, 1, 1).double(), (1, 1, 1, 1))
    n = im.noise_stability(objective, {"0.weight": identity, "2.weight": kernel}, draws=1, lipschitz=1.0)
    dense = torch.as_tensor(jacrev(lambda v: nn.functional.conv2d(v, kernel, padding=1))(ones))
    dense = dense.reshape(16, 16)
    assert n.jacobian_norm[1, 2][0] == pytest.approx(float(torch.linalg.svdvals(dense)[0]), rel=1e-3)
    assert n.layer_cushion[2][0] == pytest.approx(float(dense.sum(1).norm() / (dense.norm() * 4)))


def test_examples_chunks_and_precision_do_not_change_the_numbers():
    problem = CASES["convolutional"]()
    n = im.noise_stability(problem.objective, problem.a, draws=2)
    some = im.noise_stability(problem.objective, problem.a, draws=2, examples=[5, 2, 9])
    small = im.Objective(plain_convnet().double().eval(), data=problem.objective.data, memory=1)
    seen = []
    apart = im.noise_stability(small, problem.a, draws=2, progress=lambda what, done, total: seen.append((done, total)))
    single = im.noise_stability(problem.objective.cast(torch.float32), cast(problem.a, torch.float32), draws=2)
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert {total for _, total in seen} == {24 * (6 + 2)}
    for name in (
        "layer_cushion",
        "interlayer_cushion",
        "activation_contraction",
        "interlayer_smoothness",
        "concentration",
    ):
        for key, value in getattr(n, name).items():
            torch.testing.assert_close(getattr(some, name)[key], value[[5, 2, 9]], rtol=2e-3, atol=0)
            torch.testing.assert_close(getattr(apart, name)[key], value, rtol=2e-3, atol=0)
            assert getattr(single, name)[key].dtype == torch.float32
            if name != "interlayer_smoothness":
                torch.testing.assert_close(getattr(single, name)[key].double(), value, rtol=4e-3, atol=0)
    assert apart.epsilon == pytest.approx(n.epsilon, rel=1e-2)
    assert n.to_dict()["quantiles"] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert n.to_dict()["layer_cushion"]["2"][0] == float(n.layer_cushion[2].min())


def test_without_noise_the_network_is_infinitely_smooth():
    problem = CASES["without bias"]()
    n = im.noise_stability(problem.objective, problem.a, draws=3, times=(1.0,))
    assert n.smoothness == inf
    assert all(bool((v == inf).all()) for v in n.smoothness_draws.values())


def test_the_lipschitz_constant_of_squares_is_infinite():
    problem = classify("", perceptron([5, 6, 3, 4], bias=False), (5,))
    module, y = perceptron([5, 6, 3, 4], bias=False).double(), torch.zeros(24, 4).double()
    squares = im.Objective(module, "mse", (problem.objective.data[0], y))
    assert im.noise_stability(squares, problem.a, draws=1).epsilon == inf
    one = im.noise_stability(squares, problem.a, draws=1, lipschitz=1.0)
    assert one.epsilon * sqrt(2) == pytest.approx(im.noise_stability(problem.objective, problem.a, draws=1).epsilon)


def test_a_layer_that_is_off_for_an_example_is_no_division_by_zero():
    net = perceptron([2, 3, 3, 2], bias=False).double()
    x, y = -torch.ones(2, 2).double(), torch.tensor([0, 1])
    x[1] = 1
    params = {k: torch.ones_like(v) for k, v in net.state_dict().items()}
    n = im.noise_stability(im.Objective(net, data=(x, y)), params, draws=2)
    assert n.activation_contraction[1].tolist() == [inf, 1.0]
    assert n.layer_cushion[2][0] == inf  # 0 <= 0 for every mu
    assert n.interlayer_cushion[1, 2][0] == inf
    assert n.layer_cushion[2][1] == pytest.approx(1.0)
    assert n.epsilon == inf
    off = im.noise_stability(im.Objective(net, data=(x[:1], y[:1])), params, draws=2)  # c and all cushions are infinite
    assert off.epsilon == inf


def refuse(module, shape, match):
    x, y = blobs(8, shape, 4)
    objective = im.Objective(module.double().eval(), data=(x, y))
    with pytest.raises(im.UnsupportedError, match=match):
        im.noise_stability(objective, dict(module.state_dict()))


def test_what_the_definitions_do_not_cover_is_refused_by_name():
    problem = tanh_regression()
    with pytest.raises(im.UnsupportedError, match=r"tanh.*ReLU"):
        im.noise_stability(problem.objective, problem.a)
    after = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 4))
    refuse(after, (5,), "batch_norm.*not positively homogeneous")
    overlap = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Flatten(), nn.Linear(12, 4))
    refuse(overlap, (1, 8, 8), "max_pool2d.*overlap")
    refuse(nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 4)), (5,), "no ReLU follows")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"p": 0.0}, "p: expected a dropout probability"),
        ({"p": 1.0}, "p: expected a dropout probability"),
        ({"draws": 0}, "draws"),
        ({"times": ()}, "times"),
        ({"times": (1.5,)}, "times"),
        ({"examples": 25}, "1 to 24"),
        ({"examples": [0, 24]}, "numbers from 0 to 23"),
        ({"examples": [0.5]}, "list of example numbers"),
        ({"lipschitz": -1.0}, "lipschitz"),
        ({"tolerance": 1e-17}, "tolerance"),
    ],
)
def test_misuse_is_refused(options, match):
    problem = CASES["two layers"]()
    with pytest.raises(im.InputError, match=match):
        im.noise_stability(problem.objective, problem.a, **options)


def test_the_cut_of_a_chain_computes_the_network():
    for name, make in CASES.items():
        problem = make()
        net = Layered.of(chain_of(problem.objective.program, problem.objective.structure), problem.a)
        x = single(problem.objective.data[0])
        z = net.onward(net.apply(x, 1), 1, net.d)[-1]
        torch.testing.assert_close(z, problem.objective.outputs(problem.a), msg=name)
