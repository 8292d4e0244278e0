"""The page on Shevchenko and Mondelli 2020: its smoke run, its numbers by another route, its findings, its settings."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import isthmus as im
from isthmus.cli import run_app
from isthmus.data import load
from isthmus.experiments.page import Finding
from isthmus.models import mean_field, mean_field_init, train_mean_field
from isthmus.papers import by_name
from isthmus.papers.shevchenko2020.jobs import Paths, Starts, Trials, distribution_distance
from isthmus.papers.shevchenko2020.page import parts
from isthmus.papers.shevchenko2020.tasks import Features, Schedule, Task, coloured
from isthmus.sweep import Job, Local, Store, identity, key_of, run_cells, with_needs
from tests.models.test_extractors import PUBLISHED, published
from tests.papers.partly import check_without_each_number, rows_of_each_kind

PAGE = by_name("shevchenko2020")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The page at smoke scale, run once by the command."""
    folder = tmp_path_factory.mktemp("shevchenko")
    assert run_app(["experiment", "run", "shevchenko2020", "--runs", str(folder), "--quiet"]) == 0
    return folder


@pytest.fixture(scope="module")
def rows(smoke):
    return PAGE.table(Store(smoke), PAGE.cells("smoke"))


def trials_of(data: str, layers: int, N: int, init: str = "unimodal") -> Trials:
    (found,) = [
        c for c in PAGE.cells("smoke")
        if isinstance(c, Trials) and (c.task.data, c.task.layers, c.N, c.init) == (data, layers, N, init)
    ]  # fmt: skip
    return found


def test_the_smoke_run_has_every_figure_and_goes_on_where_it_was(smoke, rows):
    kinds = {"widths", "change against N", "change against M", "paths", "excess against N"}
    assert {r["what"] for r in rows} == kinds
    assert len({r["task"] for r in rows}) == 3
    stored = json.loads((smoke / "shevchenko2020/tables/smoke-findings.json").read_text())
    assert [Finding(**f) for f in stored] == PAGE.findings(rows)
    drawn = {f.name for f in (smoke / "shevchenko2020/figures").glob("*.png")}
    assert drawn == {f"smoke-{name}.png" for name in PAGE.figures}
    again = run_cells(PAGE.cells("smoke"), Store(smoke), Local())
    assert (again.found, again.computed) == (21, 0)


def test_tables_and_figures_of_some_of_the_results(smoke):
    assert rows_of_each_kind(PAGE, Store(smoke))[Starts] == []


def test_numbers_that_are_not_finite_leave_the_page_and_make_nothing_hold(smoke):
    check_without_each_number(PAGE, Store(smoke))


def test_the_gaussian_task_is_that_of_two_spheres(smoke):
    task = Task("gaussians", side=40, tests=2000)
    x, y = task.sample(4000, torch.Generator().manual_seed(0))
    for sign, spread in ((1, 1.2), (-1, 0.8)):
        assert float(x[y[:, 0] == sign].std()) == pytest.approx(spread, abs=0.01)
    examples = task.read(Job(Store(smoke), "", smoke))
    assert examples.x is None
    assert examples.training is None
    objective = examples.objective(task, 6)
    assert (objective.named_loss, objective.num_examples) == ("mse", 2000)
    # a network that answers |x|^2 / 40 - 1 with the right sign almost always
    net = mean_field((40, 6, 1), "clipped_relu", seed=0)
    p = {k: torch.zeros_like(v) for k, v in net.state_dict().items()}
    p["0.bias"][:] = 1.0
    p["3.weight"][:] = -1.0
    positive = float((objective.data[1] == 1).double().mean())
    assert objective.error(p) == pytest.approx(positive), "the answer -1 is wrong for the class +1"


def test_training_and_both_networks_again_with_plain_means(smoke):
    """Two layers of digits: trained alone from the same seed; the half by a smaller network's formula."""
    cell = trials_of("digits", 2, 80)
    stored = Store(smoke).load(cell)
    data = load("digits").flat()
    shift, scale = data.x_train.double().mean(), data.x_train.double().std()
    assert data.x_test is not None
    assert data.y_test is not None
    x = (data.x_train - float(shift)) / float(scale)
    x_test, y_test = (data.x_test[:200] - float(shift)) / float(scale), data.y_test[:200]
    assert float(x.mean()) == pytest.approx(0, abs=1e-6)
    assert float(x.std()) == pytest.approx(1, abs=1e-6)
    step, steps = cell.schedule.at(80)
    p = train_mean_field(
        mean_field((64, 80, 10), seed=0), (x, data.y_train), step=step, time=step * steps, batch=50, seed=0,
        loss="cross_entropy",
    )  # fmt: skip
    h = F.relu(x_test @ p["0.weight"].T + p["0.bias"])
    for name, outputs in (("", h @ p["3.weight"].T / 80), ("dropped_", h[:, :40] @ p["3.weight"][:, :40].T / 40)):
        found = stored.result["trials"][0]["at"]["1.0"]
        assert found[f"{name}loss"] == pytest.approx(float(F.cross_entropy(outputs, y_test)), rel=1e-3)
        assert found[f"{name}error"] == pytest.approx(float((outputs.argmax(1) != y_test).double().mean()), abs=0.011)
    begin = mean_field_init(mean_field((64, 80, 10), seed=0), "unimodal", 0)
    h = F.relu(x_test @ begin["0.weight"].T + begin["0.bias"])
    start = stored.result["trials"][0]["at"]["0.0"]["loss"]
    assert start == pytest.approx(float(F.cross_entropy(h @ begin["3.weight"].T / 80, y_test)), rel=1e-5)
    saved = im.load_params(stored.folder / "0.safetensors")
    assert stored.result["trials"][0]["at"]["1.0"]["loss"] == pytest.approx(
        cell.task.read(Job(Store(smoke), "", smoke)).objective(cell.task, 80).loss(saved), rel=1e-6
    )


def test_more_starts_begin_where_training_of_their_seed_begins(smoke, rows):
    for cell in (c for c in PAGE.cells("smoke") if isinstance(c, Starts)):
        starts = Store(smoke).load(cell).result["trials"]
        trained = Store(smoke).load(trials_of("digits", 2, cell.N)).result["trials"]
        assert [t["seed"] for t in starts] == [0, 1, 2, 3, 4]
        for start, trial in zip(starts, trained, strict=False):
            assert {k: start[k] for k in trial["at"]["0.0"]} == trial["at"]["0.0"]
        row = next(r for r in rows if (r["what"], r["task"], r.get("N")) == ("widths", cell.task.label, cell.N))
        changes = [abs(t["dropped_loss"] - t["loss"]) for t in starts]
        assert (row["starts"], row["trials"]) == (5, 2)
        assert row["change start"] == pytest.approx(sum(changes) / 5)
        assert row["change end"] != row["change start"]


def test_paths_are_bounded_on_dense_samples_in_float64_and_join_other_starts(smoke, rows):
    cells = [c for c in PAGE.cells("smoke") if isinstance(c, Paths) and c.a.init == "bimodal"]
    assert {(c.a.task.layers, c.a.N) for c in cells} == {(2, 64), (2, 80), (3, 40)}
    for cell in cells:
        store = Store(smoke)
        stored = store.load(cell)
        job = Job(store, "", smoke)
        objective = cell.a.task.read(job).objective(cell.a.task, cell.a.N).cast(torch.float64)
        a, b = cell.a.params(job, 0), cell.b.params(job, 0)
        # a bimodal start leaves no weight near 0 in the last layer; training moves them
        start = mean_field_init(cell.a.task.read(job).network(cell.a.task, cell.a.N), "bimodal", 0)
        assert float(list(start.values())[-1].abs().min()) > 0.2
        found = im.connect(objective, a, b, im.MeanField(), seed=0)
        dense = [objective.measure(found.path.at(k / 150)) for k in range(151)]
        (pair,) = stored.result["pairs"]
        assert pair["proved"]
        assert max(loss for loss, _ in dense) <= pair["bound"] * (1 + 1e-6)
        allowed = max(*(e[0] for e in pair["ends"]), *(h["loss"] for h in pair["halved"]))
        assert pair["bound"] == pytest.approx(allowed, rel=1e-5)
        assert pair["barriers"]["loss"]["max"] == pytest.approx(max(loss for loss, _ in dense), rel=1e-3)
        row = next(r for r in rows if r["what"] == "paths" and (r["task"], r["N"], r["pairs"]) ==
                   (cell.a.task.label, cell.a.N, 1))  # fmt: skip
        assert row["segments"] == len(found.path) == 4 * cell.a.task.layers - 1
        assert row["path loss"] == pair["barriers"]["loss"]["max"]
        line = im.profile(objective, im.connect(objective, a, b, im.Linear()).path, 21)
        assert row["line loss"] == pytest.approx(line.max, rel=1e-5)


def test_histograms_hold_every_weight_and_distances_are_0_for_permutations(smoke):
    cell = next(c for c in PAGE.cells("smoke") if isinstance(c, Paths) and c.a.task.layers == 3)
    stored = Store(smoke).load(cell)
    a, b = (t.params(Job(Store(smoke), "", smoke), 0) for t in (cell.a, cell.b))
    for layer in stored.result["weights"]:
        values = [p[layer["name"]].double().flatten() for p in (a, b)]
        edges = torch.tensor(layer["edges"], dtype=torch.float64)
        assert float(edges[0]) == min(float(v.min()) for v in values)
        for v, end in zip(values, "ab", strict=True):
            assert sum(layer[end]) == v.numel()
            inside = (v[:, None] > edges[None, 1:-1] + 1e-9).sum(1).bincount(minlength=80)
            assert int((inside - torch.tensor(layer[end])).abs().sum()) <= 0.01 * v.numel() + 2
    distances = stored.result["pairs"][0]["distances"]
    assert list(distances) == ["0.weight", "3.weight", "6.weight"]
    assert all(0 < d < 1 for d in distances.values())
    shuffled = a["3.weight"][torch.randperm(40, generator=torch.Generator().manual_seed(0))]
    assert distribution_distance(a["3.weight"], shuffled) == 0


def test_features_are_computed_once_and_the_result_says_which(tmp_path, monkeypatch):
    """VGG-16 with random weights on digits: cached, read by two tasks, another file is another result."""
    file = tmp_path / "vgg16.safetensors"
    im.save_params(published(), file)
    monkeypatch.setenv("ISTHMUS_VGG16", str(file))
    tasks = [Task("digits", layers, "vgg16", 32, examples=30, tests=20) for layers in (2, 3)]
    cells = [Trials(t, 6, Schedule(0.1, 4, 10), (0, 1)) for t in tasks]
    store = Store(tmp_path / "runs")
    assert run_cells(cells, store, Local()).computed == 3
    (feature,) = {c for c in with_needs(cells) if isinstance(c, Features)}
    stored = store.load(feature)
    assert stored.folder.parent.name == "cache"
    assert (stored.result["features"], store.load(cells[1]).result["widths"]) == (512, [512, 6, 6, 10])
    assert "vgg16 features" in PAGE.rows([(cells[0], store.load(cells[0]))])[0]["task"]
    data = feature.dataset(Job(store, "", tmp_path))
    images = load("digits").subset(3).x_train
    low, high = load("digits").x_train.min(), load("digits").x_train.max()
    h = F.interpolate((images - low) / (high - low) * 2 - 1, size=(32, 32), mode="bilinear").expand(-1, 3, -1, -1)
    p = published()
    for k, number in enumerate(PUBLISHED):
        h = F.conv2d(h, p[f"features.{number}.weight"], p[f"features.{number}.bias"], padding=1).relu()
        h = F.max_pool2d(h, 2) if k in (1, 3, 6, 9, 12) else h
    torch.testing.assert_close(data.x_train[:3], h.flatten(1), rtol=1e-3, atol=1e-4)
    before = key_of(identity(cells[0]))
    im.save_params(published(1), file)
    assert key_of(identity(cells[0])) != before
    monkeypatch.setenv("ISTHMUS_VGG16", str(tmp_path / "none"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("ISTHMUS_DATA", raising=False)
    with pytest.raises(im.FileError, match="ISTHMUS_VGG16"):
        store.find(cells[0])


def test_colours_reach_from_minus_1_to_1_in_every_channel():
    x = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5, 9])[:, None, None]
    found = coloured(x, x)
    assert found.amin((0, 2, 3)).tolist() == [-1, -1, -1]
    assert found.amax((0, 2, 3)).tolist() == pytest.approx([1, 1, 1])
    torch.testing.assert_close(coloured(x[:2], x), found[:2])


def test_steps_grow_and_shrink_with_the_width_as_in_section_5():
    fixed, scaled = Schedule(0.2, 6000, 100), Schedule(0.025, 48_000, 100, reference=3200)
    assert fixed.at(100) == fixed.at(6400) == (0.2, 6000)
    assert fixed.T == pytest.approx(scaled.T)
    for N in (100, 800, 12_800):
        step, steps = scaled.at(N)
        assert step == pytest.approx(0.025 * 3200 / N)
        assert steps == 48_000 * N / 3200
    with pytest.raises(im.InputError, match="positive"):
        Schedule(0.0, 1, 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seeds": ()}, "seeds"),
        ({"middle": 1.0}, "middle"),
        ({"keeps": (6,)}, "keeps"),
        ({"saved": 3}, "saved"),
        ({"N": 1}, "N"),
    ],
)
def test_trials_that_make_no_sense_are_refused(change, words):
    good = Trials(Task("digits"), 6, Schedule(0.1, 4, 10), (0, 1), keeps=(2,), saved=1)
    with pytest.raises(im.InputError, match=words):
        replace(good, **change)
    with pytest.raises(im.InputError, match="saved seeds"):
        Paths(good, good, ((0, 1),))
    with pytest.raises(im.InputError, match="N = 6"):
        Paths(good, replace(good, N=8), ((0, 0),))


def test_the_papers_scale_has_the_papers_settings():
    found = parts("paper")
    assert [p.task.label for p in found] == [
        "gaussians, 2 layers", "mnist, 2 layers", "mnist, 3 layers", "cifar10, vgg16 features, 3 layers",
        "cifar10, vgg16 features, 4 layers", "cifar10, 3 layers",
    ]  # fmt: skip
    for part in found[1:]:
        assert part.trials == tuple((N, 20) for N in (100, 200, 400, 800, 1600, 3200, 6400, 12_800))
        assert (part.schedule.batch, part.schedule.reference, part.bimodal, part.grid) == (
            100,
            3200,
            (3200,),
            (800, 3200),
        )
        assert part.middle == (0.65 if part.task.data == "mnist" else 0.7)
        assert part.task.features == "pixels" or part.task.side == 128
        trials = [c for c in part.cells() if isinstance(c, Trials) and c.N == 12_800]
        assert [c.seeds for c in trials] == [(k,) for k in range(20)], "wide networks are jobs of their own"
    values = {(v.row["task"], v.row["N"], v.column): v.value for v in PAGE.paper}
    assert values["mnist, 2 layers", 12_800, "error change %"] == 0.35
    assert values["cifar10, vgg16 features, 4 layers", 12_800, "error change %"] == 3.6
    assert values["cifar10, vgg16 features, 3 layers", 3200, "half error %"] == 16


def test_the_laptop_scale_takes_features_where_a_package_has_the_network(monkeypatch, tmp_path):
    from isthmus.models import extractors

    lite, file = extractors.EXTRACTORS["efficientnet-lite0"], tmp_path / "w.pth"
    monkeypatch.setitem(extractors.EXTRACTORS, lite.name, replace(lite, places=lambda: iter([file])))
    for there in (False, True):
        if there:
            file.touch()
        labels = [p.task.label for p in parts("laptop")]
        assert labels[:4] == ["gaussians, 2 layers", "mnist, 2 layers", "mnist, 3 layers", "cifar10, 3 layers"]
        assert labels[4:] == [f"cifar10, efficientnet-lite0 features, {k} layers" for k in (3, 4)] * there
    gaussians, mnist = parts("laptop")[:2]
    assert gaussians == parts("paper")[0]
    assert [N for N, _ in mnist.trials] == [100, 200, 400, 800, 1600, 3200]


MNIST, GAUSS, VGG = "mnist, 2 layers", "gaussians, 2 layers", "cifar10, vgg16 features, 3 layers"
MEANS = {"x": [100, 200, 400], "mean": [0.4, 0.2, 0.1], "deviation": [0.1] * 3}


def width(task: str, N: int, change: float) -> dict[str, Any]:
    return {"what": "widths", "task": task, "N": N, "error %": 1.8, "half error %": 2.5, "error change %": change,
            "change start": 0.02, "change middle": 0.05, "change end": 0.1}  # fmt: skip


def slope(what: str, task: str, time: str, **more: Any) -> dict[str, Any]:
    return {"what": what, "task": task, "time": time, "slope": -0.6, "low": -0.7, "high": -0.5, "correlation": -0.99,
            ".curve": MEANS, **more}  # fmt: skip


JUDGED = {"path error": 0.02, "allowed error": 0.025, "path loss": 0.1, "allowed loss": 0.1, "bound": 0.1,
          "proved": True}  # fmt: skip


def path(task: str) -> dict[str, Any]:
    return {"what": "paths", "task": task, "N": 3200, "starts": "bimodal to unimodal", "segments": 7,
            "path error %": 2.0, "allowed error %": 2.5, "end error %": 1.9, ".judged": [JUDGED]}  # fmt: skip


GOOD = [
    slope("change against N", GAUSS, "start"),
    slope("change against M", GAUSS, "end", N=400, **{".curve": {**MEANS, "x": [50, 100], "mean": [0.6, 0.3]}}),
    slope("change against N", GAUSS, "middle"),
    slope("change against N", GAUSS, "end"),
    slope("excess against N", GAUSS, "end"),
    width(MNIST, 100, 10.0),
    width(MNIST, 3200, 1.0),
    *(slope("change against N", MNIST, time) for time in ("start", "middle", "end")),
    path(MNIST),
    width(VGG, 800, 1.0) | {"error %": 15.0, "T, epochs": 1.0},
]


def changed(index: int, **values: Any) -> list[dict[str, Any]]:
    return [{**row, **values} if i == index else row for i, row in enumerate(GOOD)]


@pytest.mark.parametrize(
    ("words", "rows"),
    [
        ("mnist, 2 layers: the change in loss falls", changed(7, high=0.01)),
        ("mnist, 2 layers: the change in loss falls", changed(7, correlation=-0.8)),
        ("slopes lie between", changed(0, slope=-0.3)),
        ("slopes lie between", changed(3, slope=-1.1)),
        ("cost the same", changed(1, **{".curve": {**MEANS, "x": [50, 100], "mean": [0.6, 0.09]}})),
        ("excess of loss falls", changed(4, high=0.1)),
        ("at the three times agree", changed(6, **{"change start": 0.001})),
        ("an error below", changed(6, **{"error %": 2.1})),
        ("an error below", changed(6, **{"half error %": 3.1})),
        ("halving costs the widest", changed(6, **{"error change %": 6.0})),
        ("T = 1 in epochs", changed(11, **{"error %": 16.5})),
        ("7 segments are proved", changed(10, segments=9)),
        ("7 segments are proved", changed(10, **{".judged": [{**JUDGED, "proved": False}]})),
        ("7 segments are proved", changed(10, **{".judged": [{**JUDGED, "path loss": 0.11}]})),
        ("from a bimodal to a unimodal", changed(10, **{".judged": [{**JUDGED, "path error": 0.026}]})),
    ],
)
def test_every_finding_can_fail(words, rows):
    good = [f for f in PAGE.findings(GOOD) if f.holds is not None]
    assert len(good) == 12
    assert all(f.holds for f in good), [str(f) for f in good if not f.holds]
    found = [f.statement for f in PAGE.findings(rows) if f.holds is False]
    assert len(found) == 1
    assert words in found[0]


def test_findings_say_nothing_where_rows_are_missing():
    assert {f.holds for f in PAGE.findings([])} == {None}
    assert len([f for f in PAGE.findings([width(MNIST, 800, 1.0)]) if f.holds is not None]) == 1
    halved = [f for f in PAGE.findings([width(MNIST, 12_800, 1.0) | {"error change %": 0.4}]) if "12800" in f.statement]
    assert [(f.holds, f.measured) for f in halved if "mnist, 2" in f.statement] == [(False, "0.40 %")]
    short = width(VGG, 800, 1.0) | {"error %": 15.0, "T, epochs": 0.08}
    assert not [f for f in PAGE.findings([short]) if "T = 1" in f.statement and f.holds is not None]
    assert not [f for f in PAGE.findings([slope("change against N", GAUSS, "start")]) if f.holds is not None]
