"""The commands over many runs: ``isthmus experiment ...`` and ``isthmus sweep FILE``."""

from __future__ import annotations

import _thread
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Column, Table

from isthmus.cli.console import console, progress_bar
from isthmus.cli.options import Json, Quiet
from isthmus.cli.typed import command
from isthmus.device import device_of
from isthmus.errors import FileError, InputError
from isthmus.experiments import SCALES, Finding, read_sweep, sweep_file
from isthmus.experiments.page import (
    Row,
    as_json,
    as_markdown,
    columns_of,
    done,
    rows_of,
    shown,
    write_figures,
    write_tables,
)
from isthmus.experiments.plan import plan as plan_of
from isthmus.papers import EXPERIMENTS, by_name
from isthmus.sweep import Cell, Engine, Local, Ray, Shard, Store, SweepReport, run_cells, with_needs
from isthmus.training.progress import Progress

app = typer.Typer(
    name="experiment", help="Experiments: run, resume, tabulate, draw.", no_args_is_help=True, add_completion=False
)

Name = Annotated[str, typer.Argument(help="See: isthmus experiment list.")]
Scale = Annotated[str, typer.Option("--scale", help=f"{', '.join(SCALES)}.")]
Only = Annotated[list[str] | None, typer.Option("--only", help="Only cells whose label holds all of these texts.")]
Folder = Annotated[Path, typer.Option("--runs", help="The results folder.")]
Workers = Annotated[
    int | None, typer.Option("--workers", help="Processes on this machine, by Ray (isthmus[ray]).", min=1)
]
Address = Annotated[str | None, typer.Option("--address", help="A Ray cluster: auto, or HOST:PORT.")]
ShardOption = Annotated[str | None, typer.Option("--shard", help="i/N: only the i-th of N parts, for array jobs.")]
Cpus = Annotated[float, typer.Option("--cpus", help="CPUs per job (Ray).")]
Gpus = Annotated[
    float | None,
    typer.Option("--gpus", help="GPUs to spread the jobs over, a worker each (Ray); with --address, GPUs per job."),
]
Device = Annotated[str, typer.Option("--device", help="Of every job: auto, cpu, cuda, ...")]
Budget = Annotated[
    float | None,
    typer.Option("--budget", help="Hours: cells in order of importance until they are used; run again to go on."),
]
Plan = Annotated[
    bool, typer.Option("--plan", help="Compute nothing; time one cell of each kind, and say what is left.")
]
Resource = Annotated[list[str] | None, typer.Option("--resource", help="NAME=AMOUNT per job (Ray); repeatable.")]
Retries = Annotated[int, typer.Option("--retries", help="New attempts at a job whose worker was killed (Ray).")]


def engine_of(
    workers: int | None,
    address: str | None,
    cpus: float,
    gpus: float | None,
    resource: list[str] | None,
    retries: int,
    device: str = "auto",
) -> Engine:
    """The engine that the options mean: this process unless workers, an address or GPUs are asked for."""
    wanted = dict(map(_amount, resource or []))
    if address is not None:
        if workers is not None:
            raise InputError("--workers", expected="none with --address: the cluster has its own", got=workers)
        return Ray(1, address, cpus, gpus or 0, wanted, retries)
    device_of(device)
    found = _gpus(gpus, device)
    if workers is None and not gpus:
        if cpus != 1 or wanted:
            raise InputError("--cpus, --resource", expected="--workers or --address with them", got="neither")
        return Local()
    workers = workers or found
    part = min(1.0, 10_000 * found // workers / 10_000)  # of a GPU, in ten-thousandths, as Ray counts them
    return Ray(workers, None, cpus, part, wanted, retries)


def _gpus(asked: float | None, device: str) -> int:
    """How many GPUs of this machine the workers share: those that are asked for, else all that the device allows."""
    here = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    if asked is None:
        return here
    if asked != int(asked) or not 0 <= asked <= here:
        why = f"a whole number up to {here}, the GPUs that torch sees here" if here else "0, as torch sees none here"
        raise InputError("--gpus", expected=why, got=f"{asked:g} with --device {device}")
    return int(asked)


def _amount(text: str) -> tuple[str, float]:
    """A resource of Ray and how much of it, from NAME=AMOUNT."""
    name, _, amount = text.partition("=")
    try:
        value = float(amount)
    except ValueError:
        value = float("nan")
    if not (name and value >= 0):
        raise InputError("--resource", expected="NAME=AMOUNT", got=repr(text), instead="--resource big=1")
    return name, value


@app.command("list")
def list_(as_json_: Json = False) -> int:
    """The experiments, and how many cells each has at each scale."""
    rows: list[Row] = [
        {"name": e.name, "title": e.title, "reference": e.reference}
        | {scale: len(with_needs(e.cells(scale))) for scale in SCALES}
        for e in EXPERIMENTS
    ]
    _print(rows, as_json_)
    return 0


@app.command()
def run(
    name: Name,
    scale: Scale = "smoke",
    only: Only = None,
    runs: Folder = Path("runs"),
    workers: Workers = None,
    address: Address = None,
    shard: ShardOption = None,
    cpus: Cpus = 1,
    gpus: Gpus = None,
    device: Device = "auto",
    budget: Budget = None,
    plan: Plan = False,
    resource: Resource = None,
    retries: Retries = 3,
    quiet: Quiet = False,
    as_json_: Json = False,
) -> int:
    """Compute what is missing, then write and print the table and draw the figures."""
    experiment = by_name(name)
    cells = experiment.chosen(scale, only or ())
    store = Store(runs)
    engine = engine_of(workers, address, cpus, gpus, resource, retries, device)
    if plan:
        with _cells_bar(quiet) as progress:
            _print(plan_of(cells, store, device, progress), as_json_)
        return 0
    report = _run(cells, store, engine, device, shard, quiet, budget)
    rows = experiment.table(store, cells)
    findings = experiment.findings(rows)
    if not only and len(done(store, cells)) == len(cells):
        write_tables(rows, runs / name / "tables", scale, findings)
        files = write_figures(experiment, rows, runs / name / "figures", scale)
        if not as_json_:
            print("\n".join(map(str, files)))
    _print(rows, as_json_)
    _print_findings(findings, as_json_)
    return _ended(report)


@app.command()
def status(
    name: Annotated[str | None, typer.Argument(help="Default: all.")] = None,
    scale: Annotated[str | None, typer.Option("--scale", help="Default: all.")] = None,
    runs: Folder = Path("runs"),
    as_json_: Json = False,
) -> int:
    """How many cells are done, are partly done (a checkpoint is there), and are missing."""
    store = Store(runs)
    rows = []
    for experiment in [by_name(name)] if name else EXPERIMENTS:
        for one in [scale] if scale else SCALES:
            try:
                counts = _counts(store, with_needs(experiment.chosen(one)))
            except FileError as e:  # data that are not on this machine hide one experiment, not all
                if name:
                    raise
                counts = {"note": str(e)}
            rows.append({"name": experiment.name, "scale": one, **counts})
    _print(rows, as_json_)
    return 0


def _counts(store: Store, cells: Sequence[Cell]) -> Row:
    finished = {c for c in cells if store.find(c) is not None}
    begun = [c for c in cells if c not in finished and store.folder(c).exists()]
    return {"cells": len(cells), "done": len(finished), "begun": len(begun), "missing": len(cells) - len(finished)}


@app.command()
def table(
    name: Name,
    scale: Scale = "smoke",
    runs: Folder = Path("runs"),
    out: Annotated[Path | None, typer.Option("--out", help="Also write CSV, Markdown and JSON files here.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    as_json_: Json = False,
) -> int:
    """The table of what is done, without computing anything."""
    experiment = by_name(name)
    rows = experiment.table(Store(runs), experiment.chosen(scale))
    findings = experiment.findings(rows)
    if out is not None:
        write_tables(rows, out, scale, findings)
    if markdown:
        print(as_markdown(rows), end="")
    else:
        _print(rows, as_json_)
        _print_findings(findings, as_json_)
    return 0 if rows else 1


@app.command()
def figures(
    name: Name,
    scale: Scale = "smoke",
    runs: Folder = Path("runs"),
    out: Annotated[Path | None, typer.Option("--out", help="Default: figures in the experiment's folder.")] = None,
) -> int:
    """Draw the figures of what is done, as SVG and PNG."""
    experiment = by_name(name)
    rows = experiment.table(Store(runs), experiment.chosen(scale))
    print("\n".join(map(str, write_figures(experiment, rows, out or runs / name / "figures", scale))))
    return 0


def sweep(
    file: Annotated[Path, typer.Argument(help="A YAML file of networks, methods and seeds; see docs/experiments.md.")],
    set_: Annotated[list[str] | None, typer.Option("--set", "-s", help="KEY=VALUE over the file; repeatable.")] = None,
    model: Annotated[
        list[str] | None, typer.Option("--model", help="A network of the file that is your code; repeatable.")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", help="An .npz file that the file names; repeatable.")
    ] = None,
    runs: Folder = Path("runs"),
    show: Annotated[bool, typer.Option("--status", help="Compute nothing; show what is done.")] = False,
    workers: Workers = None,
    address: Address = None,
    shard: ShardOption = None,
    cpus: Cpus = 1,
    gpus: Gpus = None,
    device: Device = "auto",
    resource: Resource = None,
    retries: Retries = 3,
    quiet: Quiet = False,
    as_json_: Json = False,
) -> int:
    """Your own sweep: every pair by every method, one row each; only what is missing is computed.

    The file chooses no code and no other data file: those that it names are repeated as --model and --data.
    """
    document = read_sweep(file, set_ or (), repeated=[*(model or ()), *(data or ())], command=command())
    cells, store = document.cells(), Store(runs)
    engine = engine_of(workers, address, cpus, gpus, resource, retries, device)
    report = None if show else _run(cells, store, engine, device, shard, quiet)
    found = done(store, cells)
    rows = rows_of(sweep_file.TABLE.rows, found)
    folder = runs / document.name / "tables"
    if rows or (folder / f"{file.stem}.json").exists():  # no table of another call stays
        write_tables(rows, folder, file.stem)
    if as_json_:
        print(as_json(rows))
    else:
        _print(_in_short(rows), False)
        print(f"{len(found)} of {len(cells)} rows; all columns: {folder}")
    return 0 if report is None else _ended(report)


_ALWAYS = ("model", "pair", "method")
_MEASURED = ("loss max", "loss excess", "test error max", "bound", "length/distance", "seconds")


def _in_short(rows: Sequence[Row]) -> list[Row]:
    """The columns that are measured, and of those that say what it is that all have, and that tell rows apart."""
    differ = [k for k in sweep_file.TABLE.by if len({row[k] for row in rows}) > 1]
    named = [k for k in sweep_file.TABLE.by if k in (*_ALWAYS, *differ)]
    return [{k: row[k] for k in (*named, *_MEASURED)} for row in rows]


def _run(
    cells: Sequence[Cell], store: Store, engine: Engine, device: str, shard: str | None, quiet: bool,
    budget: float | None = None,
) -> SweepReport:  # fmt: skip
    part, over = None if shard is None else Shard.parse(shard), threading.Event()
    seen = SweepReport()
    try:
        with _cells_bar(quiet) as bar, _stopped_after(budget, over):

            def progress(what: str, done: int, total: int) -> None:
                bar(what, done, total)
                # an interrupt is lost where Python can raise nothing, as in a finaliser
                if over.is_set() and done < total:
                    raise KeyboardInterrupt

            report = run_cells(cells, store, engine, device=device, shard=part, progress=progress, report=seen)
    except KeyboardInterrupt:
        plan = with_needs(cells if part is None else part.of(cells))
        finished = sum(store.find(c) is not None for c in plan)
        why = "the budget is used" if over.is_set() else "stopped"
        print(f"\n{why}: {finished} of {len(plan)} cells are done and stay; to go on, run this again:\n"
              f"  {command()}", file=sys.stderr)  # fmt: skip
        if not over.is_set():
            raise
        return SweepReport(len(plan), finished, failed=seen.failed)
    if not quiet:
        print(f"{report.total} cells: {report.found} were there, {report.computed} computed", file=sys.stderr)
    return report


@contextmanager
def _stopped_after(hours: float | None, over: threading.Event) -> Iterator[None]:
    """Set `over` and interrupt, as Ctrl-C does, when so many hours are over; None: never."""
    if hours is None:
        yield
        return
    if not 0 < hours < threading.TIMEOUT_MAX / 3600:
        raise InputError("--budget", expected="a positive number of hours", got=hours)

    def stop() -> None:
        over.set()
        _thread.interrupt_main()

    timer = threading.Timer(3600 * hours, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _ended(report: SweepReport) -> int:
    for label, failed in report.failed.items():
        print(f"failed: {label}: {failed.message}", file=sys.stderr)
        if failed.detail:
            print(failed.detail, file=sys.stderr)
    return 0 if report.ok else 1


@contextmanager
def _cells_bar(quiet: bool) -> Iterator[Progress]:
    """Progress over cells with the time left: a bar on a terminal, a line every ten seconds elsewhere."""
    if quiet or sys.stderr.isatty():
        with progress_bar(quiet) as progress:
            yield progress
        return
    begin = last = time.monotonic()
    first: list[int] = []

    def report(what: str, done_: int, total: int) -> None:
        nonlocal last
        first.append(done_) if not first else None
        now = time.monotonic()
        if now - last >= 10:
            last = now
            new = done_ - first[0]
            left = f", about {(total - done_) * (now - begin) / new / 60:.0f} min left" if new else ""
            print(f"{what}: {done_} of {total}{left}", file=sys.stderr, flush=True)

    yield report


def _print_findings(findings: Sequence[Finding], json_: bool) -> None:
    """One line each; with --json the rows stand alone, and the findings are in their file."""
    for finding in () if json_ else findings:
        print(finding)


def _print(rows: Sequence[Row], json_: bool) -> None:
    if json_:
        print(as_json(rows))
        return
    if not rows:
        print("no results yet", file=sys.stderr)
        return
    columns = columns_of(rows)
    made = Table(*(Column(c, no_wrap=True) for c in columns))
    for row in rows:
        made.add_row(*(shown(row.get(c), c) or "-" for c in columns))
    screen = console()
    screen.width = max(screen.width, screen.measure(made, options=screen.options.update(width=10_000)).maximum)
    screen.print(made, highlight=False, markup=False)
