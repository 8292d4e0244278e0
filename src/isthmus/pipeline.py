"""The main job as functions: train a network, connect a pair, measure, prove, and leave everything in a folder."""

from __future__ import annotations

import copy
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from isthmus.certify import Certificate, certify, check_search
from isthmus.checks import check_loss
from isthmus.connectors import Connection, Connector, Outcome, connect
from isthmus.data import Dataset
from isthmus.device import seeded_global
from isthmus.evaluate import Band, Profile, profile
from isthmus.evaluate.batchnorm import POLICIES, applied, followed, no_weights
from isthmus.evaluate.profile import beside_others
from isthmus.models import MODELS
from isthmus.objective import Objective
from isthmus.objective.data import arguments
from isthmus.params import Params, check_ends
from isthmus.paths import length_of
from isthmus.program.adapted import Adapted, Manner, adapted
from isthmus.storage import FolderMemory, make_folder, save, write_csv, write_sealed
from isthmus.storage.files import remove_file
from isthmus.storage.paths import path_digest
from isthmus.storage.state import memory_in
from isthmus.stored import differs
from isthmus.training.fit import Fitted, Recipe, fit
from isthmus.training.memory import Beside, Memory, State, forget
from isthmus.training.progress import Progress, no_progress
from isthmus.verdict import LEVEL, Level, verdict
from isthmus.version import __version__

STATE = "state"
"""The folder in a run's folder that holds the state of unfinished work."""

RECORDED = ("seconds", "cost", "version", "torch", "python", "threads")
"""What may differ between two equal runs: in record.json, not in result.json."""

SECONDS = 5.0
"""Between two times that the state of work in progress is saved."""


@dataclass(frozen=True, eq=False)
class Run:
    """One pair, one method: the connection with its measurement and its proof (None where the loss is not
    finite), and the row of the table."""

    connection: Connection
    profile: Profile
    certificate: Certificate | None
    result: dict[str, Any]


@dataclass(frozen=True)
class Judging:
    """How a path is measured and proved: the arguments of ``run`` of these names; ``prove=False`` proves nothing."""

    test: Objective | None = None
    num_points: int = 61
    gap: float = 0.01
    budget: float | None = None
    level: float | str = LEVEL
    bn: str | None = None
    prove: bool = True

    def check(self, objective: Objective) -> None:
        """Before the work, as a wrong value would be found after it."""
        Level.read(self.level)
        followed(objective, self.bn or POLICIES[0])
        check_search(self.gap, self.budget, self.num_points)


def train(
    module: nn.Module,
    data: tuple[Tensor, Tensor],
    recipe: Recipe,
    *,
    seed: int,
    loss: str = "cross_entropy",
    target: float = 0.0,
    memory: Memory = forget,
    progress: Progress = no_progress,
) -> Fitted:
    """``train_on`` the objective that the module, the loss and the data make."""
    objective = Objective(copy.deepcopy(module).eval(), loss, data)
    return train_on(module, objective, recipe, seed=seed, target=target, memory=memory, progress=progress)


def train_on(
    module: nn.Module,
    objective: Objective,
    recipe: Recipe,
    *,
    seed: int,
    target: float = 0.0,
    memory: Memory = forget,
    progress: Progress = no_progress,
) -> Fitted:
    """Train a copy of `module` from its present weights; dropout and BatchNorm work as in training.

    `objective`: that of the same module in evaluation mode, of any data, in the precision of the module.

    The checks, the stopping rule and the returned loss are those of the network in evaluation mode on all
    examples. All randomness comes from `seed`; neither the module nor the global random state is written to.
    With a `memory`, a training that was killed goes on where it was last saved, to the same weights.
    """
    manner = objective.skeleton.manner if isinstance(objective.skeleton, Adapted) else Manner()
    learner = adapted(copy.deepcopy(module).train(), manner)
    params = {k: v.detach() for k, v in learner.named_parameters()}
    buffers = {k: v.detach() for k, v in learner.named_buffers()}

    def batch_loss(state: Params, index: Tensor) -> Tensor:
        x, y = objective.source.at(index)
        outputs = functional_call(learner, state, *arguments(x), strict=True)
        loss, penalty = objective.example_losses(outputs, y).mean(), objective.penalty
        return loss if penalty is None else loss + penalty(state, objective.parameter_names).to(loss.dtype)

    names = {id(v): k for k, v in [*learner.named_parameters(), *learner.named_buffers()]}
    whole = {k: names[id(v)] for k, v in learner.state_dict(keep_vars=True).items()}  # tied ones by their first name

    def full_loss(state: Mapping[str, Tensor]) -> float:
        return objective.loss({k: state[name] for k, name in whole.items()})

    with seeded_global(seed, objective.device):  # dropout layers know no generator of their own
        fitted = fit(
            batch_loss, full_loss, params, objective.num_examples, recipe,
            generator=torch.Generator().manual_seed(seed), target=target, buffers=buffers,
            memory=_beside_global_state(memory, objective.device), progress=progress,
        )  # fmt: skip
    return Fitted({k: fitted.params[v] for k, v in whole.items()}, fitted.loss, fitted.steps, fitted.ended)


def _beside_global_state(memory: Memory, device: torch.device) -> Memory:
    """A memory that also keeps torch's global random state, which dropout layers draw from."""

    def give() -> State:
        states = {"cpu": torch.get_rng_state()}
        return (states | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else states), {}

    def take(states: Params, _: Mapping[str, Any]) -> None:
        torch.set_rng_state(states["cpu"])
        if "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"], device)

    return Beside(memory, give, take)


def run(
    objective: Objective,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    method: Connector,
    folder: str | FilePath,
    *,
    test: Objective | None = None,
    num_points: int = 61,
    gap: float = 0.01,
    budget: float | None = None,
    level: float | str = LEVEL,
    bn: str | None = None,
    seed: int = 0,
    about: Mapping[str, Any] | None = None,
    memory: Memory = forget,
    progress: Progress = no_progress,
) -> Run:
    """Connect, save, measure, save, certify, save: each result is on disk as soon as it exists.

    Writes path.safetensors, profile.json and .csv, certificate.json and .csv, result.json into `folder`, and
    record.json with what may differ between two equal runs: the seconds, and the versions. `gap` and `budget` are those
    of ``certify`` (by default 30 times this measuring, of `num_points` points per segment), `level` is that of
    ``verdict``, which result.json holds. `about` adds entries to the result (model, data, command). `test` is measured;
    it also judges the path of a method with ``on="test"``. `bn`: of ``profile``; the other policies are measured beside
    it, and the file of the path keeps it. With a `memory` (see ``state_of``) a method that takes long goes on where it
    was killed. Errors: ``InputError`` for an end whose loss is not finite.
    """
    how = Judging(test, num_points, gap, budget, level, bn)
    how.check(objective)
    check_pair(objective, a, b)
    folder = make_folder(folder)  # before the work, so that none is lost to a folder that cannot be written
    judge = judge_of(method, test)
    connection = connect(objective, a, b, method, seed=seed, test=judge, memory=memory, progress=progress)
    return kept(objective, connection, folder, how, about={"seed": seed, **(about or {})}, progress=progress)


def kept(
    objective: Objective,
    connection: Connection,
    folder: FilePath,
    how: Judging,
    *,
    about: Mapping[str, Any],
    progress: Progress = no_progress,
) -> Run:
    """Save, measure, save, certify, save a connection: what ``run`` does after it was made."""
    stats = dict(connection.stats) | {k: v for k, v in about.items() if k in ("model", "data")}
    stats |= {"test": examples_of(how.test)} | ({} if how.bn is None else {"bn": how.bn})
    connection = replace(connection, stats=stats)
    save(connection, folder / "path.safetensors")
    begin = time.perf_counter()
    measured = profile(objective, connection.path, how.num_points, test=how.test, bn=how.bn, progress=progress)
    measured = beside_others(measured, objective, connection.path, test=how.test, progress=progress)
    write_profile(measured, folder, objective, folder / "path.safetensors")
    seconds = {"connect": connection.seconds, "profile": time.perf_counter() - begin}
    if (told := as_measured(connection, measured)) is not connection:
        connection = told
        save(connection, folder / "path.safetensors")
    begin, proved = time.perf_counter(), None
    if how.prove and isfinite(measured.max):
        proved = certify(
            objective, connection, how.gap, budget=how.budget, num_points=how.num_points, progress=progress
        )
    write_certificate(proved, folder, objective, folder / "path.safetensors")
    seconds["certify"] = time.perf_counter() - begin
    result = summary(objective, connection, measured, proved, how.level) | {"seconds": seconds, **about}
    result |= _about(None, folder / "path.safetensors")
    _write_result(result, folder)
    return Run(connection, measured, proved, result)


def _write_result(result: Mapping[str, Any], folder: FilePath) -> None:
    write_sealed(folder / "record.json", {"format": 1} | {k: result[k] for k in RECORDED if k in result})
    write_sealed(folder / "result.json", {k: v for k, v in result.items() if k not in RECORDED})


def check_pair(objective: Objective, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    """Refuse ends between which there is no path, and those whose loss is not finite. Cost: two passes."""
    ends = objective.check(a, "a"), objective.check(b, "b")
    check_ends(*ends)
    for name, end in zip("ab", ends, strict=True):
        check_loss(name, objective.loss(end))


def as_measured(connection: Connection, measured: Profile) -> Connection:
    """The connection; one whose loss was measured not to be finite somewhere did not succeed."""
    if isfinite(measured.max) or not connection.outcome.ok:
        return connection
    at = float(measured.t[int((~measured.loss.isfinite()).nonzero()[0])])
    why = f"the path was made, but its loss is not finite, first at t = {at:.4g}; nothing of it is proved"
    return replace(connection, outcome=Outcome.NOT_FINITE, stats={**connection.stats, "why": why})


def inputs_of(model: str, data: Dataset) -> Dataset:
    """The data as the network of that name takes them: as rows, or in floating point, where it is one of ``MODELS``."""
    name = model.partition(":")[0]
    if name not in MODELS:
        return data
    data = data if MODELS[name].whole else data.floating()
    return data.flat() if MODELS[name].flat else data


def examples_of(test: Objective | None) -> dict[str, Any] | None:
    """What a path file says about the test examples beside it, to find them again; None without."""
    return None if test is None else {k: v for k, v in test.describe().items() if k in ("examples", "digest")}


def judge_of(method: Connector, test: Objective | None) -> Objective | None:
    """The test objective if the method's path is judged by it, else None: what ``connect`` takes as `test`."""
    return test if method.judged else None


def state_of(
    objective: Objective,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    method: Connector,
    folder: str | FilePath,
    *,
    test: Objective | None = None,
    seed: int = 0,
) -> FolderMemory:
    """Where ``run`` with the same arguments keeps the state of its work; the caller removes it when the run is done."""
    return memory_in(FilePath(folder) / STATE, objective, a, b, method, test=test, seed=seed, seconds=SECONDS)


def summary(
    objective: Objective, connection: Connection, measured: Profile | None, proved: Certificate | None,
    level: float | str = LEVEL,
) -> dict[str, Any]:  # fmt: skip
    """The row of the table: what result.json holds; its verdict names `level`, its lengths are those of the weights."""
    method = connection.stats.get("method", {})
    out: dict[str, Any] = {
        "format": 1,
        "method": method,
        "reference": _reference_of(method.get("name", "")),
        "outcome": {
            "name": connection.outcome.name,
            "ok": connection.outcome.ok,
            "message": connection.message,
        },
        "segments": len(connection.path),
        **dict(zip(("length", "normalized_length"), length_of(connection.path, no_weights(objective)), strict=True)),
        "labels": list(connection.stats.get("segments", [])),
        "notes": list(connection.stats.get("notes", [])),
        "alignment": connection.stats.get("alignment"),
        "dtype": connection.stats.get("objective", {}).get("dtype"),
        "objective": connection.stats.get("objective"),
        "version": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }
    if measured is not None:
        out |= {
            "loss_a": float(measured.loss[0]),
            "loss_b": float(measured.loss[-1]),
            "max_loss": measured.max,
            "max_error": measured.barriers["error"].max,
            "excess": measured.excess,
            "bn": measured.bn,
            "beside": {
                k: {"max_loss": v.max, "max_error": v.barriers["error"].max} for k, v in measured.beside.items()
            },
        }
        if measured.test is not None:
            out |= {
                "test_loss_max": measured.test.max,
                "test_error_max": measured.test.barriers["error"].max,
                "test_error_a": float(measured.test.error[0]),
                "test_error_b": float(measured.test.error[-1]),
                "population": _population(measured.test.population),
            }
    if proved is not None:
        out |= {"bound": proved.bound if proved.proved else None, "proved": proved.proved, "claims": proved.counts}
        out |= {"close": proved.close, "certificate": proved.summary}
    if measured is not None or proved is not None:
        out["verdict"] = verdict(measured, proved, level).to_dict()
    return out


def _population(band: Band | None) -> dict[str, Any] | None:
    """What a row says of a band: its intervals, and the sentence about them."""
    if band is None:
        return None
    about = {k: getattr(band, k) for k in ("level", "examples", "method", "asymptotic")}
    error = None if band.error is None else list(band.error.highest)
    return about | {"loss": list(band.highest), "barrier": list(band.barrier), "error": error, "text": band.words}


def _reference_of(name: str) -> str:
    """The reference of the method with that name; empty if there is none."""
    from isthmus.connectors import METHODS

    return next((m.about.reference for m in METHODS if m.__name__ == name), "")


def write_profile(
    measured: Profile, folder: FilePath, objective: Objective | None = None, path: FilePath | None = None
) -> None:
    """profile.json, with what was measured, on which path, if `objective` and `path` are given, and profile.csv."""
    write_sealed(folder / "profile.json", measured.to_dict() | _about(objective, path))
    columns = {"t": measured.t, "segment": measured.segment, "loss": measured.loss, "error": measured.error}
    if measured.test is not None:
        columns |= {"test_loss": measured.test.loss, "test_error": measured.test.error}
    write_csv(folder / "profile.csv", {k: v.tolist() for k, v in columns.items()})


def write_certificate(
    proved: Certificate | None, folder: FilePath, objective: Objective | None = None, path: FilePath | None = None
) -> None:
    """certificate.json, with what is bounded, on which path, if they are given, and certificate.csv.

    Where nothing was proved, those of an earlier run are removed.
    """
    if proved is None:
        for kind in ("json", "csv"):
            remove_file(folder / f"certificate.{kind}")
        return
    table = proved.to_dict()
    about = _about(objective, path) | ({} if objective is None else {"bn": applied(objective, "interpolate")})
    write_sealed(folder / "certificate.json", table | about)
    names = ("index", "claim", "bound", "deviation", "label", "why")
    write_csv(folder / "certificate.csv", {k: [row[k] for row in table["segments"]] for k in names})


def _about(objective: Objective | None, path: FilePath | None) -> dict[str, Any]:
    about = {} if objective is None else {"objective": objective.describe()}
    return about if path is None else {**about, "path": path_digest(path)}


def about_another(objective: Objective, path: FilePath, certificate: object) -> list[str]:
    """What a stored certificate says of its objective and its path that does not fit these, as far as it says it."""
    if not isinstance(certificate, Mapping):
        return []
    found = [
        f"it is about another objective, {what}" for what in differs(objective.describe(), certificate.get("objective"))
    ]
    for name, own in (("path", path_digest(path)), ("bn", applied(objective, "interpolate"))):
        if certificate.get(name, own) != own:
            found.append(f"it is about another {name}: {certificate[name]!r}, not {own!r}")
    return found
