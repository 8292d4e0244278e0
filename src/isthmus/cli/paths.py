"""The commands on a stored path: ``isthmus profile``, ``isthmus certify`` and ``isthmus ensemble``."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from isthmus import pipeline as runs
from isthmus.analysis.ensemble import Ensemble
from isthmus.analysis.ensemble import ensemble as ensemble_along
from isthmus.certify import Certificate, verify_certificate
from isthmus.certify import certify as certify_path
from isthmus.cli.asked import check_given, of_path
from isthmus.cli.common import device_of, dtype_of, network_of, objectives
from isthmus.cli.console import number, print_json, progress_bar, show_table, tell_not_finite
from isthmus.cli.experiments import Address, Workers, engine_of
from isthmus.cli.given import OwnData
from isthmus.cli.options import (
    CHECKPOINTS,
    Asked,
    BatchNorm,
    BoundModel,
    Budget,
    Gap,
    Json,
    LevelOption,
    OutOption,
    PathFile,
    Points,
    Quiet,
    with_asked,
)
from isthmus.connectors import Connection
from isthmus.errors import FileError, InputError, UnsupportedError
from isthmus.evaluate import Profile, population
from isthmus.evaluate import profile as profile_path
from isthmus.evaluate.batchnorm import applied, beside_in_words, policy_in_words
from isthmus.evaluate.profile import beside_others
from isthmus.objective import Objective
from isthmus.storage import load_connection, read_json, save_curve_npz, save_params, write_csv, write_json
from isthmus.storage.files import results_folder
from isthmus.sweep import Engine, certify_in_parallel, profile_in_parallel
from isthmus.verdict import LEVEL, Level, verdict

_BOUNDS = "certificate-state"
"""The folder in that of a certificate that holds the bounds which were computed."""


def _open_path(path: Path, asked: Asked, dtype: str) -> tuple[Connection, Objective, Objective | None]:
    """The path with its objectives; what differs from what it was made with is said on stderr."""
    connection = load_connection(path, device_of(asked.device))
    parts = of_path(path, connection.stats, asked)
    start = dict(connection.path.start)
    kind = parts.dtype if dtype == "auto" and parts.dtype is not None else dtype_of(dtype, start)
    objective, test = objectives(parts, network_of(parts, start), asked, kind)
    notes = [*parts.notes]
    if isinstance(parts.dataset, OwnData):
        notes += filter(None, [check_given(path, connection.stats, objective, test, asked)])
    for note in notes:
        print(f"note: {path} was made with {note}", file=sys.stderr)
    return connection, objective, test


def _labels(path: Path, connection: Connection) -> tuple[str, ...]:
    """The labels of the segments, as the file has them; none where it has none."""
    held = connection.stats.get("segments", ())
    if not isinstance(held, list | tuple) or not all(isinstance(label, str) for label in held):
        raise FileError(path, "has labels of segments that are not a list of strings", "make the path again")
    if held and len(held) != len(connection.path):
        raise FileError(path, f"has {len(held)} labels for {len(connection.path)} segments", "make the path again")
    return tuple(held)


@with_asked(*CHECKPOINTS)
def profile(
    path: PathFile,
    asked: Asked,
    out: OutOption,
    num_points: Points = 61,
    level: LevelOption = LEVEL,
    tol: Annotated[
        float | None, typer.Option("--tol", help="Refine until the maximum is estimated to this accuracy.")
    ] = None,
    screen: Annotated[str | None, typer.Option("--screen", help="bf16 or auto: screen points in bfloat16.")] = None,
    bn: BatchNorm = None,
    npz: Annotated[
        Path | None, typer.Option("--npz", help="Also write this file with the arrays of Garipov's curve.npz.")
    ] = None,
    workers: Workers = None,
    address: Address = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Measure the loss and the error along a stored path, on the training and the test data."""
    Level.read(level)
    engine = _engine(workers, address, {"--tol": tol, "--screen": screen})
    connection, objective, test = _open_path(path, asked, asked.dtype)
    beside = out if npz is None else npz.parent
    with results_folder(out), results_folder(beside), progress_bar(quiet) as progress:
        if engine is None:
            measured = profile_path(
                objective, connection.path, num_points,
                test=test, bn=bn, screen=screen, tol=tol, progress=progress,
            )  # fmt: skip
            if tol is None:
                measured = beside_others(measured, objective, connection.path, test=test, progress=progress)
        else:
            measured = profile_in_parallel(
                objective, connection.path, num_points, test=test, bn=bn, engine=engine, progress=progress
            )
    runs.write_profile(measured, out, objective, path)
    if npz is not None:
        save_curve_npz(measured, npz, objective, connection, test)
    _print_profile(measured, level, as_json)
    return 1 if tell_not_finite(measured) else 0


def _print_profile(measured: Profile, level: LevelOption, as_json: bool) -> None:
    """The numbers, the verdict, and what to know of both."""
    values = {f"{k} {d}": v for k, b in measured.barriers.items() for d, v in asdict(b).items()}
    if measured.test is not None:
        values |= {f"test {k} {d}": v for k, b in measured.test.barriers.items() for d, v in asdict(b).items()}
    population, said = _population(measured)
    found = verdict(measured, level=level)
    words = beside_in_words(measured.max, {policy: other.max for policy, other in measured.beside.items()})
    more = {"bn": measured.bn, "verdict": found.to_dict(), "population": population}
    reading = f"{measured.reading:.1f} seconds of this went into reading the network's graph, once"
    sentences = [*found.lines, words, reading if measured.reading >= 0.05 else "", said]
    _print_values(values, more, sentences, measured.bn, as_json)


def _population(measured: Profile) -> tuple[dict[str, Any] | None, str]:
    """What the test set says of all examples there could be: as plain values, and in words."""
    band = None if measured.test is None else measured.test.population
    return (None, "") if band is None else (band.to_dict(), band.words)


@with_asked("dtype", *CHECKPOINTS)
def certify(
    path: PathFile,
    asked: Asked,
    out: OutOption,
    gap: Gap = 0.01,
    budget: Budget = None,
    bounds: BoundModel = "auto",
    level: LevelOption = LEVEL,
    verify: Annotated[
        Path | None, typer.Option("--verify", help="Check this certificate.json instead of making one.")
    ] = None,
    for_all: Annotated[
        bool,
        typer.Option(
            "--population",
            help="Also bound the mean loss of all examples that these are a random choice of, at every t (asymptotic).",
        ),
    ] = False,
    workers: Workers = None,
    address: Address = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Prove a bound on the loss over a stored path, or check a stored proof against the path alone.

    Exit code 1 when some segment is only measured, or when the stored proof does not hold. A proof that is far above
    what was measured ends with 0: how far it is, and whether it reaches the level, stands in the text. Ctrl-C ends the
    search, and gives what is proved until then; the same command goes on from there, also after a kill.
    """
    Level.read(level)
    engine = _engine(workers, address, {"--verify": verify})
    if for_all and verify is not None:
        raise InputError("--population", expected="not with --verify, which makes no statement of its own", got=True)
    connection, objective, _ = _open_path(path, asked, "auto")
    labels = _labels(path, connection)
    if verify is not None:
        return _verify(objective, connection, labels, path, read_json(verify), quiet)
    options = {"gap": gap, "budget": budget, "labels": labels}
    with results_folder(out):
        proved = _proved(objective, connection, bounds, options, out / _BOUNDS, engine, quiet)
    runs.write_certificate(proved, out, objective, path)
    if not proved.stopped:
        shutil.rmtree(out / _BOUNDS, ignore_errors=True)
    table, found = proved.to_dict(), verdict(certificate=proved, level=level)
    bn = applied(objective, "interpolate")
    more: dict[str, Any] = {"summary": proved.summary, "bn": bn, "verdict": found.to_dict()}
    said = [*found.lines, proved.summary]
    refused = _for_all(objective, connection, more, said) if for_all and not proved.stopped else ""
    _print_values({k: table[k] for k in _SHOWN}, more, said, bn, as_json)
    missing = _missing(proved, refused)
    print(missing, end="", file=sys.stderr)
    return 1 if missing else 0


def _missing(proved: Certificate, refused: str) -> str:
    """What was asked for and is not proved, a line each."""
    segments = [proved.segments[i] for i in proved.unproved()]
    lines = [f"segment {s.index} ({s.label}) is not proved: {s.why}\n" for s in segments]
    return "".join([*lines, *([f"nothing is said of all examples: {refused}\n"] if refused else [])])


def _for_all(objective: Objective, connection: Connection, more: dict[str, Any], said: list[str]) -> str:
    """Add what is said of all examples, or return why nothing is."""
    try:
        band = population(objective, connection, bn="interpolate", certified=True)
    except (UnsupportedError, InputError) as e:  # a single example, say; the proof stands
        return str(e)
    more["population"] = band.to_dict()
    said.append(band.words)
    return ""


_SHOWN = (
    "bound", "excess", "gap", "proved", "close", "error_bound", "dtype", "slack", "evaluations", "budget", "cost",
    "model", "counts",
)  # fmt: skip
"""Of a certificate, on the screen."""
_BOUNDED = ("bound", "excess", "error_bound")
"""Of these, what is proved: rounded up."""


@with_asked(*CHECKPOINTS)
def ensemble(
    path: PathFile,
    asked: Asked,
    out: OutOption,
    points: Annotated[int, typer.Option("--points", help="Networks at equal distances along the path.", min=1)] = 5,
    independent: Annotated[
        list[Path] | None, typer.Option("--independent", help="Weights of another network, to compare; repeatable.")
    ] = None,
    bn: BatchNorm = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """How good the networks along a stored path are together: averages of probabilities and of weights.

    Writes the table (JSON, CSV), its picture, and the network of averaged weights, average.safetensors.
    """
    connection, objective, test = _open_path(path, asked, asked.dtype)
    with results_folder(out) as folder, progress_bar(quiet) as progress:
        found = ensemble_along(
            objective, connection, points, test=test, independent=independent or (), bn=bn, progress=progress
        )
    names = {k: getattr(asked, k) or connection.stats.get(k) for k in ("model", "data")}
    _write_ensemble(found, folder, objective, {k: v for k, v in names.items() if isinstance(v, str)})
    if as_json:
        print_json(found.to_dict())
        return 0
    for part in ("train",) if test is None else ("test", "train"):
        show_table(*found.table(part))
    for said in filter(None, (policy_in_words(found.bn), f"written to {out}")):
        print(said)
    return 0


def _write_ensemble(found: Ensemble, folder: Path, objective: Objective, about: dict[str, str]) -> None:
    """The table, the network of averaged weights with what it is `about`, and the picture."""
    from isthmus.plot import save_figure
    from isthmus.plot.figures import new_axes, settings

    write_json(folder / "ensemble.json", found.to_dict() | {"objective": objective.describe()})
    heading, rows = found.table()
    write_csv(folder / "ensemble.csv", {name: [row[k] for row in rows] for k, name in enumerate(heading)})
    save_params({k: v.cpu() for k, v in found.average.items()}, folder / "average.safetensors", about)
    with settings():
        figure, axes = new_axes(7.4, 4.4)
        found.plot(axes)
    for kind in ("svg", "png"):
        save_figure(figure, folder / f"ensemble.{kind}")


def _engine(workers: int | None, address: str | None, others: dict[str, Any]) -> Engine | None:
    """Where the work is done: None for this process. `others` are options that only this process knows."""
    if workers is None and address is None:
        return None
    if given := [name for name, value in others.items() if value is not None]:
        raise InputError("--workers, --address", expected=f"none with {', '.join(given)}", got=workers or address)
    return engine_of(workers, address, cpus=1, gpus=0, resource=None, retries=3)


def _proved(
    objective: Objective,
    connection: Connection,
    bounds: str,
    options: dict[str, Any],
    kept: Path,
    engine: Engine | None,
    quiet: bool,
) -> Certificate:
    """The certificate, by this process or by workers, which keep bounds of chords alone."""
    with progress_bar(quiet) as progress:
        options = options | {"progress": progress}
        if engine is None:
            return certify_path(objective, connection.path, model=bounds, memory=kept, **options)
        options |= {"model": "chord", "memory": kept} if bounds == "chord" else {}
        return certify_in_parallel(objective, connection.path, engine=engine, **options)


def _verify(
    objective: Objective, connection: Connection, labels: tuple[str, ...], path: Path, stored: Any, quiet: bool
) -> int:
    with progress_bar(quiet) as progress:
        problems = verify_certificate(objective, connection.path, stored, labels=labels, progress=progress)
    problems += runs.about_another(objective, path, stored)
    for problem in problems:
        print(problem)
    print("the certificate holds" if not problems else f"the certificate does not hold: {len(problems)} problems")
    return 1 if problems else 0


def _print_values(
    values: dict[str, Any], more: dict[str, Any], sentences: Sequence[str], bn: str, as_json: bool
) -> None:
    """The values as a table with the sentences under it, or together with `more` as JSON."""
    if as_json:
        print_json(values | more)
        return
    for key, value in values.items():
        print(f"{key:>24}  {number(value, 6, up=key in _BOUNDED) if isinstance(value, float) else value}")
    for line in filter(None, (*sentences, policy_in_words(bn))):
        print(line)
