"""A mask of infinities in the state of a network is no obstacle: it is the same everywhere, and its entries count 0."""

from math import isfinite

import pytest
import torch
from torch import Tensor, nn

import isthmus as im
from isthmus.errors import InputError
from isthmus.params import distance

FEW = im.Recipe(lr=None, epochs=2, batch=8)


class Causal(nn.Module):
    """Attention to what came before, its mask a buffer of the state."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.out = nn.Linear(3, 4), nn.Linear(4, 2)
        self.register_buffer("mask", torch.full((5, 5), -torch.inf).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.keys(x)
        shares = torch.softmax(h @ h.mT + self.mask, -1)
        return self.out((shares @ h)[:, -1])


def masked() -> tuple[im.Objective, im.Params, im.Params]:
    torch.manual_seed(1)
    a, b = Causal().double(), Causal().double()
    data = torch.randn(16, 5, 3).double(), torch.randint(0, 2, (16,))
    return im.Objective(a, "cross_entropy", data), dict(a.state_dict()), dict(b.state_dict())


@pytest.mark.parametrize(
    "method",
    [
        *(im.Linear(), im.Bezier(recipe=FEW), im.LayerWise(moves=1, recipe=FEW), im.AutoNEB(cycles=((2, 2),))),
        *(im.Aligned(im.Linear(), im.WeightMatching()), im.Aligned(im.Linear(), im.RotationMatching())),
    ],
    ids=lambda method: type(method).__name__,
)
def test_paths_keep_it(method):
    objective, a, b = masked()
    connection = im.connect(objective, a, b, method)
    assert all(torch.equal(knot["mask"], a["mask"]) for knot in connection.path.knots)
    assert isfinite(im.profile(objective, connection, 5).max)
    assert isfinite(im.certify(objective, connection, budget=1).bound)


@pytest.mark.parametrize("method", ["average", "slerp", "task", "ties", "aligned-average"])
def test_merged_networks_keep_it(method):
    objective, a, b = masked()
    start = {k: v / 2 if k != "mask" else v for k, v in a.items()}
    found = im.merge(objective, [a, b], method, base=start if method in ("task", "ties") else None)
    assert torch.equal(found.params["mask"], a["mask"])
    assert found.worth["training data"].loss == pytest.approx(objective.loss(found.params))


def test_a_plane_leaves_it_out():
    objective, a, b = masked()
    c = {k: -v if k != "mask" else v for k, v in a.items()}
    found = im.plane(objective, a, b, c, points=3)
    assert found.corners[1].tolist() == pytest.approx([distance(a, b), 0])
    assert found.train.corner_loss.tolist() == [objective.loss(p) for p in (a, b, c)]
    with pytest.raises(InputError, match=r"\['mask'\]"):
        im.plane(objective, a, b, c | {"mask": a["mask"].clamp(min=-1) - torch.inf}, points=3)


def test_distances_and_premises_are_numbers():
    objective, a, b = masked()
    own = {k: v for k, v in a.items() if k != "mask"}
    assert distance(a, {**b, "mask": b["mask"].clone()}) == distance(own, b)
    alignment = im.align(objective, a, b, im.WeightMatching())
    assert all(map(isfinite, alignment.distance))
    assert im.theory(objective, a, b, theorems=["Theorem 1"]).rows
