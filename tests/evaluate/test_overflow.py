"""Units that nothing reads and that overflow inside a segment: zero times that is no number, whoever computes it."""

import pytest
import torch
from torch import nn

import isthmus as im


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Softplus, nn.Tanh])
@pytest.mark.parametrize("width", [8, 64])
@pytest.mark.parametrize("bent", [True, False])
def test_the_loss_is_finite_where_that_of_the_module_is(activation, width, bent):
    torch.manual_seed(0)
    module = nn.Sequential(
        *(nn.Linear(3, width), activation(), nn.Linear(width, width), activation(), nn.Linear(width, 2))
    )
    objective = im.Objective(module, "mse", (torch.randn(9, 3), torch.randn(9, 2)))
    a = {k: v.clone() for k, v in module.state_dict().items()}
    a["2.weight"][:, : width // 2] = 0
    far = {k: v.clone() for k, v in a.items()}
    for name in ("0.weight", "0.bias"):
        far[name][: width // 2] = 3e38
    path = im.Path((im.Curve((a, far, a)),)) if bent else im.Path((im.Curve((a, far)), im.Curve((far, a))))
    profile = im.profile(objective, path, 21)
    own = [objective.loss(path.at(float(t))) for t in profile.t]
    torch.testing.assert_close(profile.loss.double(), torch.tensor(own, dtype=torch.float64), equal_nan=True)


def test_float64_has_room_for_weights_whose_product_has_none():
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    objective = im.Objective(module, "mse", (torch.randn(5, 3).double(), torch.randn(5, 2).double()))
    a = {k: v.clone() for k, v in module.state_dict().items()}
    a["2.weight"][:, 0] = 0
    far = {k: v.clone() for k, v in a.items()}
    far["0.weight"][0] = 1e200
    profile = im.profile(objective, im.Path((im.Curve((a, far)),)), 5)
    torch.testing.assert_close(profile.loss, torch.full_like(profile.loss, objective.loss(a)))


def test_a_product_over_the_layers_that_overflows_for_one_example():
    torch.manual_seed(0)
    linear = [nn.Linear(i, o, bias=False) for i, o in ((2, 6), (6, 6), (6, 6), (6, 2))]
    module = nn.Sequential(linear[0], nn.ReLU(), linear[1], nn.ReLU(), linear[2], nn.ReLU(), linear[3])
    far = {k: v.clone() for k, v in module.state_dict().items()}
    for name in ("2.weight", "4.weight", "6.weight"):
        far[name][:, 3:] = 0
    for name in ("0.weight", "2.weight", "4.weight"):
        far[name][3:] = 0
    far["0.weight"][5] = torch.tensor([1e13, 0.0])
    far["2.weight"][5, 5] = far["4.weight"][5, 5] = 1e13  # read by nothing at the end
    x = 0.1 * torch.randn(20, 2)
    x[:, 0] = -x[:, 0].abs()
    x[7], x[8] = torch.tensor([30.0, 0.0]), torch.tensor([-40.0, -40.0])
    objective = im.Objective(module, data=(x, torch.randint(0, 2, (20,))))
    assert objective.loss(far) != objective.loss(far)
    assert im.profile(objective, im.Path.through([far, dict(far)]), 5).loss.isnan().all()
