"""The learning tasks of Shevchenko and Mondelli 2020: data, features, networks and steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from isthmus.data import Dataset, load
from isthmus.errors import InputError
from isthmus.experiments.jobs import Problem, stamp
from isthmus.models import mean_field
from isthmus.models.extractors import EXTRACTORS, extract
from isthmus.models.train_mean_field import Sample
from isthmus.objective import Objective
from isthmus.storage import digest, load_params
from isthmus.storage.tensors import read_tensors, save_tensors
from isthmus.sweep import Cell, Job

_PIXELS = "pixels"
"""The features of a task that takes none but the images themselves."""
_DELTA = 0.2
"""x ~ N(0, (1 + DELTA y)^2 I) for the classes y = +-1 of the Gaussian task."""
_SIZES = {"mnist": 60_000, "cifar10": 50_000, "digits": 1437}
"""The training examples of the data."""
_TRAINING = 10_000
"""Training losses are measured on the first so many examples."""


@dataclass(frozen=True)
class Features(Cell):
    """Images as a network trained on ImageNet sees them: computed once, kept in the folder "cache" of the results.

    Pixel values are rescaled to [-1, 1], images to `side` x `side`, as in section 5 of the paper.
    """

    page: ClassVar[str] = "cache"

    data: str
    extractor: str
    side: int
    examples: int | None = None
    tests: int | None = None

    def __post_init__(self) -> None:
        if self.extractor not in EXTRACTORS:
            raise InputError("features", expected=f"{_PIXELS} or one of {', '.join(EXTRACTORS)}", got=self.extractor)

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.extractor} features of {self.examples or 'all'} examples of {self.data}, {self.side} pixels"

    def digests(self) -> Mapping[str, str]:
        """Of the images and of the network's weights."""
        file = EXTRACTORS[self.extractor].file()
        return {**Problem("mlp", self.data).digests(), "weights": _file_digest(str(file), stamp(str(file)))}

    def run(self, job: Job) -> Mapping[str, Any]:
        """The features and labels, in features.safetensors."""
        whole = load(self.data)
        chosen = whole.subset(self.examples, self.tests)
        module = EXTRACTORS[self.extractor].module().to(job.device)
        tensors = {"y_train": chosen.y_train}
        tensors["x_train"] = extract(module, coloured(chosen.x_train, whole.x_train), self.side)
        if chosen.x_test is not None and chosen.y_test is not None:
            tensors["x_test"] = extract(module, coloured(chosen.x_test, whole.x_train), self.side)
            tensors["y_test"] = chosen.y_test
        save_tensors(tensors, job.folder / "features.safetensors", {"extractor": self.extractor})
        return {"features": tensors["x_train"].shape[1], "digest": digest(tensors), "classes": whole.classes}

    def dataset(self, job: Job) -> Dataset:
        """What was computed."""
        stored = job.load(self)
        found, _ = read_tensors(stored.folder / "features.safetensors")
        x, y = found.get("x_test"), found.get("y_test")
        classes = stored.result["classes"]
        return Dataset(self.data, found["x_train"], found["y_train"], x, y, classes, self.label)


@lru_cache(maxsize=8)
def _file_digest(path: str, stamp: tuple[int, ...]) -> str:
    return digest(load_params(path))


def coloured(x: Tensor, all_of: Tensor) -> Tensor:
    """Images [n, c, h, w] with each channel's range over `all_of` mapped to [-1, 1]; grey ones in three channels.

    >>> x = torch.tensor([0.0, 5, 10]).reshape(3, 1, 1, 1)
    >>> coloured(x, x)[:, :, 0, 0]
    tensor([[-1., -1., -1.],
            [ 0.,  0.,  0.],
            [ 1.,  1.,  1.]])
    """
    low, high = (f(all_of, (0, 2, 3), keepdim=True) for f in (torch.amin, torch.amax))
    scaled = (x - low) / (high - low) * 2 - 1
    return scaled.expand(-1, 3, -1, -1) if scaled.shape[1] == 1 else scaled


@dataclass(frozen=True)
class Task:
    """What is learned: data, `features` ("pixels" or a name of ``EXTRACTORS``), and the number of layers.

    `data` "gaussians" is the task of isotropic Gaussians in `side` dimensions, one pass over fresh examples, square
    loss, ReLU clipped at 4 (a bounded activation); all others are image classification with cross-entropy and ReLU.
    `examples`, `tests`: only the first so many; for the Gaussians `tests` fresh ones estimate the population risk.
    """

    data: str
    layers: int = 2
    features: str = _PIXELS
    side: int = 0
    examples: int | None = None
    tests: int | None = None

    def __post_init__(self) -> None:
        if self.layers < 2:
            raise InputError("layers", expected="at least 2", got=self.layers)
        if self.gaussian and (self.side < 1 or self.tests is None):
            raise InputError("task", expected="side (dimensions) and tests, for Gaussians", got=repr(self))

    @property
    def gaussian(self) -> bool:
        """Whether examples are drawn afresh."""
        return self.data == "gaussians"

    @property
    def label(self) -> str:
        """For people.

        >>> Task("cifar10", 3, "vgg16", 128).label, Task("mnist").label
        ('cifar10, vgg16 features, 3 layers', 'mnist, 2 layers')
        """
        made = "" if self.features == _PIXELS else f"{self.features} features, "
        return f"{self.data}, {made}{self.layers} layers"

    @property
    def trained_on(self) -> int | None:
        """The number of training examples; None where each is fresh, or the data are not of the page."""
        size = _SIZES.get(self.data)
        return size if size is None or self.examples is None else min(size, self.examples)

    @property
    def cached(self) -> Features | None:
        """The cell that computes the features, if any."""
        if self.features == _PIXELS:
            return None
        return Features(self.data, self.features, self.side, self.examples, self.tests)

    def digests(self) -> Mapping[str, str]:
        """Of the data and of the network that makes features."""
        if self.gaussian:
            return {}
        return self.cached.digests() if self.cached else Problem("mlp", self.data).digests()

    def needs(self) -> tuple[Cell, ...]:
        """The features, where a network makes them."""
        return () if self.cached is None else (self.cached,)

    def read(self, job: Job) -> Examples:
        """The examples, ready for training."""
        if self.gaussian:
            assert self.tests is not None  # noqa: S101 - checked on construction
            x, y = self.sample(self.tests, torch.Generator().manual_seed(_TEST_SEED))
            return Examples(None, None, x.to(job.device), y.to(job.device), 1)
        data = self.cached.dataset(job) if self.cached else load(self.data).subset(self.examples, self.tests).flat()
        if data.x_test is None or data.y_test is None:
            raise InputError("data", expected="test examples", got=f"none in {self.data}")
        # one shift and one scale for all features: variance 1, as the initial distributions expect
        x = data.x_train.double()
        shift, scale = float(x.mean()), float(x.std())
        pairs = [(x - shift) / scale for x in (data.x_train, data.x_test)]
        at = job.device
        return Examples(pairs[0].to(at), data.y_train.to(at), pairs[1].to(at), data.y_test.to(at), data.classes)

    def sample(self, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """k fresh examples of the Gaussian task, y = +-1 [k, 1]."""
        y = torch.randint(2, (k, 1), generator=generator) * 2.0 - 1
        return torch.randn(k, self.side, generator=generator) * (1 + _DELTA * y), y

    def widths(self, examples: Examples, N: int) -> tuple[int, ...]:
        """(inputs, N, ..., N, outputs)."""
        return (examples.x_test.shape[1], *(N,) * (self.layers - 1), examples.classes)


_TEST_SEED = 99
"""Of the fresh examples on which the Gaussian task is judged."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Training examples (None: drawn afresh) and those that estimate the population risk."""

    x: Tensor | None
    y: Tensor | None
    x_test: Tensor
    y_test: Tensor
    classes: int

    def sample(self, task: Task) -> Sample | tuple[Tensor, Tensor]:
        """What training draws from."""
        return task.sample if self.x is None or self.y is None else (self.x, self.y)

    def network(self, task: Task, N: int) -> nn.Sequential:
        """The mean-field network of width N; its weights are drawn by the training."""
        made = mean_field(task.widths(self, N), "clipped_relu" if task.gaussian else "relu", seed=0)
        return made.to(self.x_test.device)

    def objective(self, task: Task, N: int) -> Objective:
        """The population risk and the classification error of networks of width N."""
        if task.gaussian:
            return Objective(self.network(task, N), "mse", (self.x_test, self.y_test), error=_wrong_sign)
        return Objective(self.network(task, N), "cross_entropy", (self.x_test, self.y_test))

    @cached_property
    def training(self) -> tuple[Tensor, Tensor] | None:
        """The first training examples, for the training loss; None where each is used once."""
        return None if self.x is None or self.y is None else (self.x[:_TRAINING], self.y[:_TRAINING])


def _wrong_sign(outputs: Tensor, y: Tensor) -> Tensor:
    """1 where the sign of the output is not that of y = +-1, [n].

    >>> _wrong_sign(torch.tensor([[0.2], [0.1]]), torch.tensor([[1.0], [-1.0]]))
    tensor([0., 1.])
    """
    return (outputs.sign() != y).flatten(1).any(1).to(y)


@dataclass(frozen=True)
class Schedule:
    """SGD of constant step on mini-batches: T = steps * step.

    `reference`: the width for which `step` and `steps` are meant. None: both are those of every width. A number: as in
    section 5, step = alpha_0 / N and steps = k_0 * N, so that T is the same for all.

    >>> s = Schedule(0.2, 6000, 100, reference=3200)
    >>> s.at(800), s.T == s.at(800)[0] * s.at(800)[1]
    ((0.8, 1500), True)
    """

    step: float
    steps: int
    batch: int
    reference: int | None = None

    def __post_init__(self) -> None:
        if not (self.step > 0 and self.steps > 0 and self.batch > 0):
            raise InputError("schedule", expected="positive numbers", got=repr(self))

    def at(self, N: int) -> tuple[float, int]:
        """(step, steps) of width N."""
        if self.reference is None:
            return self.step, self.steps
        steps = max(1, round(self.steps * N / self.reference))
        return self.T / steps, steps

    @property
    def T(self) -> float:
        """The time of the evolution."""
        return self.step * self.steps
