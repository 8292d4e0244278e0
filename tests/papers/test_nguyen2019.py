"""The page on Nguyen 2019: its smoke run, its numbers by another route, its findings and settings."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

import isthmus as im
from isthmus.analysis.ray import ray
from isthmus.cli import run_app
from isthmus.evaluate.level_network import rank_of
from isthmus.experiments import Finding, Network
from isthmus.experiments.page import as_json
from isthmus.objective.data import single
from isthmus.papers import by_name
from isthmus.papers.nguyen2019.jobs import Descent, Far, Joined, Sketch, invariance, rise
from isthmus.papers.nguyen2019.page import SCALES, independent, wide, wide_first
from isthmus.papers.nguyen2019.problems import BAD, RANK, STARTS, Setting, hinge, spoil
from isthmus.papers.nguyen2019.sketches import SKETCHES
from isthmus.papers.nguyen2019.tables import condition
from isthmus.sweep import Local, Store, run_cells, with_needs
from tests.papers.partly import check_without_each_number

F64 = torch.float64
PAGE = by_name("nguyen2019")
SMALL = Setting("digits", 10, (64, 24, 12, 10), loss="mse")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The page at smoke scale, run once by the command."""
    folder = tmp_path_factory.mktemp("nguyen2019")
    assert run_app(["experiment", "run", "nguyen2019", "--runs", str(folder), "--quiet"]) == 0
    return folder


@pytest.fixture(scope="module")
def rows(smoke):
    return PAGE.table(Store(smoke), PAGE.cells("smoke"))


def cells_of(kind: type) -> list[Any]:
    return [c for c in PAGE.cells("smoke") if isinstance(c, kind)]


def ends_of(cell: Any, smoke: Any) -> list[Any]:
    """The points that a cell starts from, made again."""
    if cell.start == "trained":
        return [im.load_params(Store(smoke).load(n).folder / "params.safetensors") for n in cell.needs()]
    seeds = range(cell.ends * cell.seed, cell.ends * (cell.seed + 1))
    points = [cell.setting.random(s) for s in seeds]
    return points if cell.start == "random" else [spoil(p, cell.start) for p in points]


def test_the_smoke_run_has_every_part_and_goes_on_where_it_was(smoke, rows, capsys):
    parts = {"Theorem 3.2", "Theorem 5.1", "Theorem 6.1", "descend", "ray", *(f"Figure {name}" for name in SKETCHES)}
    assert {r["part"] for r in rows} == parts
    stored = json.loads((smoke / "nguyen2019/tables/smoke-findings.json").read_text())
    assert [Finding(**f) for f in stored] == PAGE.findings(rows)
    failed = [str(f) for f in PAGE.findings(rows) if not f.holds]
    assert not failed
    assert {f.name for f in (smoke / "nguyen2019/figures").glob("*.png")} == {f"smoke-{n}.png" for n in PAGE.figures}
    again = run_cells(PAGE.cells("smoke"), Store(smoke), Local())
    assert (again.found, again.computed) == (len(with_needs(PAGE.cells("smoke"))), 0)
    assert run_app(["experiment", "table", "nguyen2019", "--runs", str(smoke), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(as_json(rows))


def test_numbers_that_are_not_finite_leave_the_page_and_make_nothing_hold(smoke):
    check_without_each_number(PAGE, Store(smoke), but=(Sketch,))


def test_paths_stay_below_the_higher_end_by_another_route(smoke):
    """Made again from the stored ends, and sampled between the points of the page."""
    for cell in cells_of(Joined)[:3]:
        objective, (a, b) = cell.setting.objective(), ends_of(cell, smoke)
        result = Store(smoke).load(cell).result
        again = im.connect(objective, a, b, im.Sublevel(theorem=cell.theorem, prove=False))
        assert result["segments"] == list(again.stats["segments"])
        assert result["certificate"]["proved"]
        losses = [objective.loss(s.at(k / 7)) for s in again.path.segments for k in range(8)]
        top = max(objective.loss(a), objective.loss(b))
        assert result["certificate"]["ends"] == pytest.approx([objective.loss(a), objective.loss(b)], rel=1e-12)
        assert max(losses) <= top + 1e-12
        assert max(losses) <= result["certificate"]["bound"]
        assert result["curve"]["loss"][0] == pytest.approx(objective.loss(a), rel=1e-9)
        assert result["curve"]["loss"][-1] == pytest.approx(objective.loss(b), rel=1e-9)
        middle = {k: (v + b[k]) / 2 for k, v in a.items()}
        line = dict(zip(result["line"]["t"], result["line"]["loss"], strict=True))
        at = min(line, key=lambda t: abs(t - 0.5))
        assert abs(at - 0.5) < 0.06
        if at == 0.5:
            assert line[at] == pytest.approx(objective.loss(middle), rel=1e-9)


def test_invariance_is_of_the_segments_beside_the_joining_one():
    objective = SMALL.objective()
    a, b, c = (SMALL.random(s) for s in range(3))
    a["2.weight"][:, 0] = 0  # unit 0 of layer 1 is idle, so that its weights may move
    idle = {k: v.clone() for k, v in a.items()}
    idle["0.weight"][0] += 1
    path = im.Path.through([a, idle, b])
    assert invariance(objective, path, 1) == 0
    away = invariance(objective, im.Path.through([c, a, b]), 0)
    assert away is not None
    assert away == pytest.approx(_worst(objective, im.Curve((a, b)), objective.outputs(b)), rel=1e-12)
    assert away > 0.1
    assert invariance(objective, im.Path.through([a, c]), 0) is None


def _worst(objective, segment, kept):
    points = [segment.at(t) for t in (0.25, 0.5, 0.75, 1.0)]
    return max(float((objective.outputs(p) - kept).abs().max()) for p in points) / float(kept.abs().max())


def test_settings_are_the_networks_losses_and_data_they_name():
    assert SMALL.label == "64-24-12-10, leaky ReLU of slope 0.2, digits, N = 10, mse"
    module = SMALL.module()
    assert [type(m).__name__ for m in module] == ["Linear", "LeakyReLU", "Linear", "LeakyReLU", "Linear"]
    assert module[1].negative_slope == 0.2
    plain = replace(SMALL, bias=False, slope=None)
    assert [type(m).__name__ for m in plain.module()][1::2] == ["ReLU", "ReLU"]
    assert not [k for k in plain.random(0) if "bias" in k]
    x, y = plain.objective().data
    data = im.data.load("digits").flat()
    assert torch.equal(single(x), data.x_train[:10].double())
    assert torch.equal(y.argmax(1), data.y_train[:10])
    labels = replace(plain, loss="hinge").objective()
    assert labels.convex
    z = labels.outputs(plain.random(0))
    want = torch.nn.functional.multi_margin_loss(z, labels.data[1], reduction="none") * 10
    torch.testing.assert_close(hinge(z, labels.data[1]), want)
    before = torch.get_rng_state()
    assert all(torch.equal(v, plain.random(0)[k]) for k, v in plain.random(0).items())
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(im.InputError, match="loss"):
        replace(plain, loss="l2")
    with pytest.raises(im.InputError, match="start"):
        Descent(plain, "nowhere")


@pytest.mark.parametrize("bias", [True, False])
def test_bad_points_lack_the_ranks_that_the_proofs_repair(bias):
    setting = Setting("digits", 20, (64, 40, 24, 12, 10), bias=bias)
    params, objective = setting.random(3), setting.objective()
    c = im.sublevel_conditions(objective, params, *(spoil(params, how) for how in BAD))
    ranks = [r[1] for r in c.rank_features]
    assert ranks[0] == 20
    assert ranks[2] <= RANK
    assert c.property_3_1 == (True, False, False)
    dead = spoil(params, "half dead")
    assert float(dead["0.weight"][1::2].abs().max()) == 0
    assert torch.equal(dead["0.weight"][::2], params["0.weight"][::2])
    assert torch.equal(dead["6.weight"], params["6.weight"])
    low = spoil(params, "low rank")
    assert rank_of(low["2.weight"]) == RANK
    assert len(low["2.weight"].unique(dim=0)) == RANK
    with pytest.raises(im.InputError, match="how"):
        spoil(params, "alive")


def test_descents_reach_their_end_and_never_rise(smoke, rows):
    cells = cells_of(Descent)
    for cell in cells[:2]:
        objective, (a,) = cell.setting.objective(), ends_of(cell, smoke)
        result = Store(smoke).load(cell).result
        path = im.descend(objective, a, cell.tolerance, prove=False).path
        losses = [objective.loss(s.at(k / 9)) for s in path.segments for k in range(10)]
        assert losses[-1] == pytest.approx(result["loss"][1], rel=1e-6, abs=1e-25)
        assert losses[-1] <= cell.tolerance
        assert all(q <= p + 1e-13 for p, q in pairwise(losses))
    found = [r for r in rows if r["part"] == "descend"]
    assert len(found) == len(cells)
    assert {r["loss"] for r in found} == {"mse", "hinge", "cross-entropy"}
    assert {r["theorem"] for r in found} == {"4.2", "6.1 (case 1)"}
    assert rise([2.0, 1.0, 1.25, 0.5, 0.75]) == 0.25


def test_rays_go_as_far_as_they_say(smoke, rows):
    for cell in cells_of(Far):
        objective, (a,) = cell.setting.objective(), ends_of(cell, smoke)
        far = ray(objective, a, cell.size)
        result = Store(smoke).load(cell).result
        norm = float(sum(v.square().sum() for v in far.path.end.values()) ** 0.5)
        assert result["norms"][-1] == pytest.approx(norm, rel=1e-9)
        assert norm >= 1e6
        assert abs(objective.loss(far.path.end) - objective.loss(a)) <= result["change"] + 1e-13
    assert {r["theorem"] for r in rows if r["part"] == "ray"} == {"3.2", "5.1"}


def test_the_condition_of_a_path_leaves_out_features_that_it_gives_up():
    found = {"a": {"F_1": 1e30, "W_3": 5.0}, "b": {"F_1": 3.0, "W_3": 2.0}}
    assert condition(found) == 5.0
    assert condition({**found, "b": {"F_1": 7.0}}) == 7.0


# -- findings


def path_row(part, **changes):
    row = {
        "part": part, "pairs": 1, "condition": 1e3, "excess": 1e-15, "invariance": 1e-14, "proved": True,
        "proved excess": 1e-12, "network": "n", "loss": "cross-entropy",
    }  # fmt: skip
    return row | changes


RUNS = [{"y": [0.5, 0.0], "f": [2.0, 1.5, 1.1]}, {"y": [1.5, 3.0], "f": [2.0, 0.01]}]


def sketch_row(name, **changes):
    row = {
        "part": f"Figure {name}", "sketch": "s", "most components": 1, "most bad components": 0, "local minima": 1,
        "most in a bad component": 0, "midpoint excess": 1.0, "highest minimum": 0.0, ".infimum": 0.0,
        ".survey": {"components": [1, 1], "runs": RUNS},
    }  # fmt: skip
    return row | changes


BAD_VALLEY = {"most components": 2, "most bad components": 1}
GOOD: list[dict[str, Any]] = [
    *(path_row(f"Theorem {t}") for t in ("3.2", "5.1", "6.1")),
    {"part": "descend", "theorem": "4.2", "loss": "mse", "loss at the end": 1e-28, "tolerance": 1e-20, "rise": 1e-16,
     "proved": True, "proved excess": 1e-13},
    *({"part": "ray", "theorem": t, "change": 1e-15, "norm at the end": 2e6, "wanted": 1e6, "proved": True,
       "proved excess": 1e-13} for t in ("3.2", "5.1")),
    sketch_row("1"),
    sketch_row("2 left", **BAD_VALLEY, **{"most in a bad component": 3}),
    sketch_row("2 right", **BAD_VALLEY),
    sketch_row("3 left", **BAD_VALLEY, **{"local minima": 0}),
    sketch_row("3 right", **BAD_VALLEY | {"most components": 3, "most bad components": 2}),
    sketch_row("4", **{"most components": 2}),
    sketch_row("5"),
]  # fmt: skip


def changed(part, **values):
    return [{**row, **values} if row["part"] == part else row for row in GOOD]


def on_ray(theorem, **values):
    return [{**row, **values} if row["part"] == "ray" and row["theorem"] == theorem else row for row in GOOD]


FREE = {"y": [0.5], "f": [2.0, 0.9]}


@pytest.mark.parametrize(
    ("words", "rows"),
    [
        ("Theorem 3.2, condition numbers below 1e+06: the loss rises", changed("Theorem 3.2", excess=1e-9)),
        ("Theorem 5.1, condition numbers below 1e+06: outputs", changed("Theorem 5.1", invariance=1e-11)),
        ("Theorem 6.1, condition numbers below 1e+06: every path", [*GOOD, path_row("Theorem 6.1", proved=False)]),
        ("Theorem 6.1, condition numbers below 1e+06: the proofs", changed("Theorem 6.1", **{"proved excess": 1e-7})),
        ("rises by at most", changed("descend", rise=1e-11)),
        ("no descent exceeds", changed("descend", proved=False)),
        ("Theorem 3.2, second part", on_ray("3.2", change=1e-9)),
        ("Theorem 5.1, second part", on_ray("5.1", proved=False)),
        ("Theorem 5.1, second part", on_ray("5.1", **{"norm at the end": 1e5})),
        ("Figure 1", changed("Figure 1", **{"midpoint excess": -1.0})),
        ("Figure 1", changed("Figure 1", **{".survey": {"components": [1, 0]}})),
        ("Figure 2 left", changed("Figure 2 left", **{"most in a bad component": 1})),
        ("Figure 2 right", changed("Figure 2 right", **{"most in a bad component": 1})),
        ("Figure 3 left", changed("Figure 3 left", **{"local minima": 1})),
        ("Figure 3 right", changed("Figure 3 right", **{"highest minimum": 0.5})),
        ("Figure 4", changed("Figure 4", **{"most bad components": 1})),
        ("Figure 5", changed("Figure 5", **{"most components": 2})),
        ("Figure 5", changed("Figure 5", **{".survey": {"components": [1], "runs": [RUNS[1], FREE]}})),
    ],
)  # fmt: skip
def test_every_finding_can_fail(words, rows):
    good = PAGE.findings(GOOD)
    assert len(good) == 27
    assert all(f.holds for f in good), [str(f) for f in good if not f.holds]
    found = [f.statement for f in PAGE.findings(rows) if not f.holds]
    assert len(found) == 1
    assert words in found[0]


def test_findings_about_refusals_losses_and_bad_conditions():
    refused = [r if r["part"] != "Theorem 5.1" else {"part": "Theorem 5.1", "pairs": 1, "outcome": "x"} for r in GOOD]
    (lost,) = [f for f in PAGE.findings(refused) if f.holds is False]
    assert lost.statement == "Theorem 5.1: its premises hold wherever they should"
    high = changed("descend", **{"loss at the end": 1e-19})
    assert {f.statement.partition(" ")[0] for f in PAGE.findings(high) if f.holds is False} == {"from", "the"}
    # nothing is asked of a path that depends on nearly singular features
    wild = [*GOOD, path_row("Theorem 3.2", condition=1e7, excess=1e-3, invariance=1e-3, proved=False)]
    assert all(f.holds for f in PAGE.findings(wild))
    assert {f.holds for f in PAGE.findings([])} == {None}
    near = PAGE.findings(on_ray("5.1", **{"norm at the end": 1e5}))
    assert [f.holds for f in near if "Theorem 5.1, second part" in f.statement] == [None]
    only = [f for f in PAGE.findings([path_row("Theorem 3.2", invariance=None)]) if "Theorem" in f.statement]
    assert [f.holds for f in only] == [True, True, None, True, True]


# -- settings


def test_the_scales_have_what_the_theorems_need():
    laptop, paper = SCALES["laptop"], SCALES["paper"]
    assert laptop.samples == (40, 100, 200, 400)
    assert (laptop.deep, laptop.low) == (60, 120)
    cells = laptop.cells()
    assert {c.start for c in cells if isinstance(c, Joined)} == set(STARTS)
    assert {c.setting.loss for c in cells if isinstance(c, Joined)} == {"cross_entropy", "mse", "hinge"}
    squared = [c for c in cells if isinstance(c, Descent) and c.setting.loss == "mse"]
    assert {c.tolerance for c in squared} == {1e-20}
    assert {c.setting.N for c in squared} == {120}
    assert max(c.setting.N for c in cells if isinstance(c, Joined)) == 2000
    for n in laptop.samples:
        assert wide_first("digits", n).widths[1] == 2 * n
        assert wide("mnist", n, 3).widths[1:-1] == (2 * n,) * 3
        assert independent("mnist", n).widths[0] == 784
    assert len(paper.cells()) > len(cells)
    for scale in SCALES:
        needs = with_needs(PAGE.cells(scale))
        assert all(isinstance(n, Network) for c in needs for n in c.needs())
        assert all(n in needs for c in needs for n in c.needs())


def test_results_repeat(smoke, tmp_path):
    cell = cells_of(Joined)[1]
    run_cells([cell], Store(tmp_path), Local())
    first, again = (Store(f).load(cell).result for f in (smoke, tmp_path))
    assert json.dumps(first) == json.dumps(again)
