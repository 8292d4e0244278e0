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
