"""Shevchenko and Mondelli 2020, section 5 and appendix D: wide networks are dropout stable, and connected.

Isotropic Gaussians (two layers), MNIST (two and three layers), CIFAR-10 (three and four): population risk of the whole
and of the halved network during training, its change against N, and paths from bimodal to unimodal starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from isthmus.experiments.page import Experiment, PaperValue
from isthmus.models.extractors import EXTRACTORS
from isthmus.papers.shevchenko2020.claims import CLAIMS
from isthmus.papers.shevchenko2020.figures import FIGURES
from isthmus.papers.shevchenko2020.jobs import PAGE, Paths, Starts, Trials
from isthmus.papers.shevchenko2020.tables import rows
from isthmus.papers.shevchenko2020.tasks import Schedule, Task
from isthmus.sweep import Cell


@dataclass(frozen=True)
class _Part:
    """One learning task: for every width so many trials; widths of which more is shown.

    `middle`: the intermediate fraction of T. `grid`: widths judged at every tenth of T (Figure 1). `bimodal`: widths
    joined from a bimodal to a unimodal start (Figure 3). `pairs`: whether trials 2k and 2k + 1 of a width are joined.
    `keeps`: numbers of units kept of the widest. `starts`: so many seeds are judged before training. `single`: from
    this width on every trial is a job of its own.
    """

    task: Task
    trials: tuple[tuple[int, int], ...]
    schedule: Schedule
    middle: float
    grid: tuple[int, ...] = ()
    bimodal: tuple[int, ...] = ()
    pairs: bool = False
    keeps: tuple[int, ...] = ()
    starts: int = 0
    single: int = 10**9

    def cells(self) -> list[Cell]:
        """Trainings first, then the paths between them."""
        return [cell for N, trials in self.trials for cell in self._of_width(N, trials)]

    def _of_width(self, N: int, trials: int) -> list[Cell]:
        groups = [(s,) for s in range(trials)] if N >= self.single else [tuple(range(trials))]
        jobs = [self._job(N, seeds) for seeds in groups]
        out: list[Cell] = [*jobs]
        if self.starts:
            out.append(Starts(self.task, N, tuple(range(self.starts))))
        if self.pairs and trials > 1:
            out.append(Paths(jobs[0], jobs[0], tuple((s, s + 1) for s in range(0, trials - 1, 2))))
        if N in self.bimodal:
            other = self._job(N, (0,), "bimodal")
            out += [other, Paths(other, jobs[0], ((0, 0),))]
        return out

    def _job(self, N: int, seeds: tuple[int, ...], init: str = "unimodal") -> Trials:
        grid = tuple(k / 10 for k in range(1, 10)) if N in self.grid and init == "unimodal" else ()
        keeps = self.keeps if N == self.trials[-1][0] and init == "unimodal" else ()
        paired = len(seeds) // 2 * 2 if self.pairs else 0
        saved = max(paired, 1 if N in self.bimodal and seeds[0] == 0 else 0)
        return Trials(self.task, N, self.schedule, seeds, init, self.middle, grid, keeps, saved)


def _widths(*widths: int, trials: int) -> tuple[tuple[int, int], ...]:
    return tuple((N, trials) for N in widths)


_GAUSSIANS = _Part(
    Task("gaussians", side=32, tests=10_000), _widths(100, 200, 400, 800, 1600, 3200, 6400, trials=20),
    Schedule(0.02, 500, 16), 0.5, bimodal=(3200,), pairs=True, keeps=(50, 100, 200, 400, 800, 1600),
)  # fmt: skip
_EPOCH = 600
_PAPER = _widths(100, 200, 400, 800, 1600, 3200, 6400, 12_800, trials=20)


def _paper(task: Task, alpha: float, epochs: int, per_epoch: int, middle: float) -> _Part:
    """Section 5: widths to 12,800, 20 trials, batches of 100, alpha_0 / N, k_0 N epochs (`alpha`, `epochs` at 3200)."""
    schedule = Schedule(alpha, epochs * per_epoch, 100, reference=3200)
    return _Part(task, _PAPER, schedule, middle, (800, 3200), (3200,), single=1600)


def _packaged() -> str | None:
    """The extractor whose weights come with an installed package, if there is one."""
    name = "efficientnet-lite0"
    return name if any(p.is_file() for p in EXTRACTORS[name].places()) else None


def _laptop_cifar() -> list[_Part]:
    """Raw pixels, and features where the package with a pretrained network is installed."""
    raw = _Part(
        Task("cifar10", 3, examples=10_000, tests=2_000), _widths(50, 100, 200, 400, 800, trials=2),
        Schedule(0.06, 1000, 100), 0.7, bimodal=(800,), starts=20,
    )  # fmt: skip
    if (extractor := _packaged()) is None:
        return [raw]
    three, four = (Task("cifar10", L, extractor, 96, examples=10_000, tests=2_000) for L in (3, 4))
    return [
        raw,
        _Part(three, _widths(50, 100, 200, 400, 800, trials=3), Schedule(0.03, 1000, 100), 0.7,
             grid=(200, 800), bimodal=(800,), starts=20),
        _Part(four, _widths(50, 100, 200, 400, 800, trials=2), Schedule(0.1, 1200, 100), 0.7, bimodal=(800,),
             starts=20),
    ]  # fmt: skip


def parts(scale: str) -> list[_Part]:
    """What is run. At laptop scale CIFAR-10 depends on what is installed, and the labels say so."""
    if scale == "smoke":
        digits = Task("digits", tests=200)
        return [
            _Part(Task("gaussians", side=8, tests=500), _widths(16, 32, 64, trials=4), Schedule(0.02, 100, 16), 0.5,
                 bimodal=(64,), pairs=True, keeps=(8, 16, 32)),
            _Part(digits, _widths(20, 40, 80, trials=2), Schedule(0.3, 150, 50), 0.7, grid=(20, 80), bimodal=(80,),
                 starts=5),
            _Part(Task("digits", 3, tests=200), _widths(10, 20, 40, trials=2), Schedule(0.3, 150, 50), 0.7,
                 bimodal=(40,)),
        ]  # fmt: skip
    if scale == "laptop":
        return [
            _GAUSSIANS,
            _Part(
                Task("mnist"), (*_widths(100, 200, 400, 800, trials=3), (1600, 2), (3200, 2)),
                Schedule(0.2, 10 * _EPOCH, 100), 0.7, grid=(800, 3200), bimodal=(800, 3200), starts=20,
            ),
            _Part(
                Task("mnist", 3, examples=20_000), _widths(50, 100, 200, 400, 800, trials=3),
                Schedule(0.1, 2000, 100), 0.7, bimodal=(800,), starts=20,
            ),
            *_laptop_cifar(),
        ]  # fmt: skip
    features = ("vgg16", 128)
    return [
        _GAUSSIANS,
        _paper(Task("mnist"), 0.025, 80, 600, 0.65),
        _paper(Task("mnist", 3), 0.0125, 40, 600, 0.65),
        _paper(Task("cifar10", 3, *features), 0.004, 250, 500, 0.7),
        _paper(Task("cifar10", 4, *features), 0.0125, 80, 500, 0.7),
        _paper(Task("cifar10", 3), 0.0125, 80, 500, 0.7),
    ]


def cells(scale: str) -> Sequence[Cell]:
    """All parts of the page."""
    return [cell for part in parts(scale) for cell in part.cells()]


_VGG3, _VGG4 = (Task("cifar10", L, "vgg16", 128).label for L in (3, 4))
_MNIST2, _MNIST3 = (Task("mnist", L).label for L in (2, 3))


def _values() -> tuple[PaperValue, ...]:
    """What the text prints; bounds ("< 2 %") stand as their limits."""
    text = "section 5"
    out = [
        PaperValue({"what": "widths", "task": task, "N": 3200}, column, value, f"{text}: {words}")
        for task, column, value, words in (
            (_MNIST2, "error %", 2, "< 2 %"), (_MNIST2, "half error %", 3, "about 3 %"),
            (_VGG3, "error %", 14, "< 14 %"), (_VGG3, "half error %", 16, "< 16 %"),
            (_MNIST2, "training loss", 0.062, "plateau"), (_VGG3, "training loss", 0.415, "plateau"),
        )
    ]  # fmt: skip
    changes = ((_MNIST2, 0.35), (_MNIST3, 0.4), (_VGG3, 1.0), (_VGG4, 3.6))
    out += [
        PaperValue({"what": "widths", "task": task, "N": 12_800}, "error change %", value, f"{text} and Figure 4")
        for task, value in changes
    ]
    return tuple(out)


EXPERIMENT = Experiment(
    name=PAGE,
    title="Dropout stability and connectivity of wide mean-field networks",
    reference="Shevchenko and Mondelli 2020, Figures 1 to 4 and appendix D",
    cells=cells,
    tables=(rows,),
    figures=FIGURES,
    paper=_values(),
    claims=CLAIMS,
)
"""The page."""
