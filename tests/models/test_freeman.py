"""The image networks and the language model of Freeman and Bruna 2017."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import isthmus as im
from isthmus.errors import InputError
from isthmus.models import LanguageModel, by_name, conv5, seeded
from isthmus.training.fit import fit


def draw(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts_of_the_paper():
    mnist, cifar = conv5(), by_name("conv5:64-64-384-192:lrn", inputs=(3, 32, 32), outputs=10)
    assert count(mnist) == 25 * 32 + 32 + 25 * 32 * 64 + 64 + 49 * 64 * 1024 + 1024 + 10240 + 10
    linear = 64 * 64 * 384 + 384 + 384 * 192 + 192 + 1920 + 10
    assert count(cifar) == 25 * 3 * 64 + 64 + 25 * 64 * 64 + 64 + linear
    V, n = 10_000, 200
    assert count(by_name("lstm:200x2", inputs=(20,), outputs=V)) == V * n + 2 * (8 * n * n + 8 * n) + V * n + V


@pytest.mark.parametrize("normalise", [False, True])
def test_conv5_is_the_formula(normalise):
    net = seeded(lambda: conv5((2, 3, 4), classes=5, in_channels=2, image=8, normalise=normalise), 0).double()
    x = draw((3, 2, 8, 8))
    p = list(net.parameters())

    def lrn(z):  # TensorFlow's: radius 4, bias 1, alpha 0.001 / 9, beta 0.75
        if not normalise:
            return z
        squares = F.pad(z**2, (0, 0, 0, 0, 4, 4))
        total = sum(squares[:, k : k + z.shape[1]] for k in range(9))
        return z / (1 + 0.001 / 9 * total) ** 0.75

    z = lrn(F.max_pool2d(F.conv2d(x, p[0], p[1], padding=2).relu(), 2))
    z = F.max_pool2d(lrn(F.conv2d(z, p[2], p[3], padding=2).relu()), 2).flatten(1)
    z = (z @ p[4].T + p[5]).relu() @ p[6].T + p[7]
    torch.testing.assert_close(net(x), z, rtol=1e-10, atol=1e-12)


def test_conv5_refuses():
    wrong: list[dict[str, Any]] = [
        {"widths": (3,)},
        {"widths": (3, 0)},
        {"widths": (3, True)},
        {"classes": 0},
        {"image": 3},
    ]
    for options in wrong:
        with pytest.raises(InputError):
            conv5(**options)


def test_the_language_model_is_the_recurrence():
    model = seeded(lambda: LanguageModel(7, width=3, layers=2), 1).double()
    words = torch.tensor([[1, 4, 0, 6], [2, 2, 5, 3]])
    p = dict(model.named_parameters())
    scores = torch.zeros(2, 7, 4, dtype=torch.float64)
    h, c = ([torch.zeros(2, 3, dtype=torch.float64) for _ in range(2)] for _ in range(2))
    for t in range(4):
        x = p["embedding.weight"][words[:, t]]
        for l in range(2):
            ih, hh = (p[f"lstm.weight_{k}_l{l}"] for k in ("ih", "hh"))
            z = x @ ih.T + p[f"lstm.bias_ih_l{l}"] + h[l] @ hh.T + p[f"lstm.bias_hh_l{l}"]
            i, f, g, o = z.chunk(4, 1)
            c[l] = f.sigmoid() * c[l] + i.sigmoid() * g.tanh()
            x = h[l] = o.sigmoid() * c[l].tanh()
        scores[:, :, t] = x @ p["output.weight"].T + p["output.bias"]
    torch.testing.assert_close(model(words), scores, rtol=1e-10, atol=1e-12)
    assert all(float(v.detach().abs().max()) <= 0.1 for v in model.parameters())
    with pytest.raises(InputError, match="width"):
        LanguageModel(7, width=0)
    with pytest.raises(InputError, match="sequences of word numbers"):
        by_name("lstm:4", inputs=(3, 8, 8), outputs=10)
    assert count(by_name("lstm:3x2", like=model.state_dict())) == count(model)


def test_an_objective_of_an_lstm_follows_its_parameters():
    """nn.LSTM keeps its weights in a list of its own, which a functional call must not read the old ones from."""
    model = seeded(lambda: LanguageModel(6, width=4), 0).double().eval()
    words = torch.randint(0, 6, (12, 5), generator=torch.Generator().manual_seed(0))
    objective = im.Objective(model, "cross_entropy", (words[:, :-1], words[:, 1:]))
    a = {k: v.detach().clone() for k, v in model.state_dict().items()}
    b = {k: v + 0.5 * draw(v.shape, i) for i, (k, v) in enumerate(a.items())}
    other = LanguageModel(6, width=4).double()
    other.load_state_dict(b)
    direct = F.cross_entropy(other(words[:, :-1]), words[:, 1:])
    assert objective.loss(b) == pytest.approx(float(direct.detach()), rel=1e-12)
    assert objective.loss(b) != pytest.approx(objective.loss(a), rel=1e-3)
    leaves = {k: v.clone().requires_grad_() for k, v in b.items()}
    objective.batch_loss(leaves, torch.arange(12)).backward()
    direct.backward()
    for name, p in other.named_parameters():
        torch.testing.assert_close(leaves[name].grad, p.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(functional_call(model, b, (words,)), other(words))
    connection = im.connect(objective, a, b, im.Linear())
    assert im.certify(objective, connection.path, budget=0).counts == {"measured": 1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_string_of_image_networks(dtype):
    """Any module will do: local response normalisation has no unit structure, and strings need none."""

    def network(seed):
        return seeded(lambda: conv5((2, 3, 4), classes=3, in_channels=1, image=8, normalise=True), seed).to(dtype)

    net = network(0).eval()
    x, y = draw((40, 1, 8, 8)).to(dtype), torch.arange(40) % 3
    objective = im.Objective(net, "cross_entropy", (x, y))
    ends = []
    for seed in (1, 2):
        start = network(seed).state_dict()
        recipe = im.StringSampling(recipe=im.Recipe(lr=0.02, steps=2000, batch=40, schedule="constant")).recipe
        generator = torch.Generator().manual_seed(seed)
        fitted = fit(objective.batch_loss, objective.loss, start, 40, recipe, generator=generator, target=0.5)
        ends.append(fitted.params)
    method = im.StringSampling(
        0.6, points=9, recipe=im.Recipe(lr=0.02, steps=800, batch=40, schedule="constant", check=10)
    )
    connection = im.connect(objective, ends[0], ends[1], method)
    assert connection.outcome.ok
    assert connection.stats["beads"] >= 1
    assert max(objective.loss(s.at(k / 40)) for s in connection.path.segments for k in range(41)) <= 0.6 * (1 + 1e-6)
