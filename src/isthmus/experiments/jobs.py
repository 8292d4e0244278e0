"""The cells that most experiments are made of: a trained network, and one method on one pair of networks."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import lru_cache
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from isthmus import pipeline as runs
from isthmus.certify import certify
from isthmus.certify.certify import BUDGET
from isthmus.checks import check_at_least_zero, check_whole
from isthmus.connectors import Connection, Connector, connect
from isthmus.data import Dataset, load
from isthmus.errors import InputError
from isthmus.evaluate import profile
from isthmus.kinds import check_kind
from isthmus.models import MODELS, by_name, seeded
from isthmus.models.hugging_face import HUGGING_FACE
from isthmus.models.user_code import digest_of_code
from isthmus.objective import Objective
from isthmus.params import Params, cast
from isthmus.storage import digest, load_params, make_folder, save, save_params, write_sealed
from isthmus.sweep import Cell, Job
from isthmus.training.fit import Fitted, Recipe, fit
from isthmus.training.memory import Memory, forget

HOST = torch.device("cpu")
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Problem:
    """What is trained and measured: a network by name, data, loss and precision, in the words of the command line.

    `examples`, `tests`: only the first so many training and test examples; None for all, ``tests=0`` for none. With
    `drawn` the training examples are random ones, from that seed.

    >>> Problem("mlp:64-20x2-10", "digits").label
    'mlp:64-20x2-10 on digits'
    """

    model: str
    data: str = "digits"
    examples: int | None = None
    loss: str = "cross_entropy"
    dtype: str = "float64"
    tests: int | None = None
    drawn: int | None = field(default=None, metadata={"later": True})

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise InputError("dtype", expected="float32 or float64", got=repr(self.dtype))
        if self.loss not in ("cross_entropy", "mse"):
            raise InputError("loss", expected="cross_entropy or mse", got=repr(self.loss))
        check_whole(self, "examples")

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.model} on {self.data}"

    def digests(self) -> dict[str, str]:
        """Of the data and, where the network is not built in, of the user's code or of its config.json."""
        found = {"data": _data_digest(self.data, stamp(self.data))}
        name, _, rest = self.model.partition(":")
        if name == HUGGING_FACE:
            config = str(Path(rest) / "config.json")
            found["model"] = _file_digest(config, stamp(config))
        elif name not in MODELS and rest:
            found["model"] = _code_digest(self.model)
        return found

    def dataset(self) -> Dataset:
        """The examples, as the network takes them."""
        data = _loaded(self.data, stamp(self.data))
        if self.drawn is not None:
            order = torch.randperm(len(data.x_train), generator=torch.Generator().manual_seed(self.drawn))
            data = replace(data, x_train=data.x_train[order], y_train=data.y_train[order])
        return runs.inputs_of(self.model, data.subset(self.examples, self.tests or None))

    def module(self, data: Dataset, seed: int = 0) -> torch.nn.Module:
        """The network with the weights of that seed."""
        made = seeded(lambda: by_name(self.model, inputs=data.shape, outputs=data.classes or None), seed)
        return made.to(_DTYPES[self.dtype])

    def train(
        self, seed: int, recipe: Recipe, target: float, memory: Memory = forget, device: torch.device = HOST
    ) -> Fitted:
        """The network of that seed, trained on `device` until its loss is at most `target`."""
        data = self.dataset().to(device)
        x = data.cast(_DTYPES[self.dtype]).x_train
        return runs.train(
            self.module(data, seed).to(device), (x, data.y_train), recipe,
            seed=seed, loss=self.loss, target=target, memory=memory,
        )  # fmt: skip

    def train_to_zero_error(
        self, seed: int, recipe: Recipe, memory: Memory = forget, device: torch.device = HOST
    ) -> Fitted:
        """The network of that seed, trained until it is right on all training examples, or for all steps."""
        objective, _ = replace(self, tests=0).objectives(device)
        start = {k: v.detach().to(device) for k, v in self.module(self.dataset(), seed).state_dict().items()}

        def value(params: Params) -> float:
            loss, error = objective.measure(params)
            return 0.0 if error == 0 else loss

        fitted = fit(
            objective.batch_loss, value, objective.check(start), objective.num_examples, recipe,
            generator=torch.Generator().manual_seed(seed), memory=memory,
        )  # fmt: skip
        return replace(fitted, loss=objective.loss(fitted.params))

    def objectives(self, device: torch.device = HOST) -> tuple[Objective, Objective | None]:
        """On the training examples and, where there are some, on the test examples; the data are on `device`."""
        data, kind = self.dataset().to(device), _DTYPES[self.dtype]
        train = Objective(self.module(data).eval(), self.loss, (data.x_train, data.y_train), dtype=kind)
        if data.x_test is None or data.y_test is None or self.tests == 0:
            return train, None
        return train, train.on((data.x_test, data.y_test))


def stamp(name: str) -> tuple[int, ...]:
    """Changes when a file of that name changes, or another takes its place; empty where there is none."""
    try:
        info = os.stat(os.path.expanduser(name))
    except OSError:
        return ()
    return info.st_ino, info.st_ctime_ns, info.st_mtime_ns, info.st_size


@lru_cache(maxsize=1)
def _loaded(name: str, stamp: tuple[int, ...]) -> Dataset:
    """Cells of one data set follow one another, and images take seconds to read."""
    return load(name)


@lru_cache(maxsize=64)
def _data_digest(name: str, stamp: tuple[int, ...]) -> str:
    return _loaded(name, stamp).digest


@lru_cache(maxsize=1024)
def _file_digest(name: str, stamp: tuple[int, ...]) -> str:
    return hashlib.sha256(Path(name).read_bytes() if stamp else b"").hexdigest()


def _code_digest(spec: str) -> str:
    """A file is compiled anew when it has changed; a module is what this process imported."""
    file = spec.rpartition(":")[0]
    return _file_code_digest(spec, stamp(file)) if file.endswith(".py") else digest_of_code(spec, MODELS)


@lru_cache(maxsize=64)
def _file_code_digest(spec: str, stamp: tuple[int, ...]) -> str:
    return digest_of_code(spec, MODELS)


@lru_cache(maxsize=1024)
def _weights_digest(weights: Weights, stamp: tuple[int, ...]) -> str:
    return digest(weights.read())


@dataclass(frozen=True)
class Network(Cell):
    """A network trained from its own seed until its training loss is at most `target`; shared by all experiments.

    `until` "error": to the first check without an error on the training examples, instead of the target; for networks
    that train as they are judged, without dropout and BatchNorm.
    """

    page: ClassVar[str] = "networks"

    problem: Problem
    seed: int = 0
    recipe: Recipe = field(default_factory=Recipe)
    target: float = 1e-3
    until: Literal["loss", "error"] = field(default="loss", metadata={"later": True})

    def __post_init__(self) -> None:
        check_at_least_zero(self, "target")
        check_kind(self.seed, int, "seed")

    @property
    def label(self) -> str:
        """For people."""
        return f"train {self.problem.label}, seed {self.seed}"

    @property
    def like(self) -> Network:
        """The same without a target, which may be reached soon."""
        return replace(self, target=0.0, until="loss")

    def run(self, job: Job) -> Mapping[str, Any]:
        """Train, resuming where a killed run was; the weights are in params.safetensors."""
        if self.until == "error":
            fitted = self.problem.train_to_zero_error(self.seed, self.recipe, job.memory("training"), job.device)
        else:
            fitted = self.problem.train(self.seed, self.recipe, self.target, job.memory("training"), job.device)
        about = {"model": self.problem.model, "data": self.problem.data, "seed": str(self.seed)}
        save_params(fitted.params, job.folder / "params.safetensors", about)
        return {
            "loss": fitted.loss,
            "steps": fitted.steps,
            "outcome": fitted.ended.name,
            "params": digest(fitted.params),
        }

    def params(self, job: Job) -> Params:
        """The trained weights."""
        return job.put(load_params(job.load(self).folder / "params.safetensors"))


@dataclass(frozen=True)
class Weights:
    """A network that somebody else trained: a checkpoint file, and the ``key`` of ``load_params`` in it."""

    problem: Problem
    path: str
    key: str | None = field(default=None, metadata={"later": True})

    @property
    def label(self) -> str:
        """For people."""
        return Path(self.path).name

    def digests(self) -> dict[str, str]:
        """Of the problem and of the weights."""
        held = _weights_digest(self, stamp(self.path))
        return self.problem.digests() | {f"weights {self.path}": held}

    def read(self) -> Params:
        """The weights, under the names of the problem's network."""
        return load_params(self.path, key=self.key, like=self.problem.module(self.problem.dataset()))

    def params(self, job: Job) -> Params:
        """The weights, in the precision of the problem."""
        return job.put(cast(self.read(), _DTYPES[self.problem.dtype]))


@dataclass(frozen=True)
class On:
    """A trained network taken to another problem: to fewer examples, another precision, or without its dropout."""

    network: Network
    problem: Problem

    @property
    def seed(self) -> int:
        """Of the network."""
        return self.network.seed

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.network.problem.label}, seed {self.seed}, on {self.problem.examples or 'all'} examples"

    def digests(self) -> dict[str, str]:
        """Of both problems."""
        return self.problem.digests() | {f"trained on {k}": v for k, v in self.network.digests().items()}

    def needs(self) -> tuple[Network, ...]:
        """The network."""
        return (self.network,)

    def params(self, job: Job) -> Params:
        """The weights, in the precision of the problem."""
        return cast(self.network.params(job), _DTYPES[self.problem.dtype])


@dataclass(frozen=True)
class Pair(Cell):
    """One method on one pair of networks: constructed, measured and proved; everything is in the cell's folder."""

    experiment: str
    a: Network | Weights | On
    b: Network | Weights | On
    method: Connector
    seed: int = 0
    num_points: int = 61
    gap: float = 0.01
    budget: float = BUDGET

    def __post_init__(self) -> None:
        if self.a.problem != self.b.problem:
            raise InputError("b", expected=f"a network of {self.a.problem.label}", got=self.b.problem.label)

    @property
    def group(self) -> str:
        """The experiment's folder."""
        return self.experiment

    @property
    def ends(self) -> str:
        """Which two networks, in short."""
        a, b = (n.path if isinstance(n, Weights) else f"seed {n.seed}" for n in (self.a, self.b))
        return f"{a} - {b}"

    @property
    def label(self) -> str:
        """For people."""
        return f"{named(self.method)} {self.a.problem.label}, {self.ends}, method seed {self.seed}"

    def run(self, job: Job) -> Mapping[str, Any]:
        """Connect (a search that was killed goes on), measure, certify; all of it in files beside the result."""
        objective, test = self.a.problem.objectives(job.device)
        a, b = self.a.params(job), self.b.params(job)
        runs.check_pair(objective, a, b)
        judge = runs.judge_of(self.method, test)
        found = connect(objective, a, b, self.method, seed=self.seed, test=judge, memory=job.memory("search"))
        about = {"model": self.a.problem.model, "data": self.a.problem.data, "test": runs.examples_of(test)}
        found = replace(found, stats={**found.stats, **about})
        return report(job, objective, test, found, self.seed, self.num_points, self.budget, self.gap)


def report(
    job: Job, objective: Objective, test: Objective | None, found: Connection,
    seed: int, num_points: int, budget: float, gap: float = 0.01,
) -> dict[str, Any]:  # fmt: skip
    """Measure a connection, prove it, and keep all in the folder "run" of the job; the row that its result is."""
    measured = profile(objective, found.path, num_points, test=test)
    found = runs.as_measured(found, measured)
    proved = certify(objective, found, gap, budget=budget) if isfinite(measured.max) else None
    folder = make_folder(job.folder / "run")  # a folder that `isthmus report` reads
    save(found, folder / "path.safetensors")
    runs.write_profile(measured, folder, objective)
    runs.write_certificate(proved, folder, objective)
    row = {k: v for k, v in runs.summary(objective, found, measured, proved).items() if k not in runs.RECORDED}
    about = {k: found.stats[k] for k in ("model", "data")}
    write_sealed(folder / "result.json", row | about | {"seed": seed})
    barriers = {k: asdict(v) for k, v in measured.barriers.items()}
    if measured.test is not None:
        barriers |= {f"test_{k}": asdict(v) for k, v in measured.test.barriers.items()}
    return row | {"barriers": barriers}


def named(method: Connector) -> str:
    """The method with the options that are not the default.

    >>> from isthmus.connectors import Dropout, Linear
    >>> named(Linear()), named(Dropout(search="random"))
    ('Linear', "Dropout(search='random')")
    """
    chosen = []
    for f in fields(method):  # type: ignore[arg-type]
        usual = f.default if f.default_factory is MISSING else f.default_factory()
        if getattr(method, f.name) != usual:
            chosen.append(f"{f.name}={getattr(method, f.name)!r}")
    return type(method).__name__ + (f"({', '.join(chosen)})" if chosen else "")
