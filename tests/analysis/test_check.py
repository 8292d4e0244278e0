"""May networks be averaged: what is decided, from how much, and what is said of it."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import isthmus as im
from isthmus.analysis.averaging import height
from isthmus.errors import InputError
from isthmus.evaluate.decide import FEWEST, MOST, Decision, decide
from isthmus.shown import upward
from isthmus.verdict import Level
from tests.analysis.test_barrier import normed, pair
from tests.problems import tied_and_normed


class Wave(nn.Module):
    """Outputs whose loss along a line of its one weight is what a test asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def bumps(height: float, frequency: float, examples: int = 1):
    """A loss of 1 at both ends of [0, 1] with bumps of that height above it."""

    def loss(outputs: Tensor, y: Tensor) -> Tensor:
        return 1 + height * (frequency * torch.pi * outputs[:, 0]).sin() ** 2

    data = (torch.ones(examples, 1, dtype=torch.float64), torch.zeros(examples, 1, dtype=torch.float64))
    return im.Objective(Wave(), loss, data)


def line():
    zero, one = (torch.tensor([v], dtype=torch.float64) for v in (0.0, 1.0))
    return [{"weight": zero}, {"weight": one}]


def ask(objective, level: float | str = "1.1x", **options: Any) -> Decision:
    return decide([objective], im.Path.through(line()), Level.read(level).above, **options)[0]


def test_a_line_is_decided_at_few_points():
    flat = ask(bumps(0.0, 1))
    assert flat.below
    assert not flat.rises
    assert len(flat.profile.t) == FEWEST
    high = ask(bumps(0.5, 1))
    assert high.rises
    assert not high.below
    assert high.at == 0.5
    assert len(ask(bumps(0.5, 1), first=[0.5]).profile.t) == 3
    assert len(ask(bumps(0.0, 1), first=[0.5]).profile.t) == FEWEST


def test_where_the_line_comes_close_to_the_level_more_points_decide():
    """The largest loss, 1.0999, is between two of the first points, or at one of them."""
    near = ask(bumps(0.0999, 1.5), 1.1)
    assert len(near.profile.t) > FEWEST
    assert near.below
    assert near.profile.max == pytest.approx(1.0999, abs=2e-4)
    assert not ask(bumps(0.1002, 1.5), 1.1).below
    assert len(ask(bumps(0.09999999, 1.5), 1.1).profile.t) <= MOST


@pytest.mark.parametrize("frequency", [0.5, 1.5, 2.5, 3.2])
@pytest.mark.parametrize("height", [0.09, 0.099, 0.101, 0.11, 0.5])
def test_no_go_is_never_called_go(frequency, height):
    """Against 2,001 points."""
    objective = bumps(height, frequency)
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)
    truth = (1 + height * (frequency * torch.pi * t).sin() ** 2).max()
    found = ask(objective, 1.1)
    assert found.below == (truth < 1.1)


def test_a_loss_that_is_not_a_number_is_no_go():
    def loss(outputs: Tensor, y: Tensor) -> Tensor:
        return torch.where((outputs[:, 0] > 0.3) & (outputs[:, 0] < 0.7), torch.nan, 1.0)

    data = (torch.ones(2, 1, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64))
    objective = im.Objective(Wave(), loss, data)
    assert not ask(objective).below
    found = im.check(objective, line(), align=False)
    assert not found.go
    assert json.dumps(found.to_dict())


def test_equal_networks_may_be_averaged_and_others_may_not():
    p = pair()
    test = p.objective.subset(20)
    same = im.check(p.objective, [p.a, p.a], test=test)
    assert same.go
    assert same.why.startswith("May be averaged: the loss stays below 1.1 x the larger end")
    near = {k: v + 1e-4 for k, v in p.a.items()}
    sure = im.check(p.objective, [p.a, near], prove=True, gap=0.01)
    assert sure.proved
    assert sure.certificate is not None
    assert sure.why.endswith(
        f"On the training data that is proved for all t: at most {upward(sure.certificate.bound):.4g}."
    )
    found = im.check(p.objective, [p.a, p.b], test={"part": test}, names=["a", "b"], curve=True, base=p.a)
    assert not found.go
    assert found.sets == ("training data", "part")
    top, other = (found.lines[0, 1][name].profile.max for name in found.sets)
    assert f"it rises to {other:.4g} on the part" in found.why
    assert "With their units renumbered they may" in found.why
    assert found.aligned[0, 1]["training data"].below
    assert found.curve is not None
    assert found.curve.max < top
    assert found.vectors is not None
    assert found.vectors.norms.tolist()[0] == 0
    assert found.passes < 150  # each look at so few examples is a pass, those at a curve that is low too
    assert "no-go" in repr(found)


def test_tied_weights_count_once_in_what_is_said_of_weights():
    objective, (base, a, b), own = tied_and_normed()
    apart = sum(float((a[k] - b[k]).square().sum()) for k in own) ** 0.5
    found = im.check(objective, [a, b], base=base)
    assert found.distances[0, 1] == pytest.approx(apart, rel=1e-12)
    assert found.norms[0] == pytest.approx(sum(float(a[k].square().sum()) for k in own) ** 0.5, rel=1e-12)
    moved = [torch.cat([(p[k] - base[k]).flatten() for k in base if p[k].dim() and k != "last.weight"]) for p in (a, b)]
    assert found.vectors is not None
    assert found.vectors.norms.tolist() == pytest.approx([float(v.norm()) for v in moved], rel=1e-12)
    cosine = float(moved[0] @ moved[1] / moved[0].norm() / moved[1].norm())
    assert float(found.vectors.cosines[0, 1]) == pytest.approx(cosine, rel=1e-12)
    aligned = im.align(objective, a, b, im.WeightMatching())
    assert aligned.distance[0] == pytest.approx(apart, rel=1e-12)
    assert aligned.similarity[0] == pytest.approx(sum(float((a[k] * b[k]).sum()) for k in own), rel=1e-12)


def test_the_numbers_are_those_of_the_parts():
    p = pair()
    found = im.check(p.objective, [p.a, p.b], prove=True, gap=0.5)
    middle = {k: torch.lerp(v, p.b[k], 0.5) for k, v in p.a.items()}
    assert found.mean["training data"].loss == pytest.approx(p.objective.loss(middle), rel=1e-12)
    d = found.lines[0, 1]["training data"]
    assert d.level == pytest.approx(1.1 * max(p.objective.loss(p.a), p.objective.loss(p.b)))
    assert found.carriers is not None
    assert found.certificate is not None
    assert found.carriers.value == pytest.approx(d.profile.excess, abs=1e-12)
    assert float(found.carriers.each.sum()) + found.carriers.penalty == pytest.approx(d.profile.excess, abs=1e-10)
    assert found.certificate.bound >= d.profile.max
    assert not found.proved
    assert found.distances[0, 1] == pytest.approx(sum(float((p.a[k] - p.b[k]).square().sum()) for k in p.a) ** 0.5)
    best = min(zip(d.profile.loss.tolist(), d.profile.t.tolist(), strict=True))
    assert found.best == pytest.approx(best[::-1])
    assert json.dumps(found.to_dict()) == json.dumps(im.check(p.objective, [p.a, p.b], prove=True, gap=0.5).to_dict())
    heading, rows = found.table()
    assert all(len(row) == len(heading) for row in rows)


def test_a_soup_is_judged_by_all_its_lines_and_by_its_mean():
    p = pair()
    found = im.check(p.objective, [p.a, p.a, p.b], align=False)
    assert not found.go
    assert found.worst == (0, 2)
    assert len(found.lines) == 3
    assert found.lines[0, 1]["training data"].below
    mean = {k: (2 * v + p.b[k]) / 3 for k, v in p.a.items()}
    assert found.mean["training data"].loss == pytest.approx(p.objective.loss(mean), rel=1e-9)
    assert "between 0 and 2" in found.why or "between 1 and 2" in found.why
    assert im.check(p.objective, [p.a] * 3).go


def test_what_is_said_of_a_soup_holds_on_all_its_lines_and_at_its_mean():
    """The line that comes nearest to its own level is not the one on which the loss is largest."""
    networks = [{"weight": torch.tensor([w], dtype=torch.float64)} for w in (0.0, 1.0, 2.0)]

    def loss(outputs: Tensor, y: Tensor) -> Tensor:
        place = outputs[:, 0]
        return 1 + torch.where(place < 1, 0.05 * (torch.pi * place).sin() ** 2, 2 * (place - 1) ** 2)

    objective = im.Objective(Wave(), loss, (torch.ones(2, 1).double(), torch.zeros(2, 1).double()))
    found = im.check(objective, networks)
    assert found.go
    largest = max(d["training data"].profile.max for d in found.lines.values())
    assert largest == 3.0
    assert "on 3 straight lines and at their mean (training data: at most 3, level 3.3)" in found.why


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(reduction="sum"), nn.CrossEntropyLoss(reduction="mean")])
def test_blocks_are_measured_on_the_scale_of_the_line(loss):
    """On some of the examples: a sum over these is a part of that over all."""
    p = pair()
    x, y = p.objective.data
    assert isinstance(x, Tensor)
    same = im.Objective(p.objective.skeleton, loss, (x[:1].repeat(40, 1), y[:1].repeat(40)))
    found = im.check(same, [p.a, p.b], align=False)
    assert found.blocks is not None
    assert found.blocks.examples < 40
    assert found.blocks.ends == pytest.approx(found.lines[0, 1]["training data"].profile.loss[[0, -1]].tolist())


def test_every_data_set_can_refuse():
    """On these examples the line is low; on those it is not."""
    p = pair()
    losses = p.objective.losses({k: torch.lerp(v, p.b[k], 0.5) for k, v in p.a.items()})
    order = losses.argsort()
    x, y = p.objective.data
    assert isinstance(x, Tensor)
    low, high = (p.objective.on((x[i], y[i])) for i in (order[:6], order[-20:]))
    top = im.profile(low, im.Path.through([p.a, p.b]), 33).max
    found = im.check(low, [p.a, p.b], test={"other": high}, level=1.5 * top, align=False)
    assert im.check(low, [p.a, p.b], level=1.5 * top, align=False).go
    assert not found.go
    assert "on the other" in found.why


def test_statistics_of_batchnorm_are_computed_again_and_the_others_named():
    p = normed()
    found = im.check(p.objective, [p.a, p.b], align=False)
    assert found.bn == "recompute"
    assert set(found.policies) == {"interpolate", "keep"}
    by_hand = im.profile(p.objective, im.Path.through([p.a, p.b]), FEWEST)
    assert found.lines[0, 1]["training data"].profile.max == pytest.approx(by_hand.max, rel=1e-9)
    assert found.policies["interpolate"] == pytest.approx(
        p.objective.loss({k: torch.lerp(v, p.b[k], 0.5) if v.is_floating_point() else v for k, v in p.a.items()})
    )


def test_what_cannot_be_aligned_is_said():
    found = im.check(bumps(0.5, 1, 4), line())
    assert not found.go
    assert any(note.startswith("not aligned: ") for note in found.notes)
    with pytest.raises(InputError, match="other than 'training data'"):
        im.check(bumps(0, 1), line(), test={"training data": bumps(0, 1)})
    with pytest.raises(InputError, match="two or more"):
        im.check(bumps(0, 1), line()[:1])


class Place(Wave):
    """Outputs that are a place in the plane."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def test_a_soup_whose_lines_are_low_and_whose_mean_is_high_is_no_go():
    """The loss rises only inside the triangle of the networks."""

    def loss(outputs: Tensor, y: Tensor) -> Tensor:
        u, v = outputs.T
        return 1 + 27 * u * v * (1 - u - v)

    objective = im.Objective(Place(), loss, (torch.ones(1, 2).double(), torch.zeros(1, 1).double()))
    networks = [{"weight": torch.tensor(w, dtype=torch.float64)} for w in ([0.0, 0.0], [1.0, 0.0], [0.0, 1.0])]
    found = im.check(objective, networks)
    assert all(d["training data"].below for d in found.lines.values())
    assert found.mean["training data"].loss == pytest.approx(2)
    assert not found.go
    assert "at the mean it is 2 on the training data" in found.why


def test_the_data_set_that_rises_most_counts_and_an_open_estimate_is_not_below():
    low, high = ask(bumps(0.0, 1)), ask(bumps(0.5, 1))
    assert height({"one": low, "other": high}) == height({"one": high}) > height({"one": low})
    assert not replace(low, rise=low.level).below


@pytest.mark.parametrize("turned", [False, True])
def test_what_examples_add_is_taken_from_the_larger_end_and_the_highest_point(turned):
    found = ask(bumps(0.05, 1, 4), first=[0.5])
    torch.testing.assert_close(found.change, torch.full((4,), 0.05, dtype=torch.float64))
    p = pair()
    ends = [p.b, p.a] if turned else [p.a, p.b]
    path = im.Path.through(ends)
    change = decide([p.objective], path, Level.read("1.1x").above, first=[0.5])[0].change
    assert change is not None
    want = im.contributions(p.objective, path, 0.5).each
    torch.testing.assert_close(change / len(change), want)


def test_an_aligned_line_is_refused_at_its_middle():
    p = pair()
    assert len(im.check(p.objective, [p.a, p.b], level=0.0).aligned[0, 1]["training data"].profile.t) == 3


def test_a_curve_that_cannot_be_trained_is_said():
    flat = bumps(0.0, 1)
    objective = im.Objective(Wave(), evaluate=lambda params: {"loss": flat.loss(params)})
    found = im.check(objective, line(), curve=True)
    assert found.go
    assert found.curve is None
    assert any(note.startswith("no curve: ") for note in found.notes)


def test_a_check_of_losses_that_are_no_numbers_is_told(tmp_path):
    pytest.importorskip("matplotlib")
    from isthmus.report.check import write_check_files
    from isthmus.storage import write_json

    p = normed()
    bad = {k: v * 1e200 if "weight" in k else v for k, v in p.a.items()}
    found = im.check(p.objective, [p.a, bad], align=False, names=["a<b>", "c"])
    assert not found.go
    assert found.why == "May not be averaged: the loss of c is not finite on the training data."
    assert found.table()[1][0][2].endswith(", not finite")
    assert found.best[1] == found.best[1]
    document = found.to_dict() | {"policies": {"keep": float("nan")}}
    carriers = {"value": 1.0, "t": 0.5, "half": 0.1, "examples": 3, "top": [[0, 1.0]]}
    document["carriers"] = carriers | {"by_class": {"10": 0.25, "2": 0.75}}
    write_json(tmp_path / "check.json", document)
    write_check_files(tmp_path / "check.json")
    page = (tmp_path / "report.html").read_text()
    assert "a&lt;b&gt;" in page
    assert "a<b>" not in page
    assert "<td>no</td>" in page
    assert page.index('<th scope="row">2</th>') < page.index('<th scope="row">10</th>')


def test_a_check_is_drawn():
    pytest.importorskip("matplotlib")
    from matplotlib import pyplot

    p = pair()
    found = im.check(p.objective, [p.a, p.b], curve=True)
    axes: Any = found.plot()
    assert [len(ax.lines) > 0 or len(ax.patches) > 0 for ax in axes] == [True, True]
    assert found.blocks is not None
    assert len(axes[1].patches) == 2 * len(found.blocks.rows)
    assert found.carriers is not None
    found.blocks.plot(), found.carriers.plot(), im.barrier(p.objective, p.a, p.b).plot()
    im.barrier_matrix(p.objective, [p.a, p.b]).plot()
    pyplot.close("all")
