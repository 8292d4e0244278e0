"""Results show themselves in one line, the obvious calls work, and all others are refused in the house's words."""

import inspect
import io
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from types import NoneType

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.connectors.info import INFO
from isthmus.errors import IsthmusError
from isthmus.storage.files import plain
from tests.laws.test_methods import connect, own_problem

LIMIT = 200


def mlp():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.fixture(scope="module")
def modules():
    torch.manual_seed(0)
    return mlp(), mlp()


@pytest.fixture(scope="module")
def objective(modules):
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(1))
    return im.Objective(modules[0], data=(x, torch.arange(12) % 3))


@pytest.fixture(scope="module")
def connection(objective, modules):
    return im.connect(objective, *modules, method=im.Dropout(masks=2))


@pytest.fixture(scope="module")
def values(objective, modules, connection):
    """One value of every public class that a call returns."""
    a, _ = modules
    profile = im.profile(objective, connection, 5, test=objective)
    certificate = im.certify(objective, connection, budget=0)
    linear = nn.Linear(2, 1, bias=False)
    squares = im.Objective(linear, "mse", (torch.eye(2), torch.zeros(2, 1)))
    bent = im.Path.through([{"weight": torch.tensor([v])} for v in ([1.0, 0.0], [0.0, 0.9], [-1.0, 0.0])])
    bounds = im.subnetwork_bounds(objective, a, draws=2, layers=[1])
    tiny = im.Objective(nn.Linear(1, 1, bias=False), "mse", (torch.ones(2, 1), torch.ones(2, 1)), penalty=im.Ridge(0.1))
    tiny_ends = {"weight": torch.ones(1, 1)}
    found = [
        objective, connection, connection.path, *connection.path.segments[:1], profile, profile.barriers["loss"],
        certificate, *certificate.segments[:1], im.verdict(profile), objective.structure, *objective.structure.groups,
        *objective.structure.groups[0].members, im.derive_structure(a, (torch.zeros(2, 4),)),
        im.dropout_stability(objective, a, masks=2, test=objective), im.pattern_stability(objective, a, 4),
        im.noise_stability(objective, a, draws=2), im.sublevel_conditions(objective, a), bounds, *bounds.layers,
        profile.test and profile.test.population, im.separated(tiny, tiny_ends, tiny_ends, 1.0),
        im.theory(objective, *modules, theorems=["Theorem 1"], masks=2, steps=2), im.straighten(squares, bent, 0.5),
        im.geometry(squares, bent.start, bent.end, [1.0]), im.LevelLayer("w", None), im.Ridge(0.1), im.L1(0.1),
        im.ensemble(objective, connection, points=2, test=objective),
        im.plane(objective, a, modules[1], mlp(), points=2),
        im.counterexamples.disconnected(), im.counterexamples.permutation(), im.data.load("digits"),
        im.minima_graph(objective, modules),
        compared := im.compare(objective, modules[0], modules[1], ["Linear"], prove=False),
        compared.best, im.align(objective, *modules), im.align(objective, *modules).inverse(),
        im.aligned_lines(objective, modules, im.align(objective, *modules), num_points=2),
        im.barrier(objective, *modules, num_points=3), im.barrier_matrix(objective, modules, num_points=3),
        im.block_barriers(objective, *modules), im.contributions(objective, connection, 0.5),
        im.check(objective, modules, test=objective), im.merge(objective, modules),
        im.task_vectors(a.state_dict(), [modules[1].state_dict()]), im.adapter_stability(objective, *modules, masks=1),
        im.WeightMatching(), im.Given(), im.ActivationMatching(), im.RotationMatching(),
        *(method() for method in im.METHODS), *im.Outcome, im.Memorised(), im.Separated(), im.CrossEntropy(),
    ]  # fmt: skip
    return found


def parts(value):
    """The value, and every dataclass among its fields and their entries."""
    yield value
    if is_dataclass(value):
        for inner in vars(value).values():
            several = inner.values() if isinstance(inner, Mapping) else inner if isinstance(inner, tuple) else [inner]
            for one in several:
                if is_dataclass(one) and type(one).__module__.startswith("isthmus") and type(one).__name__ != "Node":
                    yield from parts(one)


def test_every_value_is_one_short_line(values):
    seen = {}
    for value in (part for v in values for part in parts(v)):
        text = repr(value)
        assert "\n" not in text, text
        assert len(text) <= LIMIT, text
        seen[type(value).__name__] = text
    public = {n for n in dir(im) if inspect.isclass(getattr(im, n)) and not issubclass(getattr(im, n), BaseException)}
    unseen = public - set(seen) - {"IsthmusWarning", "Connector", "Matching", "Segment", "LevelCurve", "IsthmusError"}
    assert not {name for name in unseen if not issubclass(getattr(im, name), Warning)}
    assert repr(values[1]) == f"Connection(Dropout, constructed, {len(values[2])} segments, 139 parameters)"
    assert "x_train=f32[" in seen["Dataset"]


def test_a_line_does_not_grow_with_the_network():
    wide = im.Path.through([{f"w{i}": torch.full((50, 50), float(k)) for i in range(300)} for k in range(40)])
    level = im.Verdict("x" * 500, 0.1, "y" * 500, "proved", "z" * 500, 0.1, 0.5)
    for value in (wide, wide.segments[0], level, im.shown.brief(wide.start)):
        assert len(repr(value)) <= LIMIT
    assert repr(wide) == "Path(39 segments, 750,000 parameters)"


# -- info and cost

COMMON = {"method", "seed", "objective", "segments"}


@pytest.mark.parametrize("kind", im.METHODS, ids=lambda kind: kind.__name__)
def test_what_a_method_says_is_typed_and_kept_in_files(kind, tmp_path):
    found = connect(own_problem(kind), kind)
    own = INFO.get(kind.__name__)
    assert type(found.info) is (NoneType if own is None else own)
    assert set(found.stats) - COMMON <= {f.name for f in ([] if own is None else fields(own))}
    assert len(found.labels) == len(found.path)
    assert found.cost.seconds == found.seconds is not None
    assert len(repr(found.info)) <= LIMIT
    im.save(found, tmp_path / "path.safetensors")
    again = im.load_connection(tmp_path / "path.safetensors")
    assert again.labels == found.labels
    assert again.cost == replace(found.cost, seconds=None)
    assert json.dumps(plain(own and asdict(again.info))) == json.dumps(plain(own and asdict(found.info)))


def test_a_path_without_a_method_says_nothing(connection):
    bare = im.Connection(connection.path, connection.target, connection.outcome)
    assert (bare.labels, bare.info, bare.cost.seconds) == ((), None, None)


# -- tables and pictures


def shows(values, method):
    return [v for v in values if hasattr(v, method)]


def test_tables_are_small_and_escaped(values, connection):
    tables = [v._repr_html_() for v in shows(values, "_repr_html_")]
    names = {type(v).__name__ for v in shows(values, "_repr_html_")}
    assert {"Connection", "Profile", "Certificate", "Theory", "DropoutStability", "NoiseStability"} <= names
    assert {"Ensemble", "Plane"} <= names
    for text in tables:
        assert text.startswith("<table>")
        assert text.endswith("</table>")
        assert text.count("<tr>") == text.count("</tr>") <= 42
    labels = ["<script>alert(1)</script>"] * 1000
    odd = im.Connection(connection.path, connection.target, connection.outcome, {"segments": labels})._repr_html_()
    assert "<script>" not in odd
    assert "and 960 more" in odd


def test_pictures_stand_on_the_axes_that_are_given(values):
    figures = pytest.importorskip("matplotlib.figure")
    drawn = shows(values, "plot")
    names = {"Connection", "Profile", "Certificate", "DropoutStability", "PatternStability", "NoiseStability"}
    names |= {"MinimaGraph", "Alignment", "AlignedLines"}
    names |= {"Ensemble", "Plane", "Band", "Comparison"}
    names |= {"Barrier", "BarrierMatrix", "BlockBarriers", "Check", "Contributions"}
    assert {type(v).__name__ for v in drawn} == names
    for value in drawn:
        ax = figures.Figure().add_subplot()
        assert value.plot(ax=ax) is ax
        assert ax.lines or ax.patches or ax.images
        ax.figure.savefig(io.BytesIO(), format="svg")


def test_a_picture_makes_its_own_axes(values):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    ax = values[1].plot()
    assert ax.get_xlabel().startswith("first principal direction")
    pyplot.close(ax.figure)


def test_without_matplotlib_a_picture_says_what_to_install(values, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(im.MissingExtraError, match=r"isthmus\[plot\]"):
        values[1].plot()


# -- the obvious calls


def test_modules_and_files_are_networks(objective, modules, tmp_path):
    a, b = modules
    torch.save({"state_dict": {f"module.{k}": v for k, v in a.state_dict().items()}}, tmp_path / "a.pt")
    im.save_params(b.state_dict(), tmp_path / "b.safetensors")
    want = im.connect(objective, a.state_dict(), b.state_dict())
    for found in (
        im.connect(objective, a, b),
        im.connect(objective, str(tmp_path / "a.pt"), tmp_path / "b.safetensors"),
        im.connect(objective, nn.DataParallel(a), b),
    ):
        assert im.params.equal(found.path.start, want.path.start)
        assert im.params.equal(found.target, want.target)
    assert objective.loss(a) == objective.loss(tmp_path / "a.pt") == objective.loss(a.state_dict())
    im.dropout_stability(objective, tmp_path / "a.pt", masks=2)
    im.theory(objective, a, tmp_path / "b.safetensors", theorems=["Theorem 3.2"])
    with pytest.raises(im.CheckpointError, match=r"c\.pt"):
        im.connect(objective, a, tmp_path / "c.pt")


def test_the_module_that_was_given_may_be_trained_on(objective, modules):
    a, b = mlp(), modules[1]
    path = im.connect(objective, a, b).path
    before = {k: v.clone() for k, v in path.start.items()}
    with torch.no_grad():
        next(a.parameters()).zero_()
    assert im.params.equal(path.start, before)


def test_a_connection_is_a_path(objective, connection):
    measured = im.profile(objective, connection, 5)
    assert torch.equal(measured.loss, im.profile(objective, connection.path, 5).loss)
    proved = im.certify(objective, connection, budget=0)
    assert proved == im.certify(objective, connection.path, budget=0, labels=connection.labels)
    assert im.verify_certificate(objective, connection, proved) == []


def test_a_path_can_be_saved_alone(connection, tmp_path):
    im.save(connection.path, tmp_path / "p.safetensors")
    found = im.load_connection(tmp_path / "p.safetensors")
    assert len(found.path) == len(connection.path)
    assert all(map(im.params.equal, found.path.knots, connection.path.knots))
    assert im.params.equal(found.target, connection.path.end)
    assert found.outcome.ok


# -- all other calls

WRONG = {
    "int": 3, "text": "no such file", "None": None, "list": [1, "a"], "tensor": torch.zeros(2, 3), "module": mlp(),
    "empty": {}, "numbers": {"0.weight": 3}, "keys": {1: torch.zeros(1)}, "class": im.Linear, "object": object(),
}  # fmt: skip

# what a function of the user says of its arguments is its own affair
UNCHECKED = {("progress", "module"), ("progress", "class"), ("kwargs", "numbers")}
UNCHECKED |= {("workers", "int")}  # is accepted, and starts processes


def calls(objective, modules, connection, folder):
    """Each public function with arguments that it takes."""
    a, b = (m.state_dict() for m in modules)
    profile, certificate = im.profile(objective, connection, 3), im.certify(objective, connection, budget=0)
    x, point = torch.ones(2, 1, dtype=torch.float64), {"weight": torch.ones(1, 1, dtype=torch.float64)}
    tiny = im.Objective(nn.Linear(1, 1, bias=False).double(), "mse", (x, x), penalty=im.Ridge(0.1))
    im.save(connection, folder / "path.safetensors")
    im.save_params(a, folder / "a.safetensors")
    im.save_alignment(im.align(objective, a, b), folder / "alignment")
    return {
        im.connect: {"objective": objective, "a": a, "b": b},
        im.profile: {"objective": objective, "path": connection, "num_points": 3},
        im.population: {"objective": objective, "path": connection, "grid": 3},
        im.separated: {"objective": tiny, "a": point, "b": point, "level": 1.0, "budget": 10},
        im.certify: {"objective": objective, "path": connection, "budget": 0},
        im.verify_certificate: {"objective": objective, "path": connection, "certificate": certificate},
        im.verdict: {"profile": profile, "certificate": certificate},
        im.theory: {"objective": objective, "a": a, "b": b, "theorems": ["Theorem 3.2"], "masks": 1, "steps": 1},
        im.dropout_stability: {"objective": objective, "params": a, "masks": 1},
        im.pattern_stability: {"objective": objective, "params": a, "keep": 4},
        im.noise_stability: {"objective": objective, "params": a, "draws": 1},
        im.subnetwork_bounds: {
            "objective": objective,
            "params": a,
            "draws": 1,
            "layers": [2],
            "recipe": im.Recipe(steps=9),
        },
        im.dropout_bounds: {"objective": objective, "params": a, "draws": 1},
        im.sublevel_conditions: {"objective": objective},
        im.descend: {"objective": objective, "a": a},
        im.straighten: {"objective": objective, "path": im.Path.through([a, b]), "threshold": 9.0, "passes": 1},
        im.geometry: {"objective": objective, "a": a, "b": b, "thresholds": [99.0]},
        im.gap_by_width: {"make": lambda m: (objective, a, b), "widths": []},
        im.derive_structure: {"module": modules[0], "args": (torch.zeros(2, 4),)},
        im.align: {"objective": objective, "a": a, "b": b},
        im.align_many: {"objective": objective, "models": [a, b]},
        im.aligned_lines: {"objective": objective, "models": [a, b], "found": im.align(objective, a, b)},
        im.StraightLines.between: {"objective": objective, "models": [a, b]},
        im.save_alignment: {"alignment": im.align(objective, a, b), "path": folder / "alignment"},
        im.load_alignment: {"path": folder / "alignment", "objective": objective},
        im.minima_graph: {"objective": objective, "params": [a, b], "folder": folder / "graph"},
        im.compare: {
            **{"objective": objective, "a": a, "b": b, "methods": ["Linear"]},
            **{"folder": folder / "compare", "num_points": 2, "budget": 0},
        },
        im.load_graph: {"folder": folder / "graph"},
        im.barrier: {"objective": objective, "a": a, "b": b, "num_points": 2},
        im.barrier_matrix: {"objective": objective, "models": [a, b], "num_points": 2},
        im.block_barriers: {"objective": objective, "a": a, "b": b},
        im.contributions: {"objective": objective, "path": connection, "t": 0.5},
        im.check: {"objective": objective, "models": [a, b], "align": False},
        im.merge: {"objective": objective, "models": [a, b]},
        im.save_like: {"params": a, "out": folder / "like.pt", "source": folder / "a.safetensors"},
        im.task_vectors: {"base": a, "models": [b]},
        im.adapter_stability: {"objective": objective, "base": a, "model": b, "masks": 1},
        im.low_rank_path: {"base": a, "a": b, "b": b},
        im.ensemble: {"objective": objective, "path": connection, "points": 2, "independent": [a]},
        im.fast_geometric_ensemble: {"objective": objective, "a": a, "cycles": 1, "epochs": 1},
        im.plane: {"objective": objective, "a": a, "b": b, "c": mlp(), "points": 2},
        im.save_curve_npz: {
            "profile": profile,
            "file": folder / "curve.npz",
            "objective": objective,
            "path": connection,
        },
        im.save: {"connection": connection, "path": folder / "again.safetensors"},
        im.load_connection: {"path": folder / "path.safetensors"},
        im.save_params: {"params": a, "path": folder / "b.safetensors"},
        im.load_params: {"path": folder / "a.safetensors"},
        im.Objective: {"module": modules[0], "data": objective.data},
        im.Path: {"segments": connection.path.segments},
        im.Path.through: {"points": [a, b]},
        im.Curve: {"control": (a, b)},
        objective.loss: {"params": a},
        objective.outputs: {"params": a},
        objective.check: {"params": a},
        objective.on: {"data": objective.data},
        objective.subset: {"n": 2},
        connection.path.at: {"t": 0.5},
    }


def names(function):
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [n for n, p in inspect.signature(function).parameters.items() if p.kind in kinds and n[0] != "_"]


def test_every_public_function_is_in_the_table(objective, modules, connection, tmp_path):
    public = {getattr(im, name) for name in dir(im)}
    functions = {f for f in public if inspect.isfunction(f) and f.__module__.startswith("isthmus")}
    assert functions <= set(calls(objective, modules, connection, tmp_path))


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_not_accepted_is_refused_by_name(objective, modules, connection, tmp_path, monkeypatch, wrong):
    monkeypatch.chdir(tmp_path)
    failed = []
    for function, arguments in calls(objective, modules, connection, tmp_path).items():
        for name in names(function):
            if (name, wrong) in UNCHECKED:
                continue
            try:
                function(**arguments | {name: WRONG[wrong]})
            except IsthmusError:
                pass
            except Exception as error:
                failed.append(f"{function.__qualname__}({name}={wrong}): {type(error).__name__}: {error}"[:150])
    assert not failed, "\n".join(failed)
