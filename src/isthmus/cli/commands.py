"""The commands that make: train networks, connect them, say which methods there are, write a report, the demo."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Column, Table

from isthmus import pipeline as runs
from isthmus.cli.common import (
    BatchNorm,
    Budget,
    Checkpoint,
    DataOption,
    Device,
    DType,
    Examples,
    Gap,
    Json,
    Key,
    LevelOption,
    LossOption,
    ModelOption,
    OutOption,
    PenaltyOption,
    Points,
    Quiet,
    Seed,
    UnsafePickle,
    device_of,
    dtype_of,
    method_of,
    opened,
)
from isthmus.cli.console import console, number, progress_bar, show
from isthmus.cli.typed import command
from isthmus.connectors import METHODS
from isthmus.data import DATASETS, load
from isthmus.evaluate.batchnorm import POLICIES
from isthmus.models import MODELS, by_name, seeded
from isthmus.pipeline import inputs_of
from isthmus.storage import make_folder, save_params
from isthmus.storage.methods import options_of
from isthmus.training.fit import Recipe
from isthmus.verdict import LEVEL, Level


def train(
    out: Annotated[Path, typer.Option("--out", help="Where to write the weights (.safetensors).")],
    model: Annotated[
        str, typer.Option("--model", help="NAME[:SPEC], MODULE:FACTORY or FILE.py:FACTORY.")
    ] = "mlp:64-60x4-10",
    data: Annotated[str, typer.Option("--data", help="A data set's name or an .npz file.")] = "digits",
    loss: Annotated[str, typer.Option("--loss", help="cross_entropy or mse.")] = "cross_entropy",
    epochs: Annotated[int, typer.Option("--epochs", help="Budget in passes over the data.", min=1)] = 400,
    until: Annotated[float, typer.Option("--until", help="Stop at this training loss.")] = 1e-3,
    optimizer: Annotated[str, typer.Option("--optimizer", help="adam or sgd.")] = "adam",
    lr: Annotated[float, typer.Option("--lr")] = 2e-3,
    batch: Annotated[int, typer.Option("--batch", min=1)] = 128,
    momentum: Annotated[float, typer.Option("--momentum")] = 0.9,
    weight_decay: Annotated[float, typer.Option("--weight-decay")] = 0.0,
    examples: Examples = None,
    device: Device = "auto",
    dtype: DType = "float32",
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Train a network and write its weights, with what made them."""
    make_folder(out.parent)
    dataset = load(data).subset(examples, None) if examples else load(data)
    dataset = inputs_of(model, dataset)
    kind, where = dtype_of(dtype, {}), device_of(device)
    module = seeded(lambda: by_name(model, inputs=dataset.shape, outputs=dataset.classes or None), seed)
    module = module.to(device=where, dtype=kind)
    x, y = dataset.cast(kind).x_train.to(where), dataset.y_train.to(where)
    steps = epochs * max(1, len(y) // min(batch, len(y)))
    recipe = Recipe(optimizer, lr, steps, batch, momentum, weight_decay)  # type: ignore[arg-type]
    with progress_bar(quiet) as progress:
        fitted = runs.train(module, (x, y), recipe, seed=seed, loss=loss, target=until, progress=progress)
    about = {
        "model": model, "data": data, "loss": loss, "seed": str(seed), "recipe": json.dumps(asdict(recipe)),
        "train_loss": repr(fitted.loss), "steps": str(fitted.steps),
        **({} if examples is None else {"examples": str(examples)}),
    }  # fmt: skip
    save_params({k: v.cpu() for k, v in fitted.params.items()}, out, about)
    if as_json:
        print(json.dumps({"out": str(out), **about, "outcome": fitted.ended.word}, indent=2))
    else:
        print(f"{out}: training loss {number(fitted.loss)} after {fitted.steps} steps")
    return 1 if fitted.ended.name == "NOT_FINITE" else 0


def connect(
    a: Checkpoint,
    b: Checkpoint,
    out: OutOption,
    model: ModelOption = None,
    data: DataOption = None,
    method: Annotated[str, typer.Option("--method", help="See: isthmus methods.")] = "Subnetwork",
    option: Annotated[
        list[str] | None, typer.Option("--option", help="KEY=VALUE, a field of the method; repeatable.")
    ] = None,
    loss: LossOption = None,
    examples: Examples = None,
    penalty: PenaltyOption = None,
    num_points: Points = 61,
    gap: Gap = 0.01,
    budget: Budget = None,
    level: LevelOption = LEVEL,
    bn: BatchNorm = None,
    key: Key = None,
    unsafe_pickle: UnsafePickle = False,
    device: Device = "auto",
    dtype: DType = "auto",
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Connect two checkpoints: construct the path, measure it, prove it, write everything to a folder.

    Whether the path is low, the verdict says; exit code 0 only means that the method did what it does. Long work
    keeps its state there: after a kill, the same command goes on with it.
    """
    chosen = method_of(method, option or [])
    Level.read(level)
    found = opened(
        (a, b),
        model,
        data,
        loss=loss,
        examples=examples,
        device=device,
        dtype=dtype,
        unsafe_pickle=unsafe_pickle,
        penalty=penalty,
        key=key,
    )
    objective, test, ends = found.objective, found.test, found.ends
    about = {"model": found.model, "data": found.data, "checkpoints": [str(a), str(b)], "command": command()}
    about["examples"] = examples
    about |= {"key": key} if key else {}
    state = runs.state_of(objective, ends[0], ends[1], chosen, out, test=test, seed=seed)
    if state.begun() and not quiet:
        print(f"going on from the state of the search in {state.folder}", file=sys.stderr)
    with progress_bar(quiet) as progress:
        done = runs.run(
            objective, ends[0], ends[1], chosen, out,
            test=test, num_points=num_points, gap=gap, budget=budget, level=level, bn=bn or POLICIES[0], seed=seed,
            about=about, memory=state, progress=progress,
        )  # fmt: skip
    state.remove()
    show([done.result], as_json)
    if not as_json:
        for note in done.result["notes"]:
            print(f"note: {note}")
        print(f"{done.connection.outcome}\nwritten to {out}; a page to read: isthmus report {out}")
    return 0 if done.connection.outcome.ok else 1


def methods(as_json: Json = False) -> int:
    """The methods: where they come from, what each makes, needs and costs, and its options."""
    if as_json:
        rows = {m.__name__: asdict(m.about) | {"options": options_of(m)} for m in METHODS}
        print(json.dumps(rows, indent=2))
        return 0
    name = Column("method", no_wrap=True)
    table = Table(name, "makes", "needs", "cost", Column("options", no_wrap=True), show_lines=True)
    for m in METHODS:
        options = "\n".join(f"{k}={v}" for k, v in options_of(m).items())
        table.add_row(
            f"{m.__name__}\n[dim]{m.about.reference}[/dim]", m.about.makes, m.about.premises, m.about.cost, options
        )
    screen = console()
    screen.print(table)
    screen.print("Models: " + ", ".join(e.syntax for e in MODELS.values()), highlight=False, markup=False)
    screen.print("Data: " + ", ".join(e.syntax for e in DATASETS), highlight=False, markup=False)
    return 0


def report(
    folder: Annotated[Path, typer.Argument(help="A folder of results.")],
    out: Annotated[Path | None, typer.Option("--out", help="Default: report.html in the folder.")] = None,
) -> int:
    """Write one self-contained HTML page from stored results."""
    from isthmus.report import write_report

    print(write_report(folder, out))
    return 0


def demo(
    out: OutOption = Path("demo-results"),
    num_points: Points = 61,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Train two digit networks, connect them by every method that suits them, prove it, and write a report."""
    from isthmus.demo import run_demo

    torch.set_num_threads(1)  # networks this small only wait for one another on several cores
    with progress_bar(quiet) as progress:
        results, page = run_demo(out, num_points=num_points, seed=seed, progress=progress)
    show(results, as_json)
    if not as_json:
        print(f"The page to read: {page}")
    return 0 if all(r["outcome"]["ok"] for r in results) else 1
