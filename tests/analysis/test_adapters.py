"""Adapters of low rank: the path of their factors, and what leaving them out costs."""

import pytest
import torch
from torch import Tensor, nn

import isthmus as im
from isthmus.errors import InputError
from tests.analysis.test_barrier import pair


def tuned(base, seed, rank=2):
    g = torch.Generator().manual_seed(seed)
    out = {}
    for k, v in base.items():
        step = torch.randn(v.shape, generator=g, dtype=v.dtype)
        if v.dim() == 2:
            B, A = (torch.randn(*s, generator=g, dtype=v.dtype) for s in ((len(v), rank), (rank, v.shape[1])))
            step = B @ A
        out[k] = v + 0.1 * step
    return out


def test_the_rank_stays_and_the_ends_are_met():
    base = pair().a
    a, b = tuned(base, 1), tuned(base, 2)
    path = im.low_rank_path(base, a, b)
    assert path.start["0.weight"] is a["0.weight"]
    assert path.end["0.weight"] is b["0.weight"]
    line = im.Path.through([a, b])
    for t in (0.25, 0.5, 0.7):
        for k, v in base.items():
            if v.dim() == 2:
                assert torch.linalg.matrix_rank(path.at(t)[k] - v, rtol=1e-8) == 2
                assert torch.linalg.matrix_rank(line.at(t)[k] - v, rtol=1e-8) > 2
            else:
                torch.testing.assert_close(path.at(t)[k], line.at(t)[k])


def test_the_frame_of_the_factors_does_not_matter_when_they_are_aligned():
    """From an adapter to itself the path stands still; without alignment too, as the factors are the same."""
    base = pair().a
    a = tuned(base, 1)
    again = {k: v + 1e-6 for k, v in a.items()}
    middle = im.low_rank_path(base, a, again).at(0.5)
    assert all(float((middle[k] - v).abs().max()) < 1e-4 for k, v in a.items())
    minus = {k: 2 * v - a[k] for k, v in base.items()}  # the same factors, one of them with the other sign
    torch.testing.assert_close(im.low_rank_path(base, a, minus).at(0.5)["0.weight"], base["0.weight"])
    twice = {k: v + 4 * (a[k] - v) for k, v in base.items()}
    torch.testing.assert_close(
        im.low_rank_path(base, a, twice).at(0.5)["0.weight"] - base["0.weight"],
        2.25 * (a["0.weight"] - base["0.weight"]),
    )


def test_leaving_adapters_out():
    p = pair()
    model = tuned(p.a, 1)
    found = im.adapter_stability(p.objective, p.a, model, keep=0.4, masks=3)
    assert [row.name for row in found.rows] == ["0.weight", "2.weight", "4.weight"]
    assert [row.rank for row in found.rows] == [2, 2, 2]
    for row in found.rows:
        without = p.objective.loss({**model, row.name: p.a[row.name]})
        assert row.rise == pytest.approx(without - p.objective.loss(model), abs=1e-12)
        assert row.norm == pytest.approx(float((model[row.name] - p.a[row.name]).norm()))
    assert found.kept == 1
    alone = [
        p.objective.loss({k: p.a[k] if v.dim() == 2 and k != row.name else v for k, v in model.items()})
        for row in found.rows
    ]
    assert all(any(loss == pytest.approx(one) for one in alone) for loss in found.losses)
    with pytest.raises(InputError, match="a matrix that differs"):
        im.adapter_stability(p.objective, p.a, p.a)
    with pytest.raises(InputError, match=r"a number in \(0, 1\)"):
        im.adapter_stability(p.objective, p.a, model, keep=1.0)


def test_other_networks_are_refused():
    p = pair()
    other = {k: v[:1] for k, v in p.a.items()}
    with pytest.raises(InputError):
        im.low_rank_path(p.a, p.a, other)


class Shared(nn.Module):
    """Words and classes by one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.classes = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.classes.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.classes(self.words(x))


def test_a_shared_matrix_is_one_adapter_and_one_that_is_alone_is_left_out():
    objective = im.Objective(Shared(), data=(torch.arange(5), torch.arange(5)))
    base, model = ({"words.weight": v * torch.ones(5, 3)} for v in (0.0, 1.0))
    model["words.weight"] += torch.eye(5, 3)
    found = im.adapter_stability(objective, base, model, masks=2)
    assert [row.name for row in found.rows] == ["words.weight"]
    assert found.kept == 0
    assert found.losses == (found.base_loss,) * 2
    assert found.rows[0].rise == pytest.approx(found.base_loss - found.loss)
    both = [im.block_barriers(objective, base, model, ts=[t]).rows for t in (0.5, 1.0)]
    middle = {"words.weight": (base["words.weight"] + model["words.weight"]) / 2}
    top = max(found.loss, found.base_loss)
    assert [row.alone for (row,) in both] == pytest.approx([objective.loss(middle) - top, found.loss - top])


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(odd):
    x, y = torch.eye(2), torch.tensor([0, 1])
    objective = im.Objective(torch.nn.Linear(2, 2, bias=False), data=(x, y))
    base, model = {"weight": torch.zeros(2, 2)}, {"weight": torch.tensor([[odd, 0.0], [0.0, 1.0]])}
    with pytest.raises(im.InputError, match="finite"):
        im.adapter_stability(objective, base, model)
    with pytest.raises(im.InputError, match="finite"):
        im.low_rank_path(base, model, model)
