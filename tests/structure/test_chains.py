"""Networks that look like a chain of layers, and whose units cannot be treated one by one."""

import pytest
import torch
from torch import Tensor, nn

import isthmus as im

METHODS = (im.Dropout(masks=2), im.NoiseDropout(draws=2), im.MeanField(), im.Subnetwork())


class Grouped(nn.Module):
    """A hidden layer whose units are normalised by groups."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.up, self.down, self.groups = nn.Conv1d(3, 8, 2), nn.Linear(16, 2), groups

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.group_norm(self.up(x), self.groups).relu().flatten(1))


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_units_that_are_normalised_in_groups_make_no_chain(groups: int, method: im.Connector) -> None:
    module = Grouped(groups).double()
    objective = im.Objective(module, "mse", (torch.randn(5, 3, 3).double(), torch.randn(5, 2).double()))
    a, b = ({k: torch.randn_like(v) for k, v in module.state_dict().items()} for _ in range(2))
    with pytest.raises(im.UnsupportedError, match="groups"):
        im.connect(objective, a, b, method)


def test_the_unit_of_each_row_stays_one_when_instances_are_normalised() -> None:
    module = nn.Sequential(nn.Conv1d(3, 8, 2), nn.InstanceNorm1d(8), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).double()
    objective = im.Objective(module, "mse", (torch.randn(5, 3, 3).double(), torch.randn(5, 2).double()))
    a, b = ({k: torch.randn_like(v) for k, v in module.state_dict().items()} for _ in range(2))
    found = im.connect(objective, a, b, im.Dropout(masks=2))
    still = [s for s, label in zip(found.path.segments, found.labels, strict=True) if not label.endswith("(a)")]
    assert len(still) == 9
    for segment in still:
        first, *rest = (objective.outputs(segment.at(t / 10)) for t in range(11))
        for out in rest:
            torch.testing.assert_close(out, first, rtol=1e-9, atol=1e-9)
