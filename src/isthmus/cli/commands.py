"""The commands that make: networks, paths, planes, the list of methods, a report, the demo."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from isthmus import pipeline as runs
from isthmus.analysis.plane import farthest
from isthmus.analysis.plane import plane as plane_through
from isthmus.cli.asked import of_checkpoints
from isthmus.cli.common import device_of, dtype_of, matching_of, method_of, network_of, objectives, opened
from isthmus.cli.console import hanging, number, print_json, progress_bar, show, show_graph, tell_not_finite
from isthmus.cli.options import (
    CHECKPOINTS,
    PATHS,
    Asked,
    BatchNorm,
    Budget,
    Checkpoint,
    Gap,
    Json,
    LevelOption,
    Method,
    MethodOptions,
    OutOption,
    Points,
    Quiet,
    Seed,
    with_asked,
)
from isthmus.connectors import METHODS, Aligned, Connector
from isthmus.data import DATASETS
from isthmus.errors import InputError, UnsupportedError
from isthmus.evaluate.batchnorm import policy_in_words
from isthmus.graph import minima_graph
from isthmus.graph.search import names_of
from isthmus.models import MODELS, seeded
from isthmus.storage import load_connection, save_params, write_json
from isthmus.storage.files import results_folder
from isthmus.storage.methods import options_of
from isthmus.stored import LABELLED
from isthmus.training.fit import Recipe
from isthmus.verdict import LEVEL, Level

_ROWS = "plane-state"
"""The folder in that of a plane that holds the rows which were measured."""


@with_asked("penalty", "batch", *CHECKPOINTS, *PATHS)
def train(
    asked: Asked,
    out: Annotated[Path, typer.Option("--out", help="Where to write the weights (.safetensors).")],
    epochs: Annotated[int, typer.Option("--epochs", help="Budget in passes over the data.", min=1)] = 400,
    until: Annotated[float, typer.Option("--until", help="Stop at this training loss.")] = 1e-3,
    optimizer: Annotated[str, typer.Option("--optimizer", help="adam or sgd.")] = "adam",
    lr: Annotated[float, typer.Option("--lr", help="Learning rate, at the start.")] = 2e-3,
    batch: Annotated[int, typer.Option("--batch", help="Examples per step.", min=1)] = 128,
    momentum: Annotated[float, typer.Option("--momentum", help="Of sgd.")] = 0.9,
    weight_decay: Annotated[float, typer.Option("--weight-decay", help="Of both optimisers.")] = 0.0,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Train a network and write its weights, with what made them."""
    kind = dtype_of("float32" if asked.dtype == "auto" else asked.dtype, {})
    parts = of_checkpoints([out], [{}], replace(asked, model=asked.model or "mlp:64-60x4-10"))
    module = seeded(lambda: network_of(parts), seed).to(device=device_of(asked.device), dtype=kind)
    objective, _ = objectives(parts, copy.deepcopy(module), asked, kind)
    steps = epochs * max(1, objective.num_examples // min(batch, objective.num_examples))
    recipe = Recipe(optimizer, lr, steps, batch, momentum, weight_decay)  # type: ignore[arg-type]
    with results_folder(out.parent), progress_bar(quiet) as progress:
        fitted = runs.train_on(module, objective, recipe, seed=seed, target=until, progress=progress)
    about = {
        "model": parts.model, "data": parts.data, "seed": str(seed), "recipe": json.dumps(asdict(recipe)),
        **({"loss": parts.loss} if isinstance(parts.loss, str) else {}),  # another one is said by the data again
        "train_loss": repr(fitted.loss), "steps": str(fitted.steps),
        **{k: str(v) for k in ("examples", *LABELLED) if (v := getattr(asked, k)) is not None},
    }  # fmt: skip
    save_params({k: v.cpu() for k, v in fitted.params.items()}, out, about)
    if as_json:
        print_json({"out": str(out), **about, "outcome": fitted.ended.word})
    else:
        print(f"{out}: training loss {number(fitted.loss)} after {fitted.steps} steps")
    return 1 if fitted.ended.name == "NOT_FINITE" else 0


@with_asked(*PATHS)
def connect(
    a: Checkpoint,
    b: Checkpoint,
    asked: Asked,
    out: OutOption,
    method: Method = "Subnetwork",
    option: MethodOptions = None,
    align: Annotated[
        str | None,
        typer.Option("--align", help="activations, weights or rotations: B's units as those of A first."),
    ] = None,
    num_points: Points = 61,
    gap: Gap = 0.01,
    budget: Budget = None,
    level: LevelOption = LEVEL,
    bn: BatchNorm = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Connect two checkpoints: construct the path, measure it, prove it, write everything to a folder.

    Whether the path is low, the verdict says; exit code 0 only means that the method did what it does. Long work
    keeps its state there: after a kill, the same command goes on with it.
    """
    chosen = method_of(method, option or [])
    chosen = chosen if align is None else Aligned(chosen, matching_of(align, [], "--align"))
    Level.read(level)
    found = opened((a, b), asked)
    objective, test, ends = found.objective, found.test, found.ends
    about = found.about | {"examples": asked.examples} | ({"key": asked.key} if asked.key else {})
    state = runs.state_of(objective, ends[0], ends[1], chosen, out, test=test, seed=seed)
    if state.begun() and not quiet:
        print(f"going on from the state of the search in {state.folder}", file=sys.stderr)
    with results_folder(out), progress_bar(quiet) as progress, _others_named():
        done = runs.run(
            objective, ends[0], ends[1], chosen, out,
            test=test, num_points=num_points, gap=gap, budget=budget, level=level, bn=bn, seed=seed,
            about=about, memory=state, progress=progress,
        )  # fmt: skip
    state.remove()
    show([done.result], as_json)
    if not as_json:
        for note in done.result["notes"]:
            print(f"note: {note}")
        print(f"{done.connection.message}\nwritten to {out}; a page to read: isthmus report {out}")
    return 1 if tell_not_finite(done.profile) or not done.connection.outcome.ok else 0


@with_asked(*PATHS)
def graph(
    checkpoints: Annotated[list[Path], typer.Argument(help="Two or more files or folders of weights of one network.")],
    asked: Asked,
    out: OutOption,
    method: Method = "Bezier",
    option: MethodOptions = None,
    align: Annotated[
        str | None, typer.Option("--align", help="activations or weights: all networks in one numbering first.")
    ] = None,
    goal: Annotated[str, typer.Option("--goal", help="tree: pairs that can matter; all: every pair.")] = "tree",
    tol: Annotated[
        float, typer.Option("--tol", help="The share of a path's loss by which another must be able to be lower.")
    ] = 0.01,
    num_points: Points = 61,
    workers: Annotated[
        int | None, typer.Option("--workers", help="Processes on this machine, by Ray (isthmus[ray]).", min=1)
    ] = None,
    address: Annotated[str | None, typer.Option("--address", help="A Ray cluster: auto, or HOST:PORT.")] = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Join several checkpoints until it is known how high one must climb from each to each; write everything.

    The folder gets graph.json, the paths, the figures and a page to read. Every pair is kept as soon as it is done:
    after a kill, the same command goes on.
    """
    from isthmus.cli.experiments import engine_of
    from isthmus.report.graph import write_graph_page

    chosen = method_of(method, option or [])
    matching = None if align is None else matching_of(align, [], "--align")
    engine = engine_of(workers, address, cpus=1, gpus=0, resource=None, retries=3)
    found = opened(checkpoints, asked)
    with progress_bar(quiet) as progress, _others_named():
        made = minima_graph(
            found.objective, dict(zip(names_of(checkpoints), found.ends, strict=True)), chosen,
            folder=out, test=found.test, goal=goal, seed=seed, workers=engine,  # type: ignore[arg-type]
            align=matching, tol=tol, num_points=num_points, progress=progress,
        )  # fmt: skip
    files = write_graph_page(made, out)
    if as_json:
        print_json(made.to_dict())
        return 0
    show_graph(made)
    print(f"{made.stop}\nwritten to {out}: {', '.join(file.name for file in files)}")
    return 0


@with_asked(*PATHS)
def plane(
    a: Checkpoint,
    b: Checkpoint,
    asked: Asked,
    out: OutOption,
    c: Annotated[
        Path | None,
        typer.Argument(help="Weights, as of A and B; default: the point of the path off its line."),
    ] = None,
    path: Annotated[Path | None, typer.Option("--path", help="A path file, whose path is drawn on the plane.")] = None,
    points: Annotated[int, typer.Option("--points", help="Of each side of the grid.", min=2)] = 21,
    margin: Annotated[
        float, typer.Option("--margin", help="What is shown around the networks, in their extent.")
    ] = 0.2,
    screen: Annotated[
        int | None,
        typer.Option("--screen", help="Measure on N examples first, and on all where it matters.", min=2),
    ] = None,
    bn: BatchNorm = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """The loss and the error on the plane through three networks, and a path on it.

    Writes the values (JSON), a picture (SVG, PNG), and a page to explore, plane.html. After a kill, the same command
    goes on.
    """
    if c is None and path is None:
        raise InputError("C", expected="a third checkpoint, or --path for a point of a path", got="neither")
    found = opened((a, b) if c is None else (a, b, c), asked)
    device = found.objective.device
    drawn = None if path is None else load_connection(path, device).path
    ends = [*found.ends]
    if c is None and drawn is not None:
        ends.append(farthest(found.objective, drawn, bn))
    with results_folder(out) as folder, progress_bar(quiet) as progress:
        measured = plane_through(
            found.objective, *ends, path=drawn, points=points, margin=margin, test=found.test, bn=bn, screen=screen,
            folder=folder / _ROWS, progress=progress,
        )  # fmt: skip
    document = measured.to_dict()
    write_json(folder / "plane.json", document | {"objective": found.objective.describe(), **found.about})
    written = _draw_plane(document, folder)
    shutil.rmtree(folder / _ROWS, ignore_errors=True)
    if as_json:
        print_json(document)
    else:
        print("\n".join([repr(measured), *filter(None, [policy_in_words(measured.bn)]), *map(str, written)]))
    if measured.loss.isfinite().any():
        return 0
    print("no loss on the plane is finite", file=sys.stderr)
    return 1


def _draw_plane(document: dict[str, Any], folder: Path) -> list[Path]:
    from isthmus.plot import save_figure
    from isthmus.plot.surface import Surface, surface_figure
    from isthmus.report.surfaces import write_plane_page

    surface = Surface.of(document)
    if not surface.values:  # nothing is finite
        return []
    figure = surface_figure(surface)
    write_plane_page(surface, folder / "plane.html")
    return [*(save_figure(figure, folder / f"plane.{kind}") for kind in ("svg", "png")), folder / "plane.html"]


@contextmanager
def _others_named() -> Iterator[None]:
    """Let a method that cannot take the network say which methods can."""
    try:
        yield
    except UnsupportedError as error:
        able = [f"--method {m.__name__}" for m in METHODS if m.about.needs.startswith("any module")]
        error.add_note(f"methods that take any module: {', '.join(able)}")
        raise


def methods(as_json: Json = False) -> int:
    """The methods: where they come from, what each makes, needs and costs, and its options."""
    if as_json:
        rows = {m.__name__: asdict(m.about) | {"options": options_of(m)} for m in METHODS}
        print(json.dumps(rows, indent=2))
        return 0
    print("\n\n".join(_in_lines(m) for m in METHODS))
    own = {"Models": ["hf:FOLDER", "FILE.py:FACTORY"], "Data": ["FILE.npz", "FILE.py:FACTORY", "FILE.txt, FILE.jsonl"]}
    named = {"Models": [e.syntax for e in MODELS.values()], "Data": [e.syntax for e in DATASETS]}
    for what, names in named.items():
        print(f"\n{what}:\n" + "\n".join(hanging(name, "  ") for name in [*names, *own[what]]))
    return 0


def _in_lines(method: type[Connector]) -> str:
    """A method as people read about it."""
    about = method.about
    options = ", ".join(f"{k}={v}" for k, v in options_of(method).items()) or "none"
    said = {"makes": about.makes, "needs": about.premises, "cost": about.cost, "options": options}
    return "\n".join([f"{method.__name__} ({about.reference})", *(hanging(v, f"  {k:8} ") for k, v in said.items())])


def report(
    folder: Annotated[Path, typer.Argument(help="A folder of results.")],
    out: Annotated[Path | None, typer.Option("--out", help="Default: report.html in the folder.")] = None,
) -> int:
    """Write one self-contained HTML page from stored results."""
    from isthmus.report import write_report
    from isthmus.report.alignment import write_stored_alignments
    from isthmus.report.check import write_stored_check
    from isthmus.report.graph import write_stored_graph

    stored = (write_stored_graph, write_stored_check, write_stored_alignments)
    with nullcontext() if out is None else results_folder(out.parent):
        print(next(filter(None, (write(folder, out) for write in stored)), None) or write_report(folder, out))
    return 0


def demo(
    context: typer.Context,
    out: OutOption = Path("demo-results"),
    num_points: Points = 61,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Train two digit networks, connect them by every method that suits them, prove it, and write a report."""
    from isthmus.demo import run_demo

    if context.parent is None or context.parent.params.get("threads") is None:
        torch.set_num_threads(1)  # networks this small only wait for one another on several cores
    with progress_bar(quiet) as progress:
        results, page = run_demo(out, num_points=num_points, seed=seed, progress=progress)
    show(results, as_json)
    if not as_json:
        print(f"The page to read: {page}")
    return 0 if all(r["outcome"]["ok"] for r in results) else 1
