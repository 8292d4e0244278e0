"""``compare``: the table, what does not apply, going on, the command, and budgets."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

import isthmus as im
from isthmus.cli import run_app
from isthmus.comparison import run as module
from isthmus.comparison.fitted import fitted
from isthmus.comparison.run import ALL
from isthmus.structure.blocks import blocks_of
from tests.problems import odd_widths, permuted

FEW = [
    im.Linear(),
    im.Aligned(),
    "Dropout",
    im.Bezier(recipe=im.Recipe(lr=None, epochs=9, batch=8)),
    "DeepLinear",
    "Sublevel",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("compared")


def compared(folder, **changes):
    p = permuted()
    options = {"budget": 50, "num_points": 9, "test": p.objective.part(slice(0, 8)), "folder": folder} | changes
    return im.compare(p.objective, p.a, p.b, FEW, **options)


@pytest.fixture(scope="module")
def found(folder):
    return compared(folder)


def test_the_table(found):
    p = permuted()
    rows = {row.method: row for row in found.rows}
    assert list(rows) == ["Linear", "Aligned(Linear)", "Dropout", "Bezier"]
    assert set(found.skipped) == {"DeepLinear", "Sublevel"}
    assert all("\n" not in why for why in found.skipped.values())
    assert "not linear" in found.skipped["DeepLinear"]
    for row in rows.values():
        measured = im.profile(p.objective, row.connection, 9)
        assert row.max == pytest.approx(measured.max, rel=1e-12)
        assert row.bound is None or row.bound >= row.max
        assert row.test_max is not None
        assert row.seconds >= 0
    assert (rows["Linear"].passes, rows["Linear"].length) == (0.0, 1.0)
    assert rows["Dropout"].estimated
    assert not rows["Bezier"].estimated
    assert rows["Bezier"].passes <= 50 + 30  # it looks more often where the loss is high
    assert found.best.method == "Aligned(Linear)"
    assert [row.method for row in found.front] == ["Linear", "Aligned(Linear)"]
    assert "no, rises to" in rows["Linear"].verdict
    assert "DeepLinear" in found._repr_html_()


def test_a_bound_is_shown_no_lower_than_it_is(found):
    row = replace(found.rows[0], max=1.23456712345, bound=1.23456712345)
    assert (row.cells[1], row.cells[3]) == ("1.23457", "1.23457")
    row = replace(row, max=1.23456112345, bound=1.23456112345)
    assert (row.cells[1], row.cells[3]) == ("1.23456", "1.23457")


def test_it_goes_on_and_refuses_the_folder_of_another_call(found, folder, monkeypatch):
    kept = (folder / "comparison.json").read_bytes()

    def never(*args, **options):
        raise AssertionError("done again")

    monkeypatch.setattr(module, "kept", never)
    monkeypatch.setattr(module, "TemporaryDirectory", never)  # a killed process would leave it
    left = folder / "bezier" / "state"
    left.mkdir()
    (left / "state.safetensors").touch()  # killed after its result was written
    again = compared(folder)
    assert not left.exists()
    assert (folder / "comparison.json").read_bytes() == kept
    assert [row.to_dict() for row in again.rows] == [row.to_dict() for row in found.rows]
    for changes in ({"seed": 1}, {"budget": 60}, {"num_points": 5}):
        with pytest.raises(im.FileError, match="another call"):
            compared(folder, **changes)


def test_equal_calls_give_equal_bytes(found, folder, tmp_path):
    compared(tmp_path)
    for name in ("comparison.csv", "comparison.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
        assert b"seconds" not in (tmp_path / name).read_bytes()
    assert all(row.seconds is not None for row in found.rows)


def test_what_no_method_counts_is_estimated_from_what_it_says_or_is_not_there():
    p = odd_widths()
    layers = len(p.objective.structure.groups)
    names = [
        "Dropout",
        "NoiseDropout",
        "MeanField",
        im.Subnetwork(inner=im.Trained(recipe=im.Recipe(steps=20, batch=8))),
    ]
    rows = {row.method: row for row in im.compare(p.objective, p.a, p.b, names, num_points=3, prove=False).rows}
    n = p.objective.num_examples

    def trained(row: Any) -> float:
        return 3 * row.gradient_steps * min(8, n) / n

    want = {
        "Dropout": lambda row: 2 * im.Dropout().masks * layers, "NoiseDropout": lambda row: 4 * im.NoiseDropout().draws,
        "MeanField": lambda row: 2 * layers, "Subnetwork": trained,
    }  # fmt: skip
    for name, row in rows.items():
        assert (row.passes, row.estimated) == (want[name](row), True)
    assert rows


def test_passes_of_a_matching_are_those_over_its_own_examples():
    p = permuted()
    n = p.objective.num_examples
    want = [
        (im.Aligned(im.Linear(), im.ActivationMatching(examples=3)), 2 * 3 / n),
        (im.Aligned(im.Renormalised(knots=2, examples=4), im.ActivationMatching(examples=3)), (2 * 3 + 4 * 4) / n),
        (im.Aligned(im.Linear(), im.WeightMatching(restarts=2, choose="loss")), 3.0),
        (im.Aligned(im.Linear(), im.WeightMatching()), 0.0),
    ]
    for method, passes in want:
        (row,) = im.compare(p.objective, p.a, p.b, [method], num_points=3, prove=False).rows
        assert (row.passes, row.estimated) == (pytest.approx(passes), False)


def test_passes_of_a_string_have_the_looks_at_its_beads_in_training():
    p = permuted()
    method = im.StringSampling(excess=0.01, budget=60, recipe=im.Recipe(batch=8, steps=40, check=5))
    (row,) = im.compare(p.objective, p.a, p.b, [method], num_points=3, prove=False).rows
    cost, n = row.connection.cost, p.objective.num_examples
    assert cost.evaluations is not None
    assert cost.gradient_steps
    assert row.passes == pytest.approx(cost.evaluations + cost.gradient_steps / 5 + 3 * cost.gradient_steps * 8 / n)
    assert row.estimated


def test_complex128_is_refused_before_anything_is_made():
    module = torch.nn.Linear(2, 1, bias=False).to(torch.complex128)
    objective = im.Objective(module, evaluate=lambda params: {"loss": float(params["weight"].abs().sum())})
    a, b = ({"weight": torch.full((1, 2), v, dtype=torch.complex128)} for v in (1.0, 2.0))
    with pytest.raises(im.InputError, match="complex64 at most"):
        im.compare(objective, a, b, ["linear"])


def test_its_picture_and_the_report(found, folder):
    figures = pytest.importorskip("matplotlib.figure")
    ax = figures.Figure().add_subplot()
    assert found.plot(ax) is ax
    assert {text.get_text() for text in ax.texts} == {row.method for row in found.rows}
    from isthmus.report import write_report

    page = write_report(folder).read_text()
    assert "Aligned" in page
    assert "Dropout" in page
    # the table of the notebook
    for name in found.table()[0]:
        assert f'<th scope="col">{name}</th>' in page
    assert all(f"<td>{row.cells[1]}</td>" in page for row in found.rows)


def test_a_network_that_no_method_takes_and_wrong_arguments():
    p = odd_widths()
    none = im.compare(p.objective, p.a, p.b, [im.DeepLinear()])
    assert not none.rows
    with pytest.raises(im.InputError, match="not linear"):
        _ = none.best
    wrong: list[dict[str, Any]] = [
        {"budget": 0},
        {"methods": []},
        {"methods": "Linear"},
        {"methods": [3]},
        {"bn": "no"},
    ]
    for one in [*wrong, {"points": 4}]:
        options: dict[str, Any] = {"methods": [im.Linear()], **one}
        with pytest.raises(im.InputError):
            im.compare(p.objective, p.a, p.b, **options)
    with pytest.raises(im.InputError, match="b"):
        im.compare(p.objective, p.a, {}, [im.Linear()])


def test_methods_fit_into_a_budget():
    p = odd_widths()
    n = p.objective.num_examples
    names = {type(m).__name__ for m in ALL}
    assert names == {m.__name__ for m in im.METHODS} - {"Auto", "Renormalised"}
    for method in ALL:
        assert fitted(fitted(method, 200, p.objective), 200, p.objective) == fitted(method, 200, p.objective)

    def fit(method: im.Connector, passes: float) -> Any:
        return fitted(method, passes, p.objective)

    assert fit(im.Aligned(im.Bezier()), 345).inner.recipe.epochs == 100
    assert fit(im.Bezier(), 1).recipe.epochs == 1
    assert fit(im.Auto(), 70).budget == 70
    steps = fit(im.Subnetwork(), 90).inner.recipe.steps
    assert 3 * steps * min(256, n) / n * 9 <= 90  # five layers
    walk = fit(im.LayerWise(), 400)  # n is below the number that is looked at, so each of six looks is a pass
    assert (walk.moves, walk.halvings) == (4, 0)
    blocks = len(blocks_of(p.objective.parameter_names))
    assert 200 <= 4 * blocks * (6 + 3 * walk.recipe.steps * min(128, n) / n) <= 400
    few = fit(im.LayerWise(), 20)
    assert (few.moves, few.recipe.steps) == (1, 1)
    cycles = fit(im.AutoNEB(), 1000).cycles
    passes = 3 * sum(s * k for (s, _), k in zip(cycles, (3, 5, 7), strict=True)) * min(512, n) / n
    assert 900 <= passes <= 1000


def test_the_command(tmp_path, capsys):
    files = []
    for i in range(2):
        torch.manual_seed(i)
        files.append(str(tmp_path / f"{i}.safetensors"))
        module = im.models.by_name("mlp:64-6-10", inputs=(64,), outputs=10)
        im.save_params(dict(module.state_dict()), files[-1], {"model": "mlp:64-6-10", "data": "digits"})
    command = ["compare", *files, "--examples", "30", "--budget", "48", "--num-points", "3", "--no-prove", "-q"]
    command += ["--out", str(tmp_path / "out")]
    assert run_app([*command, "--methods", "linear, bezier,deeplinear"]) == 0
    text = capsys.readouterr().out
    assert "DeepLinear does not apply" in text
    assert "best: " in text
    assert (tmp_path / "out" / "comparison.svg").is_file()
    assert run_app(["report", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "mlp:64-6-10" in page
    assert "not recorded" not in page
    path = str(tmp_path / "out" / "linear" / "path.safetensors")  # which knows its network and its data
    assert run_app(["profile", path, "--num-points", "2", "--out", str(tmp_path / "again"), "-q"]) == 0
    capsys.readouterr()
    assert run_app([*command, "--methods", "linear, bezier,deeplinear", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert run_app([*command, "--methods", "deeplinear"]) == 1
    text = capsys.readouterr().out
    assert "no method applies; written to" in text
    assert "a page to read" not in text
    assert [file.name for file in (tmp_path / "out").glob("comparison.*")] == ["comparison.json"]
    assert run_app([*command, "--methods", "lineal"]) == 2
    record = tmp_path / "out" / "linear" / "record.json"
    whole = record.read_text()
    record.write_text("5")
    capsys.readouterr()
    assert run_app([*command, "--methods", "linear"]) == 2
    assert "record.json: holds int, not named values" in capsys.readouterr().err
    record.write_text(whole)
    row = tmp_path / "out" / "linear" / "result.json"
    row.write_text(row.read_text().replace('"max_loss": ', '"max_loss": 1'))
    capsys.readouterr()
    assert run_app([*command, "--methods", "linear"]) == 2  # it is taken for what was measured
    assert "do not match their digest" in capsys.readouterr().err
